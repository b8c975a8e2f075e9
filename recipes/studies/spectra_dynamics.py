"""MS-T5: the ODE of the summary statistics against one-pass SGD."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, NamedTuple, final

import torch
from torch import Tensor

from fisheropt.theory.dynamics import EffectiveDynamics, effective_dynamics, expected_loss
from recipes.drawing import INK, SERIES
from recipes.studies.arguments import require
from recipes.studies.base import Finding, Findings, Picture, Study, Tell
from recipes.studies.draws import normal
from recipes.studies.spectra_samples import Setting, orthonormal, random_head

PROPORTIONS, SNR, DURATION = (0.4, 0.35, 0.25), 4.0, 12.0
SAME = 0.03


class Case(NamedTuple):
    """Learning rate times dimension, batch size, accepted error of G, and the document's loss at the end."""

    c_delta: float
    batch: int
    error: float
    loss: float

    @property
    def name(self) -> str:
        """As in the rows."""
        return f"c = {self.c_delta:g}, b = {self.batch}"


CASES = (Case(1.0, 1, 0.024, 0.470), Case(4.0, 1, 0.034, 0.509), Case(4.0, 8, 0.015, 0.463))
TWIN = Case(0.5, 1, 0.024, 0.463)
"""At the temperature of the last case, with an eighth of its learning rate."""


class Run(NamedTuple):
    """Times [t] and Gram matrices [t, runs, q, q] of SGD."""

    times: Tensor
    grams: Tensor


