"""Effective spectra of Hessian and information matrices of softmax regression on Gaussian mixtures.

Data Y = mu_b + snr^(-1/2) Z in d dimensions, n/d -> ratio. The matrix (1/n) sum_l f_l Y_l Y_l^T at parameters
x that are independent of the samples has a limiting spectrum (bulk, edges, outliers, eigenvector overlaps)
which depends on (x, mu) through their Gram matrix alone. After Ben Arous, Gheissari, Huang and Jagannath; the
full matrices, the count of the outliers, the distribution function and the numerics are ours.

The theory is for fresh data: a matrix formed at an x trained on the same samples is outside of it.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from fisheropt.theory.dyson import Dyson
from fisheropt.theory.mixture_nodes import Mixture, Nodes, make_mixture, mixture_nodes
from fisheropt.theory.outliers import Edge, Outliers, left_edge, right_edge, right_outliers
from fisheropt.theory.quadrature import gaussian_rule, resolving_factor
from fisheropt.theory.resolvent import Resolvent
from fisheropt.theory.silverstein import Silverstein
from fisheropt.theory.softmax_weights import (
    hessian_block,
    hessian_factors,
    information_block,
    information_factors,
)

Kind: TypeAlias = Literal["hessian", "information"]
Block: TypeAlias = int | Literal["full"]

_BLOCKS = {"hessian": hessian_block, "information": information_block}
_FACTORS = {"hessian": hessian_factors, "information": information_factors}
# Lattice spacings by the number of classes: (usual, finest) factor on those of the rule, coarser for matrix weights.
_BLOCK_SPACING = {2: (1.0, 1 / 8), 3: (1.0, 1 / 3), 4: (1.0, 1 / 2)}
_FULL_SPACING = {2: (1.0, 1 / 8), 3: (1.5, 0.8), 4: (2.0, 1.2)}
_FULL_SOBOL_COARSENING = 4.0
_ERROR_COARSENING = 1.5
_WARNED_ERROR = 0.05


@dataclass(frozen=True)
class EffectiveSpectrum:
    """A limiting spectrum.

    Attributes:
        edge: Right end of the bulk. Soft for the information matrix: sample maxima lie some per cent below
            it.
        lower_edge: Left end of the continuous part of the bulk.
        atom: Mass at zero.
        bulk_mean: Mean eigenvalue of the bulk law, the atom included.
        outliers: [m] eigenvalues right of the edge, largest first; at most q (times C - 1 for full matrices).
        overlaps: [m] squared length of the projection of each unit eigenvector on span(x, mu).
        alignments: [m, q] inner products of each unit eigenvector with the q columns of (x, mu), up to a
            common sign; [m, C - 1, q] for full matrices.
        edge_scale: gamma of the fluctuations gamma d^(-2/3) of the largest of d bulk eigenvalues (0: a soft
            edge).
        error: Largest relative difference of edge, mean and outliers from a coarser quadrature, or from
            another scrambling for more than four classes.
        kind: Which matrix.
        block: Which block, or "full" for the gauge-projected matrix.
    """

    edge: float
    lower_edge: float
    atom: float
    bulk_mean: float
    outliers: Tensor
    overlaps: Tensor
    alignments: Tensor
    edge_scale: float
    error: float
    kind: Kind
    block: Block
    resolvent: Resolvent = field(repr=False, compare=False)

    def density(self, x: float | Sequence[float] | Tensor) -> Tensor:
        """Density of the continuous part of the bulk at x, of the shape of x; it integrates to 1 - atom."""
        return self._evaluate(x, 0)

    def cdf(self, x: float | Sequence[float] | Tensor) -> Tensor:
        """Mass of the bulk law on (-inf, x], the atom included, of the shape of x."""
        return self._evaluate(x, 1)

    def _evaluate(self, x: float | Sequence[float] | Tensor, which: int) -> Tensor:
        points = torch.as_tensor(x, dtype=torch.float64)
        inside = (points > self.lower_edge) & (points > 0) & (points < self.edge)
        outside = (points >= self.edge).double() + self.atom * ((points >= 0) & (points < self.edge)).double()
        result = torch.zeros_like(points) if which == 0 else outside
        if inside.any():
            result[inside] = self.resolvent.density_and_cdf(points[inside], self.edge)[which]
        return result


class _Request(NamedTuple):
    """Which matrix: kind, block, phi and the number of samples that bounds the tail."""

    kind: Kind
    block: Block
    ratio: float
    samples: int | None


class _Solution(NamedTuple):
    resolvent: Resolvent
    edge: Edge
    outliers: Outliers


def _weights(nodes: Nodes, request: _Request) -> tuple[Tensor, Tensor]:
    """Scalar weights [N], or factors [N, C - 1, s], and their traces [N]."""
    if request.block == "full":
        factors = _FACTORS[request.kind](nodes)
        return factors, factors.square().sum((1, 2))
    values = _BLOCKS[request.kind](nodes, request.block)
    return values, values


def _resolution(mixture: Mixture, block: Block) -> float:
    """Factor on the spacing of the rule: finer where the logits are spread and softmax is steep."""
    table = _FULL_SPACING if block == "full" else _BLOCK_SPACING
    if mixture.classes not in table:
        return _FULL_SOBOL_COARSENING if block == "full" else 1.0
    usual, finest = table[mixture.classes]
    return max(finest, min(usual, resolving_factor(mixture.classes - 1, mixture.spread())))


def _resolvent(mixture: Mixture, request: _Request, coarsen: float, seed: int) -> Resolvent:
    coarsen = coarsen * _resolution(mixture, request.block)
    nodes = mixture_nodes(mixture, gaussian_rule(mixture.classes - 1, coarsen=coarsen, seed=seed))
    weights, traces = _weights(nodes, request)
    if request.samples is not None:
        nodes = nodes.truncated(traces, request.samples)
        weights, _ = _weights(nodes, request)
    law = Dyson if request.block == "full" else Silverstein
    return law(nodes, weights, mixture.snr, request.ratio)


def _solve(mixture: Mixture, request: _Request, coarsen: float, seed: int) -> _Solution:
    resolvent = _resolvent(mixture, request, coarsen, seed)
    edge = right_edge(resolvent)
    return _Solution(resolvent, edge, right_outliers(resolvent, edge))


def _node_error(fine: _Solution, coarse: _Solution) -> float:
    """Largest relative difference; an outlier that only one of the two has is compared with the edge."""
    count = max(len(fine.outliers.locations), len(coarse.outliers.locations))
    rows = []
    for solution in (fine, coarse):
        missing = torch.full((count - len(solution.outliers.locations),), solution.edge.z, dtype=torch.float64)
        head = torch.tensor([solution.edge.z, solution.resolvent.mean], dtype=torch.float64)
        rows.append(torch.cat((head, solution.outliers.locations, missing)))
    return float(((rows[0] - rows[1]).abs() / rows[0]).max())


def _checked_request(request: _Request, classes: int) -> _Request:
    call = "effective_spectrum"
    if not 0 < request.ratio < float("inf"):
        raise ValueError(
            f"{call}: `ratio` must be positive (samples that form the matrix / dimension), "
            f"got {request.ratio}; write ratio=len(features) / features.shape[1]"
        )
    if request.kind not in _BLOCKS:
        raise ValueError(f'{call}: `kind` must be "hessian" or "information", got {request.kind!r}')
    if request.block != "full" and not (isinstance(request.block, int) and 0 <= request.block < classes):
        raise ValueError(f'{call}: `block` must be "full" or a class in 0..{classes - 1}, got {request.block!r}')
    if request.samples is not None and request.samples < 10:
        raise ValueError(f"{call}: `samples` must be at least 10, got {request.samples}; samples=None is the limit")
    return request


def effective_spectrum(
    gram: Tensor,
    proportions: Sequence[float] | Tensor,
    snr: float,
    ratio: float,
    *,
    kind: Kind = "hessian",
    block: Block = 0,
    class_of: Sequence[int] | Tensor | None = None,
    bias: Sequence[float] | Tensor | None = None,
    samples: int | None = None,
    seed: int = 0,
) -> EffectiveSpectrum:
    """Limiting spectrum of softmax regression on a Gaussian mixture.

    Bulk: z(S) = -1/S + phi E[f/(lambda phi + S f)]; edge: z'(S) = 0; outliers: det(z I - F(z)) = 0 with
    F = lambda phi E[f v v^T/(lambda phi + S f)]; overlap of an outlier: 1/(e^T (I - dF/dz) e), e its unit
    null vector.

    The information weight comes near its maximum in the Gaussian tail only. The edge of the limit then lies
    at the end of a tail of negligible mass, up to 30 % above the largest bulk eigenvalue of a matrix of
    thousands of samples. With `samples` the law leaves out the tail of the weights that so many samples do
    not see; give it to judge measured eigenvalues.

    Args:
        gram: G [q, q], q = C + k, the Gram matrix of (x_1..x_C, mu_1..mu_k).
        proportions: p [k].
        snr: lambda, one over the noise variance of each coordinate.
        ratio: phi, samples that form the matrix over dimension.
        kind: "hessian" (= GGN = model Fisher) or "information" (second moment of the observed gradients).
        block: Class a of the diagonal block, or "full" for all C - 1 coordinates orthogonal to the gauge (1,
            ..., 1).
        class_of: Class of each component; component b is class b when omitted.
        bias: Constant added to each logit.
        samples: n, the samples that form the matrix: the upper tail of the weights of mass 1/n is left out
            (ours). None is the limit of infinite dimension.
        seed: Of the Sobol scrambling, used with more than four classes.

    Reference: benarous2025local
    """
    mixture = make_mixture(gram, proportions, snr, class_of=class_of, bias=bias, call="effective_spectrum")
    request = _checked_request(_Request(kind, block, float(ratio), samples), mixture.classes)
    fine = _solve(mixture, request, 1.0, seed)
    coarse = _solve(mixture, request, _ERROR_COARSENING, seed + 1)
    error = _node_error(fine, coarse)
    if error > _WARNED_ERROR:
        message = f"effective_spectrum: quadrature resolves this spectrum to {error:.0%} only (logits spread by "
        warnings.warn(message + f"{mixture.spread():.0f}); treat its edge as approximate", stacklevel=2)
    rows = mixture.classes - 1 if block == "full" else 1
    alignments = fine.outliers.projections.reshape(-1, rows, len(mixture.gram)) @ mixture.root()
    return EffectiveSpectrum(
        edge=fine.edge.z,
        lower_edge=left_edge(fine.resolvent),
        atom=fine.resolvent.atom,
        bulk_mean=fine.resolvent.mean,
        outliers=fine.outliers.locations,
        overlaps=fine.outliers.overlaps,
        alignments=alignments if block == "full" else alignments[:, 0],
        edge_scale=fine.edge.scale,
        error=error,
        kind=kind,
        block=block,
        resolvent=fine.resolvent,
    )
