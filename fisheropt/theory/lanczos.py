"""Eigenvalues and spectral densities of a symmetric matrix that is known by its products only.

Lanczos with full reorthogonalisation: orthonormal Q and tridiagonal T with M Q = Q T + beta_m q e_m^T. The price
of a basis that stays orthogonal is its memory, steps x d.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

MatrixProduct: TypeAlias = Callable[[Tensor], Tensor]

_EPS = torch.finfo(torch.float64).eps
_STREAM = 0x1A2C205  # data drawn after torch.manual_seed(0) would be the very probes of a generator of seed 0
_BASIS_ENTRIES = 2**26  # half a GiB of float64 for the probes that go together


@dataclass(frozen=True)
class Tridiagonal:
    """What Lanczos leaves.

    Attributes:
        alpha: [m] diagonal of T.
        beta: [m] off-diagonal of T, the last the norm of what is left of the m-th product; 0 at a breakdown.
        basis: [m, d] rows of Q^T; None where it was not kept.
    """

    alpha: Tensor
    beta: Tensor
    basis: Tensor | None = None

    def matrix(self) -> Tensor:
        """T [m, m]."""
        off = torch.diag(self.beta[:-1], 1)
        return torch.diag(self.alpha) + off + off.T


@dataclass(frozen=True)
class Ritz:
    """Approximate eigenpairs, largest first.

    Attributes:
        values: [m], theta. The j-th is never above the j-th largest eigenvalue.
        residuals: [m], |beta_m s_m| = |M y - theta y|: an eigenvalue lies this close to theta.
        vectors: [d, m] unit columns y; None without a basis.
    """

    values: Tensor
    residuals: Tensor
    vectors: Tensor | None = None


@dataclass(frozen=True)
class LanczosQuadrature:
    """Nodes and weights of tr f(M) / d over independent probes.

    Attributes:
        nodes: [probes, m].
        weights: [probes, m], of sum 1 in each probe.
    """

    nodes: Tensor
    weights: Tensor

    def mean(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Estimate of tr f(M) / d and its standard error over probes.

        Args:
            values: f(nodes), [..., probes, m].

        Returns:
            Two tensors [...]; the standard error is infinite for one probe.
        """
        each = (self.weights * values).sum(-1)
        probes = each.shape[-1]
        if probes == 1:
            return each[..., 0], torch.full_like(each[..., 0], math.inf)
        return each.mean(-1), each.std(-1) / math.sqrt(probes)


def probe_generator(seed: int) -> torch.Generator:
    """Generator whose numbers are not those of `torch.manual_seed(seed)`, from which the matrix may have been made.

    Args:
        seed: Any integer.
    """
    return torch.Generator().manual_seed(seed + _STREAM)


def lanczos(
    product: MatrixProduct,
    size: int,
    steps: int,
    *,
    start: Tensor | None = None,
    generator: torch.Generator | None = None,
    restart: bool = False,
    scale: float = 0.0,
    keep: bool = True,
) -> Tridiagonal:
    """Lanczos from one vector: M Q = Q T + beta_m q e_m^T.

    Where the Krylov space is exhausted, beta falls to rounding: the recursion ends there, or goes on from a fresh
    random vector orthogonal to Q, without which repeated eigenvalues are found once only.

    Args:
        product: v [d] -> M v [d], M symmetric.
        size: d.
        steps: At most so many products, and at most d.
        start: [d]; Gaussian from the generator when omitted.
        generator: Of the random vectors, drawn on its device; `probe_generator(0)` when omitted.
        restart: Whether to go on after a breakdown.
        scale: A lower bound on |M|, with which rounding is compared.
        keep: Whether the basis is returned.

    Raises:
        ValueError: For no step, a zero start and a product that is not finite.

    Reference: lanczos1950iteration, paige1972computational
    """
    generator = probe_generator(0) if generator is None else generator
    start = torch.randn(size, dtype=torch.float64, generator=generator) if start is None else start
    source = generator if restart else None
    alpha, beta, basis = _recursion(lambda v: product(v[:, 0])[:, None], start[None], steps, source, scale)
    ends = (beta[0] == 0).nonzero().flatten()
    made = len(alpha[0]) if restart or not len(ends) else int(ends[0]) + 1
    return Tridiagonal(alpha[0, :made], beta[0, :made], basis[0, :made] if keep else None)


def ritz(found: Tridiagonal) -> Ritz:
    """Ritz values, residual bounds and, with a basis, vectors Q^T s of T s = theta s.

    Reference: paige1972computational
    """
    values, inner = torch.linalg.eigh(found.matrix())
    values, inner = values.flip(0), inner.flip(1)
    vectors = None if found.basis is None else found.basis.T @ inner
    return Ritz(values, (found.beta[-1] * inner[-1]).abs(), vectors)


