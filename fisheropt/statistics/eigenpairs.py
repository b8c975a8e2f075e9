"""What a batch tells about the spectrum of the noise covariance G, read from the Gram matrix of its gradients."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from fisheropt.directions import DenseDirections, Directions, DualDirections
from fisheropt.persample import Outer, PerSample
from fisheropt.statistics.leading import leading
from fisheropt.statistics.pairwise import Estimate, jackknife, pairwise

_PAIRS = 16
_ACCURACY = 0.5
"""Ours: the default `accuracy`."""
_DEARER = 4
"""Ours: how many times smaller coefficients must be at several positions a sample, where tensors are cheaper to contract."""


@final
@dataclass(frozen=True)
class NoiseEigenpairs:
    """The leading eigenpairs of the unbiased covariance of one sample's gradient.

    With many more parameters than samples a sample eigenvalue is too large: it is the variance along the direction that this
    batch varies most in, and the rest of the spectrum, which has nowhere else to go, adds about tr(rest)/dof to each. So
    `values` are eigenvalues of this batch's covariance, each within its residual, and no unbiased estimates of G's own;
    `reduced` takes the rest off. A value not far above tr(rest)/dof, the last ones as a rule, is no evidence of a direction.

    Attributes:
        values: λ̂, in falling order, [k]; fewer than asked for where the batch has no more.
        standard_errors: of the variances along the found directions, from the fourth moments along them, [k]. Of a value
            apart from its neighbours; of values within it of each other only the sum means anything.
        reduced: λ̂ᵢ less the mean of all later eigenvalues, [k].
        residuals: ‖Mu - λ̂u‖ of the Gram matrix M, by which a value is off at most for being computed by iteration, [k].
        coefficients: of the directions v = Σ_m c_m h_m over the batch, orthonormal in the parameters' space, [n, k].
        trace: tr G, unbiased.
        dof: degrees of freedom, n - 1.

    Reference: yata2012effective
    """

    values: Tensor
    standard_errors: Tensor
    reduced: Tensor
    residuals: Tensor
    coefficients: Tensor
    trace: float
    dof: int
    forms: dict[str, PerSample]

    def directions(self) -> dict[str, Directions]:
        """The eigenvectors by parameter, for `Projection(along=...)`: dual where that holds fewer numbers than k tensors.

        They hold copies, so that they stay what they are whatever becomes of the batch.
        """
        return {name: _along(form, self.coefficients) for name, form in self.forms.items()}

    def __str__(self) -> str:
        rows = zip(self.values.tolist(), self.standard_errors.tolist(), self.reduced.tolist(), strict=True)
        lines = [f"{i:>3}  {v:<11.4g} {e:<9.2g} {r:<11.4g}" for i, (v, e, r) in enumerate(rows, 1)]
        held = float(self.values.sum()) / self.trace if self.trace else 0.0
        return "\n".join(
            [
                f"noise of one sample's gradient: tr G = {self.trace:.4g}, {self.dof} degrees of freedom",
                "     eigenvalue  s.e.      less the rest",
                *lines,
                f"they hold {held:.0%} of the trace of this batch; another batch has less of it in these directions",
            ]
        )


@final
@dataclass(frozen=True)
class NoiseGram:
    """The Gram matrix of one sample's gradients about their mean.

    Args:
        matrix: (gₙ - ḡ)ᵀ(g_m - ḡ)/(n - 1), whose positive eigenvalues are those of the unbiased G, [n, n].
        forms: of the gradients' shares hₙ = gₙ/n in `p.grad`, by parameter.
        dtype: in which the products were formed.
        rows: which of the forms' samples they are, [n]; None for all.
        scale: of the loss in backward, which the matrix is free of and the forms are not.
    """

    matrix: Tensor
    forms: dict[str, PerSample]
    dtype: torch.dtype
    rows: Tensor | None = None
    scale: float = 1.0

    @property
    def dof(self) -> int:
        """Degrees of freedom, n - 1."""
        return len(self.matrix) - 1

    def trace(self) -> Estimate:
        """Unbiased tr G with the standard error of the jackknife."""
        every, without = pairwise(self.matrix)
        return _scaled(jackknife(every.trace(), without.trace()), self.dof)

    def effective_rank(self) -> Estimate:
        """(tr G)²/tr G², the number of equal eigenvalues that would scatter as much.

        Of unbiased estimates of tr G and tr G², so that it may exceed n - 1; from the sample's own eigenvalues it could not.
        At n = 5 or more samples. The standard error is the jackknife's.

        Reference: chen2010tests
        """
        if self.dof < 4:
            raise ValueError(f"an effective rank needs five samples, {self.dof + 1} seen. Give a larger batch")
        every, without = pairwise(self.matrix)
        return jackknife(every.effective_rank(), without.effective_rank())

    def eigenpairs(self, count: int = _PAIRS, accuracy: float = _ACCURACY) -> NoiseEigenpairs:
        """The largest eigenvalues of G with their directions.

        Args:
            count: how many.
            accuracy: how far a value may be off for being computed by iteration, in standard errors of a Gaussian variance; 0
                computes all of them exactly. It is a bound: the error is of second order in it.
        """
        if count < 1:
            raise ValueError(f"tap.gram().eigenpairs({count}): write a number of pairs, 1 to {self.dof}")
        found = leading(self.matrix.to(self.dtype), min(count, self.dof), accuracy * (2 / self.dof) ** 0.5)
        least = float(self.matrix.diagonal().max()) * len(self.matrix) * torch.finfo(self.dtype).eps
        kept = int((found.values > least).sum())
        values, vectors = found.values[:kept].double(), found.vectors[:, :kept].double()
        trace, samples, later = self.matrix.trace(), self.dof + 1, self.dof - 1 - torch.arange(kept)
        rest = (trace - values.cumsum(0)).clamp_min(0) / later.clamp_min(1).to(values)
        squares = vectors.square() * samples
        coefficients = vectors * (samples / self.scale) / (values * self.dof).sqrt()
        scatter = ((squares - squares.mean(0)).square().sum(0) / (samples * self.dof)).sqrt()
        return NoiseEigenpairs(
            values=values,
            standard_errors=values * scatter,
            reduced=(values - rest).clamp_min(0),
            residuals=found.residuals[:kept].double(),
            coefficients=self._among_all(coefficients),
            trace=float(trace),
            dof=self.dof,
            forms=self.forms,
        )

    def _among_all(self, coefficients: Tensor) -> Tensor:
        """Coefficients of all samples of the forms, those that are no data included."""
        if self.rows is None:
            return coefficients
        everything = next(iter(self.forms.values())).samples
        return coefficients.new_zeros(everything, coefficients.shape[1]).index_copy(0, self.rows, coefficients)

    def unscaled(self, scale: float) -> NoiseGram:
        """The same for the loss divided by `scale`."""
        return replace(self, matrix=self.matrix / scale**2, scale=self.scale * scale)


def centred(products: Tensor, forms: dict[str, PerSample], samples: int) -> NoiseGram:
    """Of hₙ, whose sum is the minibatch gradient, the Gram matrix of gₙ = n·hₙ about their mean.

    Args:
        products: ⟨hₙ, h_m⟩ of all rows, [rows, rows].
        forms: of hₙ, by parameter.
        samples: the number n of rows that are data; as many others as there are have no gradient, and which of those that
            have none is the same.

    Raises:
        ValueError: of fewer than two samples.
    """
    if samples < 2:
        raise ValueError(
            f"a covariance needs two samples, {samples} seen. Given parameters, a sample is one backward(): give "
            f"the optimizer the model instead, or run at least two backward() a step"
        )
    wide = products.double()
    rows = None
    if samples < len(wide):
        rows = wide.diagonal().argsort(descending=True, stable=True)[:samples].sort().values
        wide = wide[rows][:, rows]
    means = wide.mean(0)
    matrix = (wide - means - means[:, None] + means.mean()) * (samples**2 / (samples - 1))
    return NoiseGram(matrix, forms, products.dtype, rows)


def _along(form: PerSample, coefficients: Tensor) -> Directions:
    """Σ_m c_m h_m as coefficients or, where that is smaller, as tensors."""
    if isinstance(form, Outer):
        (samples, positions, outputs), inputs = form.g.shape, form.a.shape[2]
        held = samples * positions * (outputs + inputs) * (1 if positions == 1 else _DEARER)
        if held < coefficients.shape[1] * outputs * inputs:
            return DualDirections(form.g.clone(), form.a.clone(), coefficients.to(form.g.dtype))
    return DenseDirections(form.combine(coefficients))


def _scaled(estimate: Estimate, factor: float) -> Estimate:
    return Estimate(estimate.value * factor, estimate.standard_error * factor)
