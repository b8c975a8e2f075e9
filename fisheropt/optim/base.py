"""What the three optimizers share: how a reading is taken in, and the step of torch.optim.SGD around a direction.

A subclass says what to observe and how a reading changes the step; with its feature off the step is torch.optim.SGD's.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim.optimizer import _use_grad_for_differentiable
from torch.optim.sgd import sgd

from fisheropt.optim import running
from fisheropt.optim.amp import LossScale, loss_scale
from fisheropt.optim.eager import eager
from fisheropt.optim.finite import Undo, all_finite
from fisheropt.optim.fused import fused
from fisheropt.optim.group import Group, number
from fisheropt.optim.observing import ObservingOptimizer
from fisheropt.optim.reading import Reading, read
from fisheropt.optim.report import Report, group_report, nothing_measured
from fisheropt.statistics import Covariance
from fisheropt.statistics.base import Shape
from fisheropt.taps import SampleTap
from fisheropt.taps.outside import outside

_UNSEEN = 10
_LOOKED = 10  # readings: a weight used outside its module is a matter of the model's code, and stays

_OUTSIDE = (
    "{:.0%} of the squared gradient last measured did not come through the samples of the modules. A weight penalty in the "
    "loss, or a change of p.grad after backward(), does that and is no noise; but if a module's weight is used outside its "
    "call, as in x @ layer.weight, the noise of that use is missed: call the module, or write a rule, @fisheropt.rule(...)."
)


class FisherOptimizer(ObservingOptimizer):
    """SGD that sees how per-sample gradients scatter, in k directions of each parameter group."""

    _step_supports_amp_scaling = True
    _parts = 1
    """How many backward passes, each of a mean loss, made up the gradient of the step under way."""

    @abstractmethod
    def _decay(self, group: Group, count: int) -> float:
        """By what factor all earlier samples count less, given the number of new ones."""

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

    def _incomplete(self, scale: LossScale, loss: Any) -> bool:
        """Whether these gradients are but a part of a batch; the step then waits for the others."""
        return False

    def _control(self, scale: LossScale, loss: Any) -> None:
        """Decide on the next batch and the length of this step, once the noise was taken in."""

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
        if self._incomplete(scale, loss):
            return loss
        if not scale.overflow and not self._advanced(scale):
            finite = self._finite()
            if self._observe(scale, finite):
                self._control(scale, loss)
                self._guarded(scale, finite)
        self._plan(scale.overflow)
        return loss

    def _advanced(self, scale: LossScale) -> bool:
        """Whether the subclass has made this step by itself, in fewer operations."""
        return False

    def _finite(self) -> dict[torch.device, Tensor]:
        """For each device whether the gradients there are finite; nothing is asked of a differentiable step."""
        if any(group["differentiable"] for group in self.param_groups):
            return {}
        return all_finite([p.grad for group in self.param_groups for p in group["params"] if p.grad is not None])

    def _guarded(self, scale: LossScale, finite: dict[torch.device, Tensor]) -> None:
        """Update every group; where the answer is on a device, undo there what a non-finite gradient did."""
        flags = {device: flag for device, flag in finite.items() if device.type != "cpu"}
        if not flags:
            for group in self.param_groups:
                self._update(group, scale)
            return
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

    @eager
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
        gradient = reading.gradient
        group["signal"] = float(gradient @ gradient if gradient.ndim else gradient.square())
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
        if isinstance(tap, SampleTap):
            if not self._seen(tap, group):
                return None
            if group["measured"] < _LOOKED:
                group["outside"] = outside(tap)
        return read(tap, scale.statistics() * self._parts)

    def _seen(self, tap: SampleTap, group: Group) -> bool:
        """Whether the backward of these gradients went through the model.

        It need not: checkpoints make optimizer state by a step with gradients of their own. Ten times in a row is a
        compiled model that does not see the hooks.
        """
        if tap.rows() is not None:
            return True
        counts = tap.counts()
        if not any(counts.values()):
            group["unseen"] += 1
            if group["unseen"] < _UNSEEN or group["measured"]:
                return False
        tap.check(counts, max(counts.values()))
        if self._likelihood is not None and not tap.channel.information:
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
        if self._active(group) and fused(group, parameters, grads, buffers):
            return
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

    @eager
    def _plan(self, overflow: bool) -> None:
        """Count the step, forget its readings, and switch the taps on if the next step is due."""
        for group, tap in zip(self.param_groups, self._taps, strict=True):
            if not overflow:
                group["steps"] += 1
                group["samples"] += group["count"]
            if tap is not None:
                tap.clear()
                self._arm(tap, group)

    def _active(self, group: Group) -> bool:
        return bool(group["measured"])

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

    def _unwatched(self, group: Group) -> int:
        """How many parameters of a measured group are trained without being measured."""
        watched = {id(p) for p in self._tap_of(group).parameters.values()}
        return sum(p.requires_grad and id(p) not in watched for p in group["params"])

    def report(self) -> Report:
        """What the noise says about the fit, in numbers with their uncertainty and in words."""
        groups = [g for g in self.param_groups if g["measured"]]
        verdict, advice = self._words(groups) if groups else nothing_measured(any(self._taps))
        unseen = int(max(g["unseen"] for g in self.param_groups))
        if unseen:
            advice = (f"{unseen} due measurements found gradients that did not come through the model given.", *advice)
        apart = max(g["outside"] for g in self.param_groups)
        if apart:
            advice = (_OUTSIDE.format(apart), *advice)
        unwatched = sum(self._unwatched(group) for group in groups)
        if unwatched:
            advice = (
                f"{unwatched} parameters were frozen when the optimizer was built and step by their plain gradient; build it "
                f"again to watch them.",
                *advice,
            )
        first = self.param_groups[0]
        return Report(
            optimizer=type(self).__name__,
            steps=int(first["steps"]),
            samples=int(first["samples"]),
            measurements=int(first["measured"]),
            skipped=round(float(first["skipped"])),
            verdict=verdict,
            advice=advice,
            groups=tuple(group_report(g, self._tap_of(g).unit, self._details(g)) for g in groups),
            every=self._interval(groups[0]) if groups else 0,
            overhead=self._overhead(groups[0]) if groups else float("nan"),
        )
