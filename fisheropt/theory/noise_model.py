"""Which noise drives a trajectory: the covariance of its gradients, the Fisher information, or one temperature for all.

The covariance of the iterates is compared with the stationary law under each. A trajectory of length T is worth about
T eta h/2 independent draws in a mode of curvature h, which bounds how small an error can be told from chance.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fisheropt.theory.lyapunov import Sampling, stationary_covariance


@dataclass(frozen=True)
class NoiseModelTest:
    """Relative Frobenius errors of the predicted stationary covariance.

    Attributes:
        gradient: With the covariance G of per-sample gradients.
        fisher: With the Fisher information F in its place; NaN without one.
        scalar: With the best multiple of H^-1, a single temperature for all directions.
        resolution: Expected error of a true prediction, from the length of the trajectory.
        draws: What the trajectory is worth in independent draws of its slowest mode.
    """

    gradient: float
    fisher: float
    scalar: float
    resolution: float
    draws: float

    def __str__(self) -> str:
        return (
            f"error of the stationary covariance: {self.gradient:.3f} with the gradients' covariance, {self.fisher:.3f} with "
            f"the Fisher information, {self.scalar:.3f} with one temperature; chance alone gives {self.resolution:.3f} "
            f"({self.draws:.0f} independent draws)"
        )


def noise_model_test(
    trajectory: Tensor,
    H: Tensor,
    G: Tensor,
    lr: float,
    batch_size: float,
    *,
    F: Tensor | None = None,
    n: int | None = None,
    sampling: Sampling = "iid",
) -> NoiseModelTest:
    """Compares the covariance of iterates with the predictions of three noise models.

    Args:
        trajectory: Iterates [T, d], or of several chains [T, c, d], every step kept; the first half is burn-in.
        H: Curvature at the optimum [d, d].
        G: Covariance of per-sample gradients there [d, d].
        lr: eta.
        batch_size: b.
        F: Model Fisher information there [d, d].
        n: Size of the data set.
        sampling: How batches were drawn; with "reshuffle" pass the iterates at the ends of epochs only.

    Raises:
        ValueError: if the second half is shorter than six relaxation times 1/(eta h_min).

    Reference: zantedeschi2026
    """
    path = trajectory.detach().double()
    path = path[:, None] if path.ndim == 2 else path
    steps, chains, size = path.shape
    kept = path[steps // 2 :]
    curvatures = torch.linalg.eigvalsh(H.double())
    pace = lr * (n / batch_size if sampling == "reshuffle" and n is not None else 1.0)
    needed = 6 / (pace * float(curvatures[0]))
    if len(kept) < needed:
        raise ValueError(
            f"noise_model_test: the second half of the trajectory has {len(kept)} steps, and six relaxation times of the "
            f"slowest direction are {needed:.0f}; train for {2 * needed:.0f} steps or more at this temperature"
        )
    flat = kept.reshape(-1, size)
    centred = flat - flat.mean(0)
    found = centred.T @ centred / len(flat)
    laws = [
        stationary_covariance(H, noise, lr, batch_size, n=n, sampling=sampling) for noise in (G, F) if noise is not None
    ]
    inverse = torch.linalg.inv(H.double())
    laws.append(inverse * ((found * inverse).sum() / inverse.square().sum()))
    errors = [float((found - law).norm() / law.norm()) for law in laws]
    draws = chains * len(kept) * pace * float(curvatures[0]) / 2
    return NoiseModelTest(
        gradient=errors[0],
        fisher=errors[1] if F is not None else float("nan"),
        scalar=errors[-1],
        resolution=_resolution(laws[0], curvatures, H, draws),
        draws=draws,
    )


def _resolution(law: Tensor, curvatures: Tensor, H: Tensor, draws: float) -> float:
    """sqrt(E|S - Sigma|^2)/|Sigma| for Gaussian draws, each pair of modes with its own number of them."""
    _, vectors = torch.linalg.eigh(H.double())
    inside = vectors.T @ law @ vectors
    worth = draws * (curvatures[:, None] + curvatures) / (2 * curvatures[0])
    variance = (inside.diagonal()[:, None] * inside.diagonal() + inside.square()) / worth.clamp_min(1.0)
    return float(variance.sum().sqrt() / law.norm())
