"""Second and fourth moments of scores.

Index legend: n samples; i, j directions (k of them). Scores have mean zero by definition and are not centred.
"""

import torch
from torch import Tensor


def second_moment(scores: Tensor) -> Tensor:
    """Gamma_n = (1/n) sum_n s_n s_n^T, [k, k] from scores [n, k]."""
    return scores.T @ scores / len(scores)


def projection_kurtosis(scores: Tensor, directions: Tensor) -> Tensor:
    """E z^4 / (E z^2)^2 of z = <s, v> for each column v of `directions`; zero where z is identically zero."""
    squares = (scores @ directions).square()
    variance = squares.mean(0)
    return (squares / torch.where(variance > 0, variance, 1.0)).square().mean(0)


def eigenvalue_errors(scores: Tensor, directions: Tensor) -> Tensor:
    """Standard error of (1/n) sum <s_n, v>^2 for each column v: l sqrt((kurtosis - 1) / n)."""
    variance = (scores @ directions).square().mean(0)
    relative = (projection_kurtosis(scores, directions) - 1).clamp(min=0) / len(scores)
    return variance * relative.sqrt()
