"""Checks of the arguments of the threshold theory; every message names the call as the user wrote it."""

import math

import torch
from torch import Tensor


def checked_probability(delta: float, call: str) -> float:
    """Delta as a float strictly between 0 and 1."""
    if not 0 < delta < 1:
        raise ValueError(
            f"{call}: `delta` is the probability of a false statement and must lie strictly between 0 and 1, "
            f"got {delta!r}; write delta=0.05"
        )
    return float(delta)


def checked_positive(value: float, name: str, call: str) -> float:
    """The value as a float, finite and above zero."""
    if not 0 < value < math.inf:
        raise ValueError(f"{call}: `{name}` must be a positive finite number, got {value!r}")
    return float(value)


def checked_scores(scores: Tensor, call: str) -> Tensor:
    """Scores [n, k] as detached float64, n >= 2, k >= 1, all finite."""
    if not isinstance(scores, Tensor) or scores.ndim != 2 or scores.is_complex():
        found = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(
            f"{call}: `scores` must be a real tensor [n, k], one row a sample and one column a direction, "
            f"found {found}; for one direction write scores[:, None]"
        )
    n, k = scores.shape
    if n < 2 or k < 1:
        raise ValueError(
            f"{call}: `scores` has {n} row(s) (samples) and {k} column(s) (directions); a fluctuation needs "
            "at least 2 samples and 1 direction. If the rows are the directions, pass scores.T"
        )
    if not bool(scores.isfinite().all()):
        bad = int((~scores.isfinite()).any(1).sum())
        raise ValueError(
            f"{call}: {bad} of the {n} rows of `scores` have entries that are not finite; drop them with "
            "scores[scores.isfinite().all(1)], or look for the overflow that made them"
        )
    return scores.detach().to(torch.float64)


def checked_symmetric(matrix: Tensor, call: str) -> Tensor:
    """A finite symmetric matrix as detached float64, symmetrised."""
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.shape[0] == 0:
        raise ValueError(f"{call}: `matrix` must be square, got shape {tuple(matrix.shape)}")
    if not bool(matrix.isfinite().all()):
        raise ValueError(f"{call}: `matrix` has entries that are not finite")
    double = matrix.detach().to(torch.float64)
    skew = float((double - double.T).abs().max())
    if skew > 1e-5 * float(double.abs().max()):
        raise ValueError(
            f"{call}: `matrix` must be symmetric, found a difference of {skew:.3g} between it and its "
            "transpose; write matrix = (matrix + matrix.T) / 2 if it is symmetric up to noise"
        )
    return (double + double.T) / 2
