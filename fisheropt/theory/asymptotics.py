"""Sharp constants for isotropic Gaussian scores with g = d/n held fixed, and laws of the test models."""

import math
from fractions import Fraction

from fisheropt.theory.arguments import checked_positive


def fluctuation_limit(ratio: float) -> float:
    """||Gamma_n - I|| -> 2 sqrt(g) + g.

    Args:
        ratio: g = d/n.

    Reference: geman1980limit
    """
    g = checked_positive(ratio, "ratio", "fluctuation_limit")
    return 2 * math.sqrt(g) + g


def smallest_eigenvalue_limit(ratio: float) -> float:
    """lambda_min(Gamma_n) -> (1 - sqrt(g))^2 for g < 1, and 0 from g = 1 on.

    Args:
        ratio: g = d/n.

    Reference: bai1993limit
    """
    g = checked_positive(ratio, "ratio", "smallest_eigenvalue_limit")
    return (1 - math.sqrt(g)) ** 2 if g < 1 else 0.0


def whitened_limits(ratio_a: float, ratio_b: float) -> tuple[float, float]:
    """Edges ((1 -+ sqrt(g_a + g_b - g_a g_b)) / (1 - g_a))^2 of the spectrum of P^T Gamma_b P.

    P is the whitener of an independent Gamma_a. They do not depend on Gamma, which is the point of whitening.

    Args:
        ratio_a: g_a = d / n_a of the half that whitens, below 1.
        ratio_b: g_b = d / n_b of the half that is measured, below 1.

    Reference: wachter1980limiting
    """
    a, b = (checked_positive(ratio, "ratio", "whitened_limits") for ratio in (ratio_a, ratio_b))
    if max(a, b) >= 1:
        raise ValueError(f"whitened_limits: both halves need more samples than directions, got d/n = {a:g} and {b:g}")
    spread = math.sqrt(a + b - a * b)
    return ((1 - spread) / (1 - a)) ** 2, ((1 + spread) / (1 - a)) ** 2


def threshold_ratio(condition: float = 1.0) -> float:
    """n/d at which lambda_min(Gamma) = 2 ||Gamma_n - Gamma||: (sqrt(1 + r/2) - 1)^-2; 19.80 at r = 1.

    Args:
        condition: r = lambda_min(Gamma) / lambda_max(Gamma), in (0, 1].
    """
    if not 0 < condition <= 1:
        raise ValueError(f"threshold_ratio: `condition` is lambda_min / lambda_max, in (0, 1], got {condition!r}")
    return (math.sqrt(1 + condition / 2) - 1) ** -2


def eigenvalue_ratio(level: float = 0.5) -> float:
    """n/d at which lambda_min(Gamma_n) = `level`: (1 - sqrt(level))^-2; 11.66 at one half.

    Args:
        level: In (0, 1), in units of the true eigenvalue.
    """
    if not 0 < level < 1:
        raise ValueError(f"eigenvalue_ratio: `level` must lie in (0, 1), got {level!r}")
    return (1 - math.sqrt(level)) ** -2


def weak_direction_limit(ratio: float) -> float:
    """lambda_min(Gamma_n) / rho -> 1 - g for one direction of strength rho far below the others.

    It does not depend on rho: a weak direction of scores Gamma^(1/2) w is not drowned, although rho is far
    below 2 Lambda*.

    Args:
        ratio: g = d/n.
    """
    return max(1 - checked_positive(ratio, "ratio", "weak_direction_limit"), 0.0)


def rayleigh_relative_sd(batch: float, kurtosis: float = 3.0) -> float:
    """sqrt((kurtosis - 1) / B), relative standard deviation of v^T Gamma_B v for one fixed v, free of d.

    Args:
        batch: B, samples.
        kurtosis: Of <s, v>; 3 for Gaussian scores.
    """
    if not 1 <= kurtosis < math.inf:
        raise ValueError(f"rayleigh_relative_sd: a kurtosis is at least 1, got {kurtosis!r}")
    return math.sqrt((kurtosis - 1) / checked_positive(batch, "batch", "rayleigh_relative_sd"))


def separability_probability(n: int, d: int) -> float:
    """2^(1 - n) sum_(i < d) C(n - 1, i), that n points in R^d with fair random labels are separable.

    The points are in general position and the separating plane goes through the origin. Logistic regression
    without intercept at theta* = 0 has no finite estimate then. Exactly 1/2 at n = 2 d.

    Args:
        n: Points, at least 1.
        d: Dimension, at least 1.

    Reference: cover1965geometrical
    """
    if n < 1 or d < 1:
        raise ValueError(f"separability_probability: needs n >= 1 and d >= 1, got n={n!r} and d={d!r}")
    return float(Fraction(sum(math.comb(n - 1, i) for i in range(min(d, n))), 2 ** (n - 1)))
