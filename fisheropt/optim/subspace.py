"""A subspace that follows the leading eigenvectors of a running mean M, of which only M D is ever seen.

    Y = (1 - w) V diag(l) (VᵀD) + w F D,    M ≈ Y (DᵀY)⁻¹ Yᵀ

Block power with memory: V and l are kept eigenvectors and eigenvalues, D = [V W] the directions that were watched, W a few
fresh random ones by which new eigenvectors enter, and F the matrix of one reading. The eigenpairs of the last expression,
the best that M D allows, are the next V and l; no eigenvalue of it is above its own of M.

Reference: tropp2017fixed
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

Parts = Mapping[str, Tensor]
"""k vectors over all parameters: their part in each, [k, *parameter]."""

_CHUNK = 1 << 12  # products of so few entries are summed in their own precision, and these sums in float64


@final
@dataclass(frozen=True)
class Ritz:
    """Eigenpairs of the running mean.

    Args:
        basis: V, orthonormal over all parameters; zero where fewer than k eigenvalues are positive.
        eigenvalues: l, largest first, [k].
        cosines: ⟨d_i, v_j⟩ with the directions that were watched, [watched, k].
    """

    basis: dict[str, Tensor]
    eigenvalues: Tensor
    cosines: Tensor

    def angle(self, leading: int, tracked: int) -> float:
        """Degrees by which the first `leading` eigenvectors lie outside the first `tracked` directions, at most.

        Args:
            leading: the number of eigenvectors.
            tracked: the number of directions that were V.
        """
        if leading == 0:
            return 0.0
        inside = torch.linalg.svdvals(self.cosines[:tracked, :leading])
        smallest = float(inside[-1]) if len(inside) == leading else 0.0
        return math.degrees(math.acos(min(1.0, smallest)))


def flat(part: Tensor) -> Tensor:
    """K vectors as rows, [k, entries]; of a scalar and of an empty parameter too."""
    return part.reshape(len(part), part.shape[1:].numel())


def gram(left: Parts, right: Parts) -> Tensor:
    """⟨l_i, r_j⟩ over all parameters, summed in float64: [i, j]."""
    total: Tensor | None = None
    for name, part in left.items():
        product = _product(flat(part), flat(right[name]))
        total = product if total is None else total + product.to(total.device)
    assert total is not None
    return total


def _product(rows: Tensor, columns: Tensor) -> Tensor:
    """Rows times columns transposed, in chunks of entries."""
    columns = columns.to(rows.dtype)
    whole = rows.shape[1] // _CHUNK * _CHUNK
    with torch.autocast("cpu" if rows.is_meta else rows.device.type, enabled=False):
        rest = (rows[:, whole:] @ columns[:, whole:].T).double()
        if not whole:
            return rest
        chunks = [x[:, :whole].unflatten(1, (-1, _CHUNK)).transpose(0, 1) for x in (rows, columns)]
        return (chunks[0] @ chunks[1].mT).double().sum(0) + rest


def combined(parts: Parts, coefficients: Tensor) -> dict[str, Tensor]:
    """Σ_k x_k c_kj in each parameter, for coefficients [k, j]: [j, *parameter]."""
    with torch.autocast(coefficients.device.type, enabled=False):
        return {name: torch.tensordot(coefficients.T.to(part), part, 1) for name, part in parts.items()}


def orthonormal(parts: Parts, passes: int = 2) -> dict[str, Tensor]:
    """An orthonormal basis of the same span, by symmetric orthogonalisation; a vector in the span of others becomes zero.

    Args:
        parts: the vectors.
        passes: 2 removes what rounding leaves of the first; 1 is enough for vectors that are nearly orthonormal.
    """
    for _ in range(passes):
        parts = combined(parts, _inverse_root(gram(parts, parts)))
    return dict(parts)


def _inverse_root(square: Tensor) -> Tensor:
    """The symmetric inverse square root on the range of a positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh(square)
    tiny = torch.finfo(values.dtype).tiny
    kept = values > 1e-10 * values[-1].clamp_min(tiny)
    return vectors * torch.where(kept, values.clamp_min(tiny).rsqrt(), 0.0) @ vectors.T


