"""Measured spectra of softmax heads against effective ones: in the setting of the theory, and ever further from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
import torch.nn.functional as F
from torch import Tensor

from fisheropt.products import EmpiricalFisher, ModelFisher, Product
from fisheropt.spectra import MeasuredSpectrum, measured_spectrum
from fisheropt.theory.from_features import MixtureStatistics, mixture_statistics
from fisheropt.theory.informative import Informative, informative
from fisheropt.theory.spectrum import EffectiveSpectrum, Kind, effective_spectrum
from recipes.drawing import BLUE, DASHED, INK, RED, SERIES, plain_decades
from recipes.studies.arguments import require
from recipes.studies.base import Finding, Findings, Picture, Study, Tell
from recipes.studies.spectra_heads import Head, of_digits, of_mixture, of_network
from recipes.studies.spectra_samples import Setting, orthonormal, random_head, sampled

TOP, KS, OUTLIERS, DRAWS = 12, 0.03, 0.05, 60
_GRID = 60


@final
@dataclass(frozen=True)
class Case:
    """A head, what its features say of the mixture, and both spectra of one of its matrices."""

    name: str
    head: Head
    statistics: MixtureStatistics
    effective: EffectiveSpectrum
    measured: MeasuredSpectrum

    @property
    def size(self) -> int:
        """p, the number of features."""
        return self.head.features.shape[1]

    def verdict(self) -> Informative | None:
        """Which eigenvalues found are signal; None where `informative` refuses, as the edge is soft."""
        try:
            return self.measured.compare(self.effective, self.size)
        except ValueError as refusal:
            if "edge of this spectrum is soft" not in str(refusal):
                raise
            return None

    @property
    def threshold(self) -> float:
        """Beyond which an eigenvalue is called signal, the edge where no threshold has a level."""
        verdict = self.verdict()
        return self.effective.edge if verdict is None else verdict.threshold

    @property
    def rank(self) -> int:
        """How many of the eigenvalues found are beyond it."""
        return int((self.measured.eigenvalues > self.threshold).sum())

    def overlaps(self) -> Tensor:
        """Squared projections [top] of the eigenvectors on the span of weights and independent class means."""
        columns = torch.cat((self.head.weights, self.head.means)).T
        basis = torch.linalg.qr(columns)[0]
        split = self.measured.vectors.T.reshape(len(self.measured.eigenvalues), -1, self.size)
        return (split @ basis).square().sum((1, 2))

    def distance(self) -> tuple[float, float]:
        """KS distance of the bulk, without the p zeros of the direction softmax does not see; error of the probes."""
        grid = torch.linspace(self.effective.edge / 20, self.effective.edge, _GRID, dtype=torch.float64)
        bulk = self.measured.size - self.size - len(self.effective.outliers)
        seen = (self.measured.size * self.measured.cdf(grid) - self.size) / bulk
        error = self.measured.cdf_se(grid).max() * self.measured.size / bulk
        return float((seen - self.effective.cdf(grid)).abs().max()), float(error)


@final
class SpectraMeasured(Study):
    """Lanczos against the effective spectrum on four heads.

    Args:
        dimension: d of the mixture in the setting of the theory.
        width: of the hidden layers.
        seed: of data, networks and Lanczos.
    """

    title: ClassVar[str] = "Measured against effective spectra"
    question: ClassVar[str] = (
        "Given only a softmax head and features it was not trained on, which eigenvalues of its Fisher matrix are signal? "
        "The mixture is estimated from the features, the matrix is measured by Lanczos, and both are compared: on a "
        "mixture, on the hidden layer of a network, and on scikit-learn's digits 3, 5 and 8."
    )
    reference: ClassVar[str] = "in the setting of benarous2025local; quadrature after ubaru2017fast"

    def __init__(self, dimension: int = 300, width: int = 40, seed: int = 0) -> None:
        require(dimension >= 40, f"dimension={dimension}", "dimension=300, 40 or more")
        require(10 <= width <= 60, f"width={width}", "width=40, from 10 to 60")
        self.dimension, self.width, self.seed = dimension, width, seed

    def run(self, tell: Tell) -> Findings:
        """Measure and compare every head."""
        generator = torch.Generator().manual_seed(self.seed)
        exact = of_mixture(self.dimension, 3.0, generator)
        real = [of_network(self.width, 10 * self.width, generator), of_digits(0, generator)]
        real.append(of_digits(self.width, generator))
        jobs: list[tuple[Head, Kind]] = [(exact, "hessian"), (exact, "information")]
        jobs += [(head, "hessian") for plain in real for head in (plain, plain.whitened())]
        cases = []
        for index, (head, kind) in enumerate(jobs):
            tell(index / len(jobs), f"{head.name}, {kind}")
            cases.append(self._case(head, kind))
        rows = [row for case in cases[:2] for row in _required(case)]
        rows += [_false_marks(self.dimension, kind, generator) for kind in ("hessian", "information")]
        rows += [row for case in cases[2:] for row in _told(case)]
        return Findings(tuple(rows), (_density(cases[0]), _informative([cases[0], *cases[3::2]])))

    def _case(self, head: Head, kind: Kind) -> Case:
        found = mixture_statistics(head.weights, head.features, head.labels, bias=head.bias)
        effective = effective_spectrum(
            found.gram,
            found.proportions,
            found.snr,
            found.ratio,
            kind=kind,
            block="full",
            class_of=found.class_of,
            bias=found.bias,
            samples=found.samples,
        )
        measured = measured_spectrum(_product(head, kind), top=TOP, seed=self.seed, exact=False)
        name = f"{head.name}, {'model' if kind == 'hessian' else 'empirical'} Fisher"
        return Case(name, head, found, effective, measured)


def _product(head: Head, kind: Kind) -> Product:
    data, layer = [(head.features, head.labels)], head.layer()
    if kind == "hessian":
        return ModelFisher(layer, "categorical", data, parameters=["weight"])
    return EmpiricalFisher(layer, F.cross_entropy, data, parameters=["weight"])


def _required(case: Case) -> list[Finding]:
    """In the setting of the theory everything must agree."""
    outliers, overlaps, rank = case.effective.outliers, case.overlaps(), case.rank
    predicted = int((outliers > case.threshold).sum())
    rows = [Finding.near(f"{case.name}: informative eigenvalues", rank, predicted)]
    for j in range(min(predicted, rank)):
        seen, expected = float(case.measured.eigenvalues[j]), float(outliers[j])
        rows.append(Finding.near(f"{case.name}: eigenvalue {j + 1}", seen, expected, relative=OUTLIERS))
    mean, expected = float(overlaps[:rank].mean()), float(case.effective.overlaps[:rank].mean())
    others, (gap, chance) = float(overlaps[rank:].mean()), case.distance()
    return [
        *rows,
        Finding.near(f"{case.name}: overlap of the informative, mean", mean, expected, absolute=0.04),
        Finding.between(f"{case.name}: overlap of the others found, mean", others, None, 0.10, remark=_chance(case)),
        Finding.between(f"{case.name}: KS distance of the bulk", gap, None, KS, error=chance),
    ]


def _false_marks(dimension: int, kind: Kind, generator: torch.Generator) -> Finding:
    """How often a block has more eigenvalues above the threshold of level .01 than predicted."""
    means = orthonormal(dimension, 3)
    setting = Setting(means, means + 0.4 * random_head(dimension, 3, generator), (0.4, 0.35, 0.25), 8.0)
    effective = setting.predicted(3.0, kind, 0, samples=3 * dimension)
    marks = [
        informative(sampled(setting, 3 * dimension, kind, 0, 1, generator).eigenvalues, effective, dimension)
        for _ in range(DRAWS)
    ]
    share = sum(mark.rank > mark.predicted for mark in marks) / DRAWS
    what, error = f"share of {DRAWS} draws with a false mark at level .01, {kind}", (share * (1 - share) / DRAWS) ** 0.5
    if kind == "hessian":
        return Finding.between(what, share, None, 0.1, expected=0.01, error=error)
    return Finding.told(what, share, expected=0.01, error=error, remark="the level does not hold for soft edges")


def _chance(case: Case) -> str:
    columns = len(case.head.weights) + len(case.head.means)
    return f"{columns / case.size:.2f} by chance"


def _told(case: Case) -> list[Finding]:
    """Elsewhere the misfit is what is to be seen."""
    outliers, overlaps, (gap, chance) = case.effective.outliers, case.overlaps(), case.distance()
    largest = float(outliers[0]) if len(outliers) else case.effective.edge
    isotropy = f"anisotropy of the noise {case.statistics.anisotropy:.2f}, 1 in the theory"
    soft = "" if case.verdict() else "; the edge is soft: no threshold has a level, counted from the edge"
    rows = [
        Finding.told(f"{case.name}: largest eigenvalue", float(case.measured.eigenvalues[0]), expected=largest,
                     remark=isotropy),
        Finding.told(f"{case.name}: eigenvalues above the threshold", case.rank,
                     expected=int((outliers > case.threshold).sum()), remark=f"of the {TOP} largest{soft}"),
        Finding.told(f"{case.name}: KS distance of the bulk", gap, error=chance),
    ]  # fmt: skip
    if case.rank:
        mean = float(overlaps[: case.rank].mean())
        remark = f"with class means of other samples; {_chance(case)}"
        rows.append(Finding.told(f"{case.name}: their overlap, mean", mean, remark=remark))
    return rows


def _density(case: Case) -> Picture:
    """Stochastic Lanczos quadrature against the limit."""

    def draw(axes: Any) -> None:
        effective, measured = case.effective, case.measured
        high = float(measured.eigenvalues[0]) * 1.05
        grid = torch.linspace(effective.edge / 12, high, 200, dtype=torch.float64)
        share = (measured.size - case.size) / measured.size
        smooth = measured.density(grid, width=effective.edge / 40) / share
        axes.plot(grid, smooth, color=BLUE, label="Lanczos quadrature, smoothed")
        axes.plot(grid, effective.density(grid), color=RED, linestyle=DASHED, linewidth=1.4, label="effective density")
        level = 0.05 * float(effective.density(grid).max())
        kept = measured.eigenvalues[: case.rank].cpu()
        axes.plot(kept, torch.full_like(kept, level), "o", color=INK, markersize=4, label="Lanczos eigenvalues")
        outliers = effective.outliers
        axes.plot(outliers, torch.full_like(outliers, 2.6 * level), "v", color=RED, markersize=6, label="predicted")
        axes.set_ylim(0, 24 * level)
        axes.set_xlabel("eigenvalue")
        axes.set_ylabel("density")
        axes.legend(fontsize=8)

    words = "Model Fisher of a linear head on a mixture: bulk and outliers by products alone, and as predicted."
    return Picture("A measured spectrum", words, draw)


def _informative(cases: list[Case]) -> Picture:
    """Whether the eigenvectors above the threshold are those that know about the classes."""

    def draw(axes: Any) -> None:
        for colour, case in zip(SERIES, cases, strict=False):
            x = case.measured.eigenvalues.cpu() / case.threshold
            axes.plot(x, case.overlaps().cpu(), "o", color=colour, markersize=4.5, label=case.head.name)
        axes.axvline(1.0, color=INK, linewidth=1.0, linestyle=DASHED)
        axes.set_xscale("log")
        plain_decades(axes.xaxis)
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("eigenvalue / threshold")
        axes.set_ylabel("overlap with weights and means")
        axes.legend(fontsize=8, loc="lower right")

    words = "Right of the dashed line an eigenvalue is called signal; the higher a point, the more its eigenvector is."
    return Picture("Which eigenvalues are informative", words, draw, height=3.4)
