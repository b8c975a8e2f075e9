"""Bulk of a sample-covariance matrix with scalar weights: (1/n) sum_l f_l Y_l Y_l^T.

    z(S) = -1/S + phi E[ f / (lambda phi + S f) ],    F = lambda phi E[ f v v^T / (lambda phi + S f) ]

The distribution function needs no integration of the density: the potential
Psi(z) = -log S - 1 - z S + phi E log(1 + S f/(lambda phi)) is stationary in S and Psi' = -S, so
P(X <= x) = -Im Psi(x + i0)/pi.

Reference: silverstein1995analysis, benarous2025local
"""

import math
from typing import final

import torch
from torch import Tensor

from fisheropt.theory.mixture_nodes import Nodes
from fisheropt.theory.resolvent import CurvePoint, Resolvent, descend

_CELLS = 16384
_COARSE = 16
_NEWTON = 8
_TOP = 8.0
_HEIGHT = 1e-8
_CHUNK = 512


@final
class Silverstein(Resolvent):
    """The law of weights f at signal-to-noise ratio lambda and sample ratio phi.

    Nodes are gathered in 16384 cells of equal width in sqrt f, each with its mean f; the error is quadratic in the
    width (1e-8 to 1e-6) and every later evaluation costs a few thousand terms.

    Args:
        nodes: Quadrature nodes of the mixture.
        values: f at the nodes, [N], non-negative.
        snr: lambda.
        ratio: phi = n/d.
    """

    def __init__(self, nodes: Nodes, values: Tensor, snr: float, ratio: float) -> None:
        self._scale, self._ratio, self._snr = snr * ratio, ratio, snr
        cell = ((values / values.max().clamp(min=1e-300)).sqrt() * _CELLS).long().clamp(max=_CELLS - 1)
        self._cells, cell = cell.unique(return_inverse=True)
        weighted = nodes.weights * values
        self._mass = torch.zeros(len(self._cells), dtype=torch.float64).index_add(0, cell, nodes.weights)
        self._f = torch.zeros_like(self._mass).index_add(0, cell, weighted) / self._mass
        self._moments = self._cell_moments(nodes, weighted, cell)

    def _cell_moments(self, nodes: Nodes, weighted: Tensor, cell: Tensor) -> Tensor:
        """Sum over each cell of weight f E[v v^T | node], flattened to [cells, q^2]."""
        size = nodes.anchors.shape[1]
        result = torch.zeros(len(self._mass), size * size, dtype=torch.float64)
        for part in range(0, len(cell), 2**15):
            anchors = nodes.anchors[part : part + 2**15]
            outer = (weighted[part : part + 2**15, None] * anchors)[:, :, None] * anchors[:, None, :]
            result.index_add_(0, cell[part : part + 2**15], outer.flatten(1))
        return result + (self._mass * self._f)[:, None] * nodes.covariance.flatten()

    @property
    def ratio(self) -> float:
        """Samples over dimension, phi."""
        return self._ratio

    @property
    def mean(self) -> float:
        """E f / lambda."""
        return float(self._mass @ self._f) / self._snr

    @property
    def atom(self) -> float:
        """(1 - phi P(f > 0))_+, and softmax weights are positive."""
        return max(0.0, 1 - self._ratio)

    @property
    def left_limit(self) -> float:
        """-lambda phi / max f."""
        return -self._scale / float(self._f.max())

    @property
    def return_limit(self) -> float:
        """-lambda phi / min f."""
        return -self._scale / max(float(self._f.min()), 1e-300)

    def slope(self, s: float) -> float:
        """1 - phi E[(S f/(lambda phi + S f))^2]."""
        below = self._scale + s * self._f
        if float(below.min()) <= 0 <= float(below.max()):
            return -math.inf
        return 1 - self._ratio * float(self._mass @ (s * self._f / below).square())

    def at(self, s: float) -> CurvePoint:
        """z, dz/dS, F and dF/dS."""
        below = self._scale + s * self._f
        size = math.isqrt(self._moments.shape[1])
        moment = self._scale * (self._moments.T @ below.reciprocal()).reshape(size, size)
        moment_slope = -self._scale * (self._moments.T @ (self._f / below.square())).reshape(size, size)
        z = -1 / s + self._ratio * float(self._mass @ (self._f / below))
        return CurvePoint(z, self.slope(s) / s**2, moment, moment_slope)

    def _bulk_cells(self) -> tuple[Tensor, Tensor]:
        """Mass and f of cells sixteen times as wide, enough away from the real axis."""
        _, group = (self._cells // _COARSE).unique_consecutive(return_inverse=True)
        mass = torch.zeros(int(group[-1]) + 1, dtype=torch.float64).index_add(0, group, self._mass)
        return mass, torch.zeros_like(mass).index_add(0, group, self._mass * self._f) / mass

    def _stieltjes(self, x: Tensor, unit: float) -> Tensor:
        """S(x + i0), at a height of 1e-8 of the edge.

        A value in the upper half-plane with z(S) there too is the transform at z(S), as that solution is
        unique: being within a tenth of the height of the target is all that is asked.
        """
        mass, f = self._bulk_cells()
        weights = mass.to(torch.complex128)

        def settle(s: Tensor, height: float) -> tuple[Tensor, bool]:
            z = torch.complex(x, torch.full_like(x, height))
            for _ in range(_NEWTON):
                ratio = f / (self._scale + s[:, None] * f)
                drift = self._ratio * (ratio @ weights)
                residual = drift - 1 / s - z
                if bool((residual.abs() < 0.1 * height).all()):
                    return s, True
                newton = s - residual / (1 / s**2 - self._ratio * (ratio.square() @ weights))
                s = torch.where(newton.imag > 0, newton, 1 / (drift - z))
            return s, False

        start = -1 / torch.complex(x, torch.full_like(x, _TOP * unit))
        return descend(settle, start, _TOP * unit, _HEIGHT * unit)

    def density_and_cdf(self, x: Tensor, edge: float) -> tuple[Tensor, Tensor]:
        """Im S/pi and -Im Psi/pi, in chunks of the points."""
        parts = [self._density_and_cdf(part, edge) for part in x.split(_CHUNK)]
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])

    def _density_and_cdf(self, x: Tensor, unit: float) -> tuple[Tensor, Tensor]:
        s = self._stieltjes(x, unit)
        z = torch.complex(x, torch.full_like(x, _HEIGHT * unit))
        logs = torch.log1p(s[:, None] * (self._f / self._scale)) @ self._mass.to(s.dtype)
        return s.imag / math.pi, (s.log() + z * s - self._ratio * logs).imag / math.pi
