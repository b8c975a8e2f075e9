"""Samples from Gaussian mixtures and the matrices of softmax regression on them, by definition."""

from typing import NamedTuple

import torch
from torch import Tensor

from fisheropt.theory.spectrum import Block, Kind
from recipes.studies.spectra_samples import matrix


class Sample(NamedTuple):
    features: Tensor  # [n, d]
    components: Tensor  # [n]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def orthonormal_means(dimension: int, components: int) -> Tensor:
    return torch.eye(dimension, components, dtype=torch.float64)


def random_head(dimension: int, classes: int, seed: int) -> Tensor:
    return torch.randn(dimension, classes, generator=generator(seed), dtype=torch.float64) / dimension**0.5


def gram(head: Tensor, means: Tensor) -> Tensor:
    columns = torch.cat((head, means), 1)
    return columns.T @ columns


def sample_mixture(means: Tensor, proportions: list[float], snr: float, count: int, seed: int) -> Sample:
    """Components in exact proportions, so that only the noise fluctuates."""
    ends = (torch.tensor(proportions, dtype=torch.float64).cumsum(0) * count).round().long()
    components = torch.bucketize(torch.arange(count), ends, right=True).clamp(max=means.shape[1] - 1)
    noise = torch.randn(count, len(means), generator=generator(seed), dtype=torch.float64)
    return Sample(means[:, components].T + noise / snr**0.5, components)


def softmax_weights(sample: Sample, head: Tensor, labels: Tensor, kind: str) -> Tensor:
    """diag(pi) - pi pi^T or r r^T of each sample, [n, C, C]."""
    probabilities = (sample.features @ head).softmax(1)
    if kind == "hessian":
        return torch.diag_embed(probabilities) - probabilities[:, :, None] * probabilities[:, None, :]
    residuals = probabilities - torch.nn.functional.one_hot(labels, head.shape[1])
    return residuals[:, :, None] * residuals[:, None, :]


def weight_traces(sample: Sample, head: Tensor, labels: Tensor, kind: str, block: int | str) -> Tensor:
    """Diagonal entry of the block, or trace of the matrix, of each sample's weight, [n]."""
    diagonals = softmax_weights(sample, head, labels, kind).diagonal(dim1=1, dim2=2)
    return diagonals[:, block] if isinstance(block, int) else diagonals.sum(1)


def softmax_matrix(sample: Sample, head: Tensor, labels: Tensor, kind: Kind, block: Block) -> Tensor:
    """A diagonal block [d, d], or the full matrix [(C - 1) d, (C - 1) d] on the complement of the gauge."""
    return matrix(sample.features, labels, sample.features @ head, kind, block)


def overlaps(vectors: Tensor, head: Tensor, means: Tensor) -> Tensor:
    """Squared length of the projection of each column of `vectors` [m d, r] on R^m (x) span(x, mu)."""
    basis = torch.linalg.qr(torch.cat((head, means), 1))[0]
    split = vectors.T.reshape(vectors.shape[1], len(vectors) // len(head), len(head))
    return (split @ basis).square().sum((1, 2))
