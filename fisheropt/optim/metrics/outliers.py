"""Whether a noise matrix had outliers and has lost them.

As a fit improves the second moment of the gradients loses its outliers: few samples still have a gradient, and a bulk of so
few ends far from its mean. The Hessian and the model Fisher information keep theirs.

Reference: benarous2025local
"""

from __future__ import annotations

from typing import Any

_CLEAR = 1.2  # how far above the edge the first must have been, so that its loss is no chance


def fresh() -> dict[str, float]:
    """The memory of a group before any reading."""
    return {"ratio": 0.0, "above": 0, "highest": 0, "highest_ratio": 0.0, "highest_step": 0.0, "ratio_step": 0.0}


def note(group: dict[str, Any], above: int, ratio: float) -> None:
    """Remember how many directions are above the edge.

    Args:
        group: the parameter group.
        above: their number.
        ratio: the largest eigenvalue over the edge.
    """
    group["above"], group["ratio"], group["ratio_step"] = above, ratio, group["steps"]
    if above and (above, ratio) > (group["highest"], group["highest_ratio"]):
        group["highest"], group["highest_ratio"], group["highest_step"] = above, ratio, group["steps"]


def lost(group: dict[str, Any]) -> bool:
    """Whether directions were clearly above the edge, and none is now."""
    return bool(group["above"] == 0 and group["highest"] > 0 and group["highest_ratio"] >= _CLEAR)


def words(group: dict[str, Any]) -> str:
    """The loss in numbers, with what to write."""
    had = "1 direction" if group["highest"] == 1 else f"{group['highest']} directions"
    return (
        f"The noise G had {had} above the edge of its bulk ({group['highest_ratio']:.2g} x at step "
        f"{group['highest_step']:.0f}) and has none now ({group['ratio']:.2g} x at step {group['ratio_step']:.0f}): a "
        f"low-rank metric of G is then a number. G loses its outliers as the fit improves, the curvature keeps them; write "
        f"GodambeSGD(model, likelihood=..., metric='curvature')"
    )
