"""SGD that steers its effective temperature τ = η/b by the batch size b.

    b ← controller(A, V, η, b),    A = ‖∇L‖²_P without the noise's share, V = tr(PG)

One number says how hot a run is: noise V/b against signal A. A controller raises b when noise dominates and not before.
With a metric P ≈ H⁻¹ the default rule, GO-F, reaches the statistical limit without averaging.

Reference: mccandlish2018empirical
"""

from __future__ import annotations

from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from fisheropt.control import AdaptiveBatchSampler, Controller, GradientNoise
from fisheropt.likelihoods import Likelihood
from fisheropt.optim import running, temperature
from fisheropt.optim.group import Group
from fisheropt.optim.metrics import flat
from fisheropt.optim.metrics import full as metrics
from fisheropt.optim.observing import Parameters
from fisheropt.optim.reading import Reading
from fisheropt.optim.signal import gradient_noise
from fisheropt.optim.steered import SteeredOptimizer
from fisheropt.optim.steering import Steering
from fisheropt.statistics import JointStatistic, Trace
from fisheropt.taps import Tap

_METRICS = (None, "curvature", "fisher")


@final
class AdaptiveBatchSGD(SteeredOptimizer):
    """SGD whose batch size follows the gradient's noise, b ← controller(A, V, η, b).

    The noise is measured over all parameters of a group; the batch size follows the first group. A batch shorter than
    asked for, as at the end of an epoch, takes the shorter step that loses no efficiency, and where the largest batch is
    not enough it is the step that falls. Without a sampler the proposal is only reported.

    Args:
        params_or_model: the model, for per-sample noise; or parameters, each backward then being one observation.
        lr: η, a float or a tensor of one element; in (0, 1) with a metric.
        sampler: whose `batch_size` is set; give the same object to DataLoader(batch_sampler=...).
        controller: a name ("go_f", "go_h", "norm_test", ...), an object of `fisheropt.control`, None for plain SGD, or
            "auto": GO-F with a metric; without one GO-H where `budget` is given, and else a larger batch each time that
            training is certified stationary.
        budget: N, the samples planned in all, epochs × data; for controllers that look ahead.
        advise: log what the controller would do, and do nothing.
        momentum: of the step, as in torch.optim.SGD.
        dampening: of the momentum.
        weight_decay: λ of (λ/2)‖θ‖².
        nesterov: Nesterov momentum.
        maximize: ascend.
        foreach: as in torch.optim.SGD.
        differentiable: allow autograd through the step.
        metric: None for plain gradients; "curvature" for P = H⁻¹, "fisher" for P = G⁻¹, as in GodambeSGD.
        damping: of the metric.
        likelihood: of the model's output, for the curvature.
        every: steps between measurements; "auto" takes the first ten, and then as few as `overhead` asks, at most each
            tenth; or each step where a sampler is steered in a metric.
        overhead: the share of a step that measuring is expected to cost, by the work model of `explain`.

    Raises:
        ValueError: for hyper-parameters outside their range, or a controller that needs what is not given.

    Reference: mccandlish2018empirical
    """

    def __init__(
        self,
        params_or_model: Parameters | nn.Module,
        lr: float | Tensor = 1e-3,
        *,
        sampler: AdaptiveBatchSampler | None = None,
        controller: Controller | str | None = "auto",
        budget: int | None = None,
        advise: bool = False,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        metric: Literal["curvature", "fisher"] | None = None,
        damping: metrics.Damping = "auto",
        likelihood: Likelihood | str | None = None,
        every: int | Literal["auto"] = "auto",
        overhead: float = 0.05,
    ) -> None:
        if metric not in _METRICS:
            raise ValueError(f"metric={metric!r}: write one of {_METRICS}")
        metrics.check(damping)
        chosen = _automatic(metric, budget) if controller == "auto" else controller
        steering = Steering(type(self).__name__, chosen, sampler, budget, advise, metric is not None)
        observed = steering.controller is not None
        defaults = {
            "lr": lr,
            "sampler": None if sampler is None else type(sampler).__name__,
            "controller": steering.name,
            "budget": budget,
            "advise": advise,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "foreach": foreach,
            "differentiable": differentiable,
            "metric": metric if observed else None,
            "damping": damping,
            "likelihood": None if likelihood is None else str(likelihood),
            "every": 1 if every == "auto" and sampler is not None and metric is not None else every,
            "overhead": overhead,
        }
        super().__init__(
            params_or_model, defaults, likelihood if metric == "curvature" and observed else None, steering
        )

    def _begin(self) -> None:
        super()._begin()
        self._root: tuple[Tensor, Tensor] | None = None

    def _statistic(self, group: Group, parameters: dict[str, Tensor]) -> JointStatistic | Trace | None:
        if self._steering.controller is None:
            return None
        if group["metric"] is None:
            return Trace()
        return metrics.statistic(parameters, f"AdaptiveBatchSGD(metric={group['metric']!r})")

    def _fresh(self, tap: Tap | None) -> Group:
        return metrics.fresh(tap) | self._steering.fresh()

    def _decay(self, group: Group, count: int) -> float:
        return running.growing(group["measured"])

    def _learn(self, group: Group, reading: Reading) -> None:
        if reading.information is not None:
            running.add(group, "information", reading.information, reading.count, self._decay(group, reading.count))
        if group["metric"] is not None:
            metrics.refresh(group, "information" if self._likelihood is not None else "covariance")
        if group is self.param_groups[0]:
            self._latest = reading

    def _noise(self, group: Group, reading: Reading, decay: float) -> GradientNoise | None:
        return gradient_noise(group, reading, self._tap_of(group), decay)

    def _preconditioned(self, group: Group, parameters: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
        if not group["metric_ready"]:
            return gradients
        inverse, watched = group["metric_inverse"], list(self._tap_of(group).parameters.values())
        gradient = flat.laid(watched, parameters, gradients, inverse)
        return flat.parted(inverse @ gradient, watched, parameters, gradients)

    def _rooted(self, group: Group, parameters: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
        if not group["metric_ready"]:
            return gradients
        inverse, watched = group["metric_inverse"], list(self._tap_of(group).parameters.values())
        if self._root is None or self._root[0] is not inverse:  # the metric is renewed at measurements only
            self._root = inverse, torch.linalg.cholesky(inverse)
        return [self._root[1].T @ flat.laid(watched, parameters, gradients, inverse)]

    def _direction(self, group: Group, parameters: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
        watched = list(self._tap_of(group).parameters.values())
        if not group["metric_ready"]:
            return list(torch._foreach_mul(grads, group["share"]))
        return metrics.apply(group["metric_inverse"], group["lr"], group["share"], watched, parameters, grads)

    def _active(self, group: Group) -> bool:
        return bool(group["metric_ready"]) or group["share"] != 1

    def _details(self, group: Group) -> dict[str, Any]:
        return {"metric": group["metric"]} | super()._details(group)

    def _words(self, groups: list[Group]) -> tuple[str, tuple[str, ...]]:
        return temperature.words(groups[0], self._steering, self._tap_of(groups[0]).unit)


def _automatic(metric: str | None, budget: int | None) -> str:
    """The rule for what is known of the steps."""
    if metric is not None:
        return "go_f"
    return "certified" if budget is None else "go_h"
