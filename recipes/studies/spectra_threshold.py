"""MS-T3: the static threshold at x = 0, in closed form, by the solver and sampled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, final

import torch

from fisheropt.theory.spectrum import effective_spectrum
from fisheropt.theory.static_threshold import StaticThreshold, static_threshold
from recipes.drawing import BLUE, DASHED, GREY, INK, RED
from recipes.studies.arguments import require, rising
from recipes.studies.base import Finding, Findings, Picture, Study, Tell
from recipes.studies.spectra_samples import Setting, mean_and_error, orthonormal, sampled

SHARES, RATIO, CRITICAL = (0.5, 0.5), 4.0, 1.0
ROOTS = {0.90: None, 0.97: None, 1.03: 0.54622, 1.10: 0.51241}
EDGE = 0.54612
TOLERANCE = 2e-5
_GRAM = torch.block_diag(torch.zeros(2, 2), torch.eye(2))


@final
class SpectraThreshold(Study):
    """The largest eigenvalue of a Hessian block at x = 0 over the SNR.

    Args:
        dimension: d of the sampled blocks.
        draws: sampled blocks an SNR.
        snrs: λ at which blocks are sampled.
        seed: of the samples.
    """

    title: ClassVar[str] = "The static threshold of an outlier"
    question: ClassVar[str] = (
        "At x = 0 the Hessian block of two classes is a spiked covariance: an outlier exists where λ p |μ|² > φ^(-1/2), "
        "here λ > 1. Do solver, closed form and sampled blocks agree on its place?"
    )
    reference: ClassVar[str] = "baik2005phase, in the setting of benarous2025local, MS-T3"

    def __init__(
        self,
        dimension: int = 400,
        draws: int = 4,
        snrs: Sequence[float] = (0.4, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0),
        seed: int = 0,
    ) -> None:
        require(dimension >= 20, f"dimension={dimension}", "dimension=400, 20 or more")
        require(draws >= 2, f"draws={draws}", "draws=4, two or more")
        self.dimension, self.draws, self.seed = dimension, draws, seed
        self.snrs = rising(snrs, "snrs", ".5, 1, 2")

    def run(self, tell: Tell) -> Findings:
        """Roots near the threshold, then samples over a range."""
        generator = torch.Generator().manual_seed(self.seed)
        rows = [_root(snr, root) for snr, root in ROOTS.items()]
        near = effective_spectrum(_GRAM, SHARES, 1.03, RATIO)
        rows.append(Finding.near("edge at λ = 1.03", near.edge, EDGE, absolute=TOLERANCE))
        critical = float(_closed(1.0).critical_snr[0])
        rows.append(Finding.near("critical λ, closed form", critical, CRITICAL, absolute=1e-12))
        tops, shares = [], []
        for index, snr in enumerate(self.snrs):
            tell(index / len(self.snrs), f"λ = {snr:g}")
            location, overlap = self._sampled(snr, generator)
            rows += _compared(snr, location, overlap)
            tops.append(location[0])
            shares.append(overlap[0])
        return Findings(tuple(rows), (_picture(self.snrs, tops, shares),))

    def _sampled(self, snr: float, generator: torch.Generator) -> tuple[tuple[float, float], tuple[float, float]]:
        """Mean and standard error of the two largest eigenvalues, pooled, and of their overlaps."""
        means = orthonormal(self.dimension, 2)
        setting = Setting(means, torch.zeros_like(means), SHARES, snr)
        count = round(RATIO * self.dimension)
        draws = [sampled(setting, count, "hessian", 0, 2, generator) for _ in range(self.draws)]
        values, value_error = mean_and_error([draw.eigenvalues[:2].mean() for draw in draws])
        overlaps, overlap_error = mean_and_error([draw.overlaps.mean() for draw in draws])
        return (float(values), float(value_error)), (float(overlaps), float(overlap_error))  # type: ignore[arg-type]


def _closed(snr: float) -> StaticThreshold:
    return static_threshold(_GRAM, SHARES, snr, RATIO)


def _root(snr: float, expected: float | None) -> Finding:
    outliers = effective_spectrum(_GRAM, SHARES, snr, RATIO).outliers
    what = f"root at λ = {snr:.2f}"
    if expected is not None and len(outliers):
        formula = float(_closed(snr).outliers[0])
        return Finding.near(what, float(outliers[0]), expected, absolute=TOLERANCE, remark=f"formula {formula:.5f}")
    wanted = 0 if expected is None else 2
    return Finding.near(f"{what}: number", len(outliers), wanted)


def _compared(snr: float, location: tuple[float, float], overlap: tuple[float, float]) -> list[Finding]:
    """The samples beside the closed form, with a tolerance away from the threshold."""
    closed, (top, error), (share, share_error) = _closed(snr), location, overlap
    what = f"two largest eigenvalues at λ = {snr:g}, mean"
    if not len(closed.outliers):
        return [Finding.told(what, top, error=error, expected=closed.edge, remark="below the threshold: the edge")]
    expected, shrink = float(closed.outliers[0]), float(closed.overlaps[0])
    if expected < 1.12 * closed.edge:
        return [Finding.told(what, top, error=error, expected=expected, remark="at the edge: no tolerance")]
    return [
        Finding.near(what, top, expected, relative=0.04, error=error),
        Finding.near(f"their overlap at λ = {snr:g}", share, shrink, absolute=0.02, error=share_error),
    ]


def _picture(snrs: Sequence[float], tops: Sequence[float], shares: Sequence[float]) -> Picture:
    def draw(axes: list[Any]) -> None:
        grid = torch.logspace(torch.log10(torch.tensor(snrs[0] / 1.2)), torch.log10(torch.tensor(snrs[-1] * 1.2)), 200)
        closed = [_closed(float(snr)) for snr in grid]
        outliers = [float(c.outliers[0]) / c.edge if len(c.outliers) else 1.0 for c in closed]
        overlaps = [float(c.overlaps[0]) if len(c.overlaps) else 0.0 for c in closed]
        edges = [_closed(snr).edge for snr in snrs]
        seen = [top / edge for top, edge in zip(tops, edges, strict=True)]
        axes[0].plot(grid, outliers, color=BLUE, label="closed form")
        axes[0].plot(snrs, seen, "o", color=RED, markersize=5, label="sampled")
        axes[0].axhline(1.0, color=GREY, linewidth=1.0)
        axes[0].set_ylabel("eigenvalue / edge")
        axes[0].legend(fontsize=8, loc="upper left")
        axes[1].plot(grid, overlaps, color=BLUE)
        axes[1].plot(snrs, shares, "o", color=RED, markersize=5)
        axes[1].set_ylabel("overlap")
        for ax in axes:
            ax.axvline(CRITICAL, color=INK, linewidth=1.0, linestyle=DASHED)
        axes[1].set_xscale("log")
        axes[1].set_xticks([0.5, 1, 2, 4, 8], ["0.5", "1", "2", "4", "8"])
        axes[1].minorticks_off()
        axes[1].set_xlabel("SNR λ")

    words = (
        "Above the threshold, dashed, the two leading eigenvalues leave the bulk and their eigenvectors gain overlap."
    )
    return Picture("Leading eigenvalues at x = 0 over the SNR", words, draw, height=4.2, rows=2)
