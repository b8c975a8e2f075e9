"""The leading eigenpairs of a positive semi-definite matrix of moderate size.

A full decomposition costs several products of the matrix with itself, of which the few leading pairs need a small part.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_SMALL = 160
"""Ours: up to here a full decomposition costs no more than its leading part."""
_MORE = 8
"""Ours: vectors beside the wanted ones, which make up for small gaps behind the last."""
_BLOCKS = 4
"""Ours: blocks before the first look, which spectra with a flat tail need; each look is a decomposition of its own."""


class Leading(NamedTuple):
    """The largest eigenvalues, in falling order.

    Attributes:
        values: θ, [k].
        vectors: u, orthonormal columns, [n, k].
        residuals: ‖Mu - θu‖, [k]: an eigenvalue of M lies at most so far from θ.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor


def leading(matrix: Tensor, count: int, accuracy: float) -> Leading:
    """The largest eigenvalues of M and their vectors, to a relative residual where M is large.

    Block Krylov spaces with full orthogonalisation, from a block of a few more columns than are wanted; where they do not
    converge within half of M's size, a full decomposition. The error of a value is of second order in its residual.

    Args:
        matrix: M, symmetric and positive semi-definite, [n, n].
        count: how many, at most n.
        accuracy: the largest residual relative to its eigenvalue; 0 for a full decomposition.

    Reference: musco2015randomized
    """
    size, width = len(matrix), count + _MORE
    if accuracy > 0 and size > max(_SMALL, 6 * width):
        generator = torch.Generator().manual_seed(0)
        start = torch.randn(size, width, generator=generator, dtype=matrix.dtype).to(matrix.device)
        block, basis, image = _orthonormal(matrix @ start), matrix[:, :0], matrix[:, :0]
        while 2 * (basis.shape[1] + width) <= size:
            product = matrix @ block
            basis, image = torch.cat([basis, block], 1), torch.cat([image, product], 1)
            if basis.shape[1] >= _BLOCKS * width:
                found = _ritz(basis, image, count)
                if bool((found.residuals <= accuracy * found.values).all()):
                    return found
            for _ in range(2):  # once more of unit columns, as what the basis leaves may be mere rounding
                product = _orthonormal(product - basis @ (basis.T @ product))
            block = product
    values, vectors = torch.linalg.eigh(matrix)
    values, vectors = values[-count:].flip(0), vectors[:, -count:].flip(1)
    return Leading(values, vectors, torch.linalg.vector_norm(matrix @ vectors - vectors * values, dim=0))


def _orthonormal(columns: Tensor) -> Tensor:
    basis: Tensor = torch.linalg.qr(columns)[0]
    return basis


def _ritz(basis: Tensor, image: Tensor, count: int) -> Leading:
    projected = basis.T @ image
    values, turns = torch.linalg.eigh((projected + projected.T) / 2)
    values, turns = values[-count:].flip(0), turns[:, -count:].flip(1)
    vectors = basis @ turns
    return Leading(values, vectors, torch.linalg.vector_norm(image @ turns - vectors * values, dim=0))
