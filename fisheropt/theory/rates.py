"""How many samples an answer costs: effective dimensions, compatibility of curvature and noise, and lower bounds.

After Zantedeschi and Muthuraman (2026, v4), whose statements could be read in the abstract alone: which effective
dimension and which condition number they use is not known, so the candidates stand beside each other.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fisheropt.theory.arguments import checked_positive, checked_symmetric

_RANGE = 1e-10  # of the largest eigenvalue: below it a direction is taken as outside of the range


@dataclass(frozen=True)
class EffectiveDimensions:
    """Candidates for the number of directions that noise acts in; they differ by the metric.

    Attributes:
        tic: tr(H^+ G), the number of parameters where the model is well specified.
        stable: tr G / lambda_max(G).
        participation: (tr G)^2 / tr(G^2).
        whitened: tr A / lambda_max(A) with A = G^(-1/2) H G^(-1/2).
    """

    tic: float
    stable: float
    participation: float
    whitened: float


@dataclass(frozen=True)
class Compatibility:
    """Extreme generalised eigenvalues of (H, G): mu G <= H <= L G on the range of G.

    Attributes:
        mu: The largest mu.
        L: The smallest L.
    """

    mu: float
    L: float

    @property
    def kappa(self) -> float:
        """L/mu, invariant under linear reparametrisation and 1 at the optimum of a well-specified model."""
        return self.L / self.mu


def effective_dimensions(H: Tensor, G: Tensor) -> EffectiveDimensions:
    """The effective dimensions of curvature H and gradient covariance G.

    Args:
        H: [d, d], positive semi-definite.
        G: [d, d], positive semi-definite, with its range in that of H.

    Reference: zantedeschi2026
    """
    values, noise = torch.linalg.eigvalsh(checked_symmetric(G, "effective_dimensions")), G.double()
    relative = _relative(H, G, "effective_dimensions")
    trace = float(values.sum())
    return EffectiveDimensions(
        tic=float((torch.linalg.pinv(H.double(), hermitian=True, rtol=_RANGE) * noise).sum()),
        stable=trace / float(values[-1]),
        participation=trace**2 / float(values.square().sum()),
        whitened=float(relative.sum() / relative[-1]),
    )


def ridge_dimension(G: Tensor, damping: float) -> float:
    """tr(G (G + lambda I)^-1), the directions above the damping.

    Args:
        G: [d, d].
        damping: lambda.

    Reference: zantedeschi2026
    """
    values = torch.linalg.eigvalsh(checked_symmetric(G, "ridge_dimension")).clamp_min(0)
    return float((values / (values + checked_positive(damping, "damping", "ridge_dimension"))).sum())


def compatibility(H: Tensor, G: Tensor) -> Compatibility:
    """Mu and L of mu G <= H <= L G on the range of G.

    Args:
        H: Curvature [d, d].
        G: Covariance of per-sample gradients [d, d].

    Raises:
        ValueError: if the noise acts in a direction without curvature, where no mu > 0 exists.

    Reference: zantedeschi2026
    """
    values = _relative(H, G, "compatibility")
    return Compatibility(float(values[0]), float(values[-1]))


def sandwich_risk(H: Tensor, G: Tensor, n: int) -> float:
    """Excess loss tr(H^-1 G)/2n of the best estimate from n samples, to first order.

    Args:
        H: Curvature [d, d].
        G: Covariance of per-sample gradients [d, d].
        n: Samples.

    Reference: zantedeschi2026
    """
    return effective_dimensions(H, G).tic / (2 * n)


def van_trees_bound(F: Tensor, n: int, radius: float) -> float:
    """Lower bound d^2/(n d + (pi/r)^2 tr F^-1) on E|theta_hat - theta|^2_F for any estimator from n samples.

    The prior is a product of squared cosines on a cube of half-width r, whose information is (pi/r)^2 a coordinate.

    Args:
        F: Fisher information of one sample, constant over the cube, [d, d].
        n: Samples.
        radius: r.

    Reference: zantedeschi2026
    """
    information = checked_symmetric(F, "van_trees_bound")
    prior = (math.pi / checked_positive(radius, "radius", "van_trees_bound")) ** 2
    size = len(information)
    return size**2 / (n * size + prior * float(torch.linalg.inv(information).trace()))


def stationarity_samples(H: Tensor, G: Tensor, target: float, start: float) -> tuple[float, float]:
    """Samples to E|grad L|^2 <= epsilon^2 in the dual norm of G, for two ways of stepping on a quadratic.

    Newton steps with growing batches: tr(H^-1 G)-like, d_tic/epsilon^2 less what the start is worth. Constant batches
    with P = G^-1 and eta = 1/L: d_whitened kappa log(2 A_0/epsilon^2)/epsilon^2, an upper bound.

    Args:
        H: Curvature [d, d].
        G: Covariance of per-sample gradients [d, d].
        target: epsilon^2.
        start: A_0, the squared dual norm at the start, above the target.

    Returns:
        Samples of growing batches, and the bound for constant ones.

    Reference: zantedeschi2026
    """
    wanted, began = (checked_positive(x, "target", "stationarity_samples") for x in (target, start))
    dimensions, pair = effective_dimensions(H, G), compatibility(H, G)
    growing = dimensions.tic * max(0.0, 1 / wanted - 1 / began)
    return growing, dimensions.whitened * pair.kappa * math.log(max(1.0, 2 * began / wanted)) / wanted


def _relative(H: Tensor, G: Tensor, call: str) -> Tensor:
    """Eigenvalues of G^(-1/2) H G^(-1/2) on the range of G, ascending."""
    curvature, noise = checked_symmetric(H, call), checked_symmetric(G, call)
    values, vectors = torch.linalg.eigh(noise)
    kept = values > _RANGE * values[-1]
    root = vectors[:, kept] / values[kept].sqrt()
    relative = torch.linalg.eigvalsh(root.T @ curvature @ root)
    if float(relative[0]) <= _RANGE * float(relative[-1]):
        raise ValueError(
            f"{call}: G has noise in a direction where H has no curvature, so the iterates have no stationary law "
            "there; project both on the identifiable directions first"
        )
    return relative
