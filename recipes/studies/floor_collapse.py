"""FF-E4: separable data have no estimate, and gradient descent loses the Fisher information on its way to infinity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from fisheropt.theory.asymptotics import separability_probability
from recipes.drawing import BLUE, DASHED, INK, RED, SERIES
from recipes.problems.synthetic import linearly_separable
from recipes.studies.arguments import require, rising
from recipes.studies.base import Finding, Findings, Picture, Study, Tell
from recipes.studies.draws import share
from recipes.studies.floor_logistic import Data, descend, draw

SIGMAS = 3.0
SHORT = 100
LOOKS = 400

Path = list[tuple[int, Tensor, Tensor]]


@final
class FloorCollapse(Study):
    """Cover's probability, and what plain gradient descent does to λ_min with and without a plane between the classes."""

    title: ClassVar[str] = "Separable data and the collapse of the Fisher information"
    question: ClassVar[str] = (
        "When do random labels leave a logistic model without an estimate, and what becomes of its Fisher matrix? Linear "
        "programming on Gaussian features with fair coins, against Cover's formula; then plain gradient descent at d = 20."
    )
    reference: ClassVar[str] = "after huang2025spectral; cover1965geometrical, FF-E4 and FF-18"

    def __init__(
        self,
        dimensions: Sequence[int] = (10, 20, 40),
        ratios: Sequence[float] = (1.5, 1.75, 2, 2.25, 2.5, 3),
        draws: int = 300,
        runs: int = 40,
        steps: int = 20000,
        seed: int = 0,
    ) -> None:
        """Take d, n/d, draws a point; data sets and steps of the descent."""
        self.dimensions = [int(d) for d in rising(dimensions, "dimensions", "10, 20, 40")]
        self.ratios = rising(ratios, "ratios", "1.5, 2, 3")
        require(draws > 1 and runs > 1, f"draws={draws}, runs={runs}", "draws=200 runs=40, two or more")
        require(steps > SHORT, f"steps={steps}", f"steps=20000, more than {SHORT}")
        self.draws, self.runs, self.steps, self.seed = draws, runs, steps, seed

    def run(self, tell: Tell) -> Findings:
        generator = torch.Generator().manual_seed(self.seed)
        hits = self._separable(tell, generator)
        tell(0.8, "gradient descent")
        lost = self._descent(draw(self.runs, 30, 20, generator, separable=True))
        kept = self._descent(draw(self.runs, 80, 20, generator, separable=False))
        rows = (*self._cover(hits), *_lost(lost[-1]), *_kept(kept))
        return Findings(rows, (self._cover_picture(hits), _path_picture(lost, kept)))

    def _separable(self, tell: Tell, generator: torch.Generator) -> Tensor:
        hits = torch.empty(len(self.dimensions), len(self.ratios), self.draws, dtype=torch.bool)
        total = hits.numel() / self.draws
        for row, d in enumerate(self.dimensions):
            for column, ratio in enumerate(self.ratios):
                data = draw(self.draws, round(ratio * d), d, generator)
                found = [linearly_separable(x.numpy(), y.numpy()) for x, y in zip(data.x, data.y, strict=True)]
                hits[row, column] = torch.tensor(found)
                tell(0.8 * (row * len(self.ratios) + column + 1) / total, f"d = {d}, n/d = {ratio:g}")
        return hits

    def _cover(self, hits: Tensor) -> list[Finding]:
        rows = []
        for row, d in enumerate(self.dimensions):
            for column, ratio in enumerate(self.ratios):
                seen, error = share(hits[row, column])
                n = round(ratio * d)
                rows.append(
                    Finding.near(f"P(separable), d = {d}, n = {n}", seen, separability_probability(n, d),
                                 absolute=SIGMAS * error, error=error)
                )  # fmt: skip
        return rows

    def _descent(self, data: Data) -> Path:
        """Steps, |θ| and λ_min of plain gradient descent with step 1/L."""
        path: Path = []
        descend(data, self.steps, 1 / data.steepest()[:, None], every=max(1, min(SHORT, self.steps // LOOKS)),
                watch=lambda step, theta, least: path.append((step, theta.norm(dim=1), least)))  # fmt: skip
        return path

    def _cover_picture(self, hits: Tensor) -> Picture:
        def draw_on(axes: Any) -> None:
            for row, d in enumerate(self.dimensions):
                counts = range(round(1.2 * d), round(3.2 * d) + 1)
                curve = [separability_probability(n, d) for n in counts]
                axes.plot([n / d for n in counts], curve, color=SERIES[row], linewidth=1.2, label=f"d = {d}")
                shares, errors = zip(*[share(cell) for cell in hits[row]], strict=True)
                at = [round(ratio * d) / d for ratio in self.ratios]
                axes.errorbar(at, shares, yerr=errors, fmt="o", color=SERIES[row], markersize=4, linewidth=1)
            axes.axvline(2, color=INK, linestyle=DASHED, linewidth=1)
            axes.set_xlabel("n/d")
            axes.set_ylabel("P(separable)")
            axes.legend(loc="upper right", fontsize=9)

        return Picture(
            "Cover's probability", "Dots are random labels, lines the formula; all cross 1/2 at n = 2d.", draw_on
        )


def _lost(end: tuple[int, Tensor, Tensor]) -> list[Finding]:
    _, lengths, least = end
    ends = f"{float(least.min()):.0e} to {float(least.max()):.0e}"
    return [
        Finding.between("n/d = 1.5: λ_min after descent, median", float(least.median()), 1e-14, 1e-5,
                        expected="1e-13 to 1e-6", remark=f"seen {ends}; accepted to an order of magnitude"),
        Finding.between("n/d = 1.5: |θ| after descent, median", float(lengths.median()), 20.0, 120.0, expected="29 to 83",
                        remark="the number belongs to a step size that the document does not give; here 1/L"),
    ]  # fmt: skip


def _kept(path: Path) -> list[Finding]:
    early = next(least for step, _, least in path if step >= SHORT)
    least = path[-1][2]
    error = 1.25 * float(least.std()) / len(least) ** 0.5
    ends = f"{float(least.min()):.3f} to {float(least.max()):.3f}"
    return [
        Finding.between("n/d = 4: λ_min after descent, median", float(least.median()), 0.028 - 2 * error, 0.045 + 2 * error,
                        expected="0.028 to 0.045", error=error, remark=f"single data sets: {ends}"),
        Finding.between(f"n/d = 4: largest change of λ_min after step {SHORT}, relative",
                        float((least / early - 1).abs().max()), None, 0.05, expected="agree"),
    ]  # fmt: skip


def _path_picture(lost: Path, kept: Path) -> Picture:
    def draw_on(axes: Any) -> None:
        for path, colour, name in ((kept, BLUE, "n/d = 4"), (lost, RED, "n/d = 1.5, separable")):
            steps = [max(step, 1) for step, _, _ in path]
            for run in range(len(path[0][2])):
                axes.plot(steps, [least[run].clamp(min=1e-14) for _, _, least in path], color=colour, linewidth=1,
                          alpha=0.7, label=name if run == 0 else None)  # fmt: skip
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("step of gradient descent")
        axes.set_ylabel("λ_min(Γₙ)")
        axes.legend(loc="lower left", fontsize=9)

    words = "On separable data the smallest Fisher eigenvalue goes on falling; otherwise it settles."
    return Picture("Collapse along training", words, draw_on)
