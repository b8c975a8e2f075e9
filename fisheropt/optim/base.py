"""What the three optimizers share: torch's contract, the taps, and when to measure.

A subclass says what to observe and how a reading changes the step; with its feature off the step is torch.optim.SGD's.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import Optimizer, _use_grad_for_differentiable
from torch.optim.sgd import sgd

from fisheropt.likelihoods import Likelihood, resolve
from fisheropt.optim import running
from fisheropt.optim.amp import LossScale, loss_scale
from fisheropt.optim.finite import Undo, all_finite
from fisheropt.optim.reading import Reading, read
from fisheropt.optim.report import GroupReport, Report
from fisheropt.statistics import Covariance, JointStatistic, Trace
from fisheropt.statistics.base import Shape
from fisheropt.taps import MicrobatchTap, SampleTap, Tap

Parameters = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]
Group = dict[str, Any]

_EVERY_STEP_UNTIL = 10
_INTERVAL = 10
_UNSEEN = 10


class FisherOptimizer(Optimizer, ABC):
    """SGD that sees how per-sample gradients scatter, in k directions of each parameter group.

    Args:
        params_or_model: a module, whose samples are then seen one by one in its ordinary backward; or parameters, of
            which each backward is one observation.
        defaults: hyper-parameters of a group.
        likelihood: of the model's output, where the subclass uses the model Fisher.
    """

    _step_supports_amp_scaling = True
    _kept: ClassVar[tuple[str, ...]] = ()
    """Attributes of a subclass that must survive pickle and deepcopy."""

    def __init__(
        self, params_or_model: Parameters | nn.Module, defaults: Group, likelihood: Likelihood | str | None
    ) -> None:
        _check(defaults)
        self._model = params_or_model if isinstance(params_or_model, nn.Module) else None
        self._likelihood = resolve(likelihood)
        if self._likelihood is not None and self._model is None:
            raise ValueError(
                f"{type(self).__name__}(parameters, likelihood={likelihood!r}) cannot see the model's output; "
                f"write {type(self).__name__}(model, likelihood={likelihood!r})"
            )
        self._taps: list[Tap | None] = []
        given = list(self._model.named_parameters()) if self._model is not None else params_or_model
        super().__init__(cast(Any, given), defaults)
        weakref.finalize(self, _remove, self._taps)

    @abstractmethod
    def _decay(self, group: Group, count: int) -> float:
        """By what factor all earlier samples count less, given the number of new ones."""

    @abstractmethod
    def _statistic(self, group: Group, parameters: dict[str, Tensor]) -> JointStatistic | Trace | None:
        """What to observe of a group; None where its feature is off."""

    @abstractmethod
    def _fresh(self, tap: Tap | None) -> Group:
        """The subclass's own state of a group before any reading; its structure never changes, as DCP asks."""

    @abstractmethod
    def _learn(self, group: Group, reading: Reading) -> None:
        """Take a reading into the group's state."""

    @abstractmethod
    def _direction(self, group: Group, parameters: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
        """The direction to step against, given the gradients with weight decay."""

    @abstractmethod
    def _details(self, group: Group) -> dict[str, Any]:
        """What this optimizer adds to the report of a group."""

    @abstractmethod
    def _words(self, groups: list[Group]) -> tuple[str, tuple[str, ...]]:
        """The verdict and the advice of the report."""

    def add_param_group(self, param_group: Group) -> None:
        """Add a parameter group, with its state and its tap; hyper-parameters left out take the defaults."""
        if self._model is not None:
            param_group = _with_names(param_group, self._model, len(self.param_groups))
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        _check(group)
        for parameter in group["params"]:
            if parameter.is_complex():
                raise ValueError(
                    f"{type(self).__name__} takes real parameters, found complex ones; give it torch.view_as_real(p)"
                )
        tap = self._tap(group)
        self._taps.append(tap)
        self._prepare(group, tap)

    def _prepare(self, group: Group, tap: Tap | None) -> None:
        """Give the group its counters and its running means, where it lacks them."""
        for key in ("steps", "samples", "measured", "unseen", "skipped", "count", "signal"):
            group.setdefault(key, 0.0)
        for key, value in self._fresh(tap).items():
            group.setdefault(key, value)
        if tap is None:
            return
        shape = noise_shape(tap)
        device = device_of(tap)
        for key in ("covariance", "information"):
            running.start(group, key, torch.zeros(shape, dtype=torch.float64, device=device))
            if group[key].shape != shape:
                raise ValueError(
                    f"the state holds noise in {len(group[key])} directions, this optimizer measures {shape[0]}; build it "
                    f"with the directions= and the model of the checkpoint"
                )

    def _named(self, group: Group) -> dict[str, Tensor]:
        names = group.get("param_names") or [f"parameter {i}" for i in range(len(group["params"]))]
        return dict(zip(names, group["params"], strict=True))

    def _tap(self, group: Group) -> Tap | None:
        parameters = {name: p for name, p in self._named(group).items() if p.requires_grad and p.is_leaf}
        statistic = self._statistic(group, parameters) if parameters else None
        if statistic is None:
            return None
        if any(isinstance(p, DTensor) for p in parameters.values()):
            raise TypeError(
                f"{type(self).__name__} cannot yet measure parameters sharded by fully_shard; switch its feature off, or "
                f"train with DistributedDataParallel"
            )
        inside = set() if self._model is None else {id(p) for p in self._model.parameters()}
        if self._model is None or not any(id(p) in inside for p in parameters.values()):
            return MicrobatchTap(parameters, statistic)
        return SampleTap(self._model, statistic, parameters, self._likelihood)

    @_use_grad_for_differentiable
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step, and measure the noise if this step is due.

        Args:
            closure: clears the gradients, computes the loss, runs backward and returns the loss; optional.

        Returns:
            The closure's loss, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        scale = loss_scale(vars(self))
        if not scale.overflow:
            finite = self._finite()
            if self._observe(scale, finite):
                self._guarded(scale, finite)
        self._plan(scale.overflow)
        return loss

    def _finite(self) -> dict[torch.device, Tensor]:
        """For each device whether the gradients there are finite; nothing is asked of a differentiable step."""
        if any(group["differentiable"] for group in self.param_groups):
            return {}
        return all_finite([p.grad for group in self.param_groups for p in group["params"] if p.grad is not None])

    def _guarded(self, scale: LossScale, finite: dict[torch.device, Tensor]) -> None:
        """Update every group; where the answer is on a device, undo there what a non-finite gradient did."""
        flags = {device: flag for device, flag in finite.items() if device.type != "cpu"}
        changed = [
            p for group in self.param_groups for p in group["params"] if p.grad is not None and p.device in flags
        ]
        buffers = [self.state[p]["momentum_buffer"] for p in changed if "momentum_buffer" in self.state.get(p, {})]
        undo = Undo([*changed, *buffers])
        for group in self.param_groups:
            self._update(group, scale)
            for flag in flags.values():
                group["skipped"] = group["skipped"] + (~flag).float()
        undo.unless(flags)

    @torch.compiler.disable(recursive=True)  # type: ignore[untyped-decorator]
    def _observe(self, scale: LossScale, finite: dict[torch.device, Tensor]) -> bool:
        """Take in what the taps have read; False if the step must be skipped."""
        readings = [self._reading(i, scale) for i in range(len(self.param_groups))]
        known = all(bool(flag) for device, flag in finite.items() if device.type == "cpu")
        sound = known and all(reading is None or reading.finite for reading in readings)
        for group, reading in zip(self.param_groups, readings, strict=True):
            if not sound:
                group["skipped"] = group["skipped"] + 1
            elif reading is not None:
                self._take(group, reading)
        return sound

    def _take(self, group: Group, reading: Reading) -> None:
        """Fold the noise of a reading into the group's state, then let the subclass learn from it."""
        group["measured"] += 1
        group["count"] = float(reading.count)
        group["signal"] = float(reading.gradient.square().sum())
        if reading.covariance is not None:
            running.add(group, "covariance", reading.covariance, reading.count - 1, self._decay(group, reading.count))
            noise = reading.covariance if reading.covariance.ndim == 0 else reading.covariance.trace()
            group["signal"] -= float(noise) / reading.count
        self._learn(group, reading)

    def _reading(self, index: int, scale: LossScale) -> Reading | None:
        tap = self._taps[index]
        group = self.param_groups[index]
        if tap is None or not self._due(group) or all(p.grad is None for p in group["params"]):
            return None
        if isinstance(tap, SampleTap) and not self._seen(tap, group):
            return None
        return read(tap, scale.statistics())

    def _seen(self, tap: SampleTap, group: Group) -> bool:
        """Whether the backward of these gradients went through the model.

        It need not: checkpoints make optimizer state by a step with gradients of their own. Ten times in a row is a
        compiled model that does not see the hooks.
        """
        counts = tap.counts()
        if not any(counts.values()):
            group["unseen"] += 1
            if group["unseen"] < _UNSEEN or group["measured"]:
                return False
        tap.check(counts, max(counts.values()))
        if self._likelihood is not None and tap.channel.information is None:
            raise RuntimeError(
                "the likelihood's backward could not run inside the compiled model; give the optimizer the compiled "
                "module, Opt(torch.compile(model), ..., likelihood=...)"
            )
        return True

    def _update(self, group: Group, scale: LossScale) -> None:
        parameters = [p for p in group["params"] if p.grad is not None]
        if not parameters:
            return
        grads = [cast(Tensor, p.grad) for p in parameters]
        if any(g.is_sparse for g in grads):
            raise RuntimeError(
                f"{type(self).__name__} does not take sparse gradients; write nn.Embedding(..., sparse=False)"
            )
        grads = scale.unscale(grads)
        decay, maximize = group["weight_decay"], group["maximize"]
        if self._active(group):
            grads = list(torch._foreach_neg(grads)) if maximize else grads
            grads = list(torch._foreach_add(grads, parameters, alpha=decay)) if decay else grads
            grads = self._direction(group, parameters, grads)
            decay, maximize = 0.0, False
        self._sgd(group, parameters, grads, decay, maximize)

    def _sgd(self, group: Group, parameters: list[Tensor], grads: list[Tensor], decay: float, maximize: bool) -> None:
        momentum = group["momentum"]
        buffers = [self.state[p].get("momentum_buffer") for p in parameters] if momentum else []
        sgd(
            parameters,
            grads,
            buffers,
            foreach=False if group["differentiable"] else group["foreach"],
            weight_decay=decay,
            momentum=momentum,
            lr=group["lr"],
            dampening=group["dampening"],
            nesterov=group["nesterov"],
            maximize=maximize,
        )
        for parameter, buffer in zip(parameters, buffers, strict=False):
            self.state[parameter]["momentum_buffer"] = buffer

    @torch.compiler.disable(recursive=True)  # type: ignore[untyped-decorator]
    def _plan(self, overflow: bool) -> None:
        """Count the step, forget its readings, and switch the taps on if the next step is due."""
        for group, tap in zip(self.param_groups, self._taps, strict=True):
            if not overflow:
                group["steps"] += 1
                group["samples"] += group["count"]
            if tap is not None:
                tap.clear()
                self._arm(tap, group)

    def _tap_of(self, group: Group) -> Tap:
        """The tap of a measured group."""
        return next(
            tap for tap, held in zip(self._taps, self.param_groups, strict=True) if held is group and tap is not None
        )

    def _arm(self, tap: Tap, group: Group) -> None:
        """Switch the tap on if the step that comes next is measured."""
        tap.enable(self._due(group))
        if isinstance(tap, SampleTap):
            tap.channel.seed = int(group["steps"]) << 16

    def _active(self, group: Group) -> bool:
        return bool(group["measured"])

    def _due(self, group: Group) -> bool:
        """Whether the step that comes next is measured: the first ten, then each tenth, unless `every` says otherwise."""
        steps, every = int(group["steps"]), group["every"]
        if every == "auto":
            return steps < _EVERY_STEP_UNTIL or steps % _INTERVAL == 0
        return steps % int(every) == 0

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients and the readings that their backward has left."""
        super().zero_grad(set_to_none)
        for tap in self._taps:
            if tap is not None:
                tap.drop_gradients()

    @property
    def temperature(self) -> float:
        """η/b of the first group, the learning rate over the batch size last measured; nan before."""
        group = self.param_groups[0]
        return number(group["lr"]) / group["count"] if group["count"] else float("nan")

    def noise(self, group: int = 0) -> Covariance:
        """The running covariance of the minibatch gradient in the group's directions, with its degrees of freedom.

        Args:
            group: index of the parameter group.

        Raises:
            RuntimeError: if no covariance was measured so far.
        """
        held = self.param_groups[group]
        dof = running.effective_count(held, "covariance") if "covariance" in held else 0.0
        if not dof:
            raise RuntimeError(
                f"no noise covariance was measured in group {group}. Given parameters, one backward() is one observation "
                f"and a step needs two: write {type(self).__name__}(model, ...), or accumulate"
            )
        shape: Shape = "matrix" if held["covariance"].ndim else "trace"
        return Covariance(held["covariance"] / held["count"], held["count"], dof, shape)

    def report(self) -> Report:
        """What the noise says about the fit, in numbers with their uncertainty and in words."""
        groups = [g for g in self.param_groups if g["measured"]]
        verdict, advice = self._words(groups) if groups else _nothing(self._taps)
        unseen = int(max(g["unseen"] for g in self.param_groups))
        if unseen:
            advice = (f"{unseen} due measurements found gradients that did not come through the model given.", *advice)
        first = self.param_groups[0]
        return Report(
            optimizer=type(self).__name__,
            steps=int(first["steps"]),
            samples=int(first["samples"]),
            measurements=int(first["measured"]),
            skipped=round(float(first["skipped"])),
            verdict=verdict,
            advice=advice,
            groups=tuple(self._group_report(group) for group in groups),
        )

    def _group_report(self, group: Group) -> GroupReport:
        dof = running.effective_count(group, "covariance")
        count = group["count"]
        covariance = group["covariance"]
        trace = float(covariance.trace() if covariance.ndim else covariance)
        square = float(covariance.square().sum())
        nan = float("nan")
        return GroupReport(
            parameters=sum(p.numel() for p in group["params"]),
            unit=self._tap_of(group).unit,
            batch_size=count,
            temperature=number(group["lr"]) / count,
            count=running.effective_count(group, "information") or dof,
            dof=dof,
            noise_trace=trace if dof else nan,
            noise_trace_se=(2 * square / dof) ** 0.5 if dof else nan,
            signal=group["signal"],
            signal_se=(2 * square / (count * (count - 1))) ** 0.5 if dof and count > 1 else nan,
            details=self._details(group),
        )

    def __getstate__(self) -> dict[str, Any]:
        kept = ("_model", "_likelihood", "_taps", *self._kept)
        return super().__getstate__() | {name: vars(self)[name] for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        copied = "_taps" in state
        for group, tap in zip(self.param_groups, self._taps, strict=True):
            for key, value in self.defaults.items():
                group.setdefault(key, value)
            self._prepare(group, tap)
            if tap is not None:
                if copied:
                    tap.remove()
                    tap.attach()
                self._arm(tap, group)
        if copied:
            weakref.finalize(self, _remove, self._taps)


def device_of(tap: Tap) -> torch.device:
    """Where the tapped parameters are."""
    return next(iter(tap.parameters.values())).device


def noise_shape(tap: Tap) -> torch.Size:
    """The shape of the covariance that a tap measures."""
    if not isinstance(tap.statistic, JointStatistic):
        return torch.Size(())
    rank = tap.statistic.rank(tap.parameters)
    return torch.Size((rank, rank))


def _with_names(group: Group, model: nn.Module, index: int) -> Group:
    """The group with the model's names of its parameters, which torch wants for every group or for none."""
    if not isinstance(group, dict) or "params" not in group:
        return group
    given = group["params"]
    parameters = [given] if isinstance(given, Tensor) else list(given)
    names = {id(p): name for name, p in model.named_parameters()}
    named = [
        p if isinstance(p, tuple) else (names.get(id(p), f"group {index}.{i}"), p) for i, p in enumerate(parameters)
    ]
    return group | {"params": named}


def _remove(taps: list[Tap | None]) -> None:
    for tap in taps:
        if tap is not None:
            tap.remove()


def _nothing(taps: list[Tap | None]) -> tuple[str, tuple[str, ...]]:
    if any(tap is not None for tap in taps):
        return "Nothing was measured so far.", ("Take a step after a backward().",)
    return "The feature is off: this is plain SGD.", ()


def number(value: float | Tensor) -> float:
    """A hyper-parameter as a number, also where it is a tensor that is learnt."""
    return float(value.detach()) if isinstance(value, Tensor) else float(value)


def _check(group: Group) -> None:
    """Refuse hyper-parameters outside their range."""
    lr = group["lr"]
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError(f"lr must be a number or a tensor of one element, found one of shape {tuple(lr.shape)}")
    for key in ("lr", "momentum", "weight_decay"):
        if number(group[key]) < 0:
            raise ValueError(f"{key}={group[key]} is negative; write {key}=0 to switch it off")
    if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
        raise ValueError("nesterov=True needs momentum > 0 and dampening=0")
    if group["foreach"] and group["differentiable"]:
        raise RuntimeError("foreach=True and differentiable=True exclude each other; leave one out")
    every = group["every"]
    if every != "auto" and (isinstance(every, str) or every < 1 or every != int(every)):
        raise ValueError(f"every={every!r} must be 'auto' or a whole number of steps >= 1")
    if not group["overhead"] > 0:
        raise ValueError(f"overhead={group['overhead']} must be positive, the share of a step that measuring may cost")
