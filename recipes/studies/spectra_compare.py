"""A predicted spectrum beside sampled ones: the rows of a table and a histogram."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from fisheropt.theory.spectrum import Block, EffectiveSpectrum, Kind
from recipes.drawing import BLUE, DASHED, GREY, INK, RED
from recipes.studies.base import Finding, Picture
from recipes.studies.spectra_samples import SEPARATED, Sampled, Setting, distances, mean_and_error, sampled

KS = 0.015
OUTLIERS = 0.04
BEYOND = 1.02


@final
@dataclass(frozen=True)
class Comparison:
    """A prediction and independent draws of the same matrix.

    Attributes:
        name: in rows and pictures.
        spectrum: in the limit.
        draws: sampled matrices.
        finite: the spectrum without the tail of the weights that the samples do not reach.
    """

    name: str
    spectrum: EffectiveSpectrum
    draws: tuple[Sampled, ...]
    finite: EffectiveSpectrum

    def rows(self, documented: Sequence[float], *, overlap: float) -> list[Finding]:
        """Outliers, their overlaps, the bulk below them and its distribution.

        Args:
            documented: outliers of the document, from a random start of its own.
            overlap: accepted difference of the overlaps of separated outliers.
        """
        count = len(self.spectrum.outliers)
        values, errors = mean_and_error([draw.eigenvalues for draw in self.draws])
        shares, share_errors = mean_and_error([draw.overlaps for draw in self.draws])
        rows = []
        for j in range(count):
            remark = f"document predicts {documented[j]:.4f}" if j < len(documented) else "not in the document's list"
            error = None if errors is None else float(errors[j])
            rows.append(self._location(j, float(values[j]), error, remark))
            error = None if share_errors is None else float(share_errors[j])
            rows.append(self._overlap(j, float(shares[j]), error, overlap))
        return [*rows, *self._maxima(values, errors), self._bulk(count)]

    def _maxima(self, values: Tensor, errors: Tensor | None) -> list[Finding]:
        """The largest eigenvalue of the bulk beside the edge: that of the limit, and for soft ones of n samples."""
        rows = [self._maximum("predicted edge", self.spectrum, values, errors, None, BEYOND)]
        if self.spectrum.kind == "information":
            rows.append(self._maximum("edge with samples=n", self.finite, values, errors, 0.9, 1 / 0.9))
        return rows

    def _maximum(
        self,
        name: str,
        spectrum: EffectiveSpectrum,
        values: Tensor,
        errors: Tensor | None,
        low: float | None,
        high: float,
    ) -> Finding:
        count = len(spectrum.outliers)
        error = None if errors is None else float(errors[count]) / spectrum.edge
        what = f"{self.name}: largest eigenvalue of the bulk / {name}"
        remark = f"below {count} predicted outliers" if count else "no outlier predicted"
        return Finding.between(
            what, float(values[count]) / spectrum.edge, low, high, expected=1.0, error=error, remark=remark
        )

    def _separated(self, j: int) -> bool:
        return float(self.spectrum.outliers[j]) > SEPARATED * self.spectrum.edge

    def _location(self, j: int, seen: float, error: float | None, remark: str) -> Finding:
        what, expected = f"{self.name}: eigenvalue {j + 1}", float(self.spectrum.outliers[j])
        if self._separated(j):
            return Finding.near(what, seen, expected, relative=OUTLIERS, error=error, remark=remark)
        close = f"{expected / self.spectrum.edge:.2f} of the edge: no tolerance; {remark}"
        return Finding.told(what, seen, expected=expected, error=error, remark=close)

    def _overlap(self, j: int, seen: float, error: float | None, tolerance: float) -> Finding:
        what, expected = f"{self.name}: overlap {j + 1}", float(self.spectrum.overlaps[j])
        if self._separated(j):
            return Finding.near(what, seen, expected, absolute=tolerance, error=error)
        return Finding.told(what, seen, expected=expected, error=error, remark="at the edge: no tolerance")

    def _bulk(self, count: int) -> Finding:
        found = distances([draw.eigenvalues[count:] for draw in self.draws], self.spectrum)
        mean, error = mean_and_error(found.unbind())
        what = f"{self.name}: KS distance of the bulk"
        return Finding.between(what, float(mean), None, KS, error=None if error is None else float(error))

    def histogram(self, axes: Any) -> None:
        """All draws' eigenvalues against the density, with edge and outliers."""
        pooled = torch.cat([draw.eigenvalues for draw in self.draws])
        count, edge = len(self.spectrum.outliers), self.spectrum.edge
        reach = float(pooled.max()) * 1.02
        counts, bins = torch.histogram(pooled, bins=90, range=(0.0, reach), density=True)
        axes.stairs(counts, bins, fill=True, color=GREY)
        grid = torch.linspace(reach / 800, edge, 200, dtype=torch.float64)
        density = self.spectrum.density(grid)
        axes.plot(grid, density, color=BLUE)
        axes.axvline(edge, color=INK, linewidth=1.0, linestyle=DASHED)
        if self.finite.edge < 0.98 * edge:
            axes.axvline(self.finite.edge, color=GREY, linewidth=1.0, linestyle=DASHED)
        high = 1.15 * float(density[grid > edge / 8].max())
        axes.set_ylim(0, high)
        tops = torch.cat([draw.eigenvalues[:count] for draw in self.draws])
        self._marks(axes, tops, high)
        axes.set_ylabel("density")

    def _marks(self, axes: Any, tops: Tensor, high: float) -> None:
        """Outliers carry no mass; marks show where they are."""
        outliers = self.spectrum.outliers
        axes.plot(outliers, torch.full_like(outliers, 0.16 * high), "v", color=RED, markersize=6, label="predicted")
        axes.plot(tops, torch.full_like(tops, 0.06 * high), "o", color=INK, markersize=3.5, label="sampled")
        axes.annotate(self.name, (0.99, 0.9), xycoords="axes fraction", ha="right", color=INK)


def compare(
    name: str,
    setting: Setting,
    ratio: float,
    kind: Kind,
    block: Block,
    draws: int,
    generator: torch.Generator,
) -> Comparison:
    """Predict, and sample `draws` matrices of round(ratio d) fresh samples."""
    spectrum = setting.predicted(ratio, kind, block)
    count, leading = round(ratio * len(setting.means)), len(spectrum.outliers)
    seen = tuple(sampled(setting, count, kind, block, leading, generator) for _ in range(draws))
    return Comparison(name, spectrum, seen, setting.predicted(ratio, kind, block, samples=count))


def histograms(title: str, hessian: Comparison, information: Comparison) -> Picture:
    """Both matrices of the same data, one above the other."""

    def draw(axes: list[Any]) -> None:
        hessian.histogram(axes[0])
        information.histogram(axes[1])
        axes[0].legend(loc="center right", fontsize=8)
        axes[1].set_xlabel("eigenvalue")

    words = (
        "Grey: eigenvalues of sampled matrices; blue: predicted density; dashed: predicted edge, in grey the one that so "
        "many samples see; triangles: predicted outliers, dots: sampled ones."
    )
    return Picture(title, words, draw, height=4.2, rows=2)