def fresh(like: Parts, count: int, seed: int, basis: Parts | None) -> dict[str, Tensor]:
    """Random directions, the same on every rank, orthonormal and orthogonal to a basis.

    Args:
        like: the parameters.
        count: how many directions.
        seed: of a generator of their own.
        basis: V, orthonormal or zero; None for none.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn: dict[str, Tensor] = {}
    for name, p in like.items():
        wide = torch.promote_types(p.dtype, torch.float32)
        drawn[name] = torch.randn((count, *p.shape), generator=generator).to(wide)
    drawn = _moved(orthonormal(drawn), like)
    if basis is None:
        return drawn
    inside = combined(basis, gram(basis, drawn))
    drawn = orthonormal({name: part - inside[name] for name, part in drawn.items()})
    inside = combined(basis, gram(basis, drawn))
    return {name: part - inside[name] for name, part in drawn.items()}


def _moved(parts: Parts, like: Parts) -> dict[str, Tensor]:
    return {name: part.to(like[name].device) for name, part in parts.items()}


def power(
    directions: Parts,
    eigenvalues: Tensor,
    responses: Parts,
    weight: float,
    rank: int,
    mixing: Tensor | None = None,
) -> Ritz:
    """The next eigenpairs of M ← (1 - w) V diag(l) Vᵀ + w F.

    Args:
        directions: D = [V W], orthonormal or zero.
        eigenvalues: l of the columns of V, and 0 of those of W, [k].
        responses: F D, or vectors of which F D is a combination.
        weight: w of the new reading in the running mean.
        rank: how many eigenpairs to keep.
        mixing: the combination, [responses, k].
    """
    remembered = torch.diag((1 - weight) * eigenvalues.double())
    mixed = torch.eye(len(remembered), dtype=torch.float64) if mixing is None else mixing
    mixed = weight * mixed.to(remembered)
    own, cross, other = gram(directions, directions), gram(directions, responses), gram(responses, responses)
    product = own @ remembered + cross @ mixed
    half = remembered @ cross @ mixed
    square = remembered @ own @ remembered + half + half.T + mixed.T @ other @ mixed
    values, coefficients = _nystrom(product, square, _resolution(responses))
    values, coefficients = values[:rank], coefficients[:, :rank]
    kept, answered = combined(directions, remembered @ coefficients), combined(responses, mixed @ coefficients)
    basis = {name: kept[name] + answered[name] for name in directions}
    root = _inverse_root(gram(basis, basis))
    return Ritz(combined(basis, root), values, product @ coefficients @ root)


def _nystrom(product: Tensor, square: Tensor, resolution: float) -> tuple[Tensor, Tensor]:
    """Eigenvalues of Y (DᵀY)⁻¹ Yᵀ, largest first, and the combinations of Y that are their eigenvectors.

    Args:
        product: DᵀY.
        square: YᵀY.
        resolution: the relative size below which Y is rounding; such eigenvalues are 0, and so are their vectors.
    """
    least = resolution * float(square.diagonal().max().clamp_min(0).sqrt())
    values, vectors = torch.linalg.eigh((product + product.T) / 2)
    tiny = torch.finfo(values.dtype).tiny
    half = vectors * torch.where(values > least, values.clamp_min(tiny).rsqrt(), 0.0)
    ritz, rotation = torch.linalg.eigh(half.T @ square @ half)
    ritz, rotation = ritz.flip(0), rotation.flip(1)
    positive = ritz > least
    scale = torch.where(positive, ritz.clamp_min(tiny).rsqrt(), 0.0)
    return torch.where(positive, ritz, 0.0), half @ rotation * scale


def _resolution(parts: Parts) -> float:
    """The relative size below which a response is rounding."""
    return max(10 * torch.finfo(part.dtype).eps for part in parts.values())
