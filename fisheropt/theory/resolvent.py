"""What a limiting spectrum offers: a curve S -> (z, F) on the real axis, and complex S(z) in the bulk.

S(z) = int nu(dx)/(x - z) is the Stieltjes transform. On the real axis outside the support it is inverted: S
in (-inf, 0) parametrises z to the right of the bulk, S > 0 to the left. F(z) is the q-dimensional matrix
whose det(z I - F(z)) = 0 gives the outliers.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

_FIRST_FACTOR, _LAST_FACTOR = 0.5, 0.999


class CurvePoint(NamedTuple):
    """One point of the curve: z, dz/dS, F [s, s] and dF/dS [s, s]."""

    z: float
    slope: float
    moment: Tensor
    moment_slope: Tensor


class Resolvent(ABC):
    """A limiting law with its outlier matrix."""

    @property
    @abstractmethod
    def ratio(self) -> float:
        """Samples over dimension, phi."""

    @property
    @abstractmethod
    def mean(self) -> float:
        """Mean eigenvalue."""

    @property
    @abstractmethod
    def atom(self) -> float:
        """Mass at zero."""

    @property
    @abstractmethod
    def left_limit(self) -> float:
        """S at which the curve right of the bulk must have ended; -inf when it is not known beforehand."""

    @property
    @abstractmethod
    def return_limit(self) -> float:
        """S at which the curve starts again, between an atom at zero and the bulk; -inf when it does not."""

    @abstractmethod
    def slope(self, s: float) -> float:
        """S^2 dz/dS, which is 1 at S = 0 and 0 at an edge; -inf where the curve has ended."""

    @abstractmethod
    def at(self, s: float) -> CurvePoint:
        """The point of the curve at a real S between the edges."""

    @abstractmethod
    def density_and_cdf(self, x: Tensor, edge: float) -> tuple[Tensor, Tensor]:
        """Density and distribution function at real points [n] within the bulk, whose right edge sets the unit."""


def descend(settle: Callable[[Tensor, float], tuple[Tensor, bool]], s: Tensor, top: float, bottom: float) -> Tensor:
    """Continuation of S(x + i height) in the height, from `top` to `bottom`, by factors that adapt to failures.

    S is univalent in the disc of radius `height` around its point, so Newton's method succeeds for factors near 1.

    Args:
        settle: Solves at a height from a start nearby, and tells whether it succeeded.
        s: Start at `top`.
        top: First height.
        bottom: Last height.
    """
    height, factor = top, _FIRST_FACTOR
    while height > bottom:
        target = max(bottom, height * factor)
        trial, settled = settle(s, target)
        if settled:
            s, height, factor = trial, target, max(_FIRST_FACTOR**2, factor**1.5)
        elif factor > _LAST_FACTOR:
            raise RuntimeError(f"the Stieltjes transform could not be continued below height {height:.3g}")
        else:
            factor = factor**0.5
    return s
