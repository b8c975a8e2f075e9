"""The between-rank part of a covariance: a one-way random-effects analysis of variance in k directions.

    g_rn = m + a_r + e_rn,   Cov(a_r) = B,   Cov(e_rn) = W,   r = 1..R ranks, n = 1..n_r samples

Ranks that draw from one population have B = 0. Everything needed is a sum over ranks of 2 k² + k + 3 numbers, so nothing
of the samples' number or the parameters' travels.

Reference: searle1992variance
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

_DIFFERS = 2.0  # null standard errors


@final
@dataclass(frozen=True)
class BetweenComponent:
    """Method-of-moments estimates of B and W, both unbiased; B may come out indefinite.

    Args:
        value: B = (MSB - MSW)/n₀, [k, k].
        within: W = MSW, pooled over ranks, [k, k].
        ranks: R.
        samples: N = Σ n_r.
        per_rank: n₀ = (N - Σ n_r²/N)/(R - 1), the samples of a rank; their mean where all have as many.
    """

    value: Tensor
    within: Tensor
    ranks: int
    samples: int
    per_rank: float

    @property
    def dof(self) -> int:
        """R - 1, of the mean square between ranks; of few ranks no number of samples makes it more."""
        return self.ranks - 1

    @property
    def within_dof(self) -> int:
        """N - R."""
        return self.samples - self.ranks

    def leading(self, k: int) -> BetweenComponent:
        """The same in the first k directions."""
        return replace(self, value=self.value[:k, :k], within=self.within[:k, :k])

    def standard_error(self) -> Tensor:
        """Of each entry of B, for Gaussian ranks and samples, [k, k]."""
        squared = _entry_variance(self._mean_square(), self.dof) + _entry_variance(self.within, self.within_dof)
        return squared.sqrt() / self.per_rank

    def trace(self) -> float:
        """The sum of the variances between ranks, tr B."""
        return float(self.value.trace())

    def trace_standard_error(self, readings: float = 1.0) -> float:
        """Of tr B, for the R ranks as a sample of all: √(2 tr MSB²/(R-1) + 2 tr MSW²/(N-R))/n₀, MSB = W + n₀ B.

        On average it is too large where R - 1 is small, as tr MSB² then overstates the trace of a square.

        Args:
            readings: over how many independent readings W was averaged. Ranks are the same in each of them, so that
                the first term stays.
        """
        mean_square = self._mean_square()
        variance = 2 * mean_square.square().sum() / self.dof
        variance = variance + 2 * self.within.square().sum() / (self.within_dof * readings)
        return float(variance.sqrt()) / self.per_rank

    def null_standard_error(self, readings: float = 1.0) -> float:
        """Of tr B where ranks do not differ: √(2 tr W² (1/(R-1) + 1/(N-R)))/n₀.

        Args:
            readings: over how many independent readings B and W were averaged.
        """
        variance = 2 * self.within.square().sum() * (1 / self.dof + 1 / self.within_dof) / readings
        return float(variance.sqrt()) / self.per_rank

    def differ(self, readings: float = 1.0) -> bool:
        """Whether tr B exceeds two null standard errors: of ranks that do not differ .02 to .05, for Gaussian means.

        The larger rate is that of one direction and two ranks, where tr B is a χ² of one degree of freedom.

        Args:
            readings: as in `null_standard_error`.
        """
        return self.trace() > _DIFFERS * self.null_standard_error(readings)

    def _mean_square(self) -> Tensor:
        return self.within + self.per_rank * self.value


def between_component(means: Tensor, within: Tensor, counts: Tensor) -> BetweenComponent:
    """B and W from each rank's mean and covariance.

    W = Σ (n_r - 1) S_r/(N - R),  MSB = Σ n_r (m_r - m)(m_r - m)ᵀ/(R - 1),  B = (MSB - W)/n₀.

    Args:
        means: m_r, [R, k].
        within: S_r, the unbiased covariance of one rank's samples, [R, k, k]; anything finite where n_r = 1.
        counts: n_r, [R].

    Raises:
        ValueError: for fewer than two ranks, or where no rank has two samples.

    Reference: searle1992variance
    """
    if means.ndim != 2 or within.shape != (*means.shape, means.shape[1]) or counts.shape != means.shape[:1]:
        raise ValueError(
            f"between_component(means, within, counts): the shapes must be [R, k], [R, k, k] and [R], found "
            f"{tuple(means.shape)}, {tuple(within.shape)} and {tuple(counts.shape)}; for one direction write means[:, None]"
        )
    rows = zip(means.double(), within.double(), counts.double(), strict=True)
    sums = torch.stack([rank_sums(m, s * (n - 1), n) for m, s, n in rows]).sum(0)
    found = component_of(sums)
    if found is None:
        raise ValueError(
            f"between_component: {len(counts)} ranks with {counts.tolist()} samples leave no degrees of freedom; it needs "
            f"two ranks, and two samples in one of them"
        )
    return found


def rank_sums(mean: Tensor, scatter: Tensor, count: Tensor) -> Tensor:
    """What one rank adds: its scatter, n m mᵀ, n m, n, n² and 1, [2 k² + k + 3].

    Args:
        mean: m, [k].
        scatter: Σ (g - m)(g - m)ᵀ of its samples, [k, k].
        count: n, [].
    """
    one = torch.ones_like(count)
    sizes = torch.stack([count, count.square(), one])
    return torch.cat([scatter.flatten(), torch.outer(mean, mean).flatten() * count, mean * count, sizes])


def component_of(sums: Tensor) -> BetweenComponent | None:
    """B and W from `rank_sums` summed over ranks; None where no degrees of freedom are left.

    Args:
        sums: Σ_r of `rank_sums`, [2 k² + k + 3].
    """
    k = round((((1 + 8 * (len(sums) - 3)) ** 0.5) - 1) / 4)
    scatter, outer, total, sizes = sums.split([k * k, k * k, k, 3])
    samples, squares, ranks = (float(size) for size in sizes)
    if ranks < 2 or samples <= ranks:
        return None
    within = scatter.reshape(k, k) / (samples - ranks)
    mean_square = (outer.reshape(k, k) - torch.outer(total, total) / samples) / (ranks - 1)
    per_rank = (samples - squares / samples) / (ranks - 1)
    return BetweenComponent((mean_square - within) / per_rank, within, round(ranks), round(samples), per_rank)


def _entry_variance(covariance: Tensor, dof: float) -> Tensor:
    variances = covariance.diagonal()
    return (torch.outer(variances, variances) + covariance.square()).clamp_min(0) / dof
