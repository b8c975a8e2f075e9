"""SN-X5: a shuffled loader is quieter than independent batches."""

from __future__ import annotations

from typing import Any, ClassVar, final

import torch
from torch import Tensor

from fisheropt.theory.lyapunov import reshuffled_mean, stationary_covariance
from recipes import drawing
from recipes.studies.base import Finding, Findings, Picture, Study, Tell
from recipes.studies.glm_chains import epochs, logistic, stationary

RATES = (0.02, 0.05, 0.1, 0.2)


@final
class NoiseReshuffle(Study):
    """Reshuffled epochs of a logistic regression.

    Args:
        chains: run side by side.
        passes: epochs of each after burn-in, at the smallest step size.
        seed: of data and orders.
    """

    title: ClassVar[str] = "Noise of a shuffled loader"
    question: ClassVar[str] = (
        "DataLoader(shuffle=True) draws disjoint batches, whose noises cancel over an epoch. How much smaller is the "
        "stationary covariance than that of independent batches, at the end of epochs and on average, and does the closed "
        "form predict it?"
    )
    reference: ClassVar[str] = "zantedeschi2026, SN-X5"

    def __init__(self, chains: int = 200, passes: int = 150, seed: int = 0) -> None:
        self.chains, self.passes, self.seed = chains, passes, seed

    def run(self, tell: Tell) -> Findings:
        """Simulate at each step size."""
        generator = torch.Generator().manual_seed(self.seed)
        n, b = 512, 8
        model = logistic(n, 10, 10.0, generator)
        centre = model.optimum()
        H, S, m = model.curvature(centre), model.covariance(centre), n // b
        rows, points = [], []
        for index, lr in enumerate(RATES):
            tell(index / len(RATES), f"η = {lr}")
            free = stationary_covariance(H, S, lr, b).trace()
            laws = stationary_covariance(H, S, lr, b, n=n, sampling="reshuffle"), reshuffled_mean(H, S, lr, b, n)
            burn = m * round(4 / (lr * m * float(torch.linalg.eigvalsh(H)[0])) + 2)
            steps = m * max(20, round(self.passes * RATES[0] / lr))
            seen = [self._simulated(model, lr, burn, steps, every, generator) for every in (m, 7)]
            points.append([float(x.trace() / free) for x in (*laws, *seen)])
            for name, law, found, known in zip(("epoch end", "epoch mean"), laws, seen, (0.076, 0.21), strict=True):
                told = f"document, on its own data: {known}" if lr == 0.05 else ""
                what = f"trace over that of independent batches, {name}, η = {lr}"
                expected, ratio = float(law.trace() / free), float(found.trace() / free)
                rows.append(Finding.near(what, ratio, expected, relative=0.1, remark=told))
        return Findings(tuple(rows), (_picture(points),))

    def _simulated(
        self, model: Any, lr: float, burn: int, steps: int, every: int, generator: torch.Generator
    ) -> Tensor:
        drawn = epochs(len(model.x), 8, self.chains, generator)
        return stationary(model, drawn, lr, self.chains, burn, steps, every)


def _picture(points: list[list[float]]) -> Picture:
    def draw(axes: Any) -> None:
        names = ("epoch end", "epoch mean")
        for index, name in enumerate(names):
            colour = drawing.SERIES[index]
            axes.plot(RATES, [row[index] for row in points], color=colour, label=f"{name}, formula")
            axes.plot(RATES, [row[2 + index] for row in points], "o", color=colour, markersize=5, label="simulated")
        axes.axhline(1.0, color=drawing.GREY, linewidth=1.0)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("learning rate")
        axes.set_ylabel("trace / i.i.d. trace")
        drawing.plain_decades(axes.xaxis)
        drawing.plain_decades(axes.yaxis)
        axes.legend(fontsize=8)

    return Picture(
        "How much quieter a shuffled loader is", "Below the grey line the i.i.d. formula overstates the noise.", draw
    )
