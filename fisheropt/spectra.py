"""The spectrum of a matrix of a model, measured through its products."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from fisheropt.products import Product
from fisheropt.theory.informative import Informative, informative
from fisheropt.theory.lanczos import LanczosQuadrature, Ritz, lanczos, lanczos_quadrature, probe_generator, ritz
from fisheropt.theory.spectrum import EffectiveSpectrum

_SETTLED = 1e-3

Points: TypeAlias = float | Sequence[float] | Tensor

LARGEST_EXACT = 2048
"""Up to this P, `exact="auto"` forms the matrix."""


@dataclass(frozen=True)
class MeasuredSpectrum:
    """Eigenvalues of M [P, P] and their distribution, each with its error.

    Attributes:
        eigenvalues: [top] largest, descending. A Lanczos value is never above the eigenvalue of its rank.
        residuals: [top], |Mv - λv| and the rounding of the products: an eigenvalue lies this close. Zero where exact.
        vectors: [P, top] unit columns.
        trace: tr M.
        trace_se: its standard error over probes, of `probes` - 1 degrees of freedom; zero where exact.
        size: P.
        samples: n of the product.
        exact: whether M was formed; else Lanczos and its quadrature over random probes.
        steps: of Lanczos, for the eigenvalues and for each probe; 0 where exact.
        probes: how many; 0 where exact.
    """

    eigenvalues: Tensor
    residuals: Tensor
    vectors: Tensor = field(repr=False)
    trace: float
    trace_se: float
    size: int
    samples: int
    exact: bool
    steps: int
    probes: int
    quadrature: LanczosQuadrature = field(repr=False, compare=False)

    def density(self, x: Points, width: float) -> Tensor:
        """Density of the eigenvalues at x, each smoothed to a Gaussian, of the shape of x.

        Args:
            x: where.
            width: standard deviation of the Gaussian; below the distance of the nodes single nodes show.
        """
        if not 0 < width < math.inf:
            raise ValueError(f"density(x, width={width!r}): the width must be positive; write width=spread / 50, say")
        nodes, at = self.quadrature.nodes, _points(x)
        bells = torch.exp(-(((at[..., None, None] - nodes) / width) ** 2) / 2) / (width * math.sqrt(2 * math.pi))
        return self.quadrature.mean(bells)[0]

    def cdf(self, x: Points) -> Tensor:
        """Share of eigenvalues at most x, of the shape of x; a node at x itself counts half unless exact."""
        return self._distribution(x)[0]

    def cdf_se(self, x: Points) -> Tensor:
        """Standard error of `cdf` over probes; the steps' own error, at most about 1/steps, is not in it."""
        error = self._distribution(x)[1]
        return torch.zeros_like(error) if self.exact else error

    def compare(self, effective: EffectiveSpectrum, dimension: int, *, level: float = 0.01) -> Informative:
        """Which of the eigenvalues found are signal: above the edge of the bulk of `effective`, beyond its fluctuation.

        Args:
            effective: the effective spectrum of the same matrix, block and number of samples.
            dimension: d, the number of features, which is not P for a full matrix.
            level: probability that the largest bulk eigenvalue passes.
        """
        return informative(self.eigenvalues.double().cpu(), effective, dimension, level=level)

    def __str__(self) -> str:
        how = "exact" if self.exact else f"Lanczos, {self.steps} steps, {self.probes} probes"
        plus = "" if self.exact else f" ± {self.trace_se:.2g} (standard error)"
        shown = ", ".join(
            f"{value:.5g}" + ("" if self.exact else f" ± {residual:.1g}")
            for value, residual in zip(self.eigenvalues[:5].tolist(), self.residuals[:5].tolist(), strict=True)
        )
        more = ", ..." if len(self.eigenvalues) > 5 else ""
        return f"P = {self.size}, n = {self.samples} ({how}); trace {self.trace:.5g}{plus}; largest {shown}{more}"

    def _distribution(self, x: Points) -> tuple[Tensor, Tensor]:
        nodes, at = self.quadrature.nodes, _points(x)[..., None, None]
        below = (nodes <= at).double()
        return self.quadrature.mean(below if self.exact else (below + (nodes < at).double()) / 2)


