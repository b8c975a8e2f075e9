"""The floor as a penalty, F(theta) = L(theta) + a psi(1 - lambda(theta)/tau), and what its minimum promises.

lambda is the smallest eigenvalue of the Fisher information in k directions, or a soft minimum of them all; psi is a
hinge or its square. After Huang (2025); the form of the penalty and its constants are ours.
"""

import math
from abc import ABC, abstractmethod
from typing import ClassVar, Literal, final

import torch
from torch import Tensor

from fisheropt.theory.arguments import checked_positive, checked_symmetric
from fisheropt.theory.floor import soft_minimum

PsiName = Literal["hinge", "squared", "softmin"]

_SHARPNESS = 10.0  # the soft minimum lies at most this part of tau below the smallest eigenvalue


class Psi(ABC):
    """What of the spectrum is held above tau, and how what is missing is charged."""

    name: ClassVar[PsiName]

    @abstractmethod
    def smallest(self, values: Tensor, tau: float) -> Tensor:
        """The lambda of ascending eigenvalues [k], a number at most their smallest."""

    @abstractmethod
    def density(self, values: Tensor, tau: float) -> Tensor:
        """Its derivatives with respect to the eigenvalues, [k], not negative and of sum one."""

    @abstractmethod
    def charge(self, shortfall: float) -> float:
        """psi(u) of the shortfall u = 1 - lambda/tau; zero where nothing is missing."""

    @abstractmethod
    def slope(self, shortfall: float) -> float:
        """psi'(u)."""

    @abstractmethod
    def shortfall(self, charge: float) -> float:
        """The u > 0 of that charge."""


class OfSmallest(Psi):
    """Holds the smallest eigenvalue itself."""

    def smallest(self, values: Tensor, tau: float) -> Tensor:
        return values[0]

    def density(self, values: Tensor, tau: float) -> Tensor:
        return _first(values)


@final
class Hinge(OfSmallest):
    """psi(u) = max(0, u) on the smallest eigenvalue."""

    name = "hinge"

    def charge(self, shortfall: float) -> float:
        return max(shortfall, 0.0)

    def slope(self, shortfall: float) -> float:
        return float(shortfall > 0)

    def shortfall(self, charge: float) -> float:
        return charge


@final
class SquaredHinge(OfSmallest):
    """psi(u) = max(0, u)^2 on the smallest eigenvalue: smooth, and weak near the floor."""

    name = "squared"

    def charge(self, shortfall: float) -> float:
        return max(shortfall, 0.0) ** 2

    def slope(self, shortfall: float) -> float:
        return 2 * max(shortfall, 0.0)

    def shortfall(self, charge: float) -> float:
        return math.sqrt(charge)


@final
class SoftMinimum(Psi):
    """psi(u) = max(0, u) on -(1/kappa) ln sum exp(-kappa l_i), kappa = 10 max(1, ln k)/tau: for eigenvalues that tie."""

    name = "softmin"

    def smallest(self, values: Tensor, tau: float) -> Tensor:
        return soft_minimum(torch.diag(values), _kappa(len(values), tau))

    def density(self, values: Tensor, tau: float) -> Tensor:
        return torch.softmax(-_kappa(len(values), tau) * values, 0)

    def charge(self, shortfall: float) -> float:
        return max(shortfall, 0.0)

    def slope(self, shortfall: float) -> float:
        return float(shortfall > 0)

    def shortfall(self, charge: float) -> float:
        return charge


PSI: dict[str, Psi] = {psi.name: psi for psi in (Hinge(), SquaredHinge(), SoftMinimum())}


def resolve(psi: PsiName | Psi, call: str) -> Psi:
    """The psi of that name; an object is handed through.

    Args:
        psi: "hinge", "squared" or "softmin".
        call: as the user wrote it, for the error.
    """
    if isinstance(psi, Psi):
        return psi
    if psi not in PSI:
        raise ValueError(f"{call}: {psi!r} is no penalty; write one of {list(PSI)}")
    return PSI[psi]


def penalty_force(matrix: Tensor, tau: float, weight: float, psi: Psi) -> Tensor:
    """-dF/dGamma = (a/tau) psi'(u) sum_i d_i w_i w_i^T, positive semi-definite; zero where nothing is missing.

    By the envelope theorem the gradient of the penalty is that of -<D, Gamma(theta)> with D held fixed, so that a few
    Rayleigh quotients are differentiated and never an eigenvector.

    Args:
        matrix: Gamma, symmetric [k, k].
        tau: The floor.
        weight: a.
        psi: The penalty.
    """
    values, vectors = torch.linalg.eigh(matrix)
    shortfall = 1 - float(psi.smallest(values, tau)) / tau
    slope = weight / tau * psi.slope(shortfall)
    return (vectors * (slope * psi.density(values, tau))) @ vectors.T


def guaranteed_floor(tau: float, gap: float, weight: float, psi: PsiName | Psi = "hinge", level: float = 0.0) -> float:
    """Promise lambda >= tau (1 - gap/a) for a hinge or the soft minimum, tau (1 - sqrt(gap/a)) for a squared hinge.

    Where some reference theta_f has lambda(theta_f) >= tau, and F(theta) <= F(theta_f) + eps at the point that was
    found, gap = L(theta_f) - L(theta) + eps. Computing lambda at that point says more: do that too.

    Args:
        tau: The floor.
        gap: What the loss has gained on the reference, plus eps; a negative one counts as zero.
        weight: a.
        psi: The penalty.
        level: Lambda* of Gamma_n; with it the bound is that of the population's information.

    Returns:
        The bound, which may be negative and then says nothing.

    Reference: huang2025spectral
    """
    call = f"guaranteed_floor({tau!r}, {gap!r}, {weight!r})"
    checked_positive(tau, "tau", call)
    checked_positive(weight, "weight", call)
    if not math.isfinite(gap):
        raise ValueError(f"{call}: `gap` must be finite; it is a loss at a feasible point minus the loss found")
    shortfall = resolve(psi, call).shortfall(max(gap, 0.0) / weight)
    return tau * (1 - shortfall) - level


def averaged_floor(informations: Tensor) -> tuple[float, float, float]:
    """lambda_min of the average of Gamma(theta + sigma xi) over draws, and the average of their lambda_min.

    The smallest eigenvalue is concave, so the first is never below the second: smoothing over parameters cannot hide a
    floor that holds on the average of the points.

    Args:
        informations: Gamma at m >= 2 perturbed parameters, [m, k, k].

    Returns:
        lambda_min of the average, the average of the lambda_min, and the standard error of the latter.
    """
    if informations.ndim != 3 or len(informations) < 2:
        raise ValueError(
            f"averaged_floor: `informations` must be [m, k, k] with m >= 2 draws, got shape {tuple(informations.shape)}"
        )
    pointwise = torch.linalg.eigvalsh(torch.stack([checked_symmetric(m, "averaged_floor") for m in informations]))[:, 0]
    smoothed = torch.linalg.eigvalsh(informations.double().mean(0))[0]
    return float(smoothed), float(pointwise.mean()), float(pointwise.std()) / len(pointwise) ** 0.5


def _first(values: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(0), len(values)).to(values)


def _kappa(size: int, tau: float) -> float:
    return _SHARPNESS * max(1.0, math.log(size)) / tau
