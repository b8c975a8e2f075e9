"""What a subspace V says of the smallest eigenvalue of the whole matrix, by its angle with the weakest one.

If V stays away from that direction (the top eigenvectors, say), the bounds are void: a monitor on V is then
silent about the full lambda_min, and only what happens on V is known.
"""

import math

import torch
from torch import Tensor


def subspace_sine(vector: Tensor, basis: Tensor) -> float:
    """Sine of the angle between u and span V, |u - V V^T u| / |u|, for orthonormal columns V [d, k].

    Args:
        vector: u [d].
        basis: V.
    """
    unit = (vector / vector.norm()).to(torch.float64)
    columns = basis.to(torch.float64)
    return float((unit - columns @ (columns.T @ unit)).norm())


def floor_bracket(subspace_floor: float, sine: float, eigenvalue_max: float) -> tuple[float, float]:
    """Lower and upper bound on lambda_min(Gamma): (lam_V - s^2 lambda_max) / (1 - s^2) and lam_V.

    lam_V = lambda_min(V^T Gamma V) and s is the sine of the angle between V and the weakest eigenvector of
    Gamma. The lower bound is cut at 0, where it says nothing.

    Args:
        subspace_floor: lam_V.
        sine: s in [0, 1].
        eigenvalue_max: lambda_max(Gamma), or an upper bound on it.
    """
    if not 0 <= sine <= 1:
        raise ValueError(f"floor_bracket: `sine` must lie in [0, 1], got {sine!r}")
    if not 0 <= subspace_floor <= eigenvalue_max:
        raise ValueError(
            f"floor_bracket: needs 0 <= subspace_floor <= eigenvalue_max, got {subspace_floor!r} and {eigenvalue_max!r}"
        )
    square = sine**2
    lower = (subspace_floor - square * eigenvalue_max) / (1 - square) if square < 1 else 0.0
    return max(lower, 0.0), float(subspace_floor)


def davis_kahan_sine(eigenvalues: Tensor, k: int, error: float) -> float:
    """Bound s <= L / (l_(k+1) - l_1 - L) for V the k weakest eigenvectors of Gamma_n, known up to L.

    L bounds ||Gamma_n - Gamma||. Returns 1, which says nothing, when the denominator is not above L.

    Args:
        eigenvalues: l, of Gamma_n [d], in any order.
        k: Dimension of V, below d.
        error: L.

    Reference: daviskahan1970
    """
    if not 1 <= k < len(eigenvalues):
        raise ValueError(
            f"davis_kahan_sine: `k` must leave an eigenvalue outside of V, 1 <= k < {len(eigenvalues)}, got {k!r}"
        )
    if not 0 <= error < math.inf:
        raise ValueError(f"davis_kahan_sine: `error` is a norm, got {error!r}")
    ordered = eigenvalues.detach().to(torch.float64).sort().values
    gap = float(ordered[k] - ordered[0]) - error
    return error / gap if gap > error else 1.0
