"""Gaussian mixtures with a softmax head, sampled, and the matrices of the head by definition.

Component b is class b. Index legend: d features, k classes, n samples, m columns of a spectrum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from fisheropt.theory.spectrum import Block, EffectiveSpectrum, Kind, effective_spectrum
from recipes.studies.draws import normal

GRID = 80
SEPARATED = 1.12
"""An outlier beyond so many edges is away from the bulk at the sizes of the studies."""


@final
@dataclass(frozen=True)
class Setting:
    """Means and head [d, k], proportions and SNR of Y = μ_b + λ^(-1/2) Z."""

    means: Tensor
    head: Tensor
    proportions: tuple[float, ...]
    snr: float

    @property
    def gram(self) -> Tensor:
        """Of (x, μ), [2k, 2k]: all that the theory sees."""
        columns = torch.cat((self.head, self.means), 1)
        return columns.T @ columns

    def predicted(self, ratio: float, kind: Kind, block: Block, samples: int | None = None) -> EffectiveSpectrum:
        """The effective spectrum at n/d = `ratio`."""
        return effective_spectrum(self.gram, self.proportions, self.snr, ratio, kind=kind, block=block, samples=samples)


@final
@dataclass(frozen=True)
class Sampled:
    """Eigenvalues [m] of a sampled matrix, largest first, and squared projections on span(x, μ) of the leading ones."""

    eigenvalues: Tensor
    overlaps: Tensor


def orthonormal(dimension: int, count: int) -> Tensor:
    """The first unit vectors, [d, count]."""
    return torch.eye(dimension, count, dtype=torch.float64)


def random_head(dimension: int, classes: int, generator: torch.Generator) -> Tensor:
    """Columns of length about one, [d, C]."""
    return normal(dimension, classes, generator=generator) / dimension**0.5


def features(setting: Setting, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Y [n, d] and labels [n] in exact proportions, so that only the noise fluctuates."""
    ends = (torch.tensor(setting.proportions, dtype=torch.float64).cumsum(0) * count).round().long()
    labels = torch.bucketize(torch.arange(count), ends, right=True).clamp(max=len(setting.proportions) - 1)
    noise = normal(count, len(setting.means), generator=generator)
    return setting.means[:, labels].T + noise / setting.snr**0.5, labels


def sampled(
    setting: Setting, count: int, kind: Kind, block: Block, leading: int, generator: torch.Generator
) -> Sampled:
    """Eigenvalues of the matrix of `count` fresh samples, and overlaps of the `leading` largest."""
    inputs, labels = features(setting, count, generator)
    values, vectors = torch.linalg.eigh(matrix(inputs, labels, inputs @ setting.head, kind, block))
    span = torch.linalg.qr(torch.cat((setting.head, setting.means), 1))[0]
    kept = vectors.flip(1)[:, :leading].T
    split = kept.reshape(leading, len(vectors) // len(span), len(span))
    return Sampled(values.flip(0), (split @ span).square().sum((1, 2)))


def matrix(inputs: Tensor, labels: Tensor, logits: Tensor, kind: Kind, block: Block) -> Tensor:
    """(1/n) Σ f YYᵀ of a diagonal block, [d, d], or of all coordinates without the gauge, [(C-1)d, (C-1)d]."""
    weights = _weights(labels, logits, kind)
    if block != "full":
        return (inputs * weights[:, block, block, None]).T @ inputs / len(inputs)
    classes = logits.shape[1]
    basis = torch.linalg.svd(torch.ones(1, classes, dtype=torch.float64))[2][1:].T
    projected = basis.T @ weights @ basis
    rows = [
        torch.cat([(inputs * projected[:, i, j, None]).T @ inputs for j in range(classes - 1)], 1)
        for i in range(classes - 1)
    ]
    return torch.cat(rows) / len(inputs)


def _weights(labels: Tensor, logits: Tensor, kind: Kind) -> Tensor:
    """diag(π) - ππᵀ or rrᵀ of each sample, [n, C, C]."""
    probabilities = logits.softmax(1)
    if kind == "hessian":
        return torch.diag_embed(probabilities) - probabilities[:, :, None] * probabilities[:, None, :]
    residuals = probabilities - torch.nn.functional.one_hot(labels, logits.shape[1])
    return residuals[:, :, None] * residuals[:, None, :]


def distances(bulks: Sequence[Tensor], spectrum: EffectiveSpectrum) -> Tensor:
    """Largest difference of the distribution functions over a grid, for each sample (Kolmogorov and Smirnov's)."""
    grid = torch.linspace(spectrum.edge / 100, spectrum.edge * 1.02, GRID, dtype=torch.float64)
    expected = spectrum.cdf(grid)
    seen = [torch.searchsorted(bulk.sort().values, grid, right=True) / len(bulk) for bulk in bulks]
    return (torch.stack(seen) - expected).abs().amax(1)


def mean_and_error(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Mean over draws and its standard error, None for one draw."""
    table = torch.stack(tuple(rows))
    mean, draws = table.mean(0), len(table)
    return mean, ((table - mean).square().sum(0) / (draws * (draws - 1))).sqrt() if draws > 1 else None
