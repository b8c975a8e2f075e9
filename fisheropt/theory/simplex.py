"""The core information I = diag(p) - ppᵀ of a softmax head: its spectrum, and bounds on its largest eigenvalue.

Ascending eigenvalues interlace with the sorted probabilities, 0 = λ₁ <= p₍₁₎ <= λ₂ <= ... <= λ_C <= p₍C₎; λ₁ belongs to the
vector of ones. Everything is batched: classes are the last axis, what stands before it are inputs. Differences from one are
summed over the other classes, so that nothing cancels as p tends to a corner.

Reference: sun2025, golub1973some
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_BISECTIONS = 64


def core(p: Tensor) -> Tensor:
    """I = diag(p) - ppᵀ, the covariance of a one-hot label.

    Args:
        p: probabilities [..., C].

    Returns:
        [..., C, C].
    """
    return torch.diag_embed(p) - p[..., :, None] * p[..., None, :]


def core_times(p: Tensor, v: Tensor) -> Tensor:
    """I v = p∘v - p⟨p, v⟩ without forming I; v is shifted to 0 at the likeliest class, so that nothing cancels at a corner.

    Args:
        p: probabilities [..., C]; not checked, so that no value is read back.
        v: vectors [..., C].

    Returns:
        [..., C].
    """
    shifted = v - v.take_along_dim(p.argmax(-1, keepdim=True), -1)
    return p * (shifted - (p * shifted).sum(-1, keepdim=True))


def core_trace(p: Tensor) -> Tensor:
    """The trace of I, Σ pᵢ(1 - pᵢ) = 1 - |p|², [...]."""
    top, rest = _split(p)
    return top * rest.sum(-1) + (rest * (1 - rest)).sum(-1)


def core_frobenius(p: Tensor) -> Tensor:
    """|I|_F = √(Σp² - 2Σp³ + (Σp²)²), [...]."""
    top, rest = _split(p)
    squares = rest.square()
    diagonal = (top * rest.sum(-1)).square() + (rest * (1 - rest)).square().sum(-1)
    crossed = 2 * top.square() * squares.sum(-1) + squares.sum(-1).square() - squares.square().sum(-1)
    return (diagonal + crossed.clamp(min=0)).sqrt()


def interlacing(p: Tensor) -> tuple[Tensor, Tensor]:
    """Where Cauchy's interlacing puts the ascending eigenvalues: between `low` and `high`, [..., C] each."""
    ordered = checked_probabilities(p, "interlacing(p)").sort(-1).values
    low = torch.cat([torch.zeros_like(ordered[..., :1]), ordered[..., :-1]], -1)
    high = ordered.clone()
    high[..., 0] = 0
    return low, high


def spectrum(p: Tensor) -> Tensor:
    """All eigenvalues of I, ascending, [..., C], by a dense decomposition."""
    return torch.linalg.eigvalsh(core(checked_probabilities(p, "spectrum(p)")))


@dataclass(frozen=True)
class LowerBounds:
    """Lower bounds on λ_C, [...] each.

    Attributes:
        variance: max pᵢ(1 - pᵢ), an entry of the diagonal.
        two_largest: (p₍C₎ + p₍C₋₁₎ - (p₍C₎ - p₍C₋₁₎)²)/2, the quotient of the difference of the two; exact for C = 2.
        mean: (1 - |p|²)/(C - 1), the mean of the eigenvalues other than λ₁.
    """

    variance: Tensor
    two_largest: Tensor
    mean: Tensor

    @property
    def best(self) -> Tensor:
        """The largest of them."""
        return torch.stack([self.variance, self.two_largest, self.mean]).amax(0)


@dataclass(frozen=True)
class UpperBounds:
    """Upper bounds on λ_C, [...] each.

    Attributes:
        largest: p₍C₎, as I <= diag(p).
        trace: 1 - |p|².
        half: 1/2, the largest variance of a variable of range √2 (Popoviciu).
        twice_variance: 2 max pᵢ(1 - pᵢ), the largest sum of absolute values in a row.
        frobenius: |I|_F.
    """

    largest: Tensor
    trace: Tensor
    half: Tensor
    twice_variance: Tensor
    frobenius: Tensor

    @property
    def best(self) -> Tensor:
        """The smallest of them."""
        return torch.stack([self.largest, self.trace, self.half, self.twice_variance, self.frobenius]).amin(0)


def lower_bounds(p: Tensor) -> LowerBounds:
    """What λ_C is at least.

    Args:
        p: probabilities [..., C], C >= 2.
    """
    return _lower_bounds(checked_probabilities(p, "lower_bounds(p)"))


def upper_bounds(p: Tensor) -> UpperBounds:
    """What λ_C is at most.

    Args:
        p: probabilities [..., C], C >= 2.
    """
    return _upper_bounds(checked_probabilities(p, "upper_bounds(p)"))