def lanczos_quadrature(
    product: MatrixProduct,
    size: int,
    steps: int,
    *,
    probes: int = 16,
    law: Literal["rademacher", "gaussian"] = "rademacher",
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
    known: Ritz | None = None,
) -> LanczosQuadrature:
    """Stochastic Lanczos quadrature: tr f(M) / d as the mean over probes of sum_j s_1j^2 f(theta_j).

    Unbiased for polynomials of degree up to 2 steps - 1; the probes leave the error that `mean` estimates. A few
    eigenvalues far from the others make that error skew and itself uncertain (ours: beyond three standard errors
    in 2 to 5 per cent of cases of 16 probes, in place of 1). Known pairs are taken out of the probes.

    Args:
        product: V [d, b] -> M V [d, b], for b probes at once; M symmetric.
        size: d.
        steps: Products a probe, at most d.
        probes: Independent random starts.
        law: Of their entries. Gaussian starts are isotropic; Rademacher ones know the trace of a diagonal matrix.
        generator: `probe_generator(0)` when omitted.
        device: Where the product wants its vectors.
        known: r < d eigenpairs with vectors, each a node of weight 1/d; the law must then be gaussian.

    Reference: golub2010matrices, ubaru2017fast
    """
    if probes < 1 or law not in ("rademacher", "gaussian"):
        raise ValueError(
            f"lanczos_quadrature: needs probes >= 1 and law='rademacher' or 'gaussian', got {probes!r}, {law!r}"
        )
    if known is not None and law != "gaussian":
        raise ValueError("lanczos_quadrature: probes without the known pairs are isotropic for law='gaussian' only")
    generator = probe_generator(0) if generator is None else generator
    starts = torch.randn(probes, size, dtype=torch.float64, generator=generator)
    starts = starts.sign() if law == "rademacher" else starts
    together = max(1, _BASIS_ENTRIES // (min(steps, size) * size))
    nodes, weights = [], []
    for some in starts.split(together):
        alpha, beta, _ = _recursion(_without(product, known), _project(some.to(device), known), steps, None, 0.0)
        off = torch.diag_embed(beta[:, :-1], 1)
        values, inner = torch.linalg.eigh(torch.diag_embed(alpha) + off + off.mT)
        nodes.append(values.cpu())
        weights.append(inner[:, 0].square().cpu())
    return _joined(torch.cat(nodes), torch.cat(weights), size, known)


def _project(rows: Tensor, known: Ritz | None) -> Tensor:
    """Rows without their parts along the known vectors."""
    if known is None or known.vectors is None:
        return rows
    return _orthogonal(rows, known.vectors.T.expand(len(rows), -1, -1))


def _without(product: MatrixProduct, known: Ritz | None) -> MatrixProduct:
    """The product on the complement of the known vectors."""
    return lambda columns: _project(product(columns).double().T, known).T


def _joined(nodes: Tensor, weights: Tensor, size: int, known: Ritz | None) -> LanczosQuadrature:
    """The nodes of the complement and the known ones, each with its share of the dimension."""
    if known is None:
        return LanczosQuadrature(nodes, weights)
    found = known.values.cpu().expand(len(nodes), -1)
    share = 1 - found.shape[1] / size
    return LanczosQuadrature(
        torch.cat((found, nodes), 1), torch.cat((torch.full_like(found, 1 / size), weights * share), 1)
    )


def _recursion(
    product: MatrixProduct, starts: Tensor, steps: int, restart: torch.Generator | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Alpha and beta [b, m] and bases [b, m, d] of b starts that go together.

    An exhausted start goes on from a vector of zeros, which has no weight in any quadrature, or from a restart.
    """
    norms = starts.norm(dim=1, keepdim=True)
    if steps < 1 or not bool((norms > 0).all()):
        raise ValueError(f"lanczos: needs steps >= 1 and starts other than zero, got steps={steps!r}")
    size, vectors = starts.shape[1], starts.double() / norms
    steps = min(steps, size)
    basis = vectors.new_zeros(len(starts), steps, size)
    alpha, beta = vectors.new_zeros(len(starts), steps), vectors.new_zeros(len(starts), steps)
    largest = vectors.new_full((len(starts),), scale)
    for step in range(steps):
        basis[:, step] = vectors
        image = product(vectors.T).T.double()
        alpha[:, step] = (vectors * image).sum(1)
        image = _orthogonal(image, basis[:, : step + 1])
        left = image.norm(dim=1)
        largest = torch.maximum(largest, torch.maximum(alpha[:, step].abs(), left))
        ended = left <= size * _EPS * largest
        beta[:, step] = left.masked_fill(ended, 0.0)
        vectors = torch.where(ended[:, None], 0.0, image / left[:, None])
        if restart is not None and step + 1 < steps and bool(ended.any()):
            fresh = torch.randn(image.shape, dtype=torch.float64, generator=restart, device=restart.device)
            fresh = _orthogonal(fresh.to(image.device), basis[:, : step + 1])
            vectors = torch.where(ended[:, None], fresh / fresh.norm(dim=1, keepdim=True), vectors)
    if not bool(alpha.isfinite().all() and beta.isfinite().all()):
        raise ValueError("lanczos: the product is not finite; look for the overflow in it")
    return alpha, beta, basis


def _orthogonal(vectors: Tensor, basis: Tensor) -> Tensor:
    """Vectors [b, d] without their parts along the bases [b, m, d]; the second pass takes off what rounding left."""
    for _ in range(2):
        parts = torch.einsum("bmd,bd->bm", basis, vectors)
        vectors = vectors - torch.einsum("bmd,bm->bd", basis, parts)
    return vectors
