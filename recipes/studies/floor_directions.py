"""Which directions a floor should watch when nobody knows the critical ones: given, tracked, random, or none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, final

import torch
from scipy.stats import t as student

from recipes.drawing import SERIES
from recipes.studies.base import Finding, Findings, Picture, Study, StudyError, Tell
from recipes.studies.floor_direction_runs import Bench, Outcome, logistic, network, train

CHOICES = {
    "none": "no floor",
    "stopped": "no floor, stopped at the loss of tracked",
    "random": "random",
    "given": "given, weakest at the start",
    "given_end": "given, weakest at the end",
    "tracked": "tracked",
    "whole": "whole space",
}
WORDS = {
    "random": "6 directions of random signs",
    "given": "the 6 weakest eigenvectors of the true Fisher matrix before training",
    "given_end": "the 6 weakest after a run without a floor: an oracle that no user has",
    "tracked": "directions='tracked'",
    "whole": "all parameters",
    "none": "plain SGD",
    "stopped": "plain SGD, the control: does a floor keep more than stopping early does?",
}


@final
class FloorDirections(Study):
    """The smallest true Fisher eigenvalue at the end of training, by what the floor watched."""

    title: ClassVar[str] = "Critical directions: given, tracked, or random"
    question: ClassVar[str] = (
        "The floor needs directions, and the source leaves their choice open. How much information is left at the end of "
        "training if the user gives the true weakest eigenvectors, if the optimizer tracks its own directions, if they are "
        "random, or if there is no floor? Separable logistic regression with the anchor, and a network of 339 parameters on "
        "three blobs with the anchor and with the penalty, all at default settings."
    )
    reference: ClassVar[str] = "after huang2025spectral, R14 and P6"

    def __init__(
        self, seeds: int = 10, steps: int = 800, network_steps: int = 250, dimension: int = 20, seed: int = 0
    ) -> None:
        """Take how many data sets, the steps of either problem, and d of the logistic one."""
        if seeds < 2:
            raise StudyError(f"seeds={seeds}: an interval needs two or more; write seeds=10")
        if dimension < 12:
            raise StudyError(f"dimension={dimension}: six directions would be most of the space; write dimension=20")
        self.seeds, self.steps, self.network_steps = seeds, steps, network_steps
        self.dimension, self.seed = dimension, seed

    def run(self, tell: Tell) -> Findings:
        rows: list[Finding] = []
        pictures: list[Picture] = []
        benches = (
            logistic(self.dimension, self.steps),
            network(self.network_steps, "anchor"),
            network(self.network_steps, "penalty"),
        )
        for place, bench in enumerate(benches):
            outcomes = self._outcomes(bench, lambda done, words, at=place: tell((at + done) / len(benches), words))
            rows += [_row(bench, choice, found) for choice, found in outcomes.items()]
            rows += _compared(bench, outcomes)
            pictures.append(_picture(bench, outcomes))
        return Findings(tuple(rows), tuple(pictures))

    def _outcomes(self, bench: Bench, tell: Tell) -> dict[str, list[Outcome]]:
        choices = [choice for choice in CHOICES if choice != "whole" or bench.small]
        found: dict[str, list[Outcome]] = {choice: [] for choice in choices}
        for run in range(self.seeds):
            seed = 1000 * self.seed + run
            for choice in choices:
                if choice != "stopped":
                    found[choice].append(train(bench, choice, seed))
            found["stopped"].append(train(bench, "stopped", seed, found["tracked"][-1].loss))
            tell((run + 1) / self.seeds, f"{bench.name}: {run + 1} of {self.seeds} data sets")
        return found


def _mean(values: Sequence[float]) -> tuple[float, float]:
    held = torch.tensor(values, dtype=torch.float64)
    return float(held.mean()), float(held.std()) / math.sqrt(len(held))


def _row(bench: Bench, choice: str, outcomes: list[Outcome]) -> Finding:
    mean, error = _mean([o.smallest for o in outcomes])
    loss, loss_error = _mean([o.loss for o in outcomes])
    start, _ = _mean([o.start for o in outcomes])
    return Finding.told(
        f"{bench.name}, {CHOICES[choice]}: log10 λ_min at the end", mean, error=error,
        remark=f"{WORDS[choice]}; {start:.2f} before training; training loss {loss:.3g} ± {loss_error:.1g}",
    )  # fmt: skip


def _compared(bench: Bench, outcomes: dict[str, list[Outcome]]) -> list[Finding]:
    """Paired differences over the same data sets, in decades; required is only what the claim of `tracked` is."""
    rows = []
    for other in ("none", "stopped", "random", "given", "given_end"):
        pairs = zip(outcomes["tracked"], outcomes[other], strict=True)
        mean, error = _mean([a.smallest - b.smallest for a, b in pairs])
        what = f"{bench.name}: decades of λ_min that tracked keeps beyond {CHOICES[other]}"
        half = float(student.ppf(0.975, len(outcomes[other]) - 1)) * error
        remark = f"95 % interval {mean - half:.2f} to {mean + half:.2f} over {len(outcomes[other])} data sets"
        claimed = bench.small and other in ("none", "random")
        rows.append(
            Finding.between(what, mean, 0.0, None, error=error, expected="> 0", remark=remark)
            if claimed
            else Finding.told(what, mean, error=error, remark=remark)
        )
    return rows


def _picture(bench: Bench, outcomes: dict[str, list[Outcome]]) -> Picture:
    def draw_on(axes: Any) -> None:
        for colour, (choice, found) in zip(SERIES, outcomes.items(), strict=False):
            loss = [max(o.loss, 1e-6) for o in found]
            axes.scatter(loss, [o.smallest for o in found], s=14, color=colour, label=CHOICES[choice], alpha=0.8)
        axes.set_xscale("log")
        axes.set_xlabel("training loss at the end")
        axes.set_ylabel("log10 λ_min at the end")
        axes.legend(fontsize=8, loc="best")

    words = "One dot a data set. Information is paid for in fit, up and to the right: compare dots at equal loss."
    return Picture(f"{bench.name}: what is kept and what it costs", words, draw_on, height=3.6)
