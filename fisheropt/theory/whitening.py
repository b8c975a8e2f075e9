"""The whitened (relative) criterion: the error of a Fisher matrix measured in its own units.

The raw criterion lambda_min(Gamma) > 2 Lambda* is not invariant under a change of parameters, and a weak
direction of scores that are linear images of isotropic noise is not drowned by the strong ones. The whitened
criterion is ||P^T (Gamma_n - Gamma) P|| < 1/2 with P a whitener from independent data, P^T Gamma P ~ I:
Gamma_n is within 50 per cent of the truth in every direction, whatever the conditioning. Two halves of the
data whiten each other.

Reference: huang2025spectral
"""

import math
from dataclasses import dataclass
from typing import SupportsFloat

import torch
from torch import Tensor

from fisheropt.theory.arguments import checked_probability, checked_scores
from fisheropt.theory.fluctuation import Method, lambda_star
from fisheropt.theory.moments import second_moment
from fisheropt.theory.status import TRUE_RATIO, Status

_EPS = torch.finfo(torch.float64).eps


def required_samples(k: int, delta: float = 0.05, rel: float = 0.5) -> int:
    """Samples at which Gamma_n is within `rel` of Gamma in every direction, with probability 1 - delta.

    Gaussian scores obey (1 + e)^2 - 1 <= rel with e = (sqrt(k) + sqrt(2 ln(2/delta))) / sqrt(n), hence n =
    ceil( ((sqrt(k) + sqrt(2 ln(2/delta))) / (sqrt(1 + rel) - 1))^2 ), whatever the conditioning of Gamma.
    Tails heavier than Gaussian need more.

    Args:
        k: Directions.
        delta: Probability of a larger error.
        rel: Relative error, in (0, 1]; 0.5 is "above threshold".

    Reference: huang2025spectral, davidson2001local
    """
    call = f"required_samples({k!r}, delta={delta!r}, rel={rel!r})"
    checked_probability(delta, call)
    if k < 1 or int(k) != k:
        raise ValueError(f"{call}: `k` counts directions and must be a positive integer")
    if not 0 < rel <= 1:
        raise ValueError(f"{call}: `rel` is a relative error and must lie in (0, 1]; write rel=0.5")
    numerator = math.sqrt(k) + math.sqrt(2 * math.log(2 / delta))
    return math.ceil((numerator / (math.sqrt(1 + rel) - 1)) ** 2)


def _frame(scores: Tensor) -> Tensor | None:
    """Scores in coordinates where their second moment is I / n; None where they do not span the space.

    From QR factors, which bear columns in very different units.
    """
    count, size = scores.shape
    if count < size:
        return None
    triangle = torch.linalg.qr(scores, mode="r")[1]
    if bool((triangle.diagonal().abs() <= count * _EPS * scores.norm(dim=0)).any()):
        return None
    framed: Tensor = torch.linalg.solve_triangular(triangle, scores, upper=True, left=False)
    return framed


def _whiten(scores: Tensor, reference: Tensor) -> Tensor | None:
    """Scores times Gamma_ref^(-1/2), symmetric; None when Gamma_ref is singular."""
    values, vectors = torch.linalg.eigh(second_moment(reference))
    if float(values[0]) <= len(reference) * _EPS * float(values[-1]):
        return None
    root: Tensor = (vectors * values.rsqrt()) @ vectors.T
    return scores @ root


def cross_whiten(scores_a: Tensor, scores_b: Tensor) -> tuple[Tensor, Tensor] | None:
    """Each half in the coordinates that whiten the other; None when a direction carries no score in a half.

    The two whiteners are symmetric in the frame of all the scores, so a linear change of the parameters turns
    both results by one rotation and changes no eigenvalue.

    Args:
        scores_a: Scores [n, k].
        scores_b: Scores [m, k], independent of them.
    """
    framed = _frame(torch.cat((scores_a, scores_b)))
    if framed is None:
        return None
    first, second = framed[: len(scores_a)], framed[len(scores_a) :]
    white_a, white_b = _whiten(first, second), _whiten(second, first)
    return None if white_a is None or white_b is None else (white_a, white_b)


