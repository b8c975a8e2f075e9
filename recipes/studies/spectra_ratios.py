"""The picture of outliers over edge along training."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from fisheropt.theory.transitions import Transitions
from recipes.drawing import BLUE, DASHED, GREY, INK, RED
from recipes.studies.base import Picture


class Seen(NamedTuple):
    """The largest eigenvalues of sampled matrices at a time [m], and their standard errors."""

    time: float
    eigenvalues: Tensor
    errors: Tensor


class Curves(NamedTuple):
    """Predicted paths of the Hessian, and of the information matrix in the limit and at `drawn` samples."""

    hessian: Transitions
    limit: Transitions
    finite: Transitions
    drawn: int


def picture(curves: Curves, hessian: list[Seen], information: list[Seen]) -> Picture:
    """Hessian above, information below, on one time axis."""

    def draw(axes: list[Any]) -> None:
        _paths(axes[0], curves.hessian, BLUE, "predicted")
        _dots(axes[0], curves.hessian, hessian)
        _paths(axes[1], curves.finite, BLUE, f"predicted, {curves.drawn} samples")
        _paths(axes[1], curves.limit, RED, "limit", linestyle=DASHED)
        _dots(axes[1], curves.finite, information)
        for ax, name in zip(axes, ("Hessian", "information"), strict=True):
            ax.axhline(1.0, color=GREY, linewidth=1.0)
            ax.set_ylabel(f"{name}: eigenvalue / edge")
            ax.legend(fontsize=8, loc="upper right")
        axes[1].set_xlabel("time t = learning rate × steps")

    words = (
        "The Hessian's outliers split and stay; those of the information matrix sink into the bulk, in the limit earlier "
        "than in matrices of few samples."
    )
    return Picture("Outliers over edge along training", words, draw, height=4.8, rows=2)


def _paths(axes: Any, path: Transitions, colour: str, label: str, **style: Any) -> None:
    for j in range(path.ratios.shape[1]):
        axes.plot(path.times, path.ratios[:, j], color=colour, label=label if j == 0 else None, **style)


def _dots(axes: Any, path: Transitions, seen: list[Seen]) -> None:
    for index, (time, mean, error) in enumerate(seen):
        edge = path.edges[int((path.times - time).abs().argmin())]
        axes.errorbar(
            [time] * len(mean),
            mean / edge,
            error / edge,
            fmt="o",
            color=INK,
            markersize=4,
            label="sampled" if index == 0 else None,
        )
