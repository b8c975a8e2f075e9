"""AB-E4: when does a run look stationary, and how far above the noise floor is it then?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from fisheropt.theory.lyapunov import stationary_covariance
from recipes import drawing
from recipes.medians import median_interval
from recipes.pages import number
from recipes.studies.arguments import require
from recipes.studies.base import Finding, Findings, Picture, Study, Tell
from recipes.studies.batch_stationarity_detectors import DETECTORS, Chains, chains
from recipes.studies.draws import share
from recipes.studies.glm_chains import Glm, logistic

BATCH = 32
RATES = {0.4: 60, 0.2: 240, 0.1: 490, 0.05: 1370}
"""Step sizes, and the document's t* to which each comes nearest among .03 to 3.2; it did not record its own."""
KNOWN = {
    "certificate": (100, 240, 550, 1600),
    "controller Certified": (None, None, None, None),
    "SASA+ statistic": (100, 188, 625, None),
    "Chee-Toulis sum": (100, 350, 1600, None),
    "not significantly positive": (100, 100, 100, 100),
}
EXCESS = (1.05, 1.14, 1.13, 1.07)
NEAR, ALLOWED, LENGTHS = 1.1, 1.2, 5.0


@final
class BatchStationarity(Study):
    """Logistic regression in 20 dimensions of condition number 30, batches of 32, from zero.

    Args:
        runs: watched by the detectors at each step size.
        chains: for the mean course of the excess.
        length: steps of a run, in units of the document's t*, 800 at least.
        seed: of data and batches.
    """

    title: ClassVar[str] = "Detectors of stationarity"
    question: ClassVar[str] = (
        "A run at a constant temperature falls to a floor and stays there. At which step does each detector call it "
        "stationary, and how far above the floor is the mean excess risk of all chains at that step? t* is the first step "
        "within 10 % of the floor. The certificate asks that the decrease be clearly small; a decrease that is not clearly "
        "positive proves nothing."
    )
    reference: ClassVar[str] = "adaptive-batch, AB-E4"

    def __init__(self, runs: int = 80, chains: int = 200, length: float = LENGTHS, seed: int = 0) -> None:
        require(2 <= runs <= chains, f"runs={runs}, chains={chains}", "runs=40, chains=200: two runs, each one a chain")
        require(length >= 2, f"length={length}", "length=5, twice t* at least")
        self.runs, self.chains, self.length, self.seed = runs, chains, length, seed

    def run(self, tell: Tell) -> Findings:
        """Each step size, each detector."""
        generator = torch.Generator().manual_seed(self.seed)
        model = logistic(4000, 20, 30.0, generator)
        rows: list[Finding] = []
        courses = {}
        for index, (lr, known) in enumerate(RATES.items()):
            tell(index / len(RATES), f"η = {lr}")
            steps = round(max(self.length * known, 800))
            found = chains(model, lr, BATCH, steps, self.chains, self.runs, generator)
            floor, reached = _floor(found)
            detected = {detector.name: [detector.first(seen) for seen in found.watched] for detector in DETECTORS}
            rows += self._course(model, lr, floor, reached, known)
            rows += self._steps(lr, index, steps, reached, detected)
            rows += self._excesses(lr, index, found, floor, detected)
            courses[lr] = (found, floor, detected)
        return Findings(tuple(rows), tuple(_picture(*courses[lr], lr) for lr in list(courses)[-2:]))

    def _course(self, model: Glm, lr: float, floor: float, reached: int, known: int) -> list[Finding]:
        centre = model.optimum()
        H = model.curvature(centre)
        law = float((H @ stationary_covariance(H, model.covariance(centre), lr, BATCH)).trace() / 2)
        what = f"η = {lr}: floor of the excess risk over the Lyapunov equation's"
        return [
            Finding.near(what, floor / law, 1.0, absolute=0.1, remark=f"floor {number(floor)}"),
            Finding.told(f"η = {lr}: t*", reached, expected=known),
        ]

    def _steps(
        self, lr: float, index: int, steps: int, reached: int, detected: dict[str, list[float]]
    ) -> list[Finding]:
        """When: medians, and the order of the detectors, run by run."""
        rows = []
        for name, first in detected.items():
            interval = median_interval(first)
            assert interval is not None
            none = sum(map(math.isinf, first))
            words = f"95 %: {_step(interval.low)} to {_step(interval.high)}"
            words += f"; none in {none} of {len(first)} runs of {steps} steps" if none else ""
            rows.append(
                Finding.told(
                    f"η = {lr}: step of {name}, median",
                    _step(interval.median),
                    expected=KNOWN[name][index],
                    remark=words,
                )
            )
        certificate = torch.tensor(detected["certificate"])
        for name in ("SASA+ statistic", "not significantly positive"):
            later, error = share(certificate > torch.tensor(detected[name]))
            rows.append(Finding.between(f"η = {lr}: share of runs with {name} first", later, 0.75, None, error=error))
        late, error = share(certificate >= reached)
        rows.append(Finding.told(f"η = {lr}: share of runs certified after t*", late, error=error))
        return rows

    def _excesses(
        self, lr: float, index: int, found: Chains, floor: float, detected: dict[str, list[float]]
    ) -> list[Finding]:
        """How far above the floor at detection: the median over runs that detect, and the largest."""
        rows = []
        for name, first in detected.items():
            above = [found.above(step, floor) for step in first if math.isfinite(step)]
            interval = median_interval(above)
            if interval is None:
                rows.append(Finding.told(f"η = {lr}: excess over floor at {name}", "never detected"))
                continue
            words = f"95 %: {interval.low:.3g} to {interval.high:.3g}; at most {max(above):.3g}"
            what = f"η = {lr}: excess over floor at {name}, median"
            if name in ("certificate", "controller Certified"):
                rows.append(Finding.between(what, interval.median, None, ALLOWED, expected=EXCESS[index], remark=words))
            else:
                rows.append(Finding.told(what, interval.median, remark=words))
        return rows


def _floor(found: Chains) -> tuple[float, int]:
    """Mean excess over the last half of the course, and the first step within 10 % of it."""
    floor = float(found.excess[len(found.excess) // 2 :].mean())
    return floor, int((found.excess < NEAR * floor).nonzero()[0]) * found.every


def _step(step: float) -> str:
    return "none" if math.isinf(step) else f"{step:.0f}"


def _picture(found: Chains, floor: float, detected: dict[str, list[float]], lr: float) -> Picture:
    def draw(axes: Any) -> None:
        steps: Sequence[int] = range(0, found.every * len(found.excess), found.every)
        axes.plot(steps, _above(found.excess, floor), color=drawing.INK)
        for index, (name, first) in enumerate(detected.items()):
            done = sorted(step for step in first if math.isfinite(step))
            height = 0.55 * 0.8**index
            axes.plot(done, [height] * len(done), "|", color=drawing.SERIES[index], markersize=9, label=name)
        axes.axhline(1.0, color=drawing.GREY, linewidth=1.0)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(left=30)
        axes.set_xlabel("step")
        axes.set_ylabel("excess / floor")
        axes.legend(fontsize=8)

    words = "Mean excess of all chains; below, the step at which each detector fires, a tick a run."
    return Picture(f"The course and the detectors, η = {lr}", words, draw)


def _above(excess: Tensor, floor: float) -> list[float]:
    found: list[float] = (excess / floor).tolist()
    return found
