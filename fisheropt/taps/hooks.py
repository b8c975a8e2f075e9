"""The hooks that a sample tap places on layers, small and picklable."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import reduce
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from fisheropt.persample import PerSample
from fisheropt.statistics import JointStatistic, Statistic
from fisheropt.taps.apart import Apart
from fisheropt.taps.base import of_parameter
from fisheropt.taps.call import Call
from fisheropt.taps.channel import Channel, Passage
from fisheropt.taps.lend import Lend, alone, rest_of, take_back
from fisheropt.taps.root import RootEntry, RootExit
from fisheropt.taps.routes import Route
from fisheropt.taps.shapes import call
from fisheropt.taps.sink import Closed, Once, Seen, Sink


@final
class LayerHook:
    """The forward hook that puts a sink on one module's output."""

    def __init__(self, channel: Channel, route: Route, statistic: Statistic) -> None:
        self.channel = channel
        self.path, self.module, self.rule, self.names = route.path, route.module, route.rule, route.names
        self.in_place = route.rule.in_place
        self.statistic = statistic
        self.joint = isinstance(statistic, JointStatistic)
        self.owners = {name: _owner(route.module, name) for name in route.names}
        self.lendable = tuple(name for name in route.names if name in route.rule.lends)
        self.lent: dict[str, Tensor] = {}

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if not torch.is_grad_enabled():
            return None
        lent, self.lent = self.lent, {}
        take_back(module, self.rule.lends)
        if output is None and self.rule.lends:  # the call has failed
            return None
        channel = self.channel
        if not channel.observing():
            return None
        names = self._trainable()
        if not names:
            return None
        current = channel.current()
        if current is None and not self._met():
            return None
        saved, context = self.rule.saved(module, args, kwargs)
        seen, others = self.rule.observed(output)
        self._check_whole(saved)
        self._check_looked_up(saved)
        self._check(seen)
        channel.shapes = (*channel.shapes, call(self.path, seen, saved, context))
        if current is None:
            seen = self._directly(seen, saved, context)
        else:
            if channel.forward is not None:
                for name in names:
                    current[0].expect(self.names[name])
            met = Call(self, *current, names, lent, context, rest_of(args, kwargs) if lent else None)
            x = saved[0] if lent and saved and saved[0].requires_grad else None
            seen = Seen.apply(met, saved, seen, current[1], x, *lent.values())  # type: ignore[no-untyped-call]
        return self.rule.returned(self.module, seen, others, self._closed)

    def _met(self) -> bool:
        """Whether a backward without Python objects is to be read: of a compiled graph, or of a reentrant checkpoint."""
        if self.joint:
            if self.channel.scores is not None:  # which keeps tensors from layer to layer
                self.channel.compiled = self.channel.compiled or torch.compiler.is_compiling()
                return False
            return self.channel.carrier is not None
        return self.channel.samples is not None or torch._C._current_graph_task_id() != -1

    def _directly(self, seen: Tensor, saved: tuple[Tensor, ...], context: Any) -> Tensor:
        """Leaves as the sinks of this call alone."""
        channel, count = self.channel, self.channel.counts[self.path]
        own: tuple[Tensor, ...]
        if self.joint:
            assert channel.carrier is not None
            own = (channel.carrier,)
        else:
            self._single()
            own = tuple(
                kept[name] for kept in (channel.leaves, channel.sums, channel.sizes) for name in self.names.values()
            )
            if not torch.compiler.is_compiling():
                count = Once.apply(count, Passage(channel))  # type: ignore[no-untyped-call]
        sinks = (*own, count)
        found: Tensor = Sink.apply(self, context, len(sinks), seen, *sinks, *saved)  # type: ignore[no-untyped-call]
        return found

    def lending(self) -> dict[str, Tensor]:
        """The weights whose gradient comes with the statistic: in full precision, and while nobody else looks at them."""
        channel, module = self.channel, self.module
        if not channel.on or channel.scores is not None or channel.sharded or not channel.observing():
            return {}
        if channel.current() is None or not alone(module, PLACED) or "forward" in vars(module):
            return {}
        found: dict[str, Tensor] = {}
        for name in self.lendable:
            weight = module._parameters.get(name)
            if weight is None or not weight.requires_grad or name in vars(module) or type(weight) not in _PLAIN:
                continue
            if any(getattr(weight, held, None) for held in _STEPPED):
                continue
            if weight.dtype is self.statistic.accumulator(weight):
                found[name] = weight
        if found and torch.is_autocast_enabled(next(iter(found.values())).device.type):
            return {}
        return found

    def _single(self) -> None:
        """Refuse several uses of a parameter where each is squared by itself."""
        channel, names = self.channel, self.names.values()
        last = None if torch.compiler.is_compiling() else channel.last
        gathered = last.calls if isinstance(last, Apart) else ()
        if self.path in channel.called or any(name in channel.tied or name in gathered for name in names):
            raise RuntimeError(
                f"{self._name()} is called several times a forward, or shares a parameter, inside a compiled model or a "
                f"reentrant checkpoint: summed apart, the cross terms of its calls would be lost. Use FullCovariance() or "
                f"Projection(...), run the model without torch.compile, or write checkpoint(..., use_reentrant=False)"
            )
        channel.called = (*channel.called, self.path)

    def _closed(self, other: Any) -> Any:
        """Another output of the module, through which no gradient may come."""
        if not isinstance(other, Tensor) or not other.requires_grad:
            return other
        if torch.compiler.is_compiling():
            raise RuntimeError(self._beside())
        return Closed.apply(other, self._beside())  # type: ignore[no-untyped-call]

    def _beside(self) -> str:
        return (
            f"only gradients of the first output of {self._name()} are seen, and the loss uses, or in a compiled model could "
            f"use, {self.rule.beside}"
        )

    def _check_whole(self, saved: tuple[Tensor, ...]) -> None:
        """Refuse to run a module again of whose parameters this rank has but a part."""
        if self.channel.sharded and any(isinstance(x, DTensor) for x in saved):
            raise RuntimeError(
                f"{self._name()} is run again for its per-sample gradients, and fully_shard has cut parameters of its "
                f"children, which are whole in their own calls only. Write fully_shard on {self._name()} as a whole, "
                f"not on what it holds; or write a rule, @fisheropt.rule({type(self.module).__name__})"
            )

    def _check(self, output: Any) -> None:
        """Refuse an output whose samples cannot be told apart."""
        if not isinstance(output, Tensor):
            raise TypeError(
                f"{self._name()} returns {type(output).__name__}; the generic rule needs one tensor with the samples on "
                f"its first axis. Write a rule, @fisheropt.rule({type(self.module).__name__}), or return a tensor"
            )
        samples = self.channel.samples
        if samples is None:
            return
        if output.ndim == 0 or output.shape[0] != samples:
            raise RuntimeError(
                f"{self._name()} returns a tensor of shape {tuple(output.shape)} in a batch of {samples} samples: its first "
                f"axis is not the sample. Keep the samples on the first axis, x.unflatten(0, (n, -1)), and take the "
                f"loss outside the model"
            )
        if self.channel.by_token:
            self._check_tokens(output)

    def _check_tokens(self, output: Tensor) -> None:
        """Refuse an output whose tokens cannot be told apart."""
        axes = self.rule.per_position(self.module)
        if axes is None or output.ndim < 2 + axes or output.shape[1] != self.channel.tokens:
            raise RuntimeError(
                f"{self._name()} returns a tensor of shape {tuple(output.shape)} for {self.channel.samples} samples of "
                f"{self.channel.tokens} tokens: its second axis is not the token. Write observe(..., sample='sequence'), or "
                f"parameters=[...] for the layers whose outputs are [samples, tokens, ...]"
            )

    def _check_looked_up(self, saved: tuple[Tensor, ...]) -> None:
        """Refuse a row of indices that may be positions: as many as samples, they would be taken for samples."""
        if self.channel.samples is None:
            return
        for x in saved:
            if x.ndim != 1 or x.is_floating_point() or isinstance(x, nn.Parameter) or self.channel.given(x):
                continue
            raise RuntimeError(
                f"{self._name()} was called with {len(x)} indices that are no input of the model, so that positions cannot "
                f"be told from samples. Positions every sample has: write module(torch.arange(T, device=x.device)"
                f".expand(len(x), -1)); one index for each sample: write module(index[:, None]).squeeze(1)"
            )

    def contributions(self, saved: tuple[Tensor, ...], context: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The sinks' gradients: Σφ(hₙ) and Σhₙ of each parameter, or the joint z; then the number of samples."""
        with torch.autocast(grad.device.type, enabled=False):
            forms = self.forms(self._trainable(), saved, context, grad)
            seen = self.seen(grad)
            if self.joint:
                return self._project(forms), seen
            return *self._apart(forms, seen[0]), seen

    def forms(
        self, names: tuple[str, ...], saved: tuple[Tensor, ...], context: Any, grad: Tensor
    ) -> dict[str, PerSample]:
        """The forms of the named parameters, in the dtype of the sums."""
        if self.channel.by_token:
            grad, saved = grad.flatten(0, 1), tuple(x.flatten(0, 1) for x in saved)
        forms = self.rule.forms(self.module, names, saved, context, grad)
        if len(forms) < len(names):
            raise RuntimeError(self._forgotten(names, forms))
        forms = {n: f.to(self.statistic.accumulator(self.parameter(n))) for n, f in forms.items()}
        if self.channel.ways:
            forms = {n: replace(f, way=self.channel.ways.get(self.names[n])) for n, f in forms.items()}
        return forms

    def _forgotten(self, names: tuple[str, ...], forms: dict[str, PerSample]) -> str:
        left_out = [self.names[name] for name in names if name not in forms]
        return (
            f"the rule {type(self.rule).__name__} of {self._name()} gives no per-sample gradients of {', '.join(left_out)}; "
            f"write them into what its forms(...) returns, or model.<parameter>.requires_grad_(False)"
        )

    def seen(self, grad: Tensor) -> Tensor:
        """The number of samples, and of those with a gradient where that is watched."""
        if self.channel.by_token:
            grad = grad.flatten(0, 1)
        seen = grad.new_full((2,), grad.shape[0], dtype=torch.float32)
        if self.channel.watching:
            seen[1] = grad.flatten(1).ne(0).any(1).sum()
        return seen

    def _apart(self, forms: dict[str, PerSample], count: Tensor) -> Iterator[Tensor | None]:
        """Σφ(hₙ), Σhₙ and the number of samples of each parameter, by this call alone."""
        of = of_parameter(self.statistic).of
        yield from (of(forms[n]) if n in forms else None for n in self.names)
        yield from (forms[n].sum() if n in forms else None for n in self.names)
        yield from (count if n in forms else None for n in self.names)

    def _project(self, forms: dict[str, PerSample]) -> Tensor | None:
        """The sum over the module's parameters of their shares of z."""
        along = self.channel.directions
        shares = [form.project(along[self.names[n]]) for n, form in forms.items() if self.names[n] in along]
        return reduce(torch.add, shares) if shares else None

    def parameter(self, name: str) -> Tensor:
        """The one that the module has now, by its own name of it."""
        owner, own = self.owners[name]
        found = owner._parameters.get(own)
        return getattr(owner, own) if found is None else found

    def _trainable(self) -> tuple[str, ...]:
        return tuple([name for name in self.owners if self.parameter(name).requires_grad])

    def _name(self) -> str:
        return f"{type(self.module).__name__} {self.path!r}"


def _owner(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that has a parameter, and its own name of it."""
    path, _, own = name.rpartition(".")
    return module.get_submodule(path), own


_PLAIN = (Tensor, nn.Parameter)
_STEPPED = ("_post_accumulate_grad_hooks", "_in_backward_optimizers")
"""What a weight has that may be changed as soon as its gradient is there: lent, before the layer's own backward."""
PLACED = (LayerHook, RootEntry, RootExit, Lend)
"""The hooks on modules, by which a tap finds its own again."""
