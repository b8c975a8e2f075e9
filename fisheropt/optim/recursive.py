"""A measured step of a linear model in about as many operations as it has formulas: recursive least squares.

    M ← (1 - s)M + sĤ,    θ ← θ - ηγ (M + (ρ + λ)I)⁻¹ (ĝ + λθ)

It is the step of `FisherOptimizer`, which serves every model, in one place. On small problems an operation costs more by
being called than by what it computes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from fisheropt.optim import gain as gains
from fisheropt.optim import running
from fisheropt.optim.group import Group
from fisheropt.optim.metrics.full import inverse, refresh, solve
from fisheropt.optim.metrics.schedule import looks
from fisheropt.optim.metrics.structure import InMetric
from fisheropt.optim.rows import RowReading, read_rows
from fisheropt.taps import SampleTap

_FIRST = 10  # readings, of which more is asked


def serves(group: Group, tap: SampleTap) -> bool:
    """Whether the group steps by its metric and nothing else, and its reading is not one that more is asked of.

    Args:
        group: the parameter group.
        tap: that has the samples' rows.
    """
    beside = group["momentum"] or group["maximize"] or group["foreach"] or group["differentiable"]
    return (
        not beside
        and group["metric"] in ("curvature", "fisher")
        and group["metric_ready"] > 0
        and group["share"] == 1
        and group["measured"] >= _FIRST
        and not isinstance(group["lr"], Tensor)
        and not (group["gain"] == "running" and looks(group, tap.dimension, group["measured"] + 1))
        and all(
            type(p) is nn.Parameter and p.device.type == "cpu" and p is own and p.grad is not None
            for p, own in zip(group["params"], _all(group, tap), strict=True)
        )
    )


def advance(group: Group, tap: SampleTap, decay_of: Callable[[Group, int], float]) -> None:
    """Take the reading in, and make the step; neither where a number is not finite.

    Args:
        group: the parameter group.
        tap: that has the samples' rows.
        decay_of: the group and its new samples, by what factor earlier readings count less.
    """
    rows = tap.rows()
    assert rows is not None
    reading = read_rows(rows, 1.0)
    gradient = _laid([cast(Tensor, p.grad) for p in group["params"]])
    if not (reading.finite and math.isfinite(float(gradient @ gradient))):
        group["skipped"] = group["skipped"] + 1
        return
    group["measured"] += 1
    group["count"], key = float(reading.count), "covariance"
    decay = decay_of(group, reading.count)
    if reading.covariance is not None:
        running.add(group, key, reading.covariance, reading.count - 1, decay)
    if reading.information is not None:
        key = "information"
        running.add(group, key, reading.information, reading.count, decay)
    refresh(group, key, factored=True)
    if group["weight_decay"]:
        gradient = gradient.add(_laid(group["params"]), alpha=group["weight_decay"])
    step = (solve if group["metric_factored"] else torch.mv)(group["metric_inverse"], gradient)
    squared = max(float(step @ gradient), 0.0)
    gains.read(group, tap.dimension, _seen(group, reading) if gains.near(group, tap.dimension, squared) else None)
    rate = group["lr"] * gains.take(group, tap.dimension)
    _move(group["params"], step, rate / max(1.0, rate * squared**0.5))


def _seen(group: Group, reading: RowReading) -> InMetric | None:
    """The reading in the metric, its noise too."""
    if reading.covariance is None:
        return None
    rows, factor = reading.covariance
    metric, gradient = inverse(group), reading.gradient
    noise = factor * (rows @ metric * rows).sum()
    return InMetric(float(gradient @ metric @ gradient), float(noise) / reading.count)


def _move(parameters: list[Tensor], step: Tensor, rate: float) -> None:
    """θ ← θ - rate · step."""
    for p, part in zip(parameters, step.split([p.numel() for p in parameters]), strict=True):
        p.add_(part.view_as(p), alpha=-rate)


def _laid(tensors: list[Tensor]) -> Tensor:
    """All of them end to end, in float64."""
    flat = [t.detach().reshape(-1) for t in tensors]
    return (flat[0] if len(flat) == 1 else torch.cat(flat)).double()


def _all(group: Group, tap: SampleTap) -> list[Tensor | None]:
    """The tapped parameters, as many as the group has."""
    own: list[Tensor | None] = list(tap.parameters.values())
    return own + [None] * (len(group["params"]) - len(own))
