"""Closed form of the effective Hessian block at x = 0: a spiked covariance matrix.

There the weight is the constant w = (1/C)(1 - 1/C), and with s the eigenvalues of
lambda P^(1/2) (mu^T mu) P^(1/2) (lambda p_b |mu_b|^2 for orthogonal means), an outlier exists for each s >
phi^(-1/2).

Reference: baik2005phase, baik2006eigenvalues
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fisheropt.theory.mixture_nodes import make_mixture


@dataclass(frozen=True)
class StaticThreshold:
    """The transition at x = 0.

    Attributes:
        signals: [k], s at the given SNR, largest first.
        threshold: phi^(-1/2), to be exceeded by s.
        critical_snr: [k], the SNR at which each s reaches the threshold (infinite for a mean in the span of
            others).
        edge: (w/lambda)(1 + phi^(-1/2))^2.
        outliers: [m], (w/lambda)(1 + s)(1 + 1/(phi s)) for each s above the threshold.
        overlaps: [m], (1 - 1/(phi s^2))/(1 + 1/(phi s)).
    """

    signals: Tensor
    threshold: float
    critical_snr: Tensor
    edge: float
    outliers: Tensor
    overlaps: Tensor


def static_threshold(
    gram: Tensor,
    proportions: Sequence[float] | Tensor,
    snr: float,
    ratio: float,
    *,
    class_of: Sequence[int] | Tensor | None = None,
) -> StaticThreshold:
    """Edge, outliers and overlaps of a Hessian block at x = 0; the blocks of x in `gram` are not used.

    Args:
        gram: G [q, q] of (x, mu).
        proportions: p [k].
        snr: lambda.
        ratio: phi, samples over dimension.
        class_of: Class of each component.

    Reference: benarous2025local
    """
    mixture = make_mixture(gram, proportions, snr, class_of=class_of, call="static_threshold")
    if not ratio > 0:
        raise ValueError(f"static_threshold: `ratio` must be positive (samples / dimension), got {ratio}")
    classes = mixture.classes
    share = mixture.proportions.sqrt()
    unit = share[:, None] * mixture.gram[classes:, classes:] * share
    strengths = torch.linalg.eigvalsh(unit).flip(0).clamp(min=0)
    strengths = torch.where(strengths < 1e-12 * strengths[0], 0.0, strengths)
    signals, scale = snr * strengths, (1 / classes) * (1 - 1 / classes) / snr
    seen = signals[signals > ratio**-0.5]
    return StaticThreshold(
        signals=signals,
        threshold=ratio**-0.5,
        critical_snr=ratio**-0.5 / strengths,
        edge=scale * (1 + ratio**-0.5) ** 2,
        outliers=scale * (1 + seen) * (1 + 1 / (ratio * seen)),
        overlaps=(1 - 1 / (ratio * seen**2)) / (1 + 1 / (ratio * seen)),
    )
