"""One matrix over all parameters of a group."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from fisheropt.optim import metric, running
from fisheropt.optim.group import Group, number
from fisheropt.optim.metrics.structure import InMetric, State, Structure
from fisheropt.optim.reading import Reading
from fisheropt.statistics import JointStatistic
from fisheropt.taps import Tap


@final
class Full(Structure):
    """P = (M + ρI)⁻¹ by a Cholesky factor of [d, d], renewed with every reading."""

    def statistic(self, group: Group, parameters: dict[str, Tensor]) -> JointStatistic:
        if group["damping"] == "bulk":
            raise ValueError(
                "damping='bulk' is the mean of the eigenvalues that structure='lowrank' leaves out; write "
                "GodambeSGD(..., structure='lowrank', damping='bulk'), or damping='auto'"
            )
        return metric.statistic(parameters, f"GodambeSGD(structure={group['structure']!r})")

    def fresh(self, tap: Tap | None) -> Group:
        return metric.fresh(tap)

    def interval(self, group: Group, tap: Tap, likelihood: bool) -> int | None:
        return None

    def aim(self, group: Group, tap: Tap, state: State, due: bool) -> None:
        """The directions are the coordinates, always."""

    def learn(self, group: Group, tap: Tap, state: State, reading: Reading, decay: float) -> InMetric | None:
        metric.refresh(group, "covariance" if reading.information is None else "information")
        if reading.covariance is None or not group["metric_ready"]:
            return None
        squared = reading.gradient @ group["metric_inverse"] @ reading.gradient
        noise = (group["metric_inverse"] * reading.covariance).sum() / reading.count
        return InMetric(float(squared), float(noise))

    def apply(
        self, group: Group, tap: Tap, state: State, gain: float, parameters: list[Tensor], grads: list[Tensor]
    ) -> list[Tensor]:
        watched = list(tap.parameters.values())
        return metric.apply(group["metric_inverse"], long_run(group), gain, watched, parameters, grads)

    def details(self, group: Group, tap: Tap) -> dict[str, Any]:
        dof = running.effective_count(group, "covariance")
        if not group["metric_ready"] or not dof:
            return {}
        product = group["metric_inverse"] @ group["covariance"]
        variance = 2 * float(torch.einsum("ij,ji->", product, product)) / dof
        return {
            "effective_dimension": float(product.trace()),
            "effective_dimension_se": max(variance, 0.0) ** 0.5,
        }

    def words(self, group: Group, tap: Tap, likelihood: bool) -> tuple[str, tuple[str, ...]]:
        details = self.details(group, tap)
        if not details:
            return (
                "The curvature was measured, but no noise: a covariance needs two samples a step.",
                ("Use batches of two samples or more.",),
            )
        dimension, error = details["effective_dimension"], details["effective_dimension_se"]
        size = len(group["covariance"])
        if not likelihood:
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


def long_run(group: Group) -> float | Tensor:
    """What momentum makes of the learning rate in the long run, η/(1 - momentum)."""
    lr: float | Tensor = group["lr"]
    return lr / (1 - number(group["momentum"]))