def largest_eigenvalue(p: Tensor) -> Tensor:
    """λ_C, the root of Σᵢ pᵢ/(pᵢ - λ) = 0 in (p₍C₋₁₎, p₍C₎), by bisection; p₍C₎ where the two largest tie.

    Args:
        p: probabilities [..., C], C >= 2; accurate to the precision of p, also beside a corner.

    Returns:
        [...].
    """
    p = checked_probabilities(p, "largest_eigenvalue(p)")
    ordered = p.sort(-1).values
    return ordered[..., -2] + _offset(ordered)


def largest_eigenvector(p: Tensor) -> Tensor:
    """The unit vector of λ_C, vᵢ ~ pᵢ/(pᵢ - λ_C), its entry at the largest probability positive unless there are two.

    Where the two largest tie it is their difference. At a corner, where I vanishes, it is the difference of two classes.

    Args:
        p: probabilities [..., C], C >= 2.

    Returns:
        [..., C].
    """
    return leading_vector(checked_probabilities(p, "largest_eigenvector(p)"))


def leading_vector(p: Tensor) -> Tensor:
    """`largest_eigenvector` without the check of p, so that no value is read back."""
    ordered, order = p.sort(-1)
    nu = _offset(ordered)[..., None]
    below = ordered - ordered[..., -2:-1]
    weights = ordered / torch.where(below == nu, 1, below - nu)
    pair = torch.zeros_like(ordered)
    pair[..., -1], pair[..., -2] = 1, -1
    tied = (nu <= 0) | (below[..., -1:] <= nu)
    weights = torch.where(tied, pair, weights)
    vector = torch.zeros_like(p).scatter(-1, order, weights / weights.abs().amax(-1, keepdim=True))
    image = core_times(p, vector)
    polished = torch.where((image == 0).all(-1, keepdim=True), vector, image)
    polished = polished / polished.abs().amax(-1, keepdim=True)
    return polished / polished.norm(dim=-1, keepdim=True)


def checked_probabilities(p: Tensor, call: str) -> Tensor:
    """Hand p through when it is a tensor of probabilities [..., C], C >= 2, summing to one.

    Raises:
        ValueError: else.
    """
    if not isinstance(p, Tensor) or not p.is_floating_point() or p.ndim == 0 or p.shape[-1] < 2:
        found = f"{p.dtype} {tuple(p.shape)}" if isinstance(p, Tensor) else type(p).__name__
        raise ValueError(
            f"{call}: needs probabilities [..., C] of C >= 2 classes, found {found}; write logits.softmax(-1)"
        )
    error = float((p.detach().sum(-1) - 1).abs().max()) if p.numel() else 0.0
    if not error <= 4 * p.shape[-1] * torch.finfo(p.dtype).eps + 1e-12 or bool((p < 0).any()):
        raise ValueError(
            f"{call}: probabilities must be at least 0 and sum to 1 over the last axis, found a sum off by {error:.2g}"
            f"{' and negative entries' if bool((p < 0).any()) else ''}; write logits.softmax(-1)"
        )
    return p


def _split(p: Tensor) -> tuple[Tensor, Tensor]:
    """The largest probability [...], and the others ascending [..., C - 1]."""
    ordered = p.sort(-1).values
    return ordered[..., -1], ordered[..., :-1]


def _lower_bounds(p: Tensor) -> LowerBounds:
    top, rest = _split(p)
    second = rest[..., -1]
    variance = top * rest.sum(-1)
    both = (variance + second * (1 - second)) / 2 + top * second
    return LowerBounds(variance, both, core_trace(p) / (p.shape[-1] - 1))


def _upper_bounds(p: Tensor) -> UpperBounds:
    top, rest = _split(p)
    half = torch.full_like(top, 0.5)
    return UpperBounds(top, core_trace(p), half, 2 * top * rest.sum(-1), core_frobenius(p))


def _offset(ordered: Tensor) -> Tensor:
    """λ_C - p₍C₋₁₎ [...] of sorted probabilities; the bounds on λ_C bracket it, so its error is relative to 1 - p₍C₎."""
    second = ordered[..., -2]
    below = ordered - second[..., None]
    low = (_lower_bounds(ordered).best - second).clamp(min=0)
    high = (_upper_bounds(ordered).best - second).clamp(min=0).minimum(below[..., -1])
    low = low.minimum(high)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        gaps = below - middle[..., None]
        left = (ordered / torch.where(gaps == 0, torch.finfo(ordered.dtype).tiny, gaps)).sum(-1) < 0
        low, high = torch.where(left, middle, low), torch.where(left, high, middle)
    return (low + high) / 2
