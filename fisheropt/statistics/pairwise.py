"""Unbiased tr G and tr G² from inner products of pairs of samples, whatever the distribution and the dimension."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor


class Estimate(NamedTuple):
    """A number and its standard error."""

    value: float
    standard_error: float


@final
@dataclass(frozen=True)
class Pairwise:
    """Sums over pairs, triples and quadruples of different samples; or those without one sample, for each sample.

    Attributes:
        samples: n.
        diagonal: Σ Kᵢᵢ.
        first: Σ Kᵢⱼ over i ≠ j.
        second: Σ Kᵢⱼ² over i ≠ j.
        chained: Σᵢ (Σⱼ Kᵢⱼ)² over j ≠ i.
    """

    samples: int
    diagonal: Tensor
    first: Tensor
    second: Tensor
    chained: Tensor

    def trace(self) -> Tensor:
        """Unbiased tr G: the mean of ‖xᵢ‖² less that of ⟨xᵢ, xⱼ⟩."""
        return self.diagonal / self.samples - self.first / (self.samples * (self.samples - 1))

    def square_trace(self) -> Tensor:
        """Unbiased tr G², for n ≥ 4.

        Reference: chen2010tests
        """
        n = self.samples
        chains = self.chained - self.second
        fours = self.first.square() - 4 * chains - 2 * self.second
        pairs, triples = n * (n - 1), n * (n - 1) * (n - 2)
        return self.second / pairs - 2 * chains / triples + fours / (triples * (n - 3))

    def effective_rank(self) -> Tensor:
        """(tr G)²/tr G²."""
        return self.trace().square() / self.square_trace()


def pairwise(matrix: Tensor) -> tuple[Pairwise, Pairwise]:
    """The sums over all samples, and those that leave each sample out in turn.

    Args:
        matrix: K, inner products of the samples, centred or not, [n, n].
    """
    diagonal = matrix.diagonal()
    off = matrix - torch.diag(diagonal)
    rows, squares, n = off.sum(1), off.square().sum(1), len(matrix)
    every = Pairwise(n, diagonal.sum(), rows.sum(), squares.sum(), rows.square().sum())
    chained = every.chained - rows.square() - 2 * (off @ rows) + squares
    without = Pairwise(n - 1, every.diagonal - diagonal, every.first - 2 * rows, every.second - 2 * squares, chained)
    return every, without


def jackknife(value: Tensor, without: Tensor) -> Estimate:
    """A smooth estimate with its standard error from leaving each sample out in turn.

    Args:
        value: of all n samples.
        without: [n], of all others than each.

    Reference: efron1982jackknife
    """
    n = len(without)
    spread = (without - without.mean()).square().sum() * (n - 1) / n
    return Estimate(float(value), float(spread.sqrt()))
