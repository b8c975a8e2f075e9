"""Which directions n samples can identify: eigenvalues of the Fisher matrix against their fluctuation level.

"Above the threshold" means lambda_min(Gamma) > 2 Lambda*. The constant 2 is exact in a minimax sense alone: a
rule that sees only a matrix known up to Lambda* in operator norm cannot tell Gamma from a singular matrix
below it. It does not say that a weak direction is drowned by sampling (the whitened criterion is for that),
and it says nothing about the error of an estimate of the parameters.

After Huang (2025); the constants and the algorithm are ours.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fisheropt.theory.arguments import checked_scores
from fisheropt.theory.fluctuation import FluctuationLevel, Method, lambda_star
from fisheropt.theory.moments import eigenvalue_errors, second_moment
from fisheropt.theory.status import ABOVE_RATIO, Status, classify
from fisheropt.theory.whitening import WhitenedReading, required_samples, whitened_reading

__all__ = [
    "FluctuationLevel",
    "Status",
    "ThresholdReport",
    "classify",
    "lambda_star",
    "required_samples",
    "threshold_report",
]

_NULL = 1e-12
_HERE = "at this sample size"
_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True, eq=False)
class ThresholdReport:
    """What n scores say of the identifiability of k directions; str(report) says it in words.

    Attributes:
        status: Three-state reading of the smallest eigenvalue against Lambda* (raw criterion).
        lambda_star: Fluctuation level of Gamma_n.
        method: How it was computed.
        delta: Probability of a false reading, for the raw and for the whitened one each.
        eigenvalues: [k], of Gamma_n, ascending.
        eigenvalues_se: [k], standard error l sqrt((kurtosis - 1) / n) of each.
        identified: Directions whose eigenvalue is above 3 Lambda*.
        whitened: The reading in whitened coordinates, from two random halves.
        required_samples: Samples at which k directions meet the whitened criterion (Gaussian scores).
        more_samples: Further samples after which the weakest direction with any information is identified as
            well, extrapolated from how Lambda* falls with n; 0 when none is open. With fewer samples than
            directions, what is missing to `required_samples`.
        null: Directions without any information to working precision, l <= 1e-12 lambda_max; 0 when n < k,
            where eigenvalues vanish by counting.
        count: n.
        dof: Degrees of freedom of Gamma_n: n, as scores have mean zero by definition.
    """

    status: Status
    lambda_star: float
    method: str
    delta: float
    eigenvalues: Tensor
    eigenvalues_se: Tensor
    identified: int
    whitened: WhitenedReading
    required_samples: int
    more_samples: int
    null: int
    count: int
    dof: int

    @property
    def directions(self) -> int:
        """Their number k."""
        return len(self.eigenvalues)

    @property
    def whitened_status(self) -> Status:
        """Status of the whitened criterion."""
        return self.whitened.status

    def as_dict(self) -> dict[str, object]:
        """The report as JSON-serialisable values; what is infinite becomes None."""
        return {
            "status": self.status.value,
            "lambda_star": self.lambda_star,
            "method": self.method,
            "delta": self.delta,
            "eigenvalues": self.eigenvalues.tolist(),
            "eigenvalues_se": self.eigenvalues_se.tolist(),
            "identified": self.identified,
            "directions": self.directions,
            "whitened_status": self.whitened.status.value,
            "whitened_deviation": _finite(self.whitened.deviation),
            "whitened_lambda_min": self.whitened.lambda_min,
            "whitened_lambda_star": _finite(self.whitened.lambda_star),
            "required_samples": self.required_samples,
            "more_samples": self.more_samples,
            "null": self.null,
            "count": self.count,
            "dof": self.dof,
        }

    def __str__(self) -> str:
        smallest, error = float(self.eigenvalues[0]), float(self.eigenvalues_se[0])
        lines = [
            self._identified_in_words(),
            f"Raw criterion: {self.status} (smallest eigenvalue {smallest:.3g}, standard error {error:.2g}; "
            f"Lambda* {self.lambda_star:.3g}, {self.method}, {self.count} samples, delta {self.delta:g}).",
            f"Whitened criterion: {self.whitened_status} ({self._whitened_in_words()}; "
            f"{self.required_samples:,} samples suffice for so many Gaussian directions).",
        ]
        if self.count < self.directions:
            lines.append(
                f"There are fewer samples ({self.count}) than directions ({self.directions}), so some "
                "eigenvalues are zero by counting; if the rows of `scores` are the directions, pass scores.T."
            )
        return "\n".join(lines)

    def _whitened_in_words(self) -> str:
        if math.isinf(self.whitened.lambda_star):
            return "half of the samples leave a direction without any score"
        return f"relative error at most {self.whitened.lambda_star:.2g}"

    def _identified_in_words(self) -> str:
        total, done = self.directions, self.identified
        if done == total:
            return f"{'The direction is' if total == 1 else f'All {total} directions are'} identified {_HERE}."
        if total == 1:
            parts = [f"The direction is not identified {_HERE}"]
        elif done == 0:
            parts = [f"None of the {total} directions is identified {_HERE}"]
        else:
            parts = [f"{done} of {total} directions {'is' if done == 1 else 'are'} identified {_HERE}"]
        if rest := total - done - self.null:
            what = "it" if total == 1 else "them all" if rest == total else f"the other {_word(rest)}"
            parts.append(f"about {_rounded(self.more_samples):,} more samples would settle {what}")
        if self.null:
            who = "it" if total == 1 else _word(self.null)
            parts.append(f"{who} {'carries' if self.null == 1 else 'carry'} no information at all")
        return "; ".join(parts) + "."


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _word(count: int) -> str:
    return _WORDS[count] if count < len(_WORDS) else f"{count:,}"


def _rounded(count: int) -> int:
    """To two significant digits: an extrapolation deserves no more."""
    return round(count, min(0, 2 - len(str(count))))


def _more_samples(eigenvalues: Tensor, level: FluctuationLevel, null: int, required: int) -> int:
    """Samples missing until Lambda* is a third of the weakest eigenvalue that is not null."""
    count = int(level.n)
    if count < len(eigenvalues):
        return max(1, required - count)
    if null == len(eigenvalues) or float(eigenvalues[null]) > ABOVE_RATIO * level.value:
        return 0
    return max(1, level.samples_for(float(eigenvalues[null]) / ABOVE_RATIO) - count)


def _whitened(
    scores: Tensor, delta: float, method: Method, generator: torch.Generator, resamples: int
) -> WhitenedReading:
    """Reading from two random halves; BELOW where a half has fewer than two samples."""
    order = torch.randperm(len(scores), generator=generator, device=generator.device).to(scores.device)
    half = len(scores) // 2
    if half < 2:
        return WhitenedReading(Status.BELOW, math.inf, math.inf, 0.0, len(scores))
    return whitened_reading(
        scores[order[:half]],
        scores[order[half:]],
        delta=delta,
        method=method,
        generator=generator,
        resamples=resamples,
    )


def threshold_report(
    scores: Tensor,
    delta: float = 0.05,
    method: Method = "auto",
    *,
    generator: torch.Generator | None = None,
    resamples: int = 100,
) -> ThresholdReport:
    """Reads scores [n, k] against the threshold, by the raw and by the whitened criterion.

    Args:
        scores: Per-sample scores (gradients of the log-likelihood), or their projections on k directions; not
            centred.
        delta: Probability of a false reading; with T reports on one run pass delta / T.
        method: As in `lambda_star`.
        generator: Of the halves and of the bootstrap; a generator of seed 0 when omitted, so that reports
            repeat.
        resamples: Of the bootstrap.

    Reference: huang2025spectral
    """
    scores = checked_scores(scores, "threshold_report")
    source = torch.Generator().manual_seed(0) if generator is None else generator
    level = lambda_star(scores, delta=delta, method=method, generator=source, resamples=resamples)
    values, vectors = torch.linalg.eigh(second_moment(scores))
    values = values.clamp(min=0)
    null = int((values <= _NULL * values[-1]).sum()) if len(values) <= len(scores) else 0
    required = required_samples(len(values), level.delta)
    return ThresholdReport(
        status=classify(float(values[0]), level),
        lambda_star=level.value,
        method=level.method,
        delta=level.delta,
        eigenvalues=values,
        eigenvalues_se=eigenvalue_errors(scores, vectors),
        identified=int((values > ABOVE_RATIO * level.value).sum()),
        whitened=_whitened(scores, level.delta, method, source, resamples),
        required_samples=required,
        more_samples=_more_samples(values, level, null, required),
        null=null,
        count=len(scores),
        dof=len(scores),
    )
