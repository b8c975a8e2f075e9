"""Certificates of a Fisher floor: lower bounds on the smallest eigenvalue of a symmetric matrix.

A Rayleigh quotient bounds lambda_min from *above* and never certifies a floor. Cholesky does for a matrix
that can be formed, up to rounding; Lanczos from a random start does with a stated probability and a stated
resolution for one that is only a product. What is certified is the matrix given; for the population, take off
the Lambda* of its scores.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fisheropt.theory.arguments import checked_positive, checked_probability, checked_symmetric
from fisheropt.theory.lanczos import lanczos, probe_generator, ritz

_EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class FloorCertificate:
    """Whether lambda_min >= tau was certified; true in a condition iff it was.

    Attributes:
        certified: Whether `lower_bound` reaches the floor, up to `resolution` for Cholesky.
        tau: The floor that was asked for.
        lower_bound: lambda_min is at least this; minus infinity when nothing was shown.
        probability: Of the bound being valid; 1 for Cholesky.
        resolution: The bound may lie this far below lambda_min, by rounding or by the few steps of Lanczos.
        method: "cholesky" or "lanczos".
    """

    certified: bool
    tau: float
    lower_bound: float
    probability: float
    resolution: float
    method: str

    def __bool__(self) -> bool:
        return self.certified

    def __str__(self) -> str:
        verdict = "certified" if self.certified else "not certified"
        return (
            f"floor {self.tau:.4g} {verdict}: lambda_min >= {self.lower_bound:.4g} with probability "
            f"{self.probability:.6g} ({self.method}, resolution {self.resolution:.2g})"
        )


@dataclass(frozen=True)
class LanczosBound:
    """A lower bound on lambda_min from Lanczos; `certify(tau)` turns it into a certificate.

    Attributes:
        value: lambda_min >= value with the probability below.
        probability: 1 - delta.
        resolution: eps lambda_max, the part of the bound that is due to the few steps.
        steps: Lanczos steps made, at most the dimension.
    """

    value: float
    probability: float
    resolution: float
    steps: int

    def certify(self, tau: float) -> FloorCertificate:
        """Certificate of the floor tau: granted iff the bound reaches it."""
        return FloorCertificate(self.value >= tau, float(tau), self.value, self.probability, self.resolution, "lanczos")


def certify_floor_cholesky(matrix: Tensor, tau: float) -> FloorCertificate:
    """Certifies lambda_min(matrix) >= tau by the Cholesky factors of matrix - (tau - r/2) I.

    r = 2 (k + 2) eps (trace |matrix| + k |tau|) covers the rounding of the factorisation: granted whenever
    lambda_min >= tau, and lambda_min >= tau - r whenever granted.

    Args:
        matrix: Symmetric [k, k]; taken in float64.
        tau: The floor.

    Reference: higham2002accuracy
    """
    double = checked_symmetric(matrix, "certify_floor_cholesky")
    if not math.isfinite(tau):
        raise ValueError(f"certify_floor_cholesky: `tau` must be finite, got {tau!r}")
    size = len(double)
    half = (size + 2) * _EPS * (float(double.diagonal().abs().sum()) + size * abs(tau))
    shift = (tau - half) * torch.eye(size, dtype=double.dtype, device=double.device)
    certified = int(torch.linalg.cholesky_ex(double - shift)[1]) == 0
    bound = tau - 2 * half if certified else -math.inf
    return FloorCertificate(certified, float(tau), bound, 1.0, 2 * half, "cholesky")


def lanczos_resolution(dim: int, delta: float, steps: int) -> float:
    """Relative error eps = (ln(1.648 sqrt(d) / delta) / (2 steps - 1))^2 of Lanczos from a random start.

    The largest Ritz value xi of a positive semi-definite M obeys lambda_max(M) <= xi / (1 - eps) with
    probability 1 - delta.

    Args:
        dim: d.
        delta: Probability of failure.
        steps: Lanczos steps.

    Reference: kuczynski1992estimating
    """
    checked_probability(delta, "lanczos_resolution")
    if dim < 1 or steps < 1:
        raise ValueError(f"lanczos_resolution: `dim` and `steps` must be at least 1, got {dim!r} and {steps!r}")
    return (math.log(1.648 * math.sqrt(dim) / delta) / (2 * steps - 1)) ** 2


def lanczos_lower_bound(
    matvec: Callable[[Tensor], Tensor],
    dim: int,
    lambda_max: float,
    *,
    delta: float = 0.05,
    steps: int = 50,
    generator: torch.Generator | None = None,
) -> LanczosBound:
    """Lower bound lambda_max - xi / (1 - eps) on lambda_min, xi the top Ritz value of lambda_max I - Gamma.

    Its resolution eps lambda_max is what the steps pay for: at d = 1e6 and delta = 1e-3, 100 steps give 0.5
    per cent of lambda_max. A floor far below that needs other means.

    Args:
        matvec: v [d] -> Gamma v [d] for a symmetric Gamma, in float64 on the generator's device.
        dim: d.
        lambda_max: An upper bound on the largest eigenvalue, for instance the trace.
        delta: Probability that the bound is wrong.
        steps: Products made; the basis kept is steps x d.
        generator: Of the random start, which must not be that of the matrix; `probe_generator(0)` when omitted.

    Reference: kuczynski1992estimating
    """
    top = checked_positive(lambda_max, "lambda_max", "lanczos_lower_bound")
    steps = min(steps, dim)
    eps = lanczos_resolution(dim, delta, steps)
    if eps >= 1:
        needed = math.ceil((math.sqrt(eps) * (2 * steps - 1) + 1) / 2) + 1
        raise ValueError(
            f"lanczos_lower_bound: {steps} steps in dimension {dim} bound nothing at delta={delta:g} "
            f"(eps = {eps:.3g} must be below 1); write steps={max(needed, 50)}, "
            "or use certify_floor_cholesky if dim is small"
        )
    source = probe_generator(0) if generator is None else generator
    start = torch.randn(dim, dtype=torch.float64, generator=source, device=source.device)
    found = lanczos(lambda vector: top * vector - matvec(vector), dim, steps, start=start, scale=top, keep=False)
    values = ritz(found).values
    if float(values[-1]) < -1e-8 * top:
        raise ValueError(
            f"lanczos_lower_bound: `lambda_max` = {top:.6g} is no upper bound, an eigenvalue of at least "
            f"{top - float(values[-1]):.6g} was met; pass a larger one, for instance the trace"
        )
    bound = top - max(float(values[0]), 0.0) / (1 - eps)
    return LanczosBound(bound, 1 - delta, eps * top, steps)


def singular_neighbour(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Gamma - lambda_min v v^T, which is singular, and its midpoint with Gamma, lambda_min / 2 from both.

    The witness of the constant 2: from a matrix known up to Lambda* in operator norm, Gamma can be told from
    a singular one iff lambda_min(Gamma) > 2 Lambda*.

    Args:
        matrix: Gamma, symmetric [k, k].
    """
    double = checked_symmetric(matrix, "singular_neighbour")
    values, vectors = torch.linalg.eigh(double)
    removed = values[0] * torch.outer(vectors[:, 0], vectors[:, 0])
    return double - removed, double - removed / 2
