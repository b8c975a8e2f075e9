"""The hooks that a sample tap places, small and picklable, and what they share."""

from __future__ import annotations

from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves

from fisheropt.directions import Directions
from fisheropt.likelihoods import Likelihood
from fisheropt.persample import PerSample
from fisheropt.statistics import JointStatistic, Statistic
from fisheropt.taps.base import of_parameter
from fisheropt.taps.routes import Route
from fisheropt.taps.scores import Scores, Waiting
from fisheropt.taps.sink import Fold, Sink

JOINT = ""
"""The name of the leaf that a joint statistic of all parameters has."""


class Information(NamedTuple):
    """What the likelihood's backward of one forward has read: the folded coordinates and, where asked for, the scores."""

    augmented: Tensor
    scores: Scores | None

    def plus(self, other: Information) -> Information:
        """Over the samples of both."""
        scores = None if self.scores is None or other.scores is None else self.scores.merge(other.scores)
        return Information(self.augmented + other.augmented, scores)


@final
class Channel:
    """What the hooks of one tap share. It holds leaves only, so it is copied and pickled with the model.

    Args:
        leaves: whose gradients are the readings.
        sums: whose gradients are Σₙ hₙ.
        counts: whose gradients are numbers of samples.
        directions: of a joint statistic, in each parameter.
        scores: where the response of the directions is collected; None for other statistics.
    """

    def __init__(
        self,
        leaves: dict[str, Tensor],
        sums: dict[str, Tensor],
        counts: dict[str, Tensor],
        directions: dict[str, Directions],
        scores: Scores | None,
    ) -> None:
        self.on = True
        self.directions = directions
        self.scores = scores
        self.respond = True
        self.compiled = False
        self.leaves = leaves
        self.sums = sums
        self.counts = counts
        self.samples: int | None = None
        self.called: tuple[str, ...] = ()
        self.carrier: Carrier | None = None
        self.last: Carrier | None = None
        self.information: list[Information] = []
        self.parallel = False
        self.seed = 0

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"samples": None, "called": (), "carrier": None, "last": None}

    def observing(self) -> bool:
        """Whether a forward now leads to a backward that is to be read; torch.func has gradients of its own."""
        if not self.on or not torch.is_grad_enabled():
            return False
        return torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active()

    def shared(self) -> Carrier | None:
        """The sink that all layers share: of the running forward, or of the last one while checkpointing repeats it."""
        if self.carrier is None and not torch.compiler.is_compiling() and _repeated():
            return self.last
        return self.carrier

    def drop_gradients(self) -> None:
        """Forget what backward has left."""
        for leaf in (*self.leaves.values(), *self.sums.values(), *self.counts.values()):
            leaf.grad = None
        if self.scores is not None:
            self.scores = Scores()


@final
class Carrier:
    """The sink [n, k] of one forward, which all its layers share, and the forms that wait for its gradient."""

    def __init__(self, channel: Channel, samples: int) -> None:
        self.channel = channel
        self.waiting = None if channel.scores is None else Waiting()
        folded = None if self.waiting is None else self
        self.sink: Tensor = Fold.apply(channel.leaves[JOINT], samples, folded)  # type: ignore[no-untyped-call]

    def fold(self, z: Tensor) -> None:
        """Turn the waiting forms into responses, now that their coordinates are complete."""
        scores = self.channel.scores
        assert self.waiting is not None and scores is not None
        with torch.autocast(z.device.type, enabled=False):
            scores.add(self.waiting.take(), z, self.channel.respond)


def _repeated() -> bool:
    """Whether a non-reentrant checkpoint runs its forward again, whose graph is not the one that backward follows.

    A reentrant one runs a backward of its own, which would fold the coordinates of its part of the model alone.
    """
    in_backward: bool = torch._C._current_graph_task_id() != -1
    return in_backward and torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


@final
class LayerHook:
    """The forward hook that puts a sink on one module's output."""

    def __init__(self, channel: Channel, route: Route, statistic: Statistic) -> None:
        self.channel = channel
        self.path, self.module, self.rule, self.names = route.path, route.module, route.rule, route.names
        self.in_place = route.rule.in_place
        self.statistic = statistic
        self.joint = isinstance(statistic, JointStatistic)
        self.sinks = (1 if self.joint else 2 * len(route.names)) + 1

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if not self.channel.observing() or not self._trainable():
            return None
        carrier = self.channel.shared() if self.joint else None
        if self.joint and carrier is None:
            return None
        self._check(output)
        own = (carrier.sink,) if carrier is not None else self._leaves()
        saved, context = self.rule.saved(module, args, kwargs)
        waiting = None if carrier is None else carrier.waiting
        count = self.channel.counts[self.path]
        return Sink.apply(self, (context, waiting), output, *own, count, *saved)  # type: ignore[no-untyped-call]

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
        if not self.joint:
            if self.path in self.channel.called:
                raise RuntimeError(
                    f"{self._name()} is called several times a forward: summed apart, the cross terms of its calls would "
                    f"be lost. Use FullCovariance() or Projection(...), which sum over calls"
                )
            self.channel.called = (*self.channel.called, self.path)

    def contributions(self, saved: tuple[Tensor, ...], context: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The sinks' gradients: Σφ(hₙ) and Σhₙ of each parameter, or the joint z; then the number of samples."""
        names, (given, waiting) = self._trainable(), context
        with torch.autocast(grad.device.type, enabled=False):
            forms = self.rule.forms(self.module, names, saved, given, grad)
            forms = {n: f.to(self.statistic.accumulator(self.module.get_parameter(n))) for n, f in forms.items()}
            count = grad.new_full((), grad.shape[0], dtype=torch.float32)
            if not self.joint:
                of = of_parameter(self.statistic).of
                statistics = (of(forms[n]) if n in forms else None for n in self.names)
                return *statistics, *(forms[n].sum() if n in forms else None for n in self.names), count
            if waiting is not None:
                for name, form in forms.items():
                    waiting.keep(self.names[name], form)
            return self._project(forms), count

    def _project(self, forms: dict[str, PerSample]) -> Tensor | None:
        """The sum over the module's parameters of their shares of z."""
        along = self.channel.directions
        shares = [form.project(along[self.names[n]]) for n, form in forms.items() if self.names[n] in along]
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
        if self.channel.scores is not None and torch.compiler.is_compiling():
            self.channel.compiled = True
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
            self.channel.carrier = Carrier(self.channel, samples)


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
        cotangent = self.likelihood.cotangent(output.detach(), self.channel.seed)
        self.channel.information.append(self._information(output, cotangent))
        self.channel.seed += 1

    def _information(self, output: Tensor, cotangent: Tensor) -> Information:
        """One backward from the cotangent, whose scores are kept apart from those of the loss."""
        channel, held = self.channel, self.channel.scores
        channel.scores, channel.respond = None if held is None else Scores(), True
        try:
            (reading,) = torch.autograd.grad(output, channel.leaves[JOINT], cotangent, retain_graph=True)
            return Information(reading, channel.scores)
        finally:
            channel.scores, channel.respond = held, False


def _coupled(norm: nn.Module) -> str:
    return (
        f"{type(norm).__name__} in train mode couples the samples of a batch: no per-sample gradient exists. Call .eval() "
        f"on it, use nn.GroupNorm or nn.LayerNorm, or give the optimizer model.parameters() and run two or more "
        f"backward() a step"
    )


PLACED = (LayerHook, RootEntry, RootExit)
"""The hooks on modules, by which a tap finds its own again."""