@final
class SpectraDynamics(Study):
    """Trajectories of MS-T5.

    Args:
        dimension: d of SGD.
        runs: of SGD a case.
        seed: of the head and the samples.
    """

    title: ClassVar[str] = "The effective dynamics against SGD"
    question: ClassVar[str] = (
        "Does an ODE of 36 numbers predict one-pass SGD of softmax regression, three classes, in 600 dimensions? Inner "
        "products of weights and means, and the loss, at three temperatures c/b."
    )
    reference: ClassVar[str] = "benarous2022high; multi-class equations derived for this project, MS-T5"

    def __init__(self, dimension: int = 600, runs: int = 24, seed: int = 0) -> None:
        require(dimension >= 20, f"dimension={dimension}", "dimension=600, 20 or more")
        require(runs >= 2, f"runs={runs}", "runs=24, two or more")
        self.dimension, self.runs, self.seed = dimension, runs, seed

    def run(self, tell: Tell) -> Findings:
        """Integrate and simulate each case."""
        generator = torch.Generator().manual_seed(self.seed)
        means = orthonormal(self.dimension, 3)
        setting = Setting(means, random_head(self.dimension, 3, generator), PROPORTIONS, SNR)
        laws: list[EffectiveDynamics] = []
        runs: list[Run] = []
        for index, case in enumerate((*CASES, TWIN)):
            tell(index / 4, case.name)
            laws.append(_law(setting, case))
            runs.append(self._descend(setting, case, generator))
        rows: list[Finding] = []
        for case, law, run in zip(CASES, laws, runs, strict=False):
            rows += _compared(case, law, run)
        rows += _temperature(laws, runs)
        pictures = (_entries(laws[1], runs[1]), _losses(laws[:3], runs[:3]))
        return Findings(tuple(rows), pictures)

    def _descend(self, setting: Setting, case: Case, generator: torch.Generator) -> Run:
        """One-pass SGD of several runs, side by side; 25 times are recorded."""
        rate = case.c_delta / self.dimension
        steps = round(DURATION / rate)
        recorded = {round(steps * j / 24) for j in range(25)}
        heads = setting.head.expand(self.runs, -1, -1).clone()
        shares, targets = torch.tensor(PROPORTIONS, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
        times, grams = [], []
        for step in range(steps + 1):
            if step in recorded:
                times.append(step * rate)
                grams.append(_grams(heads, setting.means))
            drawn = torch.multinomial(shares, self.runs * case.batch, True, generator=generator)
            labels = drawn.reshape(self.runs, case.batch)
            noise = normal(self.runs, case.batch, self.dimension, generator=generator)
            inputs = setting.means.T[labels] + noise / SNR**0.5
            residuals = (inputs @ heads).softmax(2) - targets[labels]
            heads -= rate / case.batch * inputs.mT @ residuals
        return Run(torch.tensor(times, dtype=torch.float64), torch.stack(grams))


def _law(setting: Setting, case: Case) -> EffectiveDynamics:
    return effective_dynamics(
        setting.gram,
        PROPORTIONS,
        SNR,
        duration=DURATION,
        c_delta=case.c_delta,
        batch_size=case.batch,
        dt=0.1,
        every=5,
    )


def _grams(heads: Tensor, means: Tensor) -> Tensor:
    columns = torch.cat((heads, means.expand(len(heads), -1, -1)), 2)
    return columns.mT @ columns


def _loss(law: EffectiveDynamics, gram: Tensor) -> float:
    """The expected loss of a head with that Gram matrix: exact, no test set."""
    return expected_loss(replace(law.mixture, gram=gram))


def _compared(case: Case, law: EffectiveDynamics, run: Run) -> list[Finding]:
    last = law.grams[-1]
    errors = (run.grams[-1] - last).norm(dim=(1, 2)) / last.norm()
    losses = torch.tensor([_loss(law, gram) for gram in run.grams[-1]])
    root = len(losses) ** 0.5
    return [
        Finding.between(f"T5a: relative error of G of a run at t = 12, {case.name}", float(errors.mean()), None,
                        case.error, error=float(errors.std()) / root),
        Finding.near(f"T5b: loss of the ODE at t = 12, {case.name}", float(law.loss[-1]), case.loss, absolute=0.01),
        Finding.near(f"T5b: loss of SGD at t = 12, {case.name}", float(losses.mean()), float(law.loss[-1]),
                     relative=0.04, error=float(losses.std()) / root, remark="beside the ODE's"),
    ]  # fmt: skip


def _temperature(laws: list[EffectiveDynamics], runs: list[Run]) -> list[Finding]:
    """Two runs at one c/b share a trajectory; those at another do not."""
    scale = laws[2].grams[-1].norm()
    ends = [run.grams[-1].mean(0) for run in runs]
    names = [case.name for case in (*CASES, TWIN)]
    one, other = float((ends[2] - ends[3]).norm() / scale), float((ends[2] - ends[1]).norm() / scale)
    return [
        Finding.between(f"relative distance of mean G, {names[2]} and {names[3]}", one, None, SAME, expected=0.0,
                        remark="one temperature c/b = .5, learning rates 8 : 1"),
        Finding.between(f"relative distance of mean G, {names[2]} and {names[1]}", other, 2 * SAME, None,
                        expected=float((laws[2].grams[-1] - laws[1].grams[-1]).norm() / scale),
                        remark="one learning rate, temperatures .5 and 4"),
    ]  # fmt: skip


_SHOWN = (((0, 3), "x₁·μ₁"), ((0, 4), "x₁·μ₂"), ((0, 0), "x₁·x₁"), ((0, 1), "x₁·x₂"))


def _entries(law: EffectiveDynamics, run: Run) -> Picture:
    def draw(axes: Any) -> None:
        for colour, ((i, j), name) in zip(SERIES, _SHOWN, strict=False):
            axes.plot(law.times, law.grams[:, i, j], color=colour)
            axes.plot(run.times, run.grams[:, :4, i, j], "o", color=colour, markersize=2.5, alpha=0.6)
            axes.annotate(name, (DURATION, float(law.grams[-1, i, j])), xytext=(6, 0), color=colour,
                          textcoords="offset points", va="center", fontsize=9)  # fmt: skip
        axes.set_xlabel("time t = learning rate × steps")
        axes.set_ylabel("inner product")

    words = "Lines: the ODE; dots: four runs of SGD in 600 dimensions at c = 4, b = 1."
    return Picture("Summary statistics", words, draw)


def _losses(laws: list[EffectiveDynamics], runs: list[Run]) -> Picture:
    def draw(axes: Any) -> None:
        for colour, case, law, run in zip(SERIES, CASES, laws, runs, strict=False):
            axes.plot(law.times, law.loss, color=colour, label=f"{case.name}: c/b = {case.c_delta / case.batch:g}")
            seen = [sum(_loss(law, gram) for gram in grams) / len(grams) for grams in run.grams]
            axes.plot(run.times, seen, "o", color=colour, markersize=3)
        axes.set_xlabel("time t = learning rate × steps")
        axes.set_ylabel("expected loss")
        axes.legend(fontsize=8, labelcolor=INK)

    words = (
        "Lines: the ODE; dots: mean of the runs. The hotter run settles at a higher loss, whatever its learning rate."
    )
    return Picture("Loss at three temperatures", words, draw)
