"""What preconditioning does to the threshold: theta = P phi turns Gamma into P^T Gamma P."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fisheropt.theory.arguments import checked_positive


@dataclass(frozen=True)
class PreconditioningConstants:
    """Constants of theta = P phi.

    Attributes:
        weakest: s_min(P)^2; lambda_min(P^T Gamma P) is at least this times lambda_min(Gamma).
        strongest: s_max(P)^2; an error of Gamma grows by at most this factor in operator norm.
    """

    weakest: float
    strongest: float

    @property
    def factor(self) -> float:
        """kappa(P)^2 = strongest / weakest."""
        return self.strongest / self.weakest

    def sufficient_eigenvalue(self, lambda_star: float) -> float:
        """2 kappa(P)^2 Lambda*: a lambda_min(Gamma) above it puts P^T Gamma P above its own threshold.

        The converse costs the same factor: P^-1 has it too, and leads from P^T Gamma P back to Gamma.
        """
        return 2 * self.factor * lambda_star


def preconditioning_constants(preconditioner: Tensor) -> PreconditioningConstants:
    """Extreme squared singular values of an invertible P [k, k].

    Args:
        preconditioner: P.
    """
    singular = torch.linalg.svdvals(preconditioner.detach().to(torch.float64))
    if float(singular[-1]) <= len(singular) * torch.finfo(torch.float64).eps * float(singular[0]):
        raise ValueError(
            "preconditioning_constants: `preconditioner` is singular, so the directions that it removes have "
            "no threshold; restrict the problem to its range"
        )
    return PreconditioningConstants(float(singular[-1]) ** 2, float(singular[0]) ** 2)


def damped_whitening(eigenvalues: Tensor, damping: float) -> Tensor:
    """Eigenvalues l / (l + rho) of Gamma after P = (Gamma + rho I)^(-1/2), at least 1/2 iff l >= rho.

    Args:
        eigenvalues: l [k], not negative.
        damping: rho.
    """
    rho = checked_positive(damping, "damping", "damped_whitening")
    return eigenvalues / (eigenvalues + rho)
