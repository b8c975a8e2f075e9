"""An optimizer whose batch size, or length of step, a controller steers while it trains."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from fisheropt.control import GradientNoise, Part, history
from fisheropt.likelihoods import Likelihood
from fisheropt.optim import temperature
from fisheropt.optim.amp import LossScale
from fisheropt.optim.base import FisherOptimizer
from fisheropt.optim.gathering import Gathering
from fisheropt.optim.group import Group, number
from fisheropt.optim.metrics.structure import InMetric
from fisheropt.optim.observing import Parameters
from fisheropt.optim.reading import Reading
from fisheropt.optim.signal import decay_in_square, of_samples
from fisheropt.optim.steering import Steering
from fisheropt.taps import Tap
from fisheropt.taps.reduce import ranks, reduce_sum
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
        self._steering = steering
        self._begin()
        super().__init__(params_or_model, defaults, likelihood)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_gathering" in vars(self) and self._gathering.under_way:  # the readings of parts that come again
            for tap in self._taps:
                if tap is not None:
                    tap.clear()
        self._begin()

    def _begin(self) -> None:
        """Nothing gathered, and nothing measured in the step under way."""
        self._gathering = Gathering()
        self._repeated = False
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

    @abstractmethod
    def _in_metric(
        self, group: Group, parameters: list[Tensor], gradients: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """P g, in the shapes of the parameters, and P^½ g in any."""

    @torch.compiler.disable(recursive=True)  # type: ignore[untyped-decorator]
    def _incomplete(self, scale: LossScale) -> bool:
        self._part, self._parts = self._steering.arrive(), 1
        if self._part is None or self._part.first:
            self._repeated = self._gathering.under_way
            self._gathering = Gathering()
        if self._part is None or (self._part.first and self._part.last):
            return False
        self._gathering.add([p for group in self.param_groups for p in group["params"]], self._part, scale)
        if self._part.last:
            self._parts = self._gathering.finish(scale)
        return not self._part.last

    def _reading(self, index: int, scale: LossScale) -> Reading | None:
        """None of a batch that a loop had left between its parts: its first samples were read twice."""
        return None if self._repeated else super()._reading(index, scale)

    def watch(self, scale: LossScale) -> None:
        """All of a step but the update of the parameters, for an optimizer that makes that.

        Args:
            scale: of the loss in backward.
        """
        self._incomplete(scale)
        if not scale.overflow and self._observe(scale, {}):
            self._control(scale, None)
        self._plan(scale.overflow)

    def remove(self) -> None:
        """Take all hooks off the model; nothing is measured any more."""
        for index, tap in enumerate(self._taps):
            if tap is not None:
                tap.remove()
            self._taps[index] = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients and the readings that their backward has left, but between the parts of one batch."""
        if self._gathering.under_way:
            Optimizer.zero_grad(self, set_to_none)
        else:
            super().zero_grad(set_to_none)

    @torch.compiler.disable(recursive=True)  # type: ignore[untyped-decorator]
    def _control(self, scale: LossScale, loss: Any) -> None:
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
        step, root = self._in_metric(group, parameters, self._with_decay(group, parameters, scale))
        if self._steering.wants("sketches"):
            history.add(group, _SKETCH(root))
            return {"sketches": history.Ring(group)}
        along = sum(float((p * d).sum()) for p, d in zip(parameters, step, strict=True))
        made = number(group["lr"]) * group["factor"]
        return {"drift": along - made / 2 * sum(float(d.square().sum()) for d in step)}

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
        value = torch.as_tensor(loss).detach().double()
        return float(reduce_sum(value) / ranks())


def _gradients(parameters: list[Tensor]) -> list[Tensor]:
    return [p.grad for p in parameters if p.grad is not None]
