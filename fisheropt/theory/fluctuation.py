"""Lambda* from scores, or from the summary that an optimizer keeps."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fisheropt.theory.arguments import checked_positive, checked_probability, checked_scores
from fisheropt.theory.levels import Level, bernstein_level, bootstrap_level, enough_resamples, gaussian_level
from fisheropt.theory.moments import projection_kurtosis, second_moment

Method = Literal["auto", "gaussian", "bernstein", "bootstrap"]
_METHODS = ("auto", "gaussian", "bernstein", "bootstrap")
_FEW_SAMPLES = 200
_LIGHT_TAIL = 4.0
_SAMPLES_PER_KURTOSIS = 120
_AFFORDABLE = 1e10


@dataclass(frozen=True)
class FluctuationLevel:
    """A fluctuation level and what it was computed from; float(level) is its value.

    Attributes:
        value: Lambda*.
        method: "gaussian", "bernstein" or "bootstrap", never "auto".
        n: Samples, effective ones if the estimate was smoothed.
        k: Directions.
        delta: P(||Gamma_n - Gamma|| > Lambda*) that was asked for.
        rate: Lambda* falls like rate / sqrt(n), up to a term in 1/n.
    """

    value: float
    method: str
    n: float
    k: int
    delta: float
    rate: float

    def __float__(self) -> float:
        return self.value

    def samples_for(self, target: float) -> int:
        """Samples at which Lambda* would be `target`, if it keeps its a and b in a / sqrt(n) + b / n.

        Args:
            target: A level to reach, above zero.
        """
        goal = checked_positive(target, "target", "samples_for")
        rest = max(self.value - self.rate / math.sqrt(self.n), 0.0) * self.n
        root = (self.rate + math.sqrt(self.rate**2 + 4 * rest * goal)) / (2 * goal)
        return math.ceil(root**2)


def choose_method(scores: Tensor, delta: float, resamples: int) -> Method:
    """`bootstrap` where its coverage was seen to hold, else `bernstein`.

    The bootstrap under-covers for few samples and for tails too heavy for their number, so it is taken from n
    = 200 on, if the largest sample kurtosis of an eigendirection of Gamma_n is at most max(4, n / 120), and
    if the resamples are affordable. The constants are ours.
    """
    n, k = scores.shape
    work = enough_resamples(resamples, delta) * max(n, k) * k**2
    if n < _FEW_SAMPLES or work > _AFFORDABLE:
        return "bernstein"
    directions = torch.linalg.eigh(second_moment(scores))[1]
    kurtosis = float(projection_kurtosis(scores, directions).max())
    return "bootstrap" if kurtosis <= max(_LIGHT_TAIL, n / _SAMPLES_PER_KURTOSIS) else "bernstein"


def _from_summary(
    eigenvalue_max: float | None, k: int | None, n: float | None, delta: float, method: Method
) -> FluctuationLevel:
    if eigenvalue_max is None or k is None or n is None:
        raise ValueError(
            "lambda_star: pass the scores [n, k], or all of eigenvalue_max=, k= and n=, "
            f"found eigenvalue_max={eigenvalue_max!r}, k={k!r}, n={n!r}"
        )
    if method not in ("auto", "gaussian"):
        raise ValueError(
            f"lambda_star(method={method!r}): this method needs the scores [n, k] themselves; pass them, or "
            'write method="gaussian", which needs only eigenvalue_max, k and n'
        )
    if not 0 <= eigenvalue_max < math.inf:
        raise ValueError(f"lambda_star: `eigenvalue_max` must be finite and not negative, got {eigenvalue_max!r}")
    if k < 1:
        raise ValueError(f"lambda_star: `k` counts directions and must be at least 1, got {k!r}")
    count = checked_positive(n, "n", "lambda_star")
    level = gaussian_level(eigenvalue_max, k, count, delta)
    return FluctuationLevel(level.value, "gaussian", count, int(k), delta, level.rate)


def _from_scores(
    scores: Tensor, delta: float, method: Method, generator: torch.Generator | None, resamples: int
) -> Level:
    if method == "bernstein":
        return bernstein_level(scores, delta)
    if method == "bootstrap":
        source = torch.Generator().manual_seed(0) if generator is None else generator
        return bootstrap_level(scores, delta, resamples, source)
    largest = float(torch.linalg.eigvalsh(second_moment(scores))[-1])
    return gaussian_level(largest, scores.shape[1], len(scores), delta)


def lambda_star(
    scores: Tensor | None = None,
    *,
    delta: float = 0.05,
    method: Method = "auto",
    eigenvalue_max: float | None = None,
    k: int | None = None,
    n: float | None = None,
    generator: torch.Generator | None = None,
    resamples: int = 100,
) -> FluctuationLevel:
    """Fluctuation level Lambda* of Gamma_n: ||Gamma_n - Gamma|| <= Lambda* with probability 1 - delta.

    The formulas, and the coverage measured for each, are in :mod:`fisheropt.theory.levels`.

    Args:
        scores: Per-sample scores [n, k], or their projections on k directions; not centred.
        delta: Probability of a larger error; with T readings of one run pass delta / T.
        method: "gaussian", "bernstein", "bootstrap", or "auto": bootstrap for at least 200 samples with light
            tails, else bernstein; gaussian when only a summary is given.
        eigenvalue_max: lambda_max(Gamma_n), in place of scores.
        k: Directions, in place of scores.
        n: Samples, effective ones after smoothing (see `effective_sample_size`), in place of scores.
        generator: Of the bootstrap; a generator of seed 0 when omitted, so that results repeat.
        resamples: Bootstrap resamples, raised to 1/delta when fewer.

    Reference: huang2025spectral
    """
    delta = checked_probability(delta, "lambda_star")
    if method not in _METHODS:
        raise ValueError(f"lambda_star(method={method!r}): unknown method; write one of {', '.join(_METHODS)}")
    if scores is None:
        return _from_summary(eigenvalue_max, k, n, delta, method)
    if (eigenvalue_max, k, n) != (None, None, None):
        raise ValueError(
            "lambda_star: `scores` already fix eigenvalue_max, k and n; pass either the scores or the three"
        )
    scores = checked_scores(scores, "lambda_star")
    count, size = scores.shape
    chosen = choose_method(scores, delta, resamples) if method == "auto" else method
    level = _from_scores(scores, delta, chosen, generator, resamples)
    return FluctuationLevel(level.value, chosen, count, size, delta, level.rate)
