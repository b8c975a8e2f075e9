"""AB-E1 and AB-R3: batch-size rules on linear regression with the exact metric."""

from __future__ import annotations

from typing import Any, ClassVar, final

from fisheropt.control import GOF, Controller, NoiseScale, NormTest
from recipes import drawing
from recipes.studies.base import Finding, Findings, Picture, Study, StudyError, Tell
from recipes.studies.batch_simulation import Linear, Outcome, over_seeds

SETTINGS = ((0.1, 24), (0.3, 24), (0.5, 48))
RULES: dict[str, Controller] = {
    "GO-F": GOF(),
    "norm test, θ = 1 - η": NormTest(),
    "norm test, θ = .5": NormTest(0.5),
    "norm test, θ = 1": NormTest(1.0),
    "noise scale": NoiseScale(),
}
KNOWN = {
    "GO-F": (1.11, 1.17, 1.24),
    "norm test, θ = 1 - η": (1.62, 1.11, 1.09),
    "norm test, θ = .5": (11.8, 1.80, 1.09),
    "norm test, θ = 1": (None, 2.96, 8.97),
    "noise scale": (None, 5.4, 13.0),
}
OTHER = {  # d and N, the smallest batch in proportion, at η = .3
    (100, 100_000, 120): {"GO-F": 1.15, "norm test, θ = 1 - η": 1.08},
    (5, 5000, 6): {"GO-F": 1.04, "norm test, θ = 1 - η": 1.26},
}


@final
class BatchLinear(Study):
    """One pass over 20,000 samples of a linear regression in 20 dimensions.

    Args:
        seeds: runs of each rule.
        slow_seeds: runs of the rules that take hundreds of steps.
        seed: unused: the runs have the seeds 0, 1, ...
    """

    title: ClassVar[str] = "Batch-size rules, exact metric"
    question: ClassVar[str] = (
        "How far above the statistical limit tr(H⁻¹G)/2n is the last iterate of one pass, with no averaging, when a rule "
        "sets the batch size at a constant step η in the metric H⁻¹? And in how many serial steps?"
    )
    reference: ClassVar[str] = "adaptive-batch, AB-E1 and AB-R3"

    def __init__(self, seeds: int = 60, slow_seeds: int = 10, seed: int = 0) -> None:
        if min(seeds, slow_seeds) < 2:
            raise StudyError(f"seeds={seeds}, slow_seeds={slow_seeds}: a standard error needs two seeds at least.")
        self.seeds, self.slow_seeds, self.seed = seeds, slow_seeds, seed

    def run(self, tell: Tell) -> Findings:
        """Each rule at each step size."""
        rows, outcomes = [], {}
        for place, (name, rule) in enumerate(RULES.items()):
            for index, (lr, smallest) in enumerate(SETTINGS):
                tell((place + index / 3) / len(RULES), f"{name}, η = {lr}")
                seeds = self.seeds if KNOWN[name][index] and KNOWN[name][index] < 2 else self.slow_seeds
                outcome = over_seeds(Linear(), rule, lr, smallest, seeds)
                outcomes[name, lr] = outcome
                rows.append(self._row(name, index, lr, outcome))
        tell(0.99, "other dimensions")
        for (width, samples, smallest), known in OTHER.items():
            for name, expected in known.items():
                outcome = over_seeds(Linear(width, samples), RULES[name], 0.3, smallest, self.seeds // 2)
                rows.append(_near(f"excess of {name}, η = 0.3, d = {width}", outcome, expected))
        return Findings(tuple(rows), (_picture(outcomes),))

    def _row(self, name: str, index: int, lr: float, outcome: Outcome) -> Finding:
        what = f"excess of {name}, η = {lr}"
        words = f"{outcome.steps:.0f} steps"
        known = KNOWN[name][index]
        if name in ("GO-F", "norm test, θ = 1 - η"):
            assert known is not None
            return _near(what, outcome, known)
        if name == "norm test, θ = 1" and lr == 0.3:
            return Finding.between(what, outcome.excess, 2.0, None, expected=known, error=outcome.error, remark=words)
        return Finding.told(what, outcome.excess, expected=known, error=outcome.error, remark=words)


def _near(what: str, outcome: Outcome, known: float) -> Finding:
    """At most 15 % and two standard errors above what is known."""
    high, words = known * 1.15 + 2 * outcome.error, f"{outcome.steps:.0f} steps"
    return Finding.between(what, outcome.excess, None, high, expected=known, error=outcome.error, remark=words)


def _picture(outcomes: dict[tuple[str, float], Outcome]) -> Picture:
    def draw(axes: Any) -> None:
        for index, name in enumerate(RULES):
            found = [outcomes[name, lr] for lr, _ in SETTINGS]
            steps, excess = [o.steps for o in found], [o.excess for o in found]
            axes.plot(steps, excess, "o-", color=drawing.SERIES[index], markersize=5, label=name)
        axes.axhline(1.0, color=drawing.GREY, linewidth=1.0)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("serial steps")
        axes.set_ylabel("excess / limit")
        drawing.plain_decades(axes.xaxis)
        drawing.plain_decades(axes.yaxis)
        axes.legend(fontsize=8)

    return Picture("Excess against steps", "Three step sizes a rule; the grey line is the statistical limit.", draw)
