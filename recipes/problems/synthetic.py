"""Synthetic two-class data: a linear model that is right, one that is wrong, one without finite optimum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
from scipy.optimize import linprog

from recipes.problems.base import require
from recipes.problems.readers import Array

LOGIT_SD = 2.0
KINDS = ("well_specified", "misspecified", "separable")


@final
@dataclass(frozen=True)
class Drawn:
    """Training features [n, d] and classes [n], test features and classes."""

    x: Array
    y: Array
    test_x: Array
    test_y: Array


def draw(kind: str, n: int, d: int, condition: float, test: int, seed: int) -> Drawn:
    r"""Draw x ~ N(0, S), the eigenvalues of S spread evenly in log from 1 to 1/condition on random axes.

    The logit t = x·θ has the standard deviation LOGIT_SD for a random θ, and u is an independent projection
    of standard deviation 1. Labels:

    * `well_specified`: y ~ Bernoulli(σ(t)), so that curvature and gradient noise agree at the optimum;
    * `misspecified`: y ~ Bernoulli(σ(t (2 - u²))), an effect that turns round far out in another direction,
      so that the gradient noise G exceeds the curvature H there (H⁻¹G has eigenvalues up to about 1.7);
    * `separable`: fair coins, drawn again until a plane through 0 separates them (half of all draws at n =
      2d, .97 at n = 1.5 d, d = 20), the collapse experiment with θ = 0; for n > 2d, where coins seldom are,
      the sign of t.

    Reference: cover1965geometrical
    """
    require(kind in KINDS, f"kind={kind!r}", "problem.kind=" + " or ".join(KINDS))
    require(n >= 2 and d >= 1, f"n={n}, d={d}", "problem.n=1000 problem.d=20 (n >= 2 and d >= 1)")
    require(condition >= 1.0, f"condition={condition}", "problem.condition=1 or more")
    rng = np.random.default_rng(seed)
    axes, _ = np.linalg.qr(rng.standard_normal((d, d)))
    root = axes * condition ** (-0.5 * np.linspace(0.0, 1.0, d))
    z = rng.standard_normal((n + test, d))
    x = z @ root.T
    directions, _ = np.linalg.qr(root.T @ rng.standard_normal((d, 2)))
    t, u = LOGIT_SD * z @ directions[:, 0], z @ directions[:, -1]
    if kind == "separable":
        y = (t > 0).astype(np.int64) if n > 2 * d else _separable_coins(x, n, rng)
    else:
        y = _drawn_labels(t * (2.0 - u**2) if kind == "misspecified" else t, rng)
    return Drawn(x[:n], y[:n], x[n:], y[n:])


def _drawn_labels(logits: Array, rng: np.random.Generator) -> Array:
    return (rng.random(len(logits)) < 1.0 / (1.0 + np.exp(-logits))).astype(np.int64)


def _separable_coins(x: Array, n: int, rng: np.random.Generator) -> Array:
    """Coins for all rows of x, of which a plane separates the first n."""
    while True:
        y: Array = rng.integers(0, 2, len(x))
        if linearly_separable(x[:n], y[:n]):
            return y


def linearly_separable(x: Array, y: Array) -> bool:
    """Whether some w has (2y - 1) x·w >= 1 on every row, by linear programming."""
    signed = (2.0 * y - 1.0)[:, None] * x
    answer = linprog(np.zeros(x.shape[1]), A_ub=-signed, b_ub=-np.ones(len(x)), bounds=(None, None), method="highs")
    return bool(answer.status == 0)
