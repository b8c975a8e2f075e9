"""FF-E1: the error of a Fisher matrix grows like the square root of d/n."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from fisheropt.theory.asymptotics import fluctuation_limit
from recipes.drawing import INK, SERIES, plain_decades
from recipes.studies.arguments import require, rising
from recipes.studies.base import Finding, Findings, Picture, Study, Tell
from recipes.studies.floor_samples import extremes


@final
class FloorScaling(Study):
    """‖Γₙ - I‖ for isotropic Gaussian scores over a grid of d and d/n."""

    title: ClassVar[str] = "The error of a Fisher matrix against d/n"
    question: ClassVar[str] = (
        "How far is the Fisher matrix of n scores from the true one in d dimensions? Isotropic Gaussian scores, a grid of "
        "d and d/n; the limit is 2√g + g at g = d/n."
    )
    reference: ClassVar[str] = "after huang2025spectral; limit of bai1993limit; FF-E1"

    def __init__(
        self,
        dimensions: Sequence[int] = (20, 50, 100),
        ratios: Sequence[float] = (0.01, 0.02, 0.04, 0.08, 0.16),
        draws: int = 50,
        seed: int = 0,
    ) -> None:
        """Take d, d/n and the number of draws a point."""
        self.dimensions = [int(d) for d in rising(dimensions, "dimensions", "20, 50, 100")]
        self.ratios = rising(ratios, "ratios", ".01, .04, .16")
        require(draws > 1, f"draws={draws}", "draws=12, two or more")
        self.draws, self.seed = draws, seed

    def run(self, tell: Tell) -> Findings:
        generator = torch.Generator().manual_seed(self.seed)
        errors = torch.empty(len(self.dimensions), len(self.ratios), self.draws, dtype=torch.float64)
        for row, d in enumerate(self.dimensions):
            for column, ratio in enumerate(self.ratios):
                errors[row, column] = extremes(d, round(d / ratio), self.draws, generator)[0]
                tell((row * len(self.ratios) + column + 1) / (errors.numel() / self.draws), f"d = {d}, d/n = {ratio:g}")
        medians = errors.median(-1).values
        return Findings((self._slope(errors, medians), *self._limits(errors, medians)), (self._picture(medians),))

    def _slope(self, errors: Tensor, medians: Tensor) -> Finding:
        slopes = torch.stack([self._fit(errors[..., draw]) for draw in range(self.draws)])
        limits = torch.tensor([fluctuation_limit(ratio) for ratio in self.ratios], dtype=torch.float64)
        return Finding.between(
            "slope of log median error on log d/n",
            float(self._fit(medians)),
            0.50,
            0.60,
            expected=0.547,
            error=float(slopes.std()) / math.sqrt(self.draws),
            remark=f"the limit has the slope {float(self._fit(limits.expand_as(medians))):.3f} on this grid",
        )

    def _fit(self, errors: Tensor) -> Tensor:
        x = torch.tensor(self.ratios, dtype=torch.float64).log().expand_as(errors).flatten()
        y = errors.log().flatten()
        return ((x - x.mean()) @ (y - y.mean())) / (x - x.mean()).square().sum()

    def _limits(self, errors: Tensor, medians: Tensor) -> list[Finding]:
        spread = 1.25 * errors[-1].std(-1) / math.sqrt(self.draws)
        return [
            Finding.near(
                f"median error at d = {self.dimensions[-1]}, d/n = {ratio:g}",
                float(medians[-1, column]),
                fluctuation_limit(ratio),
                relative=0.10,
                error=float(spread[column]),
            )
            for column, ratio in enumerate(self.ratios)
        ]

    def _picture(self, medians: Tensor) -> Picture:
        def draw(axes: Any) -> None:
            low, high = math.log(self.ratios[0] / 1.3), math.log(self.ratios[-1] * 1.3)
            grid = [math.exp(low + (high - low) * step / 60) for step in range(61)]
            axes.plot(grid, [fluctuation_limit(g) for g in grid], color=INK, linewidth=1.2, label="2√g + g")
            for row, d in enumerate(self.dimensions):
                axes.plot(self.ratios, medians[row], "o", color=SERIES[row], markersize=5, label=f"d = {d}")
            axes.set_xscale("log")
            axes.set_yscale("log")
            plain_decades(axes.xaxis)
            plain_decades(axes.yaxis)
            axes.set_xlabel("g = d/n")
            axes.set_ylabel("‖Γₙ - I‖, median")
            axes.legend(loc="upper left", fontsize=9)

        return Picture("Error against d/n", "The points lie on the limit 2√g + g whatever d is.", draw)
