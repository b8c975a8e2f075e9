"""The hooks that a sample tap places, small and picklable, and what they share."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from operator import attrgetter
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves

from fisheropt.likelihoods import Likelihood
from fisheropt.persample import PerSample
from fisheropt.statistics import JointStatistic, Statistic
from fisheropt.taps.base import of_parameter
from fisheropt.taps.channel import JOINT, Calls, Carrier, Channel, Information, Passage
from fisheropt.taps.lend import Lend, TakeBack
from fisheropt.taps.routes import Route
from fisheropt.taps.sink import Closed, Once, Sink


@final
class LayerHook:
    """The forward hook that puts a sink on one module's output."""

    def __init__(self, channel: Channel, route: Route, statistic: Statistic) -> None:
        self.channel = channel
        self.path, self.module, self.rule, self.names = route.path, route.module, route.rule, route.names
        self.in_place = route.rule.in_place
        self.statistic = statistic
        self.joint = isinstance(statistic, JointStatistic)
        self.lent: tuple[str, ...] = ()

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if not self.channel.observing() or not self._trainable():
            return None
        found = self._sinks()
        if found is None:
            return None
        own, place = found
        seen, others = self.rule.observed(output)
        saved, context = self.rule.saved(module, args, kwargs)
        self._check_looked_up(saved)
        self._check(seen)
        count = self.channel.counts[self.path]
        if place is None and not self.joint and not torch.compiler.is_compiling():
            count = Once.apply(count, Passage(self.channel))  # type: ignore[no-untyped-call]
        sinks = (*own, count)
        seen = Sink.apply(self, (context, place), len(sinks), seen, *sinks, *saved)  # type: ignore[no-untyped-call]
        return (seen, *(self._closed(x) for x in others)) if others else seen

    def _sinks(self) -> tuple[tuple[Tensor, ...], Any] | None:
        """The sinks of a call and what its backward leaves its forms with; None where no backward is to be read."""
        channel = self.channel
        if self.joint:
            carrier = channel.shared()
            return None if carrier is None else ((carrier.sink,), carrier.waiting)
        calls, statistic = channel.gathering(), of_parameter(self.statistic)
        if calls is not None:
            place = {
                name: (calls.gathering(self.names[name], statistic), name in self.lent) for name in self._trainable()
            }
            return tuple(gathering.sink for gathering, _ in place.values()), place
        if channel.samples is None and torch._C._current_graph_task_id() == -1:
            return None  # outside of the model's forward, and nothing repeats it
        self._single()
        leaves = [kept[name] for kept in (channel.leaves, channel.sums, channel.sizes) for name in self.names.values()]
        return tuple(leaves), None

    def lending(self) -> dict[str, Tensor]:
        """The leaves of Σₙ hₙ that autograd can reach with the weight's own gradient, where that has their dtype."""
        channel = self.channel
        if self.joint or not self.rule.lends or not channel.observing() or channel.gathering() is None:
            return {}
        weights = {name: attrgetter(name)(self.module) for name in self._trainable() if name in self.rule.lends}
        return {
            name: channel.sums[self.names[name]]
            for name, weight in weights.items()
            if weight.dtype is self.statistic.accumulator(weight) and not torch.is_autocast_enabled(weight.device.type)
        }

    def _single(self) -> None:
        """Refuse several uses of a parameter where each is squared by itself."""
        channel, names = self.channel, self.names.values()
        compiling = torch.compiler.is_compiling()
        gathered = () if compiling or channel.last_calls is None else channel.last_calls.of
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
            f"the loss uses, or in a compiled model could use, the attention weights that {self._name()} returns; only "
            f"gradients of its first output are seen. Call it with need_weights=False"
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
        names, (given, place) = self._trainable(), context
        with torch.autocast(grad.device.type, enabled=False):
            forms = self.rule.forms(self.module, names, saved, given, grad)
            forms = {n: f.to(self.statistic.accumulator(attrgetter(n)(self.module))) for n, f in forms.items()}
            count = grad.new_full((), grad.shape[0], dtype=torch.float32)
            if self.joint:
                if place is not None:
                    for name, form in forms.items():
                        place.keep(self.names[name], form)
                return self._project(forms), count
            if place is None:
                return *self._apart(forms, count), count
            for name, form in forms.items():
                gathering, summed = place[name]
                gathering.keep(form, summed)
            return *(torch.zeros_like(count) for _ in place), count

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

    def _trainable(self) -> tuple[str, ...]:
        return tuple(name for name in self.names if attrgetter(name)(self.module).requires_grad)

    def _name(self) -> str:
        return f"{type(self.module).__name__} {self.path!r}"


