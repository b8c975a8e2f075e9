"""How often a reading says ABOVE although it is not so, for every method and every family of scores."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from scipy.stats import binom, binomtest
from torch import Tensor

from fisheropt.theory.fluctuation import Method, lambda_star
from fisheropt.theory.moments import second_moment
from fisheropt.theory.status import TRUE_RATIO, Status, classify
from fisheropt.theory.whitening import whitened_reading
from recipes.drawing import DASHED, INK, SERIES
from recipes.studies.arguments import require
from recipes.studies.base import Finding, Findings, Picture, Study, Tell
from recipes.studies.floor_samples import FAMILIES, standard_scores

METHODS: tuple[Method, ...] = ("gaussian", "bernstein", "bootstrap", "auto")
WHITENED = "whitened"
HARDEST = 0.95
ROUNDS = 3
CONFIDENCE = 0.95

Key = tuple[str, str, tuple[int, int]]


@final
@dataclass
class Count:
    """Of the data sets of a cell: read, said to be ABOVE, wrongly so, and with an error of at most Λ*."""

    read: int = 0
    above: int = 0
    wrong: int = 0
    covered: int = 0

    def add(self, above: bool, true: bool, covered: bool) -> None:
        """Count a data set."""
        self.read += 1
        self.above += above
        self.wrong += above and not true
        self.covered += covered

    @property
    def rate(self) -> float:
        """Of false ABOVE."""
        return self.wrong / self.read


@final
class FloorPromises(Study):
    """Readings of simulated scores with a known Fisher matrix, where each is hardest."""

    title: ClassVar[str] = "Promises kept: the rate of a false ABOVE"
    question: ClassVar[str] = (
        "A reading ABOVE may be wrong with probability δ at most. How often is it, over simulated data sets whose Fisher "
        "matrix is known? The weak direction lies just below twice the true Λ*, the 1 - δ quantile of the error, where its "
        "reading is hardest; the whitened reading is wrong where the relative error exceeds 1/2."
    )
    reference: ClassVar[str] = "after huang2025spectral; tropp2015introduction, efron1979bootstrap, davidson2001local"

    def __init__(
        self,
        data_sets: int = 2000,
        sizes: Sequence[Sequence[int]] = ((1, 30), (2, 200), (4, 400)),
        families: Sequence[str] = FAMILIES,
        delta: float = 0.05,
        resamples: int = 100,
        seed: int = 0,
    ) -> None:
        """Take the data sets of a cell, pairs (directions, samples), families of scores, δ and bootstrap resamples."""
        self.sizes = [(int(k), int(n)) for k, n in sizes]
        require(data_sets > 1, f"data_sets={data_sets}", "data_sets=2000, two or more")
        require(
            all(0 < k < n for k, n in self.sizes),
            f"sizes={self.sizes}",
            "sizes=[[2, 120]], pairs of directions and samples",
        )
        require(set(families) <= set(FAMILIES), f"families={list(families)}", f"some of {', '.join(FAMILIES)}")
        require(0 < delta < 1, f"delta={delta}", "delta=.05")
        self.data_sets, self.families, self.delta = data_sets, tuple(families), delta
        self.resamples, self.seed = resamples, seed

    def run(self, tell: Tell) -> Findings:
        generator = torch.Generator().manual_seed(self.seed)
        cells: dict[Key, Count] = {}
        total = len(self.families) * len(self.sizes)
        for number, (family, (k, n)) in enumerate(self._settings(), start=1):
            batch = standard_scores(family, (self.data_sets, n, k), generator)
            for method in METHODS:
                cells[family, method, (k, n)] = self._raw(batch, method, generator)
            cells[family, WHITENED, (k, n)] = self._whitened(batch, generator)
            tell(number / total, f"{family} scores, k = {k}, n = {n}")
        rows = [self._row(cells, family, method) for family in self.families for method in (*METHODS, WHITENED)]
        coverage = [self._coverage(cells, family, method) for family in self.families for method in METHODS]
        return Findings((*rows, *coverage), (self._picture(cells),))

    def _settings(self) -> Iterator[tuple[str, tuple[int, int]]]:
        return ((family, size) for family in self.families for size in self.sizes)

    def _level(self, scores: Tensor, method: Method, generator: torch.Generator) -> float:
        level = lambda_star(scores, delta=self.delta, method=method, generator=generator, resamples=self.resamples)
        return level.value

    def _raw(self, batch: Tensor, method: Method, generator: torch.Generator) -> Count:
        """Read every data set against its Λ*; true is ABOVE if λ_min(Γ) > 2Λ*, for the read and for the true Λ*."""
        scaled, smallest, quantile = self._hardest(batch)
        truth = torch.eye(batch.shape[2], dtype=torch.float64)
        truth[-1, -1] = smallest
        count = Count()
        for scores in scaled:
            level = self._level(scores, method, generator)
            moment = second_moment(scores)
            least, error = torch.linalg.eigvalsh(moment)[0], torch.linalg.eigvalsh(moment - truth).abs().max()
            above = classify(float(least), level) is Status.ABOVE
            count.add(above, smallest > TRUE_RATIO * max(level, quantile), float(error) <= level)
        return count

    def _hardest(self, batch: Tensor) -> tuple[Tensor, float, float]:
        """Scores with the last direction just below twice the true Λ*, that direction's Γ, and the true Λ*."""
        smallest, quantile = 1.0, 1.0
        for _ in range(ROUNDS):
            spectrum = torch.ones(batch.shape[2], dtype=torch.float64)
            spectrum[-1] = smallest
            scaled = batch * spectrum.sqrt()
            errors = torch.linalg.eigvalsh(scaled.mT @ scaled / batch.shape[1] - torch.diag(spectrum)).abs().amax(1)
            quantile = float(errors.quantile(1 - self.delta))
            if len(spectrum) > 1:
                smallest = min(1.0, HARDEST * TRUE_RATIO * quantile)
        spectrum[-1] = smallest
        return batch * spectrum.sqrt(), smallest, quantile

    def _whitened(self, batch: Tensor, generator: torch.Generator) -> Count:
        count, half = Count(), batch.shape[1] // 2
        identity = torch.eye(batch.shape[2], dtype=torch.float64)
        for scores in batch:
            reading = whitened_reading(
                scores[:half], scores[half:], delta=self.delta, generator=generator, resamples=self.resamples
            )
            error = float(torch.linalg.eigvalsh(second_moment(scores) - identity).abs().max())
            count.add(reading.status is Status.ABOVE, error <= 1 / TRUE_RATIO, error <= reading.lambda_star)
        return count

    def _row(self, cells: dict[Key, Count], family: str, method: str) -> Finding:
        """The worst size of a family and a method."""
        size = max(self.sizes, key=lambda size: cells[family, method, size].rate)
        cell = cells[family, method, size]
        interval = binomtest(cell.wrong, cell.read).proportion_ci(CONFIDENCE)
        said = ", ".join(f"{cells[family, method, s].above / self.data_sets:.1%} at n = {s[1]}" for s in self.sizes)
        return Finding.between(
            f"{family} scores, {method}: rate of a false ABOVE",
            cell.rate,
            None,
            float(binom.ppf(CONFIDENCE, cell.read, self.delta)) / cell.read,
            expected=f"at most {self.delta:g}",
            remark=f"k = {size[0]}, n = {size[1]}, the worst size; 95 % interval {interval.low:.4f} to {interval.high:.4f}; "
            f"ABOVE was said of {said}",
        )

    def _coverage(self, cells: dict[Key, Count], family: str, method: str) -> Finding:
        """P(‖Γₙ - Γ‖ ≤ Λ*), which is more than the reading needs."""
        size = min(self.sizes, key=lambda size: cells[family, method, size].covered)
        cell = cells[family, method, size]
        seen = cell.covered / cell.read
        return Finding.told(
            f"{family} scores, {method}: coverage of Λ*",
            seen,
            expected=1 - self.delta,
            error=math.sqrt(max(seen * (1 - seen), 1 / cell.read) / cell.read),
            remark=f"worst size: k = {size[0]}, n = {size[1]}",
        )

    def _picture(self, cells: dict[Key, Count]) -> Picture:
        names = (*METHODS, WHITENED)

        def draw(panels: Sequence[Any]) -> None:
            for number, name in enumerate(names):
                shift = (number - (len(names) - 1) / 2) * 0.14
                at = [place + shift for place in range(len(self.families))]
                worst = [
                    max((cells[family, name, size] for size in self.sizes), key=lambda c: c.rate)
                    for family in self.families
                ]
                rates = [cell.rate for cell in worst]
                bounds = [binomtest(cell.wrong, cell.read).proportion_ci(CONFIDENCE) for cell in worst]
                bars = [
                    [r - b.low for r, b in zip(rates, bounds, strict=True)],
                    [b.high - r for r, b in zip(rates, bounds, strict=True)],
                ]
                panels[0].errorbar(
                    at, rates, yerr=bars, fmt="o", markersize=4, linewidth=1.2, color=SERIES[number], label=name
                )
                covered = [
                    min(cells[family, name, size].covered for size in self.sizes) / self.data_sets
                    for family in self.families
                ]
                panels[1].plot(at, covered, "o", markersize=4, color=SERIES[number])
            panels[0].axhline(self.delta, color=INK, linestyle=DASHED, linewidth=1.2)
            panels[1].axhline(1 - self.delta, color=INK, linestyle=DASHED, linewidth=1.2)
            panels[0].set_ylabel("rate of a false ABOVE")
            panels[1].set_ylabel("coverage of Λ*")
            panels[1].set_xticks(range(len(self.families)), self.families)
            panels[0].legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=5, fontsize=8.5, columnspacing=1)

        words = (
            "False ABOVE stays below the dashed δ for every method, though the bootstrap's Λ* is exceeded too often."
        )
        return Picture("Rates over the simulated data sets", words, draw, height=4.6, rows=2)
