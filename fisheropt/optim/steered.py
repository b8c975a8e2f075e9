"""An optimizer whose batch size, or length of step, a controller steers while it trains."""

from __future__ import annotations

import json
from abc import abstractmethod
from itertools import groupby
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from fisheropt.control import GradientNoise, Part, history
from fisheropt.likelihoods import Likelihood
from fisheropt.optim import temperature
from fisheropt.optim.amp import LossScale
from fisheropt.optim.base import FisherOptimizer
from fisheropt.optim.eager import eager
from fisheropt.optim.gathering import Gathering
from fisheropt.optim.group import Group
from fisheropt.optim.metrics.structure import InMetric
from fisheropt.optim.observing import Parameters
from fisheropt.optim.reading import Reading
from fisheropt.optim.signal import decay_in_square, of_samples
from fisheropt.optim.steering import Steering, rate
from fisheropt.taps import Tap
from fisheropt.taps.reduce import ranks, reduce_sum
from fisheropt.taps.shards import cut, dot, run_of
from fisheropt.theory.sketch import CountSketch

_SKETCH = CountSketch()


class SteeredOptimizer(FisherOptimizer):
    """SGD in a metric P, steered by a controller from the signal and the noise of the first group's gradient.

    Args:
        params_or_model: as of `ObservingOptimizer`.
        defaults: hyper-parameters of a group.
        likelihood: of the model's output.
        steering: asks the controller, and does what it says.
    """

    _kept: ClassVar[tuple[str, ...]] = ("_steering",)

    def __init__(
        self,
        params_or_model: Parameters | nn.Module,
        defaults: Group,
        likelihood: Likelihood | str | None,
        steering: Steering,
    ) -> None:
        if steering.wants("drift") and defaults["momentum"]:
            raise ValueError(
                f"{type(self).__name__}(controller={steering.name!r}, momentum={defaults['momentum']}): its statistic is of "
                f"steps without momentum; write momentum=0"
            )
        self._steering = steering
        self._begin()
        super().__init__(params_or_model, defaults, likelihood)

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "_steering" not in state:
            self._check_saved(state["param_groups"][0])
        super().__setstate__(state)
        if "_gathering" in vars(self) and self._gathering.under_way:  # the readings of parts that come again
            for tap in self._taps:
                if tap is not None:
                    tap.clear()
        first = self.param_groups[0]
        loaded = {key: _unwritten(x) for key, x in first["controller_state"].items()}
        self._steering.state, first["controller_state"] = loaded or self._steering.state, {}
        for group in self.param_groups:
            group["budget"], group["advise"] = self._steering.budget, self._steering.advise
        self._begin()

    def state_dict(self) -> dict[str, Any]:
        """torch's, with the controller's state in the first group.

        Its histories are written out there: of lists, DCP takes each number for a key of its own, and
        of tensors the length, neither of which a fresh optimizer has.
        """
        state = super().state_dict()
        state["param_groups"][0]["controller_state"] = {
            key: json.dumps(x) if isinstance(x, list) else x for key, x in self._steering.state.items()
        }
        return state

    def _check_saved(self, group: Group) -> None:
        saved, own, owner = group.get("controller", self._steering.name), self._steering.name, type(self).__name__
        if saved != own:
            raise ValueError(
                f"{owner}.load_state_dict(state): it was saved with controller={saved!r}, this optimizer has {own!r}, which "
                f"cannot go on from it; build it as {owner}(..., controller={saved!r})"
            )

    def _begin(self) -> None:
        """Nothing gathered, and nothing measured in the step under way."""
        self._gathering = Gathering()
        self._void = False
        self._part: Part | None = None
        self._latest: Reading | None = None
        self._latest_in_metric: InMetric | None = None

    def _start(self, group: Group, tap: Tap | None) -> None:
        super()._start(group, tap)
        if group is self.param_groups[0] and self._steering.wants("sketches"):
            for key, value in history.fresh().items():
                group.setdefault(key, value)

    @abstractmethod
    def _noise(self, group: Group, reading: Reading, decay: float) -> GradientNoise | None:
        """Signal and noise of a reading in the metric.

        Args:
            group: the first one.
            reading: of its gradient.
            decay: what weight decay adds to the gradient's squared norm.
        """

    def _preconditioned(self, group: Group, parameters: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
        """P g, in the shapes of the parameters; here of P = I."""
        return gradients

    def _rooted(self, group: Group, parameters: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
        """P^½ g in any shape; here of P = I."""
        return gradients

    @eager
    def _incomplete(self, scale: LossScale, loss: Any) -> bool:
        arrivals = self._steering.arrivals
        if arrivals is None and not self._gathering.under_way:
            self._part, self._parts, self._void = None, 1, False
            return False
        self._part, self._parts = None if arrivals is None else arrivals.next(), 1
        part = self._part
        if part is None or part.first:
            self._void = self._gathering.under_way
            self._gathering = Gathering()
        if part is None or (part.first and part.last):
            return False
        if not part.first and not self._gathering.under_way:  # the rest of a batch whose begin was forgotten by a load
            return True
        self._gathering.add([p for group in self.param_groups for p in group["params"]], part, scale, loss)
        self._void = self._void or not self._gathering.uniform
        if part.last:
            self._parts = self._gathering.finish(scale)
        return not part.last

    def _reading(self, index: int, scale: LossScale) -> Reading | None:
        """None of a batch whose readings are not one: its first parts were read twice, or by another loss scale."""
        return None if self._void else super()._reading(index, scale)

    def watch(self, scale: LossScale) -> None:
        """All of a step but the update of the parameters, for an optimizer that makes that.

        Args:
            scale: of the loss in backward.
        """
        self._incomplete(scale, None)
        if not scale.overflow and self._observe(scale, {}):
            self._control(scale, None)
        self._plan(scale.overflow)

    def remove(self) -> None:
        """Take all hooks off the model; nothing is measured any more."""
        for tap in self._taps:
            if tap is not None:
                tap.remove()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients and the readings that their backward has left, but between the parts of one batch."""
        if self._gathering.under_way:
            Optimizer.zero_grad(self, set_to_none)
        else:
            super().zero_grad(set_to_none)

    @eager
    def _control(self, scale: LossScale, loss: Any) -> None:
        if self._steering.idle:
            self._latest = None
            return
        if all(p.grad is None for p in self.param_groups[0]["params"]):
            return
        arrivals, latest, scaled = self._steering.arrivals, self._latest, scale.of_statistics is not None
        if arrivals is not None and latest is not None and not scaled:  # beside a scaler, steps left out look the same
            count = float(latest.count)
            if self._tap_of(self.param_groups[0]).unit != "sample" and self._part is not None:
                count *= self._part.whole
            self._part = arrivals.counted(self._part, count)
        facts: dict[str, Any] = {}
        if self._steering.wants("loss"):
            facts["loss"] = self._mean_loss(loss)
        if self._steering.wants("drift") or self._steering.wants("sketches"):
            facts |= self._products(self.param_groups[0], scale)
        self._steering.steer(self.param_groups, self._measured_noise(scale), self._part, facts)
        self._latest = None

    def _measured_noise(self, scale: LossScale) -> GradientNoise | None:
        """That of the step under way, counted in samples; None where it was not measured."""
        if self._latest is None:
            return None
        group = self.param_groups[0]
        parameters = [p for p in group["params"] if p.grad is not None]
        decay = decay_in_square(group, scale.unscale(_gradients(parameters)), parameters)
        noise = self._noise(group, self._latest, decay)
        if noise is None or self._part is None or self._tap_of(group).unit == "sample":
            return noise
        return of_samples(noise, self._part.whole)

    def _products(self, group: Group, scale: LossScale) -> dict[str, Any]:
        """What lag products and SASA+ need: a sketch of P^½ g, and ⟨θ, P g⟩ - (η/2)‖P g‖² for the step η that is made.

        A parameter without a gradient has zeros, so that all others keep their places in the sketch.
        """
        parameters = list(group["params"])
        gradients = self._with_decay(group, parameters, scale)
        if self._steering.wants("sketches"):
            history.add(group, _sketch(self._rooted(group, parameters, gradients)))
            return {"sketches": history.Ring(group)}
        half = rate(group) * group["factor"] / 2
        step = self._preconditioned(group, parameters, gradients)
        return {"drift": float(dot(parameters, step) - half * dot(step, step))}

    def _with_decay(self, group: Group, parameters: list[Tensor], scale: LossScale) -> list[Tensor]:
        held = [p for p in parameters if p.grad is not None]
        gradients = scale.unscale(_gradients(held))
        if group["maximize"]:
            gradients = list(torch._foreach_neg(gradients))
        if group["weight_decay"]:
            gradients = list(torch._foreach_add(gradients, held, alpha=group["weight_decay"]))
        given = {id(p): g for p, g in zip(held, gradients, strict=True)}
        return [given[id(p)] if id(p) in given else torch.zeros_like(p) for p in parameters]

    def _details(self, group: Group) -> dict[str, Any]:
        steered = self._steering.controller is not None and group is self.param_groups[0]
        return temperature.details(group, self._steering) if steered else {}

    def _mean_loss(self, loss: Any) -> float:
        """The loss that the closure returned, its mean over ranks."""
        if loss is None:
            owner, name = type(self).__name__, self._steering.name
            raise RuntimeError(
                f"{owner}(controller={name!r}) needs the loss of each step and optimizer.step() gave none; write "
                f"optimizer.step(lambda: loss) after loss.backward()"
            )
        value = self._gathering.loss if self._parts > 1 else torch.as_tensor(loss).detach().double()
        return float(reduce_sum(torch.as_tensor(value)) / ranks())


def _gradients(parameters: list[Tensor]) -> list[Tensor]:
    return [p.grad for p in parameters if p.grad is not None]


def _sketch(tensors: list[Tensor]) -> Tensor:
    """Of all of them, device by device; one on "meta" has no numbers. Sketches of the ranks' parts add up."""
    total, offset = torch.zeros(_SKETCH.width), 0
    shared = cut(tensors)
    for device, run in groupby(tensors, key=lambda tensor: tensor.device):
        for held in [[tensor] for tensor in run] if shared else [list(run)]:
            if device.type != "meta":
                own, start = run_of(held[0]) if shared else (held, 0)
                part = _SKETCH(own, offset + start)
                total = part if total.device != part.device and not offset else total.to(part.device) + part
            offset += sum(tensor.numel() for tensor in held)
    return reduce_sum(total) if shared else total


def _unwritten(value: Any) -> Any:
    """A history as a list again."""
    return json.loads(value) if isinstance(value, str) and value.startswith("[") else value
