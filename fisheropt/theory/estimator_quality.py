"""How far estimates of a Fisher matrix from random probes lie from it.

F = Σ_k a_k a_kᵀ, one row a_k an input and class. A probe is g = Σ_k ξ_k a_k with independent ξ of variance one: E[ggᵀ] = F.
Only the fourth moment κ = E ξ⁴ enters the variances: 1 for Rademacher signs, 3 for Gaussian ones. Estimates average M probes.

Reference: sun2025
"""

from __future__ import annotations

import math

from torch import Tensor

from fisheropt.theory.arguments import checked_positive
from fisheropt.theory.tails import chi2_tail

RADEMACHER = 1.0
GAUSSIAN = 3.0


def entry_variance(rows: Tensor, probes: int = 1, kurtosis: float = RADEMACHER) -> Tensor:
    """Var of every entry of the estimate, (F_ii F_jj + F_ij² + (κ - 3) Σ_k a_ki² a_kj²)/M.

    Args:
        rows: a [K, P].
        probes: M.
        kurtosis: κ.

    Returns:
        [P, P].
    """
    F, squares = rows.T @ rows, rows.square()
    diagonal = F.diagonal()
    return (diagonal[:, None] * diagonal + F.square() + (kurtosis - 3) * (squares.T @ squares)) / probes


def diagonal_cv(rows: Tensor, probes: int = 1, kurtosis: float = RADEMACHER) -> Tensor:
    """Coefficient of variation of the diagonal entries, √((2 + (κ - 3) Σ_k a_ki⁴/(Σ_k a_ki²)²)/M), [P]; 0 where F_ii is."""
    squares = rows.square()
    diagonal = squares.sum(0)
    shares = squares.square().sum(0) / diagonal.square()
    return ((2 + (kurtosis - 3) * shares).clamp(min=0) / probes).sqrt().nan_to_num(0.0)


def diagonal_cv_bound(probes: float = 1, rows: float = math.inf, kurtosis: float = RADEMACHER) -> float:
    """What the CV of a diagonal entry, and of any vᵀFv, is at most: √(2/M); for κ < 3, √((2 - (3 - κ)/K)/M).

    Args:
        probes: M, also an effective number.
        rows: K, the number of rows a_k that are not zero.
        kurtosis: κ, at most 3.
    """
    checked_positive(probes, "probes", f"diagonal_cv_bound(probes={probes!r})")
    return math.sqrt(max(0.0, 2 + (kurtosis - 3) / rows) / probes)


def trace_variance(rows: Tensor, probes: int = 1, kurtosis: float = RADEMACHER) -> Tensor:
    """Var of |g|², the estimate of tr F: (2|F|_F² + (κ - 3) Σ|a_k|⁴)/M, a scalar tensor."""
    gram = rows @ rows.T
    return (2 * gram.square().sum() + (kurtosis - 3) * gram.diagonal().square().sum()) / probes


def trace_cv_bound(effective_rank: float, probes: float = 1) -> float:
    """What the CV of the trace is at most, √(2/(r M)), with r = (tr F)²/|F|_F².

    Args:
        effective_rank: r, at least 1.
        probes: M.
    """
    return math.sqrt(2 / (checked_positive(effective_rank, "effective_rank", "trace_cv_bound(...)") * probes))


def matrix_error(rows: Tensor, probes: int = 1, kurtosis: float = RADEMACHER) -> Tensor:
    """E|F̂ - F|_F² = ((tr F)² + |F|_F² + (κ - 3) Σ|a_k|⁴)/M, a scalar tensor."""
    gram = rows @ rows.T
    fourth = gram.diagonal().square().sum()
    return (gram.trace().square() + gram.square().sum() + (kurtosis - 3) * fourth) / probes


def spectral_error(norm: float, trace: float, probes: int) -> tuple[float, float]:
    """The size of |F̂ - F| to expect, |F|(√(r/M) + r/M) and |F|(2√(r/M) + r/M) with r = tr F/|F|.

    The second is that of a flat spectrum, by the law of Marchenko and Pastur; decaying spectra lie between the two.

    Args:
        norm: |F|, the largest eigenvalue.
        trace: tr F.
        probes: M.
    """
    share = trace / norm / probes
    return norm * (math.sqrt(share) + share), norm * (2 * math.sqrt(share) + share)


def probes_needed(target: float, effective_rank: float = 1.0) -> int:
    """Probes for a relative standard deviation of at most `target`, 2/(r ε²) rounded up.

    Args:
        target: ε.
        effective_rank: 1 for entries of the diagonal and quotients vᵀFv; (tr F)²/|F|_F² for the trace.
    """
    call = f"probes_needed({target!r}, effective_rank={effective_rank!r})"
    exact = 2 / (
        checked_positive(effective_rank, "effective_rank", call) * checked_positive(target, "target", call) ** 2
    )
    return max(1, math.ceil(exact * (1 - 1e-12)))


def ema_cv(cv: float, decay: float) -> float:
    """CV of a running average b·old + (1 - b)·new of independent estimates, cv √((1 - b)/(1 + b)), in the long run.

    Args:
        cv: of one estimate.
        decay: b in [0, 1).
    """
    if not 0 <= decay < 1:
        raise ValueError(f"ema_cv({cv!r}, decay={decay!r}): the decay must lie in [0, 1); write decay=0.99")
    return cv * math.sqrt((1 - decay) / (1 + decay))


def inverse_bias(probes: float) -> float:
    """E[1/F̂_ii]·F_ii = M/(M - 2); infinite up to M = 2, as a probe behaves like F_ii χ²₁.

    Args:
        probes: M, also an effective number.
    """
    return math.inf if probes <= 2 else probes / (probes - 2)


def median_ratio(probes: float) -> float:
    """The median of F̂_ii/F_ii, that of χ²_M/M: .455 for one probe, so that most entries are too small.

    Args:
        probes: M.
    """
    low, high = 0.0, 4.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if chi2_tail(middle * probes, probes) > 0.5 else (low, middle)
    return (low + high) / 2


def skew_warning(probes: float) -> str:
    """What division by a diagonal of so few probes would do, in words; empty from M = 20 on, where 1/F̂ is 11 % too large.

    Args:
        probes: M, also an effective number.
    """
    if probes >= 20:
        return ""
    bias = inverse_bias(probes)
    inverse = "has no finite mean" if math.isinf(bias) else f"is {bias:.3g} times too large on average"
    return (
        f"{probes:.3g} probe(s): the median entry is {median_ratio(probes):.3g} of the true one and its inverse {inverse}; "
        f"average over updates (ema=0.99) and add damping before dividing by it"
    )


def label_cv(p: Tensor) -> Tensor:
    """CV of a Fisher entry from one label drawn from the model, C = 2: √((1 - 4pq)/(pq)), without bound as p tends to 0 or 1.

    Args:
        p: probability of one of the two classes, any shape.
    """
    variance = p * (1 - p)
    return ((1 - 4 * variance).clamp(min=0) / variance).sqrt()
