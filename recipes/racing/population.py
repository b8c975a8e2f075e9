r"""Logistic regression on Gaussian features of which everything is known: loss, optimum, curvature and noise.

The laws are those of `recipes.problems.synthetic`. With x = Rz, z ~ N(0, I) and v = Rᵀw, the loss of the population is

    L(w) = E softplus(|v| ξ) - c e·v,   ξ ~ N(0, 1),   c = E y e·z,

so that one-dimensional sums give it to the last digits, and no test sample is needed.
"""

from __future__ import annotations

from typing import final

import numpy as np
from scipy.optimize import brentq

from recipes.problems.base import require
from recipes.problems.readers import Array
from recipes.problems.synthetic import LOGIT_SD

KINDS = ("well_specified", "misspecified")
_GRID = np.linspace(-9.0, 9.0, 1801)
_WEIGHT = np.exp(-0.5 * _GRID**2) / np.exp(-0.5 * _GRID**2).sum()


def _sigmoid(t: Array) -> Array:
    return 0.5 * (1.0 + np.tanh(0.5 * t))


@final
class Population:
    """The law of (x, y).

    Attributes:
        axes: R, [d, d].
        dimension: tr(H⁻¹G) at the optimum, of which the excess loss of maximum likelihood is 1/2n.
    """

    def __init__(self, kind: str, d: int, condition: float, seed: int) -> None:
        require(kind in KINDS, f"sets=[{kind}]", "sets=[" + ",".join(KINDS) + "]")
        rng = np.random.default_rng(seed)
        axes, _ = np.linalg.qr(rng.standard_normal((d, d)))
        self.axes = axes * condition ** (-0.5 * np.linspace(0.0, 1.0, d))
        self._directions, _ = np.linalg.qr(self.axes.T @ rng.standard_normal((d, 2)))
        self._turns = kind == "misspecified"
        self._effect, self._length, self.dimension = self._solve(d)
        self.minimum = self._loss(self._length, self._length)

    def draw(self, n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        """x [n, d] and y [n] in {0, 1}."""
        z = rng.standard_normal((n, len(self.axes)))
        chance = self._chance(*(z @ self._directions).T)
        return z @ self.axes.T, (rng.random(n) < chance).astype(np.int64)

    def excess(self, w: Array) -> float:
        """L(w) - min L."""
        v = self.axes.T @ w
        return self._loss(float(np.linalg.norm(v)), float(self._directions[:, 0] @ v)) - self.minimum

    def _chance(self, t: Array, u: Array) -> Array:
        """P(y = 1) for the two standard normal projections that it depends on."""
        return _sigmoid(LOGIT_SD * t * (2.0 - u**2 if self._turns else 1.0))

    def _loss(self, length: float, along: float) -> float:
        return float(_WEIGHT @ np.logaddexp(0.0, length * _GRID)) - self._effect * along

    def _solve(self, d: int) -> tuple[float, float, float]:
        """c, |v| at the optimum and tr(H⁻¹G) there."""
        t, u = _GRID[:, None], _GRID[None, :]
        both = _WEIGHT[:, None] * _WEIGHT
        chance = self._chance(t, u)
        effect = float((both * chance * t).sum())
        length = float(brentq(lambda s: _WEIGHT @ (_sigmoid(s * _GRID) * _GRID) - effect, 1e-6, 50.0, xtol=1e-14))
        p = _sigmoid(length * _GRID)
        noise = both * ((p**2)[:, None] - 2 * p[:, None] * chance + chance)
        curvature = _WEIGHT * p * (1 - p)
        across, along = curvature.sum(), (curvature * _GRID**2).sum()
        ratios = (noise.sum() * (d - 2) + (noise * u**2).sum()) / across + (noise * t**2).sum() / along
        return effect, length, float(ratios)