def _checked_halves(scores_a: Tensor, scores_b: Tensor, call: str) -> tuple[Tensor, Tensor]:
    first, second = checked_scores(scores_a, call), checked_scores(scores_b, call)
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"{call}: the halves have {first.shape[1]} and {second.shape[1]} directions; both must be "
            "projected on the same ones"
        )
    return first, second


def whitened_eigenvalues(scores_a: Tensor, scores_b: Tensor) -> Tensor | None:
    """Ascending eigenvalues of P^T Gamma_b P with P the whitener of Gamma_a; None if a half is singular."""
    halves = cross_whiten(*_checked_halves(scores_a, scores_b, "whitened_eigenvalues"))
    return None if halves is None else torch.linalg.eigvalsh(second_moment(halves[1]))


def whitened_deviation(scores_a: Tensor, scores_b: Tensor) -> float:
    """||P^T Gamma_b P - I|| with P the whitener of Gamma_a: how far two independent halves disagree.

    It has the errors of both halves, so it is about twice that of all the data together. Infinite when
    Gamma_a is singular.

    Args:
        scores_a: Scores [n, k] that give the whitener.
        scores_b: Scores [m, k], independent of them.
    """
    values = whitened_eigenvalues(scores_a, scores_b)
    return math.inf if values is None else float((values - 1).abs().max())


@dataclass(frozen=True)
class WhitenedReading:
    """The whitened criterion, read from two independent halves.

    Attributes:
        status: ABOVE says that Gamma_n, of all the samples, is within 50 per cent of Gamma in every
            direction.
        lambda_star: Fluctuation level of Gamma_n in whitened coordinates: a bound on its relative error.
        deviation: ||P^T Gamma_b P - I||, how far the halves disagree; it has the errors of both.
        lambda_min: Smallest eigenvalue of P^T Gamma_b P.
        count: Samples of both halves.
    """

    status: Status
    lambda_star: float
    deviation: float
    lambda_min: float
    count: int


def classify_whitened(lambda_star: SupportsFloat) -> Status:
    """ABOVE if Lambda* < 1/2 in whitened coordinates, where Gamma is I; BELOW if Lambda* > 1; else UNDECIDED.

    BELOW says that a direction may have no information at all as far as these samples tell.

    Args:
        lambda_star: Level of the relative error of Gamma_n.
    """
    level = float(lambda_star)
    if not level >= 0:
        raise ValueError(f"classify_whitened({level!r}): a fluctuation level is a number that is not negative")
    if level > 1:
        return Status.BELOW
    return Status.ABOVE if level < 1 / TRUE_RATIO else Status.UNDECIDED


def whitened_reading(
    scores_a: Tensor,
    scores_b: Tensor,
    *,
    delta: float = 0.05,
    method: Method = "auto",
    generator: torch.Generator | None = None,
    resamples: int = 100,
) -> WhitenedReading:
    """Three-state reading of the relative error of all the samples, from two halves that whiten each other.

    Lambda* is that of the scores of each half in the coordinates of the other. A whitener does not exist when
    a direction carries no score in a half; that reads BELOW.

    Args:
        scores_a: Scores [n, k].
        scores_b: Scores [m, k], independent of them.
        delta: Probability of a false reading.
        method: As in `lambda_star`.
        generator: Of the bootstrap.
        resamples: Of the bootstrap.

    Reference: huang2025spectral
    """
    first, second = _checked_halves(scores_a, scores_b, "whitened_reading")
    count, halves = len(first) + len(second), cross_whiten(first, second)
    if halves is None:
        return WhitenedReading(Status.BELOW, math.inf, math.inf, 0.0, count)
    pooled = torch.cat(halves)
    level = lambda_star(pooled, delta=delta, method=method, generator=generator, resamples=resamples)
    values = torch.linalg.eigvalsh(second_moment(halves[1]))
    deviation = float((values - 1).abs().max())
    return WhitenedReading(classify_whitened(level), level.value, deviation, float(values[0]), count)
