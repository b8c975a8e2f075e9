"""Time to the loss of a fixed batch, for rules that steer the batch size, on a CNN and on a small transformer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from recipes import drawing
from recipes.studies.arguments import require
from recipes.studies.base import Finding, Findings, Picture, Study, Tell
from recipes.studies.batch_wall_problems import Characters, Digits, Problem
from recipes.studies.batch_wall_runs import METHODS, Course, Trial, course, in_turns

UNITS = {"process": "process time", "wall": "wall time", "steps": "steps", "samples": "samples"}
TUNING_SEED, TUNING_SEEDS = 10_000, 2
RESAMPLES = 2000

Courses = dict[str, list[Course]]


@final
class BatchWall(Study):
    """Every method has the same trials; then they train in turns, seed by seed, in one process on one thread.

    Args:
        seeds: starts and orders of the data, other than those that methods are tuned with.
        shorter: divisor of the data, for a trial of the study itself.
        data_dir: with tinyshakespeare.txt.xz; where it is missing a Markov chain writes the text.
        seed: of the first start.
    """

    title: ClassVar[str] = "Time to the loss of a fixed batch"
    question: ClassVar[str] = (
        "A fixed batch (torch.optim.SGD) trains to the end of a budget of samples. How much time, how many serial steps "
        "and samples do other methods need to the training loss that it ends with, from the same start? Batch size and "
        "step size of each method are the best of six trials, from two other starts: the lowest loss for a fixed batch, the "
        "soonest to it for the others. Times are of training, as ratios to the fixed batch, in pairs: a gain below 1."
    )
    reference: ClassVar[str] = "adaptive-batch, 6: doubts 1 and 5"

    def __init__(self, seeds: int = 5, shorter: int = 1, data_dir: str = "../shared/data", seed: int = 0) -> None:
        require(seeds >= 2, f"seeds={seeds}", "seeds=2 or more: an interval needs two")
        require(shorter >= 1, f"shorter={shorter}", "shorter=1 for all of the data")
        self.seeds, self.shorter, self.data_dir, self.seed = seeds, shorter, data_dir, seed

    def run(self, tell: Tell) -> Findings:
        """Each problem: tune, then compare."""
        rows: list[Finding] = []
        pictures = []
        problems: tuple[Problem, ...] = (Digits(), Characters(Path(self.data_dir)))
        for index, problem in enumerate(problems):
            problem.x, problem.y = problem.x[:: self.shorter], problem.y[:: self.shorter]
            at = index / len(problems)
            tell(at, f"{problem.name}, tuning")
            chosen = tuned(problem)
            found: Courses = {name: [] for name in METHODS}
            for place in range(self.seeds):
                tell(at + (0.4 + 0.6 * place / self.seeds) / len(problems), f"{problem.name}, seed {place}")
                _take_turns(problem, chosen, self.seed + place, found)
            rows += _rows(problem, chosen, found)
            pictures.append(_picture(problem, found))
        return Findings(tuple(rows), tuple(pictures))


def tuned(problem: Problem) -> dict[str, Trial]:
    """The best trial of each method, each tried from the same starts.

    For a fixed batch, the lowest mean loss at the end. For the others, the soonest to that loss, in process time of all
    starts together; where no trial gets there from each start, the lowest at the end.
    """
    trials = [Trial(size, lr) for size in problem.sizes for lr in problem.rates]
    found = {(name, trial): [Course() for _ in range(TUNING_SEEDS)] for name in METHODS for trial in trials}
    for place in range(TUNING_SEEDS):
        in_turns(
            [
                course(problem, METHODS[name], trial, TUNING_SEED + place, kept[place])
                for (name, trial), kept in found.items()
            ]
        )

    def end(name: str, trial: Trial) -> float:
        return sum(kept.end for kept in found[name, trial]) / TUNING_SEEDS

    best = min(trials, key=lambda trial: end("fixed", trial))
    target = end("fixed", best)

    def soonest(name: str, trial: Trial) -> tuple[float, float]:
        return sum(kept.until(target, "process") for kept in found[name, trial]), end(name, trial)

    return {"fixed": best} | {
        name: min(trials, key=lambda trial: soonest(name, trial)) for name in METHODS if name != "fixed"
    }


def _take_turns(problem: Problem, chosen: dict[str, Trial], seed: int, found: Courses) -> None:
    """All methods from one start, a checkpoint each in turn."""
    new = {name: Course() for name in METHODS}
    in_turns([course(problem, METHODS[name], chosen[name], seed, kept) for name, kept in new.items()])
    for name, kept in new.items():
        found[name].append(kept)


def _rows(problem: Problem, chosen: dict[str, Trial], found: Courses) -> list[Finding]:
    """Losses at the end of the budget, then what it takes to the fixed batch's."""
    rows = []
    for name, courses in found.items():
        ends = torch.tensor([kept.end for kept in courses])
        error = float(ends.std()) / len(ends) ** 0.5
        each = median(kept.process[-1] / kept.steps[-1] for kept in courses) * 1e3
        words = f"{chosen[name]}; {median(kept.steps[-1] for kept in courses):.0f} steps of {each:.2f} ms"
        rows.append(
            Finding.told(f"{problem.name}, {name}: loss at the end", float(ends.mean()), error=error, remark=words)
        )
    for name in list(found)[1:]:
        rows += [_ratio(problem, name, unit, found) for unit in UNITS]
    return rows


