"""Edges and outliers of a limiting law, from its curve S -> (z, F).

Right of the bulk F(z) decreases in z, so every sorted eigenvalue of B(z) = z I - F(z) increases with slope at
least one: each crosses zero at most once, and the number of outliers is the number of negative eigenvalues of
B at the edge. No scan is needed (ours).
"""

import math
from typing import NamedTuple, final

import torch
from torch import Tensor

from fisheropt.theory.resolvent import Resolvent
from fisheropt.theory.root_finding import bracketed_root

_SAME = 1e-7
_SMALLEST = 1e-300
_GROWTHS = 20


class Edge(NamedTuple):
    """An end of the bulk: S there, z there, and gamma = (z''(S)/2)^(1/3).

    The largest of d bulk eigenvalues is at z + gamma d^(-2/3) times a Tracy-Widom variable (beta = 1) when
    the density vanishes like a square root.
    """

    s: float
    z: float
    scale: float


class Outliers(NamedTuple):
    """Locations [m], largest first; overlaps [m] with span(x, mu); projections [m, s] of the eigenvectors."""

    locations: Tensor
    overlaps: Tensor
    projections: Tensor


def _margin(resolvent: Resolvent, y: float) -> float:
    """(1 - S^2 z'(S))^(-1/2) - 1 at S = 1/y: zero at an edge, -1 past the end, and linear in y for constant weights."""
    slope = resolvent.slope(1 / y)
    return -1.0 if slope == -math.inf else max(1e-16, 1 - slope) ** -0.5 - 1


def _inside(resolvent: Resolvent) -> float:
    """1/S at a point right of the edge, where S^2 z' > 1/2."""
    s = -0.1 / resolvent.mean
    while resolvent.slope(s) < 0.5:
        s /= 4
    return 1 / s


def right_edge(resolvent: Resolvent) -> Edge:
    """The z at dz/dS = 0, S < 0; at the end of the curve when the slope stays positive (a soft edge)."""
    high, end = _inside(resolvent), min(-_SMALLEST, (1 + 1e-9) / resolvent.left_limit)
    intercept = resolvent.ratio**-0.5
    low = min(end, high * (1 + intercept) / (_margin(resolvent, high) + 1 + intercept))
    while low < end and _margin(resolvent, low) > 0:
        low = min(end, low / 2)
    if low == end and _margin(resolvent, end) >= 0:
        return Edge(1 / end, resolvent.at(1 / end).z, 0.0)
    s = 1 / bracketed_root(lambda y: _margin(resolvent, y), low, high)
    return Edge(s, resolvent.at(s).z, _edge_scale(resolvent, s))


def _edge_scale(resolvent: Resolvent, s: float) -> float:
    step = 1e-4 * s
    curvature = -resolvent.slope(s - step) / step / s**2
    return float(max(0.0, curvature / 2) ** (1 / 3))


def left_edge(resolvent: Resolvent) -> float:
    """Lower end of the continuous part: z at dz/dS = 0 on S > 0, or beyond S = -inf next to an atom at zero.

    Zero when the curve does not reappear between the atom and the bulk, or only below about 1e-9 of the mean.
    """
    if resolvent.atom > 0 and resolvent.return_limit == -math.inf:
        return 0.0
    low = 1e-3 / resolvent.mean if resolvent.atom == 0 else resolvent.return_limit * (1 + 1e-9)
    high = low
    for _ in range(_GROWTHS):
        if (resolvent.slope(high) < 0) != (resolvent.slope(low) < 0):
            s = 1 / bracketed_root(lambda y: _margin(resolvent, y), 1 / low, 1 / high, 1e-9)
            return max(0.0, resolvent.at(s).z)
        high *= 4
    return 0.0


@final
class _Branches:
    """Eigenvalues of B(z(S)), smallest first; points visited for one branch narrow the next bracket."""

    def __init__(self, resolvent: Resolvent, edge: Edge) -> None:
        self._resolvent, self._visited = resolvent, dict[float, Tensor]()
        lowest = self.gaps(edge.s)
        self.count = int((lowest < -1e-12 * edge.z).sum())
        if self.count:
            self.gaps(-0.999 / (edge.z - float(lowest[0])))

    def gaps(self, s: float) -> Tensor:
        """Sorted eigenvalues of B at S."""
        if s not in self._visited:
            point = self._resolvent.at(s)
            self._visited[s] = point.z - torch.linalg.eigvalsh(point.moment).flip(0)
        return self._visited[s]

    def root(self, branch: int) -> float:
        """S at which one branch is zero; bounded as z >= -1/S and F decreases in z."""
        low = max(s for s, values in self._visited.items() if values[branch] <= 0)
        high = min(s for s, values in self._visited.items() if values[branch] > 0)
        return bracketed_root(lambda s: float(self.gaps(s)[branch]), low, high, 1e-10)


def _null_space(resolvent: Resolvent, s: float, first: int, count: int) -> tuple[Tensor, Tensor]:
    """Overlaps [m] and projections [m, q] at a root of multiplicity m: P (P B' P)^-1 P."""
    point = resolvent.at(s)
    vectors = torch.linalg.eigh(point.moment)[1].flip(1)[:, first : first + count]
    slope = torch.eye(count, dtype=torch.float64) - vectors.T @ point.moment_slope @ vectors / point.slope
    values, basis = torch.linalg.eigh(slope)
    return 1 / values, (vectors @ basis / values.sqrt()).T


def right_outliers(resolvent: Resolvent, edge: Edge) -> Outliers:
    """All roots of det(z I - F(z)) right of the edge, with |r|^2, r = e/sqrt(e^T B' e), B' = I - dF/dz.

    Reference: benarous2025local
    """
    branches = _Branches(resolvent, edge)
    roots = [branches.root(branch) for branch in range(branches.count)]
    locations = [resolvent.at(s).z for s in roots]
    overlaps, projections, first = [], [], 0
    while first < len(roots):
        count = sum(abs(z - locations[first]) <= _SAME * locations[first] for z in locations[first:])
        shares, rows = _null_space(resolvent, roots[first], first, count)
        overlaps.append(shares)
        projections.append(rows)
        first += count
    size = len(resolvent.at(edge.s).moment)
    return Outliers(
        torch.tensor(locations, dtype=torch.float64),
        torch.cat(overlaps) if overlaps else torch.zeros(0, dtype=torch.float64),
        torch.cat(projections) if projections else torch.zeros(0, size, dtype=torch.float64),
    )
