r"""Gaussian mixtures as modules of bare parameters whose forward is the log-likelihood of every sample.

Index legend: n samples, k components, d dimensions. Parameters:

* `logits` [k - 1]: log of a weight over the last one's, so that no direction leaves the density unchanged;
* `means` [k, d];
* diagonal: `log_scales` [k, d], the logarithms of the standard deviations;
* full: `factors` [k, d, d], the Cholesky factors A of the inverse covariances $A A^T$, with the logarithm
  of A's diagonal in the place of the diagonal.

There is no control flow on data and no operation across samples, so `torch.func.vmap` goes over samples.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import final

import torch
from torch import Tensor, nn


class GaussianMixture(nn.Module, ABC):
    r"""$\log p(x) = \log \sum_j w_j \, N(x; \mu_j, \Sigma_j)$, one number a sample."""

    def __init__(self, weights: Tensor, means: Tensor) -> None:
        """Start at the weights [k] and means [k, d]."""
        super().__init__()
        log = weights.log()
        self.logits = nn.Parameter(log[:-1] - log[-1])
        self.means = nn.Parameter(means.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Log-likelihoods [n] of the samples x [n, d]."""
        weights = torch.log_softmax(torch.cat([self.logits, self.logits.new_zeros(1)]), 0)
        return torch.logsumexp(weights + self.log_densities(x), -1)

    @abstractmethod
    def log_densities(self, x: Tensor) -> Tensor:
        """log N(x; μ, Σ) of every component, [n, k]."""


@final
class DiagonalMixture(GaussianMixture):
    """Components with diagonal covariances."""

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        """Start at the diagonals of `covariances` [k, d, d]."""
        super().__init__(weights, means)
        self.log_scales = nn.Parameter(0.5 * covariances.diagonal(dim1=-2, dim2=-1).log())

    def log_densities(self, x: Tensor) -> Tensor:
        """log N(x; μ, Σ) of every component, [n, k]."""
        z = (x[..., None, :] - self.means) * torch.exp(-self.log_scales)
        return _log_normal(z) - self.log_scales.sum(-1)


@final
class FullMixture(GaussianMixture):
    """Components with full covariances, for a small d."""

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        """Start at `covariances` [k, d, d]."""
        super().__init__(weights, means)
        factors = torch.linalg.cholesky(torch.linalg.inv(covariances))
        logs = factors.diagonal(dim1=-2, dim2=-1).log()
        self.factors = nn.Parameter(factors.tril(-1) + torch.diag_embed(logs))

    def log_densities(self, x: Tensor) -> Tensor:
        """log N(x; μ, Σ) of every component, [n, k]."""
        logs = self.factors.diagonal(dim1=-2, dim2=-1)
        a = self.factors.tril(-1) + torch.diag_embed(logs.exp())
        z = torch.einsum("...ki,kij->...kj", x[..., None, :] - self.means, a)
        return _log_normal(z) + logs.sum(-1)


def _log_normal(z: Tensor) -> Tensor:
    """Log density of the standard normal law at the vectors z."""
    return -0.5 * z.square().sum(-1) - 0.5 * z.shape[-1] * math.log(2.0 * math.pi)
