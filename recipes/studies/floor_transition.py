"""FF-E2: two sharp transitions, at n/d = 19.80 and 11.66."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from fisheropt.theory.asymptotics import eigenvalue_ratio, threshold_ratio
from recipes.drawing import DASHED, INK, SERIES
from recipes.studies.arguments import require, rising
from recipes.studies.base import Finding, Findings, Picture, Study, Tell
from recipes.studies.draws import share
from recipes.studies.floor_samples import crossing, extremes

WITHIN = {14.0: 0.0, 16.0: 0.02, 18.0: 0.32, 19.8: 0.80, 22.0: 0.98, 26.0: 1.0}
KEPT = {10.0: 0.02, 11.66: 0.75, 14.0: 1.0}
HALVES = {16: 16.0, 32: 16.7, 64: 18.3, 128: 18.7}
WIDTH = 0.15


@final
class FloorTransition(Study):
    """Shares of draws with ‖Γₙ - I‖ < 1/2, and with λ_min(Γₙ) > 1/2, over n/d."""

    title: ClassVar[str] = "Two sharp transitions in n/d"
    question: ClassVar[str] = (
        "From which sample size on is a Fisher matrix known within one half, and from which on does its smallest eigenvalue "
        "keep one half? Isotropic Gaussian scores; the limits are n/d = 19.80 and 11.66."
    )
    reference: ClassVar[str] = "after huang2025spectral; limit of bai1993limit; FF-E2"

    def __init__(
        self,
        dimensions: Sequence[int] = (16, 32, 64, 128),
        ratios: Sequence[float] = (8, 10, 11.66, 13, 14, 16, 18, 19.8, 22, 24, 26),
        draws: int = 300,
        seed: int = 0,
    ) -> None:
        """Take d, n/d and the number of draws a point."""
        self.dimensions = [int(d) for d in rising(dimensions, "dimensions", "16, 32, 64, 128")]
        self.ratios = rising(ratios, "ratios", "8, 11.66, 19.8, 26")
        require(draws > 1, f"draws={draws}", "draws=40, two or more")
        self.draws, self.seed = draws, seed

    def run(self, tell: Tell) -> Findings:
        generator = torch.Generator().manual_seed(self.seed)
        cells = torch.empty(2, len(self.dimensions), len(self.ratios), self.draws, dtype=torch.bool)
        for row, d in enumerate(self.dimensions):
            for column, ratio in enumerate(self.ratios):
                errors, smallest = extremes(d, round(ratio * d), self.draws, generator)
                cells[0, row, column], cells[1, row, column] = errors < 0.5, smallest > 0.5
                tell((row + (column + 1) / len(self.ratios)) / len(self.dimensions), f"d = {d}, n/d = {ratio:g}")
        rows = (*self._shares(cells), *self._shape(cells[0]))
        return Findings(rows, (self._picture(cells.double().mean(-1)),))

    def _shares(self, cells: Tensor) -> list[Finding]:
        rows = []
        for cell, name, expected in ((cells[0], "‖Γₙ - I‖ < 1/2", WITHIN), (cells[1], "λ_min(Γₙ) > 1/2", KEPT)):
            for column, ratio in enumerate(self.ratios):
                if ratio in expected:
                    seen, error = share(cell[-1, column])
                    what = f"P({name}), d = {self.dimensions[-1]}, n/d = {ratio:g}"
                    rows.append(Finding.near(what, seen, expected[ratio], absolute=WIDTH, error=error))
        return rows

    def _shape(self, within: Tensor) -> list[Finding]:
        curves = within.double().mean(-1).tolist()
        halves = [crossing(self.ratios, curve, 0.5) for curve in curves]
        widths = [crossing(self.ratios, curve, 0.9) - crossing(self.ratios, curve, 0.1) for curve in curves]
        rows = [
            Finding.told(f"n/d where P(‖Γₙ - I‖ < 1/2) = 1/2, d = {d}", half, expected=HALVES.get(d))
            for d, half in zip(self.dimensions, halves, strict=True)
        ]
        rise = min(b - a for a, b in zip(halves, halves[1:], strict=False))
        narrowing = max(b / a for a, b in zip(widths, widths[1:], strict=False))
        limit = threshold_ratio()
        return [
            *rows,
            Finding.between("least rise of that point from one d to the next", rise, 0.0, None, expected="rises"),
            Finding.between("its distance to the limit 19.80 at the largest d", limit - halves[-1], 0.0, 2.0, expected=1.1),
            Finding.between(
                "width from 10 % to 90 %: largest ratio of one d to the last", narrowing, None, 1.0, expected="below 1",
                remark="curves steepen: widths " + ", ".join(f"{width:.1f}" for width in widths),
            ),
        ]  # fmt: skip

    def _picture(self, shares: Tensor) -> Picture:
        def draw(panels: Sequence[Any]) -> None:
            limits = (threshold_ratio(), eigenvalue_ratio())
            names = ("P(‖Γₙ - I‖ < 1/2)", "P(λ_min(Γₙ) > 1/2)")
            for axes, cell, limit, name in zip(panels, shares, limits, names, strict=True):
                axes.axvline(limit, color=INK, linestyle=DASHED, linewidth=1.2)
                axes.annotate(f"limit {limit:.2f}", (limit, 0.08), color=INK, fontsize=9, xytext=(5, 0),
                              textcoords="offset points", va="center")  # fmt: skip
                for row, d in enumerate(self.dimensions):
                    axes.plot(self.ratios, cell[row], "o-", color=SERIES[row], markersize=3, label=f"d = {d}")
                axes.set_ylabel(name)
            panels[0].legend(loc="upper left", fontsize=9)
            panels[-1].set_xlabel("n/d")

        words = "The curves steepen with d towards a step at the dashed limits."
        return Picture("Transition curves", words, draw, height=4.6, rows=2)
