"""Per-sample statistics of a module, read from its ordinary backward."""

from __future__ import annotations

from typing import Any, cast, final

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves

from fisheropt.likelihoods import Likelihood
from fisheropt.persample import Dense
from fisheropt.statistics import JointStatistic, Moments, Statistic
from fisheropt.taps.base import Tap, Unit, joint_moments, of_parameter
from fisheropt.taps.routes import Route, routes
from fisheropt.taps.sink import Fold, Sink

JOINT = ""


@final
class Channel:
    """What the hooks of one tap share. It holds leaves only, so it is copied and pickled with the model."""

    def __init__(self, leaves: dict[str, Tensor], counts: dict[str, Tensor]) -> None:
        self.on = True
        self.leaves = leaves
        self.counts = counts
        self.totals: dict[str, Tensor] = {}
        self.bases: dict[str, Tensor | None] = {}
        self.samples: int | None = None
        self.called: tuple[str, ...] = ()
        self.carrier: Tensor | None = None
        self.last: Tensor | None = None
        self.information: Tensor | None = None
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
        for leaf in (*self.leaves.values(), *self.counts.values()):
            leaf.grad = None
        self.totals = {}
        self.bases = {}


def _repeated() -> bool:
    """Whether a non-reentrant checkpoint runs its forward again, whose graph is not the one that backward follows.

    A reentrant one runs a backward of its own, which would fold the coordinates of its part of the model alone.
    """
    in_backward: bool = torch._C._current_graph_task_id() != -1
    return in_backward and torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


@final
class LayerHook:
    """The forward hook that puts a sink on one module's output."""

    def __init__(self, channel: Channel, route: Route, tap: SampleTap) -> None:
        self.channel = channel
        self.path, self.module, self.rule, self.names = route.path, route.module, route.rule, route.names
        self.in_place = route.rule.in_place
        self.statistic = tap.statistic
        joint = isinstance(tap.statistic, JointStatistic)
        self.directions = (
            {n: tap.directions[g] for n, g in route.names.items() if g in tap.directions} if joint else None
        )
        self.sinks = (1 if joint else len(route.names)) + 1

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if not self.channel.observing() or not self._trainable():
            return None
        carrier = None if self.directions is None else self.channel.shared()
        if self.directions is not None and carrier is None:
            return None
        self._check(output)
        own = (carrier,) if carrier is not None else (self.channel.leaves[name] for name in self.names.values())
        saved = self.rule.saved(module, args, kwargs)
        return Sink.apply(self, output, *own, self.channel.counts[self.path], *saved)  # type: ignore[no-untyped-call]

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

    def contributions(self, saved: tuple[Tensor, ...], grad: Tensor) -> tuple[Tensor | None, ...]:
        """The sinks' gradients: one statistic a parameter, or the joint z; then the number of samples."""
        names = self._trainable()
        with torch.autocast(grad.device.type, enabled=False):
            forms = self.rule.forms(self.module, names, saved, grad)
            forms = {n: f.to(self.statistic.accumulator(self.module.get_parameter(n))) for n, f in forms.items()}
            count = grad.new_full((), grad.shape[0], dtype=torch.float32)
            if self.directions is None:
                of = of_parameter(self.statistic).of
                return *(of(forms[n]) if n in forms else None for n in self.names), count
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

    def __init__(self, channel: Channel) -> None:
        self.channel = channel

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.channel.samples, self.channel.called, self.channel.carrier = None, (), None
        if not self.channel.observing():
            return
        batch = next((x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.ndim > 0), None)
        if batch is None:
            return
        self.channel.samples = batch.shape[0]
        if not torch.compiler.is_compiling():
            inside = DistributedDataParallel._active_ddp_module is not None
            self.channel.parallel = inside or isinstance(module, DistributedDataParallel)
        if JOINT in self.channel.leaves:
            self.channel.carrier = Fold.apply(self.channel.leaves[JOINT], batch.shape[0])  # type: ignore[no-untyped-call]


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
        previous = self.channel.information
        self.channel.information = reading if previous is None else previous + reading
        self.channel.seed += 1


@final
class TotalHook:
    """Takes φ of a parameter's whole gradient each time backward has added to it, before anyone clips it."""

    def __init__(self, channel: Channel, name: str, statistic: Statistic) -> None:
        self.channel, self.name, self.statistic = channel, name, of_parameter(statistic)

    def __call__(self, parameter: Tensor) -> None:
        if not self.channel.on or parameter.grad is None:
            return
        base = self.channel.bases.get(self.name)
        total = parameter.grad.detach() if base is None else parameter.grad.detach() - base
        form = Dense(total.unsqueeze(0)).to(self.statistic.accumulator(parameter))
        self.channel.totals[self.name] = self.statistic.of(form)


@final
class BaseHook:
    """Keeps what a parameter's gradient held before the first backward of a reading: what zero_grad() left there."""

    def __init__(self, channel: Channel, name: str, parameter: Tensor) -> None:
        self.channel, self.name, self.parameter = channel, name, parameter

    def __call__(self, grad: Tensor) -> None:
        if self.channel.on and self.name not in self.channel.bases:
            held = self.parameter.grad
            self.channel.bases[self.name] = None if held is None else held.clone()


