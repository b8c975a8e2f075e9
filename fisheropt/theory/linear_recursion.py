"""Covariances of the linear recursions that SGD follows near a minimum, mode by mode.

In the eigenbasis of the curvature a step is x_i <- A_i x_i + B xi_i with blocks A_i [r, r] and B [r]: r = 1 for
plain steps, r = 2 (position and momentum) for the heavy ball. Index legend: i, j modes; N [d, d] the covariance of
the minibatch gradient.
"""

from typing import NamedTuple, final

import torch
from torch import Tensor


@final
class Modes(NamedTuple):
    """Blocks [d, r, r] and the input [r] of the noise."""

    blocks: Tensor
    input: Tensor


def modes(curvatures: Tensor, lr: float, momentum: float) -> Modes:
    """The recursion of gradient steps, or of the heavy ball m <- beta m + g, x <- x - eta m."""
    if momentum == 0:
        return Modes((1 - lr * curvatures)[:, None, None], torch.tensor([-lr], dtype=torch.float64))
    one = torch.ones_like(curvatures)
    rows = (1 - lr * curvatures, -lr * momentum * one), (curvatures, momentum * one)
    blocks = torch.stack([torch.stack(row, -1) for row in rows], -2)
    return Modes(blocks, torch.tensor([-lr, 1.0], dtype=torch.float64))


def stein(blocks: Tensor, source: Tensor) -> Tensor:
    """X [d, d, r, r] with X_ij - A_i X_ij A_j^T = Q_ij."""
    size = blocks.shape[-1]
    identity = torch.eye(size * size, dtype=torch.float64)
    rows = []
    for block, right in zip(blocks, source, strict=True):  # row by row: d systems of r^2 unknowns at a time
        kron = torch.einsum("ac,jbd->jabcd", block, blocks).reshape(-1, size * size, size * size)
        rows.append(torch.linalg.solve(identity - kron, right.reshape(-1, size * size)).reshape(right.shape))
    return torch.stack(rows)


def driven(recursion: Modes, noise: Tensor) -> Tensor:
    """Q_ij = N_ij B B^T, [d, d, r, r]."""
    return noise[:, :, None, None] * torch.outer(recursion.input, recursion.input)


def propagated(blocks: Tensor, covariance: Tensor) -> Tensor:
    """A_i X_ij A_j^T."""
    return torch.einsum("iab,ijbc,jdc->ijad", blocks, covariance, blocks)


def independent(recursion: Modes, noise: Tensor) -> Tensor:
    """Stationary covariance under independent batches: X - A X A^T = B N B^T."""
    return stein(recursion.blocks, driven(recursion, noise))


def epoch_end(recursion: Modes, noise: Tensor, batches: int) -> Tensor:
    """Stationary covariance at the ends of epochs of m disjoint batches, whose noises add up to zero.

    X - A^m X A^mT = (m s_2 - s_1 N s_1^T)/(m - 1) with s_1 = sum_{j<m} A^j B and s_2 = sum_{j<m} A^j B N B^T A^jT.
    """
    power = torch.linalg.matrix_power(recursion.blocks, batches)
    return stein(power, _gathered(recursion, noise, batches))


def epoch_mean(recursion: Modes, noise: Tensor, batches: int) -> Tensor:
    """The same, averaged over the positions 1..m of the epoch."""
    state = epoch_end(recursion, noise, batches)
    first = torch.zeros(recursion.blocks.shape[:2], dtype=torch.float64)
    second, total = torch.zeros_like(state), torch.zeros_like(state)
    source = driven(recursion, noise)
    for _ in range(batches):
        state = propagated(recursion.blocks, state)
        first = torch.einsum("iab,ib->ia", recursion.blocks, first) + recursion.input
        second = propagated(recursion.blocks, second) + source
        total += state + _bracket(first, second, noise, batches)
    return total / batches


def _gathered(recursion: Modes, noise: Tensor, batches: int) -> Tensor:
    blocks, size = recursion.blocks, recursion.blocks.shape[-1]
    power = torch.linalg.matrix_power(blocks, batches)
    identity = torch.eye(size, dtype=torch.float64)
    first = torch.linalg.solve(identity - blocks, (identity - power) @ recursion.input)
    source = driven(recursion, noise)
    second = stein(blocks, source - propagated(power, source))
    return _bracket(first, second, noise, batches)


def _bracket(first: Tensor, second: Tensor, noise: Tensor, batches: int) -> Tensor:
    """(m s_2 - s_1 N s_1^T)/(m - 1): two batches of an epoch have the covariance -N/(m - 1)."""
    crossed = torch.einsum("ia,ij,jb->ijab", first, noise, first)
    return (batches * second - crossed) / (batches - 1)
