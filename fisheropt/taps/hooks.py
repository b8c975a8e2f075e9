"""The hooks that a sample tap places, small and picklable, and what they share."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves

from fisheropt.likelihoods import Likelihood
from fisheropt.persample import PerSample
from fisheropt.statistics import JointStatistic, Statistic
from fisheropt.taps.base import of_parameter
from fisheropt.taps.channel import JOINT, Carrier, Channel, Information, Passage
from fisheropt.taps.routes import Route
from fisheropt.taps.scores import Scores
from fisheropt.taps.sink import Once, Sink


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
        if not self.joint and not torch.compiler.is_compiling():
            count = Once.apply(count, Passage(self.channel))  # type: ignore[no-untyped-call]
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
        channel, carrier = self.channel, self.channel.carrier
        channel.samples, channel.carrier = None, None
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
        channel.scores, channel.respond, channel.measuring = None if held is None else Scores(), True, True
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


PLACED = (LayerHook, RootEntry, RootExit)
"""The hooks on modules, by which a tap finds its own again."""