@final
class SampleTap(Tap):
    """Sinks on every module that uses the tapped parameters.

    Args:
        model: whose ordinary forward and backward are observed.
        statistic: what to collect.
        parameters: which, by name; all trainable ones if left out.
        likelihood: of the model's output; with it a joint statistic also measures the model Fisher.

    Raises:
        ValueError: for a trainable parameter without a route, or one that two modules share where the statistic of
            each by itself would lose their cross term.
    """

    unit: Unit = "sample"

    def __init__(
        self,
        model: nn.Module,
        statistic: Statistic,
        parameters: dict[str, Tensor] | None = None,
        likelihood: Likelihood | None = None,
    ) -> None:
        self.statistic = statistic
        self.parameters = _trainable(model) if parameters is None else parameters
        self.routes = routes(model, self.parameters)
        self.directions = statistic.directions(self.parameters) if isinstance(statistic, JointStatistic) else {}
        if not self.directions:
            _refuse_tied(self.routes)
        self.model, self.likelihood = model, likelihood
        counts = {r.path: torch.zeros((), device=self._device(), requires_grad=True) for r in self.routes}
        self.channel = Channel(self._leaves(), counts)
        self.attach()

    def attach(self) -> None:
        for route in self.routes:
            route.module.register_forward_hook(LayerHook(self.channel, route, self), with_kwargs=True)
        self.model.register_forward_pre_hook(RootEntry(self.channel), with_kwargs=True)
        self.model.register_forward_hook(RootExit(self.channel, self.likelihood), with_kwargs=True)
        self._handles: list[Any] = []
        if self.directions:
            return
        for name, p in self.parameters.items():
            if p.requires_grad:
                self._handles.append(p.register_hook(BaseHook(self.channel, name, p)))
                total = TotalHook(self.channel, name, self.statistic)
                self._handles.append(p.register_post_accumulate_grad_hook(total))

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        for module in {id(m): m for m in (self.model, *(route.module for route in self.routes))}.values():
            _unhook(module._forward_hooks, module._forward_hooks_with_kwargs, self.channel)
            _unhook(module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs, self.channel)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_handles": []}  # a copied parameter has lost its hooks, and handles do not travel

    def _device(self) -> torch.device:
        return next(iter(self.parameters.values())).device

    def _leaves(self) -> dict[str, Tensor]:
        """The leaves whose gradients are the readings."""
        statistic = self.statistic
        if not isinstance(statistic, JointStatistic):
            return {
                name: torch.zeros(
                    of_parameter(statistic).size(p), dtype=statistic.accumulator(p), device=p.device, requires_grad=True
                )
                for name, p in self.parameters.items()
            }
        size = statistic.rank(self.parameters) + 1
        dtype = torch.float32
        for p in self.parameters.values():
            dtype = torch.promote_types(dtype, statistic.accumulator(p))
        return {JOINT: torch.zeros(size, size, dtype=dtype, device=self._device(), requires_grad=True)}

    def augmented(self) -> Tensor | None:
        return self.channel.leaves[JOINT].grad

    def counts(self) -> dict[str, int]:
        """How many samples each module has seen since the last `clear`; reads values back to the host."""
        seen = {path: leaf.grad for path, leaf in self.channel.counts.items()}
        return {path: 0 if count is None else int(count) for path, count in seen.items()}

    def sums(self, name: str | None) -> Moments:
        if name is None:
            reading = self.augmented()
            self.check(self.counts(), 0 if reading is None else 1)
            return joint_moments(cast(Tensor, reading))
        return self.all_sums()[name]

    def all_sums(self) -> dict[str, Moments]:
        """The raw sums of every parameter, where the statistic is of each by itself."""
        counts = self.counts()
        self.check(counts, max(counts.values()))
        return {name: self._sums(name, max(counts.values())) for name in self.parameters}

    def _sums(self, name: str, count: int) -> Moments:
        second, total = self.channel.leaves[name].grad, self.channel.totals.get(name)
        if second is None or total is None:
            second = total = torch.zeros_like(self.channel.leaves[name], requires_grad=False)
        return Moments(second, total, count, self.statistic.shape)

    def check(self, counts: dict[str, int], samples: int) -> None:
        """Refuse a reading that misses samples or modules."""
        if samples == 0:
            raise RuntimeError(
                "no sample was seen since the last clear. Call the model itself, model(x), between building the optimizer "
                "or tap and backward(); a compiled model must be compiled, or called for the first time, after that"
            )
        for route in self.routes:
            used = any(self.parameters[n].grad is not None for n in route.names.values())
            if counts[route.path] == 0 and used:
                raise RuntimeError(
                    f"{route.path or 'the model'} ({type(route.module).__name__}) was never called, yet its parameters "
                    f"{list(route.names.values())} received gradients: their samples cannot be seen. Call the module; "
                    f"or give checkpoint(..., use_reentrant=False); or write a rule for the module that uses them, "
                    f"@fisheropt.rule(...)"
                )

    def clear(self) -> None:
        self.channel.drop_gradients()
        self.channel.information = None

    def drop_gradients(self) -> None:
        self.channel.drop_gradients()

    def enable(self, on: bool = True) -> None:
        self.channel.on = on


def _unhook(hooks: dict[int, Any], with_kwargs: dict[int, bool], channel: Channel) -> None:
    """Remove this tap's hooks, found by their channel, also from a copy of the module that they were placed on."""
    own = (LayerHook, RootEntry, RootExit)
    for key in [key for key, hook in hooks.items() if isinstance(hook, own) and hook.channel is channel]:
        del hooks[key]
        with_kwargs.pop(key, None)


def _trainable(model: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _refuse_tied(found: list[Route]) -> None:
    users: dict[str, list[str]] = {}
    for route in found:
        for name in route.names.values():
            users.setdefault(name, []).append(route.path)
    for name, paths in users.items():
        if len(paths) > 1:
            raise ValueError(
                f"{name} is shared by the modules {paths}: summed apart, their cross term would be lost. Use "
                f"FullCovariance() or Projection(...), which are exact for shared parameters"
            )
