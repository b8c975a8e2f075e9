"""The floor τ and the fluctuation Λ* that it is measured against."""

from __future__ import annotations

import torch
from torch import Tensor

from fisheropt.optim import running
from fisheropt.optim.floor.mode import Mode
from fisheropt.optim.floor.spectrum import running_eigen
from fisheropt.optim.group import Group
from fisheropt.theory.levels import gaussian_level

NULL = 1e-9  # of the largest eigenvalue: below it a direction carries no information at all
_REFERENCE = 4  # samples a direction, from which on Γ can serve as the reference of the floor


def evidence(group: Group, key: str = "information", most: float | None = None) -> float:
    """How many samples a running mean rests on: its effective number, and no more than there are.

    Args:
        group: with the running mean.
        key: of the running mean.
        most: distinct samples; the group's "data_size" if left out.
    """
    most = group["data_size"] if most is None else most
    count = running.effective_count(group, key)
    return count if most is None else min(count, float(most))


def threshold(group: Group, values: Tensor, count: float) -> float:
    """Λ* of ascending eigenvalues, in the directions that they belong to."""
    return gaussian_level(float(values[-1]), len(values), count, group["delta"]).value


def set_level(group: Group, mode: Mode) -> None:
    """Fix τ in group["level"]; for "auto" once the information at the start is known well enough to refer to."""
    if not group["floor"]:
        return
    if group["floor"] != "auto":
        group["level"] = float(group["floor"])
        return
    if group["level"] and not mode.follows:
        return
    values = running_eigen(group)[0]
    star = threshold(group, values, evidence(group))
    if mode.follows:
        group["level"] = star
        return
    carrying = values[values > NULL * values[-1]]
    if len(carrying) and running.effective_count(group, "information") >= _REFERENCE * len(values):
        group["level"] = min(star, float(carrying[0]) / 2)


def resolved(values: Tensor) -> tuple[Tensor, float]:
    """The eigenvalues, with zero for those that are rounding, and how small that is."""
    resolution = NULL * float(values[-1])
    return values.where(values > resolution, torch.zeros_like(values)), resolution
