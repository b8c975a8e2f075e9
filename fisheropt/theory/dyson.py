"""Bulk of (1/n) sum_l W_l (x) Y_l Y_l^T with matrix weights W = V V^T: the matrix Dyson equation.

Index legend: i, j, k, l the m rows of W; s columns of V; N nodes.
With X = I + V^T M V/(lambda phi) and P = V X^-1 V^T,

    M(z) = ( -z I + (1/lambda) E P )^-1 = lim (1/d) (id x tr)(H - z)^-1,   F = E[ P (x) v v^T ],   S = tr M/m

An extension of ours of the scalar case. The curve is parametrised by S: Newton's method on the bordered
system (M, z) | tr M = m S, which stays regular at the edge, where dz/dS = 0.
"""

import math
from typing import NamedTuple, final

import torch
from torch import Tensor

from fisheropt.theory.mixture_nodes import Nodes
from fisheropt.theory.resolvent import CurvePoint, Resolvent, descend

_NEWTON = 25
_LARGEST_STEP, _SMALLEST_STEP = 0.7, 0.02
_COMPLEX_NEWTON = 10
_HALVINGS = 12
_SMALL = 1e-2
_TOP = 8.0
_HEIGHT = 1e-8


class _State(NamedTuple):
    m: Tensor
    z: float
    tangent: Tensor
    slope: float