@final
class RootEntry:
    """Takes the number of samples when the model is called, and opens the sink that all layers share."""

    def __init__(self, channel: Channel, model: nn.Module) -> None:
        self.channel = channel
        self.coupling = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.channel.samples, self.channel.called, self.channel.carrier = None, (), None
        self.channel.calls, self.channel.inputs = None, ()
        if not self.channel.observing():
            return
        if self.channel.scores is not None and torch.compiler.is_compiling():
            self.channel.compiled = True
            return
        for norm in self.coupling:
            if norm.training or norm.running_mean is None:
                raise RuntimeError(_coupled(norm))
        inputs = tuple(x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.ndim > 0)
        if not inputs:
            return
        sizes = [x.shape[0] for x in inputs]
        self.channel.inputs = inputs
        samples = sizes[0] if len(sizes) == 1 else max(sizes, key=lambda size: (sizes.count(size), size))
        self.channel.samples = samples
        if not torch.compiler.is_compiling():
            inside = DistributedDataParallel._active_ddp_module is not None
            self.channel.parallel = inside or isinstance(module, DistributedDataParallel)
        if JOINT in self.channel.leaves:
            self.channel.carrier = Carrier(self.channel, samples)
        elif not torch.compiler.is_compiling():
            self.channel.calls = Calls(self.channel)


@final
class RootExit:
    """Closes the shared sink and, given a likelihood, measures the model Fisher by one extra backward."""

    def __init__(self, channel: Channel, likelihood: Likelihood | None) -> None:
        self.channel = channel
        self.likelihood = likelihood

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        channel, carrier = self.channel, self.channel.carrier
        channel.samples, channel.carrier, channel.inputs = None, None, ()
        if channel.calls is not None:
            channel.calls, channel.last_calls = None, channel.calls
        if carrier is None:
            return
        channel.last = carrier
        if self.likelihood is None or carrier.passage is None:
            return
        if not isinstance(output, Tensor):
            raise TypeError(
                f"likelihood= needs a model that returns its logits as one tensor, not {type(output).__name__}"
            )
        cotangent = self.likelihood.cotangent(output.detach(), channel.seed)
        carrier.passage.information = self._information(output, cotangent)
        channel.seed += carrier.passage.information is not None

    def _information(self, output: Tensor, cotangent: Tensor) -> Information | None:
        """One backward from the cotangent, whose scores are kept apart from those of the loss; None for a frozen model."""
        if not output.requires_grad:
            return None
        channel, held, respond = self.channel, self.channel.scores, self.channel.respond
        channel.scores, channel.respond, channel.measuring = held and held.blank(), True, True
        try:
            leaf = channel.leaves[JOINT]
            (reading,) = torch.autograd.grad(output, leaf, cotangent, retain_graph=True, allow_unused=True)
            return None if reading is None else Information(reading, channel.scores)
        finally:
            channel.scores, channel.respond, channel.measuring = held, respond, False


def _coupled(norm: nn.Module) -> str:
    return (
        f"{type(norm).__name__} in train mode couples the samples of a batch: no per-sample gradient exists. Call .eval() "
        f"on it, use nn.GroupNorm or nn.LayerNorm, or give the optimizer model.parameters() and run two or more "
        f"backward() a step"
    )


PLACED = (LayerHook, RootEntry, RootExit, Lend, TakeBack)
"""The hooks on modules, by which a tap finds its own again."""
