"""Test accuracy with and without the floor, seed by seed, on real data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from scipy.stats import t as student
from torch import Tensor

from fisheropt import FisherFloorSGD
from recipes.drawing import DASHED, INK, SERIES
from recipes.problems import Problem
from recipes.problems.logistic import Logistic
from recipes.studies.arguments import require
from recipes.studies.base import Finding, Findings, Picture, Study, Tell

CONFIDENCE = 0.95


@final
@dataclass(frozen=True)
class Pair:
    """Of one seed: accuracy and log loss on test data without and with the floor, and the share of directions held."""

    accuracy: tuple[float, float]
    loss: tuple[float, float]
    held: float


@final
class FloorAccuracy(Study):
    """Softmax regression without a ridge, by torch's SGD and by FisherFloorSGD on the same splits and batches."""

    title: ClassVar[str] = "Test accuracy with and without the floor"
    question: ClassVar[str] = (
        "Does the floor cost or gain accuracy? Softmax regression without a ridge from few samples of real data, by torch's "
        "SGD and by FisherFloorSGD with its defaults: the same splits, batches and learning rate. A gain is claimed only if "
        "the interval of the paired difference lies above zero."
    )
    reference: ClassVar[str] = "after huang2025spectral; doubt 7 of its section 6"

    def __init__(
        self,
        data: Sequence[str] = ("iris", "digits"),
        held_out: Sequence[float] = (0.7, 0.8),
        seeds: int = 20,
        epochs: int = 60,
        batch_size: int = 16,
        lr: float = 0.5,
        seed: int = 0,
    ) -> None:
        """Take the sets and the share of each held out for testing, seeds, and how to train."""
        self.sets = list(zip(data, map(float, held_out), strict=True))
        require(seeds >= 10, f"seeds={seeds}", "seeds=20; a difference is told from ten on")
        require(epochs > 0 and batch_size > 1 and lr > 0, f"epochs={epochs}, batch_size={batch_size}, lr={lr}",
                "epochs=60 batch_size=16 lr=.5")  # fmt: skip
        self.seeds, self.epochs, self.batch_size, self.lr, self.seed = seeds, epochs, batch_size, lr, seed

    def run(self, tell: Tell) -> Findings:
        pairs: dict[str, list[Pair]] = {name: [] for name, _ in self.sets}
        for number, (name, held_out) in enumerate(self.sets):
            for offset in range(self.seeds):
                pairs[name].append(self._pair(name, held_out, self.seed + offset))
                tell((number + (offset + 1) / self.seeds) / len(self.sets), f"{name}, seed {self.seed + offset}")
        rows = [row for name in pairs for row in _rows(name, pairs[name])]
        return Findings(tuple(rows), (_picture(pairs),))

    def _pair(self, name: str, held_out: float, seed: int) -> Pair:
        plain, floored = (Logistic(name, test_fraction=held_out, l2=0.0, seed=seed) for _ in range(2))
        self._train(plain, torch.optim.SGD(plain.model.parameters(), lr=self.lr), seed)
        optimizer = FisherFloorSGD(floored.model, lr=self.lr, likelihood=floored.likelihood)
        self._train(floored, optimizer, seed)
        group = optimizer.report().as_dict()["groups"][0]
        return Pair(
            (_known(plain.accuracy(plain.model)), _known(floored.accuracy(floored.model))),
            (_known(plain.test_loss(plain.model)), _known(floored.test_loss(floored.model))),
            group["held"] / group["directions"],
        )

    def _train(self, problem: Problem, optimizer: torch.optim.Optimizer, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        x, y = problem.train.tensors
        for _ in range(self.epochs):
            for batch in torch.randperm(len(x), generator=generator).split(self.batch_size):
                problem.loss(problem.model, (x[batch], y[batch])).backward()
                optimizer.step()
                optimizer.zero_grad()


def _known(value: float | None) -> float:
    if value is None:
        raise RuntimeError("a problem of this study has a test set")
    return value


def _rows(name: str, pairs: list[Pair]) -> list[Finding]:
    rows = []
    for words, values, better in (
        ("accuracy", [p.accuracy for p in pairs], 1),
        ("log loss", [p.loss for p in pairs], -1),
    ):
        plain, floored = torch.tensor(values, dtype=torch.float64).unbind(1)
        mean, error, half = _interval(floored - plain)
        verdict = "better" if better * mean > half else "worse" if -better * mean > half else "no difference shown"
        rows.append(
            Finding.told(
                f"{name}: test {words}, floor less no floor",
                mean,
                error=error,
                remark=f"{verdict}: 95 % interval {mean - half:+.2g} to {mean + half:+.2g} over {len(pairs)} splits; "
                f"means {float(plain.mean()):.4f} without, {float(floored.mean()):.4f} with",
            )
        )
    held = sum(pair.held for pair in pairs) / len(pairs)
    return [*rows, Finding.told(f"{name}: share of watched directions that the anchor holds at the end", held)]


def _interval(differences: Tensor) -> tuple[float, float, float]:
    """Mean, its standard error, and half the width of Student's interval."""
    error = float(differences.std()) / math.sqrt(len(differences))
    return float(differences.mean()), error, float(student.ppf((1 + CONFIDENCE) / 2, len(differences) - 1)) * error


def _picture(pairs: dict[str, list[Pair]]) -> Picture:
    def draw(axes: Any) -> None:
        for number, (name, found) in enumerate(pairs.items()):
            plain, floored = zip(*[pair.accuracy for pair in found], strict=True)
            axes.plot(plain, floored, "o", color=SERIES[number], markersize=5, alpha=0.75, label=name)
        low = min(min(pair.accuracy) for found in pairs.values() for pair in found)
        axes.plot([low - 0.01, 1], [low - 0.01, 1], color=INK, linestyle=DASHED, linewidth=1.2)
        axes.set_xlabel("test accuracy without the floor")
        axes.set_ylabel("with the floor")
        axes.legend(loc="upper left", fontsize=9)

    return Picture(
        "Accuracy, seed by seed", "A dot is a split; on the dashed line the floor makes no difference.", draw
    )
