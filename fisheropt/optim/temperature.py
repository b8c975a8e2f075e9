"""What a steered run says of its temperature, in numbers and in words.

    τ = η/b,    with momentum τ(1 - d)/(1 - m),    of n samples τ (1 - b/n),    noise floor of the loss ≈ (τ/4) tr(PG)

Reference: zantedeschi2026
"""

from __future__ import annotations

from typing import Any

import torch

from fisheropt.optim import running
from fisheropt.optim.group import Group, number
from fisheropt.optim.report import plural
from fisheropt.optim.steering import Steering, changes, rate
from fisheropt.theory.lyapunov import stationary_covariance, temperature

_SHOWN = 3


def details(group: Group, steering: Steering) -> dict[str, Any]:
    """Temperatures, the floor that they predict, and what the controller did.

    Args:
        group: the first one, once measured.
        steering: of the optimizer.
    """
    batch = group["acted_on"] or group["count"]
    lr = rate(group) * group["share"]
    data = None if steering.sampler is None else steering.sampler.data_size
    tau = lr / batch
    trace, error = _trace(group)
    shuffled = _reshuffled(group, lr, batch, data)
    return {
        "controller": group["controller"],
        "proposed_batch_size": group["proposed_batch_size"],
        "step_share": group["share"],
        "temperature_momentum": tau,
        "temperature_finite": None if data is None or not lr else temperature(lr, min(batch, data), n=data),
        "noise_floor": tau / 4 * trace,
        "noise_floor_se": tau / 4 * error,
        "noise_floor_epoch_end": shuffled * tau / 4 * trace,
        "noise_floor_epoch_end_se": shuffled * tau / 4 * error,
        "serial_steps": group["steps"],
        "samples_used": group["samples"] if steering.sampler is None else float(steering.sampler.samples_seen),
        "batch_changes": group["changed"],
        "last_changes": changes(group),
        "why": steering.why,
        **_certificate(steering.state),
    }


def words(group: Group, steering: Steering, unit: str) -> tuple[str, tuple[str, ...]]:
    """The verdict and the advice of the report.

    Args:
        group: the first one.
        steering: of the optimizer.
        unit: what one observation was.
    """
    proposal, controller = group["proposed_batch_size"], steering.controller
    seen = running.effective_count(group, "covariance") > 0
    if not proposal or not (seen or controller is None or controller.planned or "sketches" in controller.needs):
        return (
            "No noise could be measured, so the batch size stays.",
            ("Write AdaptiveBatchSGD(model, ...), or run at least two backward() a step.",),
        )
    sampler = steering.sampler
    now = group["count"] if sampler is None else sampler.batch_size
    units = plural(unit) if sampler is None else "samples"
    because = f" ({steering.why})" if steering.why else ""
    said = (
        f"{steering.name} proposes a batch of {proposal:.0f} {units} at η = {number(group['lr']):g}{because}; it is "
        f"{now:.0f} now."
    )
    dof = running.effective_count(group, "covariance")
    if dof:
        said += (
            f" The noise is known within {100 * (2 / dof) ** 0.5:.0f} %, one standard error if gradients are Gaussian."
        )
    moved = [f"{row['from']:.0f} → {row['to']:.0f} at step {row['step']:.0f}" for row in changes(group)[-_SHOWN:]]
    if moved:
        said += f" It changed {group['changed']:.0f} times, lately {', '.join(moved)}."
    if steering.advise:
        return said, ("advise=True: nothing was changed; leave it out to let the batch size be set.",)
    return said, () if sampler is not None else ("Give sampler=AdaptiveBatchSampler(...) to let it be set.",)


def _certificate(state: dict[str, Any]) -> dict[str, Any]:
    """What the stationarity certificate last said, where the controller asks for one."""
    if not state.get("tested"):
        return {}
    return {
        "stationary": state["in_a_row"] > 0,
        "predicted_decrease": state["decrease"],
        "predicted_decrease_se": state["decrease_se"],
        "decrease_steps": state["tested"],
    }


def _trace(group: Group) -> tuple[float, float]:
    """tr(PG) of one sample, and its standard error for Gaussian gradients; of a bare trace, all in one direction."""
    dof = running.effective_count(group, "covariance")
    covariance = group["covariance"]
    if covariance.ndim == 0 and group.get("metric_ready"):  # tr G, and not in the metric
        return float("nan"), float("nan")
    if covariance.ndim == 0:
        trace, square = float(covariance), float(covariance) ** 2
    else:
        inverse = group["metric_inverse"] if group.get("metric_ready") else torch.eye(len(covariance)).to(covariance)
        product = inverse @ covariance
        trace, square = float(product.trace()), float(torch.einsum("ij,ji->", product, product))
    return trace, (2 * square / dof) ** 0.5 if dof else float("nan")


def _reshuffled(group: Group, lr: float, batch: float, data: int | None) -> float:
    """By what a loader that visits every sample once an epoch lowers the floor, where all modes contract alike.

    In a metric P ≈ H⁻¹ they do, by 1 - η; nan elsewhere, as it depends on the curvature.
    """
    if not group.get("metric_ready") or data is None or not 0 < lr < 1 or 2 * batch > data:
        return float("nan")
    one = torch.ones(1, 1, dtype=torch.float64)
    size = max(round(batch), 1)
    plain = stationary_covariance(one, one, lr, size)
    return float(stationary_covariance(one, one, lr, size, n=size * (data // size), sampling="reshuffle") / plain)
