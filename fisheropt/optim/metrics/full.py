"""The metric P = (M + ρI)⁻¹ of a group with few parameters: one matrix, from a running estimate M of information or noise.

The damping is a share of what one more sample could add, ρ = α tr(M)/n: a direction that n samples have not shown may still
have about that much, and ρ vanishes like 1/n beside M. The shares are ours (docs/design.md has the numbers): .1 for the
curvature once n is far above the number of parameters, 1 before and for the noise, which vanishes where a model can fit
every sample and would let steps grow without bound.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, final

import torch
from torch import Tensor

from fisheropt.optim import running
from fisheropt.optim.group import Group, device_of, noise_shape, number
from fisheropt.optim.metrics import flat
from fisheropt.optim.metrics.structure import InMetric, State, Structure
from fisheropt.optim.reading import Reading
from fisheropt.statistics import FullCovariance, JointStatistic
from fisheropt.taps import Tap

Damping = float | Literal["auto"]
LARGEST = 4096
_SHARE = {"information": 0.1, "covariance": 1.0}
_NEAR = 0.25


@final
class Full(Structure):
    """P = (M + ρI)⁻¹ by a Cholesky factor of [d, d], renewed with every reading."""

    def statistic(self, group: Group, parameters: dict[str, Tensor]) -> JointStatistic:
        if group["damping"] == "bulk":
            raise ValueError(
                "damping='bulk' is the mean of the eigenvalues that structure='lowrank' leaves out; write "
                "GodambeSGD(..., structure='lowrank', damping='bulk'), or damping='auto'"
            )
        return statistic(parameters, f"GodambeSGD(structure={group['structure']!r})")

    def fresh(self, tap: Tap | None) -> Group:
        return fresh(tap)

    def interval(self, group: Group, tap: Tap, likelihood: bool) -> int | None:
        return None

    def aim(self, group: Group, tap: Tap, state: State, due: bool) -> None:
        """The directions are the coordinates, always; of a P that several steps are to take the inverse is formed."""
        if group["metric_factored"] and not due:
            group["metric_inverse"], group["metric_factored"] = inverse(group), 0.0

    def learn(self, group: Group, tap: Tap, state: State, reading: Reading, decay: float) -> InMetric | None:
        steered = group["controller"] is not None
        plain = group["metric"] != "godambe" and not steered
        refresh(group, "covariance" if reading.information is None else "information", factored=plain)
        if reading.covariance is None or not group["metric_ready"]:
            return None
        if not steered and group["gain"] == "constant":
            return None
        metric = inverse(group)
        squared = reading.gradient @ (metric @ reading.gradient)
        noise = (metric * reading.covariance).sum()
        return InMetric(float(squared), float(noise) / reading.count)

    def apply(
        self, group: Group, tap: Tap, state: State, gain: float, parameters: list[Tensor], grads: list[Tensor]
    ) -> list[Tensor]:
        watched = list(tap.parameters.values())
        metric = None
        if group["metric"] == "godambe":  # its P is no inverse of the M in which a step is measured
            metric = group[_key(group)], group["metric_damping"]
        times = solve if group["metric_factored"] else torch.mv
        return apply(group["metric_inverse"], long_run(group), gain, watched, parameters, grads, metric, times)

    def details(self, group: Group, tap: Tap) -> dict[str, Any]:
        dof = running.effective_count(group, "covariance")
        if not group["metric_ready"] or not dof:
            return {}
        product = inverse(group) @ group["covariance"]
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
            _another_loss(group, dimension / size, error / size),
        )


def _another_loss(group: Group, ratio: float, error: float) -> tuple[str, ...]:
    """Advice where tr(H⁻¹G)/d is what a loss that is c times the likelihood's gives, c²: c the batch size, or 2.

    Loosely, as damping makes the ratio smaller, and steps too long for such a loss make it larger.
    """
    gaussian, count = "gaussian" in str(group["likelihood"]).lower(), group["count"]
    found = f"tr(H⁻¹G)/d = {ratio:.3g} ± {error:.2g} is near"
    if count > 4 and count**2 / 2 <= ratio <= 2 * count**2:
        other = f", or noise of variance {count**2:.0f}" if gaussian else ""
        return (
            f"{found} {count:.0f}², as for a loss that is the sum over {count:.0f} samples{other}; the likelihood's loss is "
            f"a mean, write reduction='mean'",
        )
    if gaussian and abs(ratio - 4) <= _NEAR * 4 + 2 * error:
        return (
            f"{found} 2², as for a mean squared error without its half, or noise of variance 4; the Gaussian loss is "
            f"F.mse_loss(output, target) / 2",
        )
    return ()


def _key(group: Group) -> str:
    """Of M: the information, where it was measured."""
    return "information" if running.effective_count(group, "information") else "covariance"


def long_run(group: Group) -> float | Tensor:
    """What momentum makes of the learning rate in the long run, η/(1 - momentum)."""
    lr: float | Tensor = group["lr"]
    return lr / (1 - number(group["momentum"]))


def check(damping: Damping) -> None:
    """Refuse a damping that is negative or no number."""
    if damping != "auto" and (isinstance(damping, str) or damping < 0):
        raise ValueError(f"damping={damping!r} must be 'auto' or a number >= 0, added to the metric's eigenvalues")


def statistic(parameters: dict[str, Tensor], call: str) -> FullCovariance:
    """The covariance over all parameters of a group.

    Args:
        parameters: the group's trainable ones.
        call: as the user wrote it, for the error.

    Raises:
        ValueError: for more parameters than one matrix serves.
    """
    size = sum(p.numel() for p in parameters.values())
    if size > LARGEST:
        raise ValueError(
            f"{call} keeps one matrix over the {size:,} parameters of a group, up to {LARGEST:,}; freeze all but the head, "
            f"or put the large layers into a group with metric=None"
        )
    return FullCovariance()


def fresh(tap: Tap | None) -> dict[str, Any]:
    """The state of a metric before any reading: P under "metric_inverse", ρ under "metric_damping".

    While "metric_factored" is set, what is there in place of P is the Cholesky factor of P⁻¹.
    """
    shape, device = torch.Size((0, 0)), None
    if tap is not None and isinstance(tap.statistic, FullCovariance):
        shape, device = noise_shape(tap), device_of(tap)
    zero = torch.zeros(shape, dtype=torch.float64, device=device)
    return {"metric_inverse": zero, "metric_damping": 0.0, "metric_ready": 0.0, "metric_factored": 0.0}


def inverse(group: Group) -> Tensor:
    """P of the group."""
    held: Tensor = group["metric_inverse"]
    return torch.cholesky_inverse(held) if group["metric_factored"] else held


def solve(factor: Tensor, vector: Tensor) -> Tensor:
    """P times a vector, by the Cholesky factor of P⁻¹: a sixth of the work of forming P."""
    return torch.cholesky_solve(vector[:, None], factor)[:, 0]


def refresh(group: dict[str, Any], key: str, factored: bool = False) -> None:
    """Recompute P from the running mean under `key`; keeps the last P while no sample has been seen.

    Args:
        group: the parameter group.
        key: of M, "information" or "covariance".
        factored: whether the factor of P⁻¹ is kept, and P not formed.
    """
    count = running.effective_count(group, key)
    if count == 0 or (group["metric"] == "godambe" and not running.effective_count(group, "covariance")):
        return
    matrix: Tensor = group[key]
    scale = float(matrix.trace())
    if scale <= 0:
        return
    share = min(1.0, _SHARE[key] + len(matrix) / count)
    damping = share * scale / count if group["damping"] == "auto" else float(group["damping"])
    damping += float(group["weight_decay"])
    floor = torch.finfo(matrix.dtype).eps * scale
    for ridge in (max(damping, floor), max(damping, torch.finfo(torch.float32).eps * scale)):
        factor, failed = torch.linalg.cholesky_ex(_damped(matrix, ridge))
        if not failed:  # float32 gradients can leave a singular matrix slightly indefinite
            held = factor if factored else torch.cholesky_inverse(factor)
            if group["metric"] == "godambe":
                held = held @ _damped(group["covariance"], ridge) @ held
            group["metric_inverse"], group["metric_factored"] = held, float(factored)
            group["metric_damping"], group["metric_ready"] = ridge, 1.0
            return


def _damped(matrix: Tensor, ridge: float) -> Tensor:
    damped = matrix.clone()
    damped.diagonal().add_(ridge)
    return damped


def apply(
    inverse: Tensor,
    lr: float | Tensor,
    gain: float,
    watched: list[Tensor],
    parameters: list[Tensor],
    grads: list[Tensor],
    metric: tuple[Tensor, float] | None = None,
    times: Callable[[Tensor, Tensor], Tensor] = torch.mv,
) -> list[Tensor]:
    """γP∇ for the gain γ, shortened where a step by η would be longer than 1 in the metric: η²γ²∇ᵀP∇ ≤ 1.

    The length of a step in the Fisher metric is, to second order, √(2 KL) between the models before and after it.

    Args:
        inverse: P, over the watched parameters laid end to end.
        lr: η.
        gain: γ.
        watched: the parameters that P was measured for.
        parameters: those that have a gradient; one that is not watched keeps its own.
        grads: their gradients.
        metric: M and ρ of a P that is not (M + ρI)⁻¹, for the length of the step in M + ρI.
        times: gives P times a vector, where `inverse` is not P.
    """
    gradient = flat.laid(watched, parameters, grads, inverse)
    step = times(inverse, gradient)
    squared = step @ gradient if metric is None else step @ (metric[0] @ step) + metric[1] * (step @ step)
    length = squared.clamp_min(0).sqrt() * (gain * lr)
    return flat.parted(step * (gain / length.clamp_min(1)), watched, parameters, grads)
