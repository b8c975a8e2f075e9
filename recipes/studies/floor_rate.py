"""FF-E7: above the threshold gradient descent converges linearly, at 1 - η λ_min a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from recipes.drawing import DASHED, INK, SERIES
from recipes.studies.arguments import require, rising
from recipes.studies.base import Finding, Findings, Picture, Study, Tell
from recipes.studies.floor_logistic import Data, descend, draw, maximum_likelihood

SEEN = {3.0: "0.9161 for 0.9167", 6.0: "0.8843 for 0.8859", 12.0: "0.7845 for 0.7845"}
TOLERANCE = 0.003
ROUNDING = 1e-13
SHOWN = 250


@final
class FloorRate(Study):
    """Contraction of plain gradient descent on logistic models over n/d."""

    title: ClassVar[str] = "Linear convergence at the rate of the smallest eigenvalue"
    question: ClassVar[str] = (
        "How fast does gradient descent come to the estimate? Logistic models, d = 20, step 1/L: the error shrinks by "
        "1 - η λ_min(Γₙ) a step in the end, and so does no worse than 1 - η λ_min(Γ)/2 above the threshold."
    )
    reference: ClassVar[str] = "after huang2025spectral; FF-E7"

    def __init__(
        self,
        dimension: int = 20,
        ratios: Sequence[float] = (3, 6, 12),
        runs: int = 10,
        steps: int = 6000,
        strength: float = 0.5,
        seed: int = 0,
    ) -> None:
        """Take d, n/d, data sets a point, steps, and |θ| of the truth."""
        require(dimension > 1, f"dimension={dimension}", "dimension=20")
        require(runs > 0 and steps > 1, f"runs={runs}, steps={steps}", "runs=10 steps=6000")
        require(strength >= 0, f"strength={strength}", "strength=0.5")
        self.ratios = rising(ratios, "ratios", "3, 6, 12")
        self.dimension, self.runs, self.steps, self.strength = dimension, runs, steps, strength
        self.seed = seed

    def run(self, tell: Tell) -> Findings:
        generator = torch.Generator().manual_seed(self.seed)
        rows, paths = [], []
        for number, ratio in enumerate(self.ratios, start=1):
            count = round(ratio * self.dimension)
            data = draw(self.runs, count, self.dimension, generator, strength=self.strength, separable=False)
            errors, promised = self._contraction(data)
            rows += self._rows(ratio, _rates(errors), promised)
            paths.append((ratio, errors[:, 0], float(promised[0])))
            tell(number / len(self.ratios), f"n/d = {ratio:g}")
        return Findings(tuple(rows), (_picture(paths),))

    def _contraction(self, data: Data) -> tuple[Tensor, Tensor]:
        """Distances to θ̂ [steps + 1, s] and 1 - η λ_min(Γₙ(θ̂)) [s]."""
        best, lr = maximum_likelihood(data), 1 / data.steepest()
        errors: list[Tensor] = []
        descend(
            data, self.steps, lr[:, None], every=1, watch=lambda _, theta, __: errors.append((theta - best).norm(dim=1))
        )
        return torch.stack(errors), 1 - lr * torch.linalg.eigvalsh(data.fisher(best))[:, 0]

    def _rows(self, ratio: float, rates: Tensor, promised: Tensor) -> list[Finding]:
        apart = (rates - promised).abs()
        name, spread = f"n/d = {ratio:g}: ", float(rates.std()) / len(rates) ** 0.5
        words = f"the document, for its one data set: {SEEN[ratio]}" if ratio in SEEN else ""
        return [
            Finding.near(name + "contraction a step, mean", float(rates.mean()), float(promised.mean()), absolute=TOLERANCE,
                         error=spread, remark=words),
            Finding.between(name + "distance from 1 - η λ_min, median", float(apart.median()), None, TOLERANCE,
                            remark=f"of {len(rates)} data sets; largest {float(apart.max()):.1g}, where rounding ends the "
                                   "descent before its last phase"),
        ]  # fmt: skip


def _rates(errors: Tensor) -> Tensor:
    """Mean contraction a step [s] over the last fifth of the way, which ends where rounding would begin to tell."""
    relative = errors / errors[0]
    rates = []
    for path in relative.T:
        last = int((path > ROUNDING).nonzero()[-1])
        first = last - max(1, last // 5)
        rates.append((path[last] / path[first]).log().div(last - first).exp())
    return torch.stack(rates)


def _picture(paths: list[tuple[float, Tensor, float]]) -> Picture:
    def draw_on(axes: Any) -> None:
        for colour, (ratio, errors, rate) in zip(SERIES, paths, strict=False):
            kept = [error for error in errors[: SHOWN + 1].tolist() if error > ROUNDING]
            axes.plot(range(len(kept)), kept, color=colour, label=f"n/d = {ratio:g}")
            anchor = len(kept) // 3
            line = [kept[anchor] * rate ** (step - anchor) for step in range(anchor, len(kept))]
            axes.plot(range(anchor, len(kept)), line, color=INK, linestyle=DASHED, linewidth=1)
        axes.set_yscale("log")
        axes.set_xlabel("step")
        axes.set_ylabel("|θ - θ̂|")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=9)

    return Picture(
        "Contraction", "The error falls along the dashed lines (1 - η λ_min) to the power of the step.", draw_on
    )
