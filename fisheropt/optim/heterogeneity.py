"""How far ranks differ: running means of the between-rank component, kept in a parameter group.

Thresholds use the information pooled over all ranks; this says what part of the noise is one rank's against another's.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fisheropt.optim import running
from fisheropt.optim.group import Group
from fisheropt.optim.reading import Reading
from fisheropt.theory.between import BetweenComponent


def fresh(zero: Tensor) -> Group:
    """The state before any reading.

    Args:
        zero: [k, k].
    """
    group: Group = {"ranks": 0.0, "rank_samples": 0.0, "rank_size": 0.0}
    for key in ("between", "within"):
        running.start(group, key, zero)
    return group


def learn(group: Group, reading: Reading, decay: float) -> None:
    """Take in a reading of several ranks; one of a single rank changes nothing."""
    found = reading.between
    if found is None:
        return
    running.add(group, "between", found.value, found.dof, decay)
    running.add(group, "within", found.within, found.within_dof, decay)
    group["ranks"], group["rank_samples"] = float(found.ranks), float(found.samples)
    group["rank_size"] = found.per_rank


def details(group: Group) -> dict[str, Any]:
    """What the report says of it: None where there was one rank only."""
    if not group["ranks"]:
        return {"between_ranks_trace": None, "between_ranks_trace_se": None, "between_ranks_dof": None}
    found, readings = _component(group)
    return {
        "between_ranks_trace": found.trace(),
        "between_ranks_trace_se": found.trace_standard_error(readings),
        "between_ranks_dof": found.dof,
    }


def advice(group: Group) -> tuple[str, ...]:
    """A sentence where ranks differ beyond chance."""
    if not group["ranks"]:
        return ()
    found, readings = _component(group)
    if not found.differ(readings):
        return ()
    return (
        f"The {found.ranks} ranks differ: the variance between their mean scores is {found.trace():.3g} ± "
        f"{found.trace_standard_error(readings):.1g} ({found.dof} degrees of freedom) where that of samples within a rank "
        f"is {float(found.within.trace()):.3g}. Thresholds use the pooled information; shuffle the data over ranks "
        f"before they are split.",
    )


def _component(group: Group) -> tuple[BetweenComponent, float]:
    """The running component, and over how many readings it is a mean."""
    ranks = round(group["ranks"])
    found = BetweenComponent(group["between"], group["within"], ranks, round(group["rank_samples"]), group["rank_size"])
    return found, running.effective_count(group, "between") / found.dof
