"""Steps in the metric of curvature H or of gradient noise G.

    θ ← θ - η (M + ρI)⁻¹ ∇L,    M = H (curvature) or G (fisher)

G is the covariance of the per-sample gradients in the ordinary backward. H is the model Fisher information, which is the
Gauss-Newton matrix for canonical links, measured by one more backward from the likelihood's cotangents. Without a
likelihood H = G, which holds where the model is well specified.

Reference: zantedeschi2026
"""

from __future__ import annotations

from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from fisheropt.likelihoods import Likelihood
from fisheropt.optim import metric as metrics
from fisheropt.optim import running
from fisheropt.optim.base import FisherOptimizer
from fisheropt.optim.group import Group
from fisheropt.optim.observing import Parameters
from fisheropt.optim.reading import Reading
from fisheropt.statistics import FullCovariance
from fisheropt.taps import Tap

_METRICS = ("curvature", "fisher", None)
_STRUCTURES = ("auto", "full")
_GAINS = ("constant", "running")
_RUNNING = 2.0  # 1 is the plain mean, which forgets a far start too slowly; 2 costs a third more variance in one pass
_FAR = 4.0  # ‖ĝ‖²_P in units of its noise V/b, above which the fit is still travelling


@final
class GodambeSGD(FisherOptimizer):
    """SGD in the metric of curvature or gradient noise, θ ← θ - η (M + ρI)⁻¹ ∇L.

    With gain="running" the step falls like batch size over samples seen, and one pass over the data comes near the
    statistical limit tr(H⁻¹G)/2N; `report()` says how far H and G are apart.

    Args:
        params_or_model: the model, for per-sample noise; or parameters, each backward then being one observation.
        lr: η, in (0, 1] as for a Newton step, so that SGD's does not carry over; a float or a tensor of one element.
        momentum: of the step, as in torch.optim.SGD; it multiplies the step by 1/(1 - momentum) here too.
        dampening: of the momentum.
        weight_decay: λ of (λ/2)‖θ‖², added to the gradient before the metric, and to M.
        nesterov: Nesterov momentum.
        maximize: ascend.
        foreach: as in torch.optim.SGD.
        differentiable: allow autograd through the step.
        metric: "curvature" for M = H, "fisher" for M = G, None for plain SGD.
        gain: "constant" steps by η; "running" by η·2b/(2b+d+n) for d parameters, batch size b and n samples since the
            gradient was last clear of its noise, which makes the iterate a mean of Newton steps with weights that grow
            linearly; `lr` stays an LR scheduler's.
        structure: "full", one matrix over all parameters of a group; "auto" takes it up to 4096 parameters.
        damping: ρ; "auto" is a share of what one more sample could add, tr(H)/10n or tr(G)/n, and falls like 1/n.
        likelihood: of the model's output, for H: "bernoulli", "categorical", "gaussian", "poisson", "multilabel" or an
            object of `fisheropt.likelihoods`; the loss is its mean negative log-likelihood.
        every: steps between measurements; "auto" takes the first ten and then each tenth.
        overhead: the share of a step that measuring may cost.

    Raises:
        ValueError: for a group with more parameters than `structure` serves, or hyper-parameters outside their range.

    Reference: zantedeschi2026
    """

    def __init__(
        self,
        params_or_model: Parameters | nn.Module,
        lr: float | Tensor = 1e-3,
        *,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        metric: Literal["curvature", "fisher"] | None = "curvature",
        gain: Literal["constant", "running"] = "constant",
        structure: Literal["auto", "full"] = "auto",
        damping: metrics.Damping = "auto",
        likelihood: Likelihood | str | None = None,
        every: int | Literal["auto"] = "auto",
        overhead: float = 0.05,
    ) -> None:
        for name, value, known in (
            ("metric", metric, _METRICS),
            ("structure", structure, _STRUCTURES),
            ("gain", gain, _GAINS),
        ):
            if value not in known:
                raise ValueError(f"{name}={value!r}: write one of {known}")
        metrics.check(damping)
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "foreach": foreach,
            "differentiable": differentiable,
            "metric": metric,
            "gain": gain,
            "structure": structure,
            "damping": damping,
            "likelihood": None if likelihood is None else str(likelihood),
            "every": every,
            "overhead": overhead,
        }
        super().__init__(params_or_model, defaults, likelihood if metric == "curvature" else None)

    def _statistic(self, group: Group, parameters: dict[str, Tensor]) -> FullCovariance | None:
        if group["metric"] is None:
            return None
        return metrics.statistic(parameters, f"GodambeSGD(structure={group['structure']!r})")

    def _fresh(self, tap: Tap | None) -> Group:
        return metrics.fresh(tap) | {"gain_from": 0.0}

    def _decay(self, group: Group, count: int) -> float:
        return running.growing(group["measured"])

    def _learn(self, group: Group, reading: Reading) -> None:
        key = self._key(group)
        if reading.information is not None:
            running.add(group, "information", reading.information, reading.count, self._decay(group, reading.count))
        metrics.refresh(group, key)
        if reading.covariance is not None and group["metric_ready"]:
            squared = reading.gradient @ group["metric_inverse"] @ reading.gradient
            noise = (group["metric_inverse"] * reading.covariance).sum() / reading.count
            if squared > _FAR * noise:
                group["gain_from"] = group["steps"]

    def _key(self, group: Group) -> str:
        return "information" if self._likelihood is not None else "covariance"

    def _active(self, group: Group) -> bool:
        return bool(group["metric_ready"])

    def _direction(self, group: Group, parameters: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
        watched = list(self._tap_of(group).parameters.values())
        lr = group["lr"] / (1 - group["momentum"])  # what momentum makes of a step in the long run
        return metrics.apply(group["metric_inverse"], lr, _gain(group), watched, parameters, grads)

    def _details(self, group: Group) -> dict[str, Any]:
        details: dict[str, Any] = {"metric": group["metric"], "damping": group["metric_damping"]}
        dof = running.effective_count(group, "covariance")
        if not group["metric_ready"] or not dof:
            return details
        product = group["metric_inverse"] @ group["covariance"]
        variance = 2 * float(torch.einsum("ij,ji->", product, product)) / dof
        return details | {
            "effective_dimension": float(product.trace()),
            "effective_dimension_se": max(variance, 0.0) ** 0.5,
        }

    def _words(self, groups: list[Group]) -> tuple[str, tuple[str, ...]]:
        if not any(group["metric_ready"] for group in groups):
            return (
                "No covariance could be measured, so the steps are those of plain SGD.",
                ("Write GodambeSGD(model, ...), or run at least two backward() a step.",),
            )
        measured = next(group for group in groups if group["metric_ready"])
        details = self._details(measured)
        if "effective_dimension" not in details:
            return (
                "The curvature was measured, but no noise: a covariance needs two samples a step.",
                ("Use batches of two samples or more.",),
            )
        dimension, error = details["effective_dimension"], details["effective_dimension_se"]
        size = len(measured["covariance"])
        if self._likelihood is None:
            return (
                f"The metric is the noise G itself (H = G, as in a well-specified model): {dimension:.1f} ± {error:.1f} of "
                f"{size} directions are above the damping.",
                ("Give likelihood= to tell the curvature H from the noise G.",),
            )
        return (
            f"tr(H⁻¹G) = {dimension:.1f} ± {error:.1f} for {size} parameters; the two agree where the model is well "
            f"specified. The expected excess loss after n samples is at least tr(H⁻¹G)/2n.",
            (),
        )


def _gain(group: Group) -> float:
    """1, or 2/(2 + t + d/b) for t steps since the gradient was last clear of its noise.

    Before d samples were seen, the noise of a Newton step exceeds what it can gain.
    """
    if group["gain"] == "constant":
        return 1.0
    steps = float(group["steps"]) - float(group["gain_from"])
    return _RUNNING / (_RUNNING + steps + len(group["covariance"]) / group["count"])