def _ratio(problem: Problem, name: str, unit: str, found: Courses) -> Finding:
    """Median over pairs of what a method takes over what the fixed batch takes, to the fixed batch's last loss."""
    ratios = [
        other.until(fixed.end, unit) / fixed.until(fixed.end, unit)
        for fixed, other in zip(found["fixed"], found[name], strict=True)
    ]
    middle, low, high = middle_interval(ratios)
    never = sum(map(math.isinf, ratios))
    said = "gain" if high < 1 else "loss" if low > 1 else "no clear difference"
    words = f"95 %: {low:.3g} to {high:.3g}: {said}" + (f"; {never} of {len(ratios)} never" if never else "")
    what = f"{problem.name}, {name}: {UNITS[unit]} over that of the fixed batch"
    return Finding.told(what, "never" if math.isinf(middle) else middle, remark=words)


def middle_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Median and the 95 % interval of its bootstrap, with infinities as what is never reached."""
    generator = torch.Generator().manual_seed(0)
    ordered = sorted(values)
    drawn = torch.randint(len(ordered), (RESAMPLES, len(ordered)), generator=generator)
    places: Tensor = drawn.sort(1).values[:, len(ordered) // 2].sort().values
    low, high = (int(places[round(q * (RESAMPLES - 1))]) for q in (0.025, 0.975))
    return ordered[len(ordered) // 2], ordered[low], ordered[high]


def _picture(problem: Problem, found: Courses) -> Picture:
    def draw(axes: Any) -> None:
        for index, (name, courses) in enumerate(found.items()):
            seconds = [median(values) for values in zip(*(kept.process for kept in courses), strict=True)]
            losses = [median(values) for values in zip(*(kept.loss for kept in courses), strict=True)]
            axes.plot(seconds[1:], losses[1:], color=drawing.SERIES[index], linewidth=1.2, label=name)
        last = median(kept.end for kept in found["fixed"])
        axes.axhline(last, color=drawing.GREY, linewidth=1.0)
        axes.set_yscale("log")
        drawing.plain_decades(axes.yaxis)
        axes.set_xlabel("seconds of process time")
        axes.set_ylabel("training loss")
        axes.legend(fontsize=8)

    words = "Medians over seeds; the grey line is where the fixed batch ends."
    return Picture(f"Training loss, {problem.name}", words, draw)