@final
class Dyson(Resolvent):
    """The law of matrix weights.

    Args:
        nodes: Quadrature nodes of the mixture.
        factors: V [N, m, s] with W = V V^T.
        snr: lambda.
        ratio: phi = n/d.
    """

    def __init__(self, nodes: Nodes, factors: Tensor, snr: float, ratio: float) -> None:
        self._v, self._weights, self._snr, self._ratio = factors, nodes.weights, snr, ratio
        self._scale, self._m = snr * ratio, factors.shape[1]
        outer = nodes.anchors[:, :, None] * nodes.anchors[:, None, :] + nodes.covariance
        self._moments = outer.flatten(1)
        self._solved: dict[float, _State | None] = {}

    @property
    def ratio(self) -> float:
        """Samples over dimension, phi."""
        return self._ratio

    @property
    def mean(self) -> float:
        """E tr W/(m lambda)."""
        return float(self._weights @ self._v.square().sum((1, 2))) / (self._m * self._snr)

    @property
    def atom(self) -> float:
        """(1 - phi s/m)_+ for weights of rank s."""
        return max(0.0, 1 - self._ratio * min(self._v.shape[2], self._m) / self._m)

    @property
    def left_limit(self) -> float:
        """Not known beforehand."""
        return -math.inf

    @property
    def return_limit(self) -> float:
        """Not followed: with an atom at zero the lower edge is reported as zero."""
        return -math.inf

    def _inner(self, m: Tensor) -> Tensor:
        identity = torch.eye(self._v.shape[2], dtype=m.dtype)
        v = self._v.to(m.dtype)
        return identity + v.mT @ (m @ v) / self._scale

    def _mean_p(self, p: Tensor) -> Tensor:
        return (self._weights.to(p.dtype) @ p.flatten(1)).reshape(self._m, self._m)

    def _jacobian(self, m: Tensor, p: Tensor) -> Tensor:
        """Of -M^-1 + E P/lambda: dM -> M^-1 dM M^-1 - E[P dM P]/(lambda^2 phi), on M flattened."""
        flat, inverse, size = p.flatten(1), torch.linalg.inv(m).contiguous(), self._m
        pairs = ((self._weights.to(p.dtype)[:, None] * flat).T @ flat).reshape(size, size, size, size)
        feedback = pairs.permute(0, 3, 1, 2).reshape(size**2, -1) / (self._snr * self._scale)
        return torch.kron(inverse, inverse.mT.contiguous()) - feedback

    def _bordered(self, m: Tensor, p: Tensor) -> Tensor:
        identity = torch.eye(self._m, dtype=torch.float64).flatten()
        top = torch.cat((self._jacobian(m, p), -identity[:, None]), 1)
        return torch.cat((top, torch.cat((identity / self._m, torch.zeros(1, dtype=torch.float64)))[None]))

    def _real_p(self, m: Tensor) -> Tensor | None:
        """P [N, m, m] at a real M; None outside of the domain X > 0."""
        lower, failed = torch.linalg.cholesky_ex(self._inner(m))
        if bool(failed.any()):
            return None
        half: Tensor = torch.linalg.solve_triangular(lower, self._v.mT, upper=False)
        return half.mT @ half

    def _newton(self, s: float, m: Tensor) -> _State | None:
        """Solution of trace m s from a start in the domain X > 0, by steps that stay in it; None without success."""
        p = self._real_p(m)
        for _ in range(_NEWTON):
            if p is None:
                return None
            balance = self._mean_p(p) / self._snr - torch.linalg.inv(m)
            z = float(balance.diagonal().mean())
            residual = balance - z * torch.eye(self._m, dtype=torch.float64)
            system = self._bordered(m, p)
            defect = torch.cat((residual.flatten(), (m.diagonal().mean() - s)[None]))
            solution, singular = torch.linalg.solve_ex(system, -defect)
            if bool(singular):
                return None
            step = solution[:-1].reshape(self._m, -1)
            if float(step.abs().max()) < 1e-11 * abs(s):
                return self._state(m, z, system)
            m, p = self._inside(m, (step + step.mT) / 2)
        return None

    def _state(self, m: Tensor, z: float, system: Tensor) -> _State | None:
        """The solved point with dM/dS and dz/dS; None off the physical branch, where M does not grow with z."""
        target = torch.zeros(len(system), dtype=torch.float64).index_fill_(0, torch.tensor([len(system) - 1]), 1.0)
        solution = torch.linalg.solve(system, target)
        tangent, slope = solution[:-1].reshape(self._m, -1), float(solution[-1])
        if slope > 0 and float(torch.linalg.eigvalsh(tangent)[0]) < -1e-9:
            return None
        return _State(m, z, tangent, slope)

    def _inside(self, m: Tensor, step: Tensor) -> tuple[Tensor, Tensor | None]:
        """M + step and P there, the step halved until X > 0 and M keeps its sign."""
        sign = math.copysign(1.0, float(m.trace()))
        for _ in range(_HALVINGS):
            moved = m + step
            p = self._real_p(moved) if torch.linalg.cholesky_ex(sign * moved).info == 0 else None
            if p is not None:
                return moved, p
            step = step / 2
        return m, None

    def _solve(self, s: float) -> _State | None:
        """Continuation in S from the nearest solved point, or from M = S I."""
        if s in self._solved:
            return self._solved[s]
        near = [t for t, state in self._solved.items() if state is not None and t * s > 0]
        start = min(near, key=lambda t: abs(math.log(t / s)), default=None)
        if start is None or abs(s) * self.mean < _SMALL:
            state = self._newton(s, s * torch.eye(self._m, dtype=torch.float64))
        else:
            state = self._advance(start, s)
        self._solved[s] = state
        return state

    def _advance(self, start: float, s: float) -> _State | None:
        """Steps of a bounded factor from a solved point to s, the factor's root taken after each failure."""
        origin, log_step = self._solved[start], min(_LARGEST_STEP, abs(math.log(s / start)))
        direction = math.copysign(1.0, math.log(s / start))
        while origin is not None:
            last = abs(math.log(s / start)) <= log_step * (1 + 1e-9)
            target = s if last else start * math.exp(direction * log_step)
            state = self._newton(target, origin.m * (target / start)) or self._newton(target, origin.m)
            if state is None and log_step < _SMALLEST_STEP:
                return None
            if state is None:
                log_step /= 2
            elif last:
                return state
            else:
                origin, start = state, target
        return None

    def slope(self, s: float) -> float:
        """S^2 dz/dS."""
        state = self._solve(s)
        return -math.inf if state is None else state.slope * s**2

    def at(self, s: float) -> CurvePoint:
        """z, dz/dS, F [m q, m q] and dF/dS = -E[P (dM/dS) P (x) v v^T]/(lambda phi)."""
        state = self._solve(s)
        p = None if state is None else self._real_p(state.m)
        if state is None or p is None:
            raise RuntimeError(f"the matrix Dyson equation has no solution at S = {s}")
        bent = p @ (state.tangent @ p) / -self._scale
        return CurvePoint(state.z, state.slope, self._kronecker(p), self._kronecker(bent))

    def _kronecker(self, p: Tensor) -> Tensor:
        size = math.isqrt(self._moments.shape[1])
        blocks = ((self._weights[:, None] * p.flatten(1)).T @ self._moments).reshape(self._m, self._m, size, size)
        return blocks.permute(0, 2, 1, 3).reshape(self._m * size, self._m * size)

    def _settle(self, m: Tensor, z: complex, height: float) -> tuple[Tensor, bool]:
        """Newton's method from a start nearby, the fixed-point step where it would leave the upper half-plane.

        A value with positive imaginary part and a residual below the height is the solution at a z nearby.
        """
        identity, v = torch.eye(self._m, dtype=m.dtype), self._v.to(m.dtype)
        for _ in range(_COMPLEX_NEWTON):
            p = v @ torch.linalg.solve(self._inner(m), v.mT.contiguous())
            drift = self._mean_p(p) / self._snr
            residual = drift - torch.linalg.inv(m) - z * identity
            if float(residual.abs().max()) < 0.1 * height / self._m:
                return m, True
            step = torch.linalg.solve(self._jacobian(m, p), -residual.flatten()).reshape(self._m, -1)
            moved = m + (step + step.mT) / 2
            outside = bool(torch.linalg.cholesky_ex(moved.imag).info != 0)
            m = torch.linalg.inv(drift - z * identity) if outside else moved
        return m, False

    def _stieltjes(self, x: float, unit: float, start: Tensor | None) -> Tensor:
        """M(x + i0), from the solution at a neighbour or by continuation in the height."""
        bottom = _HEIGHT * unit
        if start is not None:
            m, settled = self._settle(start, complex(x, bottom), bottom)
            if settled:
                return m
        far = -torch.eye(self._m, dtype=torch.complex128) / complex(x, _TOP * unit)
        return descend(lambda m, h: self._settle(m, complex(x, h), h), far, _TOP * unit, bottom)

    def density_and_cdf(self, x: Tensor, edge: float) -> tuple[Tensor, Tensor]:
        """Im tr M/(pi m), and the same potential as in the scalar case with traces and log-determinants."""
        result = torch.zeros(2, len(x), dtype=torch.float64)
        m: Tensor | None = None
        for index in x.argsort().tolist():
            m = self._stieltjes(float(x[index]), edge, m)
            z = complex(float(x[index]), _HEIGHT * edge)
            logs = self._weights.to(m.dtype) @ _log_det(self._inner(m))
            potential = _log_det(m) + z * m.trace() - self._ratio * logs
            result[0, index] = float(m.trace().imag) / (math.pi * self._m)
            result[1, index] = float(potential.imag) / (math.pi * self._m)
        return result[0], result[1]


def _log_det(matrix: Tensor) -> Tensor:
    """Log-determinant [...] of symmetric matrices [..., s, s] of non-negative imaginary part.

    Pivots of elimination without exchanges are Schur complements and stay in the upper half-plane, so the sum
    of their principal logarithms is the continuous branch.
    """
    total, rest = torch.zeros((), dtype=matrix.dtype), matrix
    while rest.shape[-1]:
        pivot, column = rest[..., 0, 0], rest[..., 1:, 0]
        total = total + pivot.log()
        rest = rest[..., 1:, 1:] - column[..., :, None] * column[..., None, :] / pivot[..., None, None]
    return total