def measured_spectrum(
    product: Product,
    *,
    top: int = 10,
    steps: int | None = None,
    probes: int = 16,
    seed: int = 0,
    exact: bool | Literal["auto"] = "auto",
) -> MeasuredSpectrum:
    """The largest eigenvalues of a product's matrix, its trace and the distribution of all its eigenvalues.

    Small matrices are formed and taken apart. For others Lanczos with restarts finds the largest pairs in `steps`
    products, and stochastic Lanczos quadrature the rest in steps x probes more; its probes leave out the pairs that
    were found, whose few large values would make their errors skew. The same seed gives the same numbers.

    Args:
        product: of `fisheropt.products`.
        top: eigenvalues wanted.
        steps: of Lanczos; by default max(80, 4 top), at most P.
        probes: random starts of the quadrature, at least 2.
        seed: of the starts; no global generator is touched.
        exact: whether to form the matrix; "auto" does up to P = 2048.

    Raises:
        ValueError: for more eigenvalues than steps or coordinates, and for fewer than two probes.

    Reference: ubaru2017fast, golub2010matrices
    """
    size = product.size
    steps = min(size, max(80, 4 * top) if steps is None else steps)
    exact = size <= LARGEST_EXACT if exact == "auto" else exact
    most = size if exact else steps
    if not 1 <= top <= most or (not exact and probes < 2):
        raise ValueError(
            f"measured_spectrum(product, top={top}, steps={steps}, probes={probes}): needs 1 <= top <= {most} "
            f"({'P' if exact else 'steps'}) and probes >= 2 for a standard error"
        )
    return _exactly(product, top) if exact else _by_lanczos(product, top, steps, probes, seed)


def _exactly(product: Product, top: int) -> MeasuredSpectrum:
    values, vectors = torch.linalg.eigh(product.dense().double())
    values, vectors = values.flip(0), vectors.flip(1)
    nodes = values.cpu()[None]
    return MeasuredSpectrum(
        eigenvalues=values[:top],
        residuals=torch.zeros_like(values[:top]),
        vectors=vectors[:, :top],
        trace=float(values.sum()),
        trace_se=0.0,
        size=product.size,
        samples=product.samples,
        exact=True,
        steps=0,
        probes=0,
        quadrature=LanczosQuadrature(nodes, torch.full_like(nodes, 1 / product.size)),
    )


def _by_lanczos(product: Product, top: int, steps: int, probes: int, seed: int) -> MeasuredSpectrum:
    size, source = product.size, probe_generator(seed)
    start = torch.randn(size, dtype=torch.float64, generator=source).to(product.device)
    pairs = ritz(lanczos(product, size, steps, start=start, generator=source, restart=True))
    density = lanczos_quadrature(
        product,
        size,
        steps,
        probes=probes,
        law="gaussian",
        generator=source,
        device=product.device,
        known=_settled(pairs),
    )
    mean, error = density.mean(density.nodes)
    assert pairs.vectors is not None
    return MeasuredSpectrum(
        eigenvalues=pairs.values[:top],
        residuals=pairs.residuals[:top] + _rounding(product, pairs),
        vectors=pairs.vectors[:, :top],
        trace=float(size * mean),
        trace_se=float(size * error),
        size=size,
        samples=product.samples,
        exact=False,
        steps=steps,
        probes=probes,
        quadrature=density,
    )


def _settled(pairs: Ritz) -> Ritz:
    """The pairs that stand by themselves, fewer than P: outliers in the main, which would dominate the probes."""
    assert pairs.vectors is not None
    kept = (pairs.residuals <= _SETTLED * pairs.values.abs().max()).nonzero().flatten()[: len(pairs.vectors) - 1]
    return Ritz(pairs.values[kept], pairs.residuals[kept], pairs.vectors[:, kept])


def _rounding(product: Product, pairs: Ritz) -> float:
    """√P ε |M|, what rounding may do to a product."""
    return math.sqrt(product.size) * torch.finfo(product.dtype).eps * float(pairs.values.abs().max())


def _points(x: Points) -> Tensor:
    return torch.as_tensor(x, dtype=torch.float64).cpu()
