"""The eigenvalues that a floor is about: of the directions that are not null, over the running mean and of a step's own.

With n samples in k directions the smallest eigenvalue of a reading is low by about a factor (1 - √(k/n))², so that a step is
judged by itself in a few directions only: the weakest of the running mean, one for each sixteen samples.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fisheropt.optim.critical import null_space
from fisheropt.optim.group import Group
from fisheropt.theory.certificate import certify_floor_cholesky

_EACH = 16  # samples a direction
_ROUNDING = 1e-6  # of τ: what a matrix lifted to τ by its eigenvectors may lack of it


def eigen(basis: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Ascending eigenvalues [r] and eigenvectors [k, r] of a matrix within the span of a basis [k, r]."""
    values, vectors = torch.linalg.eigh(basis.T @ matrix @ basis)
    return values, basis @ vectors


def running_eigen(group: Group) -> tuple[Tensor, Tensor]:
    """Those of the running mean, in the directions that are not null."""
    return eigen(null_space.others(group), group["information"])


def judged(group: Group, vectors: Tensor, count: float) -> Tensor:
    """The directions in which a step's own information is judged, [k, m]; m is 0 below sixteen samples.

    Args:
        group: with "data_size"; a batch of all the data is judged in every direction.
        vectors: of the running mean, from the weakest.
        count: samples of the step.
    """
    whole = group["data_size"] is not None and count >= group["data_size"]
    return vectors if whole else vectors[:, : int(count) // _EACH]


def smallest(basis: Tensor, matrix: Tensor) -> float:
    """The smallest eigenvalue within a basis; infinity within none."""
    return float(torch.linalg.eigvalsh(basis.T @ matrix @ basis)[0]) if basis.shape[1] else float("inf")


def reaches(basis: Tensor, matrix: Tensor, level: float) -> bool:
    """Whether Cholesky certifies that the matrix is at least the level within a basis."""
    if not basis.shape[1]:
        return True
    return certify_floor_cholesky(basis.T @ matrix @ basis, level * (1 - _ROUNDING)).certified
