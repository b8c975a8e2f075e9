"""The hooks that a sample tap places, small and picklable, and what they share."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves

from fisheropt.directions import Directions
from fisheropt.likelihoods import Likelihood
from fisheropt.statistics import JointStatistic, Statistic
from fisheropt.taps.base import of_parameter
from fisheropt.taps.routes import Route
from fisheropt.taps.sink import Fold, Sink

JOINT = ""
"""The name of the leaf that a joint statistic of all parameters has."""


@final
class Channel:
    """What the hooks of one tap share. It holds leaves only, so it is copied and pickled with the model."""

    def __init__(self, leaves: dict[str, Tensor], sums: dict[str, Tensor], counts: dict[str, Tensor]) -> None:
        self.on = True
        self.leaves = leaves
        self.sums = sums
        self.counts = counts
        self.samples: int | None = None
        self.called: tuple[str, ...] = ()
        self.carrier: Tensor | None = None
        self.last: Tensor | None = None
        self.information: list[Tensor] = []
        self.parallel = False
        self.seed = 0

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"samples": None, "called": (), "carrier": None, "last": None}

    def observing(self) -> bool:
        """Whether a forward now leads to a backward that is to be read; torch.func has gradients of its own."""
        if not self.on or not torch.is_grad_enabled():
            return False
        return torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active()

    def shared(self) -> Tensor | None:
        """The sink that all layers share: of the running forward, or of the last one while checkpointing repeats it."""
        if self.carrier is None and not torch.compiler.is_compiling() and _repeated():
            return self.last
        return self.carrier

    def drop_gradients(self) -> None:
        """Forget what backward has left."""
        for leaf in (*self.leaves.values(), *self.sums.values(), *self.counts.values()):
            leaf.grad = None


def _repeated() -> bool:
    """Whether a non-reentrant checkpoint runs its forward again, whose graph is not the one that backward follows.

    A reentrant one runs a backward of its own, which would fold the coordinates of its part of the model alone.
    """
    in_backward: bool = torch._C._current_graph_task_id() != -1
    return in_backward and torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


@final
class LayerHook:
    """The forward hook that puts a sink on one module's output."""

    def __init__(self, channel: Channel, route: Route, statistic: Statistic, directions: dict[str, Directions]) -> None:
        self.channel = channel
        self.path, self.module, self.rule, self.names = route.path, route.module, route.rule, route.names
        self.in_place = route.rule.in_place
        self.statistic = statistic
        joint = isinstance(statistic, JointStatistic)
        self.directions = {n: directions[g] for n, g in route.names.items() if g in directions} if joint else None
        self.sinks = (1 if joint else 2 * len(route.names)) + 1

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if not self.channel.observing() or not self._trainable():
            return None
        carrier = None if self.directions is None else self.channel.shared()
        if self.directions is not None and carrier is None:
            return None
        self._check(output)
        own = (carrier,) if carrier is not None else self._leaves()
        saved, context = self.rule.saved(module, args, kwargs)
        count = self.channel.counts[self.path]
        return Sink.apply(self, context, output, *own, count, *saved)  # type: ignore[no-untyped-call]

    def _leaves(self) -> tuple[Tensor, ...]:
        names = self.names.values()
        return *(self.channel.leaves[name] for name in names), *(self.channel.sums[name] for name in names)

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
        if self.directions is None:
            if self.path in self.channel.called:
                raise RuntimeError(
                    f"{self._name()} is called several times a forward: summed apart, the cross terms of its calls would "
                    f"be lost. Use FullCovariance() or Projection(...), which sum over calls"
                )
            self.channel.called = (*self.channel.called, self.path)

    def contributions(self, saved: tuple[Tensor, ...], context: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The sinks' gradients: Σφ(hₙ) and Σhₙ of each parameter, or the joint z; then the number of samples."""
        names = self._trainable()
        with torch.autocast(grad.device.type, enabled=False):
            forms = self.rule.forms(self.module, names, saved, context, grad)
            forms = {n: f.to(self.statistic.accumulator(self.module.get_parameter(n))) for n, f in forms.items()}
            count = grad.new_full((), grad.shape[0], dtype=torch.float32)
            if self.directions is None:
                of = of_parameter(self.statistic).of
                statistics = (of(forms[n]) if n in forms else None for n in self.names)
                return *statistics, *(forms[n].sum() if n in forms else None for n in self.names), count
            shares = [form.project(self.directions[n]) for n, form in forms.items() if n in self.directions]
            return self._sum(shares, grad.shape[0]), count

    def _sum(self, shares: list[Tensor], samples: int) -> Tensor | None:
        return torch.stack(shares).sum(0) if shares else None

    def _trainable(self) -> tuple[str, ...]:
        return tuple(name for name in self.names if self.module.get_parameter(name).requires_grad)

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
        if not self.channel.observing():
            return
        for norm in self.coupling:
            if norm.training or norm.running_mean is None:
                raise RuntimeError(_coupled(norm))
        sizes = [x.shape[0] for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.ndim > 0]
        if not sizes:
            return
        samples = sizes[0] if len(sizes) == 1 else max(sizes, key=lambda size: (sizes.count(size), size))
        self.channel.samples = samples
        if not torch.compiler.is_compiling():
            inside = DistributedDataParallel._active_ddp_module is not None
            self.channel.parallel = inside or isinstance(module, DistributedDataParallel)
        if JOINT in self.channel.leaves:
            self.channel.carrier = Fold.apply(self.channel.leaves[JOINT], samples)  # type: ignore[no-untyped-call]


@final
class RootExit:
    """Closes the shared sink and, given a likelihood, measures the model Fisher by one extra backward."""

    def __init__(self, channel: Channel, likelihood: Likelihood | None) -> None:
        self.channel = channel
        self.likelihood = likelihood

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self.channel.samples = None
        self.channel.carrier, self.channel.last = None, self.channel.carrier
        if self.likelihood is None or self.channel.last is None or torch.compiler.is_compiling():
            return
        if not isinstance(output, Tensor):
            raise TypeError(
                f"likelihood= needs a model that returns its logits as one tensor, not {type(output).__name__}"
            )
        leaf = self.channel.leaves[JOINT]
        cotangent = self.likelihood.cotangent(output.detach(), self.channel.seed)
        (reading,) = torch.autograd.grad(output, leaf, cotangent, retain_graph=True)
        self.channel.information.append(reading)
        self.channel.seed += 1


def _coupled(norm: nn.Module) -> str:
    return (
        f"{type(norm).__name__} in train mode couples the samples of a batch: no per-sample gradient exists. Call .eval() "
        f"on it, use nn.GroupNorm or nn.LayerNorm, or give the optimizer model.parameters() and run two or more "
        f"backward() a step"
    )


PLACED = (LayerHook, RootEntry, RootExit)
"""The hooks on modules, by which a tap finds its own again."""
