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

from fisheropt.control import AdaptiveBatchSampler, Controller, GradientNoise, quantise, resolve
from fisheropt.control.matched_step import matched_step
from fisheropt.likelihoods import Likelihood
from fisheropt.optim import running
from fisheropt.optim.base import FisherOptimizer
from fisheropt.optim.group import Group, number
from fisheropt.optim.metrics import full as metrics
from fisheropt.optim.observing import Parameters
from fisheropt.optim.reading import Reading
from fisheropt.optim.report import plural
from fisheropt.statistics import JointStatistic, Trace
from fisheropt.taps import Tap

_METRICS = (None, "curvature", "fisher")
_UNBOUNDED = 1 << 30
_FASTEST = 0.9  # the rules are for steps η < 1 in a metric near H⁻¹; where η is in other units they are given this


@final
class AdaptiveBatchSGD(FisherOptimizer):
    """SGD whose batch size follows the gradient's noise, b ← controller(A, V, η, b).

    The noise is measured over all parameters of a group; the batch size follows the first group. A batch shorter than
    asked for, as at the end of an epoch, takes the shorter step that loses no efficiency. Without a sampler the
    proposal is only reported.

    Args:
        params_or_model: the model, for per-sample noise; or parameters, each backward then being one observation.
        lr: η, a float or a tensor of one element; in (0, 1) with a metric.
        sampler: whose `batch_size` is set; give the same object to DataLoader(batch_sampler=...).
        controller: a name ("go_f", "norm_test", "fixed"), an object of `fisheropt.control`, "auto" for GO-F with a
            metric and the norm test with θ = 1 - η without one, or None for plain SGD.
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
        every: steps between measurements; "auto" takes the first ten and then each tenth, or each step with a sampler.
        overhead: the share of a step that measuring may cost.

    Raises:
        ValueError: for hyper-parameters outside their range.

    Reference: mccandlish2018empirical
    """

    _kept = ("_controller", "_sampler")

    def __init__(
        self,
        params_or_model: Parameters | nn.Module,
        lr: float | Tensor = 1e-3,
        *,
        sampler: AdaptiveBatchSampler | None = None,
        controller: Controller | str | None = "auto",
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
        name = ("go_f" if metric else "norm_test") if controller == "auto" else controller
        self._controller = None if name is None else resolve(name)
        self._sampler = sampler
        defaults = {
            "lr": lr,
            "sampler": None if sampler is None else type(sampler).__name__,
            "controller": None if self._controller is None else self._controller.name,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "foreach": foreach,
            "differentiable": differentiable,
            "metric": metric if self._controller else None,
            "damping": damping,
            "likelihood": None if likelihood is None else str(likelihood),
            "every": 1 if every == "auto" and sampler is not None else every,
            "overhead": overhead,
        }
        super().__init__(params_or_model, defaults, likelihood if metric == "curvature" and self._controller else None)

    def _statistic(self, group: Group, parameters: dict[str, Tensor]) -> JointStatistic | Trace | None:
        if self._controller is None:
            return None
        if group["metric"] is None:
            return Trace()
        return metrics.statistic(parameters, f"AdaptiveBatchSGD(metric={group['metric']!r})")

    def _fresh(self, tap: Tap | None) -> Group:
        state = {} if self._controller is None else self._controller.initial_state()
        return metrics.fresh(tap) | {"controller_state": state, "proposed_batch_size": 0.0, "share": 1.0}

    def _decay(self, group: Group, count: int) -> float:
        return running.growing(group["measured"])

    def _learn(self, group: Group, reading: Reading) -> None:
        if reading.information is not None:
            running.add(group, "information", reading.information, reading.count, self._decay(group, reading.count))
        if group["metric"] is not None:
            metrics.refresh(group, "information" if self._likelihood is not None else "covariance")
        noise = _noise(group, reading)
        if group is self.param_groups[0] and noise is not None:
            self._steer(group, noise)

    def _steer(self, group: Group, noise: GradientNoise) -> None:
        """Ask the controller, and set the sampler."""
        controller, sampler = self._controller, self._sampler
        assert controller is not None
        lo, hi = (1, _UNBOUNDED) if sampler is None else _bounds(sampler)
        size = noise.batch_size if sampler is None else sampler.batch_size
        lr = min(number(group["lr"]) / (1 - group["momentum"]), _FASTEST)
        for held in self.param_groups:  # a short batch at the end of an epoch, or the rung of a ladder
            held["share"] = min(1.0, matched_step(lr, size, noise.batch_size) / lr) if lr else 1.0
        state, proposal = controller.propose(
            group["controller_state"],
            noise,
            lr=lr,
            batch_size=noise.batch_size,
            samples=int(group["samples"]) + noise.batch_size,
            bounds=(lo, hi),
        )
        group["controller_state"], group["proposed_batch_size"] = state, proposal
        if sampler is not None:
            sampler.batch_size = quantise(size, proposal, lo, hi, multiple=sampler.num_replicas)

    def _direction(self, group: Group, parameters: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
        watched = list(self._tap_of(group).parameters.values())
        if not group["metric_ready"]:
            return list(torch._foreach_mul(grads, group["share"]))
        return metrics.apply(group["metric_inverse"], group["lr"], group["share"], watched, parameters, grads)

    def _active(self, group: Group) -> bool:
        return bool(group["metric_ready"]) or group["share"] < 1

    def _details(self, group: Group) -> dict[str, Any]:
        return {
            "controller": group["controller"],
            "metric": group["metric"],
            "proposed_batch_size": group["proposed_batch_size"],
        }

    def _words(self, groups: list[Group]) -> tuple[str, tuple[str, ...]]:
        first = groups[0]
        proposal = first["proposed_batch_size"]
        if not proposal:
            return (
                "No noise could be measured, so the batch size stays.",
                ("Write AdaptiveBatchSGD(model, ...), or run at least two backward() a step.",),
            )
        now = first["count"] if self._sampler is None else self._sampler.batch_size
        units = plural(self._tap_of(first).unit)
        error = (2 / running.effective_count(first, "covariance")) ** 0.5
        words = (
            f"{first['controller']} proposes a batch of {proposal:.0f} {units} at η = {number(first['lr']):g}; "
            f"it is {now:.0f} now. The noise behind it is known within {100 * error:.0f} %, one standard error."
        )
        if self._sampler is None:
            return words, ("Give sampler=AdaptiveBatchSampler(...) to let it be set.",)
        return words, ()


def _bounds(sampler: AdaptiveBatchSampler) -> tuple[int, int]:
    """Those of the sampler, but two samples a rank at least, as one has no noise to be seen."""
    hi = sampler.max_batch_size
    return min(max(sampler.min_batch_size, 2 * sampler.num_replicas), hi), hi


def _noise(group: Group, reading: Reading) -> GradientNoise | None:
    """A and V of a reading, in the metric if there is one; None where one observation cannot tell them apart."""
    if reading.covariance is None:
        return None
    inverse: Tensor | None = group["metric_inverse"] if group["metric_ready"] else None
    participation = float("nan")
    if reading.covariance.ndim == 0:
        noise, squared = reading.covariance, reading.gradient.square()
    elif inverse is None:
        noise, squared = reading.covariance.trace(), reading.gradient.square().sum()
    else:
        product = inverse @ group["covariance"]
        participation = float(product.trace() ** 2 / torch.einsum("ij,ji->", product, product))
        noise = (inverse * reading.covariance).sum()
        squared = reading.gradient @ inverse @ reading.gradient
    return GradientNoise(float(squared - noise / reading.count), float(noise), participation, reading.count)
