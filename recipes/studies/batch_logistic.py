"""AB-E2: batch-size rules on streaming logistic regression with an estimated metric."""

from __future__ import annotations

import math
from typing import Any, ClassVar, final

from fisheropt.control import GOF, Controller, Fixed, NoiseScale, NormTest
from recipes import drawing
from recipes.studies.base import Finding, Findings, Picture, Study, StudyError, Tell
from recipes.studies.batch_simulation import Logistic, Outcome, over_seeds

RATES = (0.1, 0.3, 0.5, 0.8)
MODELS = {"well specified": (0.0, math.inf, 1.25), "misspecified": (2.0, 5.0, 1.5)}
DERIVED = {"well specified": (1.35, 1.21, 1.33, 1.17), "misspecified": (2.03, 1.47, 1.42, 1.41)}
BASELINES: dict[str, Controller] = {"norm test": NormTest(), "noise scale": NoiseScale(), "fixed b = 64": Fixed()}
LARGEST_STEPS = 60


@final
class BatchLogistic(Study):
    """One pass over 40,000 samples in 20 dimensions, with a running model Fisher as metric.

    Args:
        seeds: runs of GO-F at each setting.
        baseline_seeds: runs of the other rules.
        seed: unused: the runs have the seeds 0, 1, ...
    """

    title: ClassVar[str] = "Batch-size rules, estimated metric"
    question: ClassVar[str] = (
        "Does GO-F bring the last iterate of one pass near the statistical limit at every step size, in few serial steps, "
        "when the metric is only a running estimate, and when the model is wrong? The limit is tr(H⁻¹G)/2n."
    )
    reference: ClassVar[str] = "adaptive-batch, AB-E2"

    def __init__(self, seeds: int = 24, baseline_seeds: int = 4, seed: int = 0) -> None:
        if min(seeds, baseline_seeds) < 2:
            raise StudyError(f"seeds={seeds}, baseline_seeds={baseline_seeds}: a standard error needs two at least.")
        self.seeds, self.baseline_seeds, self.seed = seeds, baseline_seeds, seed

    def run(self, tell: Tell) -> Findings:
        """Both models, each step size, GO-F first."""
        rows, outcomes = [], {}
        for place, (model, (square, tails, target)) in enumerate(MODELS.items()):
            problem = Logistic(square, tails)
            for index, lr in enumerate(RATES):
                tell((place + index / len(RATES)) / 2, f"{model}, η = {lr}")
                found = over_seeds(problem, GOF(), lr, 64, self.seeds)
                outcomes[model, "GO-F", lr] = found
                rows += self._rows(model, lr, target, DERIVED[model][index], found)
                for name, rule in BASELINES.items():
                    other = over_seeds(problem, rule, lr, 64, self.baseline_seeds)
                    outcomes[model, name, lr] = other
                    what = f"{model}, η = {lr}: excess of {name}"
                    rows.append(Finding.told(what, other.excess, error=other.error, remark=f"{other.steps:.0f} steps"))
        return Findings(tuple(rows), tuple(_picture(model, outcomes) for model in MODELS))

    def _rows(self, model: str, lr: float, target: float, derived: float, found: Outcome) -> list[Finding]:
        what, words = f"{model}, η = {lr}: excess of GO-F", f"as first derived: {derived}"
        return [
            Finding.between(what, found.excess, None, target, expected="≤ the target", error=found.error, remark=words),
            Finding.between(f"{model}, η = {lr}: steps of GO-F", found.steps, None, LARGEST_STEPS),
        ]


def _picture(model: str, outcomes: dict[tuple[str, str, float], Outcome]) -> Picture:
    def draw(axes: Any) -> None:
        for index, name in enumerate(("GO-F", *BASELINES)):
            excess = [outcomes[model, name, lr].excess for lr in RATES]
            axes.plot(RATES, excess, "o-", color=drawing.SERIES[index], markersize=5, label=name)
        axes.axhline(1.0, color=drawing.GREY, linewidth=1.0)
        axes.set_yscale("log")
        axes.set_xlabel("step size η")
        axes.set_ylabel("excess / limit")
        axes.legend(fontsize=8)

    return Picture(f"Excess risk, {model}", "The grey line is the statistical limit.", draw)
