"""Tails and quantiles of the normal, Student's t and chi-squared laws, in float64."""

import math

import torch

from fisheropt.theory.arguments import checked_positive, checked_probability

_TERMS = 10_000
_TINY = 1e-300


def chi2_tail(x: float, dof: float) -> float:
    """P(X > x) of chi-squared with `dof` degrees of freedom.

    Args:
        x: the statistic.
        dof: degrees of freedom, above zero.
    """
    shape = torch.tensor(checked_positive(dof, "dof", "chi2_tail") / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(shape, torch.tensor(max(x, 0.0) / 2, dtype=torch.float64)))


def two_sided_tail(t: float, dof: float | None = None) -> float:
    """P(|T| > |t|) of a standard normal T, or of Student's t.

    Args:
        t: the statistic; NaN gives NaN.
        dof: degrees of freedom; None for the normal law.
    """
    if dof is None:
        return math.erfc(abs(t) / math.sqrt(2))
    nu = checked_positive(dof, "dof", "two_sided_tail")
    square = t * t
    if square != square or math.isinf(square):
        return square if square != square else 0.0
    return _incomplete_beta(nu / 2, 0.5, nu / (nu + square), square / (nu + square))


def two_sided_quantile(level: float, dof: float | None = None) -> float:
    """The t with P(|T| <= t) = level.

    Args:
        level: strictly between 0 and 1.
        dof: degrees of freedom of Student's t; None for the normal law.
    """
    call = f"two_sided_quantile({level!r})"
    outside = 1 - checked_probability(level, call)
    normal = float(-torch.special.ndtri(torch.tensor(outside / 2, dtype=torch.float64)))
    if dof is None:
        return normal
    low, high = 0.0, max(normal, 1.0)
    while two_sided_tail(high, dof) > outside:
        low, high = high, 2 * high
    while high - low > 1e-14 * high:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if two_sided_tail(middle, dof) > outside else (low, middle)
    return (low + high) / 2


def _incomplete_beta(a: float, b: float, x: float, rest: float) -> float:
    """I_x(a, b), with `rest` = 1 - x handed over so that nothing cancels."""
    if x <= 0.0 or rest <= 0.0:
        return 0.0 if x <= 0.0 else 1.0
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(b, a, rest, x)
    front = a * math.log(x) + b * math.log(rest) - math.lgamma(a) - math.lgamma(b) + math.lgamma(a + b)
    return math.exp(front) / (a * _fraction(a, b, x))


def _fraction(a: float, b: float, x: float) -> float:
    """The continued fraction of the incomplete beta function, from its front, by Lentz's method."""
    value = upper = 1.0
    lower = 0.0
    for step in range(1, _TERMS):
        m = step // 2
        if step % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        lower = 1 / _away(1 + term * lower)
        upper = _away(1 + term / upper)
        value *= upper * lower
        if abs(upper * lower - 1) < 1e-16:
            break
    return value


def _away(x: float) -> float:
    return x if abs(x) > _TINY else _TINY
