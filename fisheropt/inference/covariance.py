"""The covariance of an estimate, and what a statistician reads from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor

from fisheropt.inference.information import InformationTest, Refit
from fisheropt.inference.labels import labels, restriction
from fisheropt.inference.table import table
from fisheropt.inference.wald import Wald, wald_test
from fisheropt.theory.sandwich import Correction, correction_factor, identification, sandwich_covariance
from fisheropt.theory.tails import two_sided_quantile, two_sided_tail

_GONE = 1e-8


@final
@dataclass(frozen=True, eq=False)
class SandwichCovariance:
    """The sandwich covariance H⁻¹GH⁻¹/n of an estimate θ̂, over the parameters end to end.

    Args:
        shapes: of the parameters by name, in the order of the coordinates.
        estimate: θ̂ [d], float64, without its part in directions that the data do not identify.
        covariance: [d, d], of the identified part.
        curvature: H [d, d] of the (penalised) mean loss.
        noise: G [d, d], the second moment of the scores as the correction has it.
        samples: n.
        null: orthonormal basis [d, g] of the directions that are not identified.
        correction: "HC0" to "HC3".
        clusters: how many; None for independent samples.
        log_likelihood: of the data; None for a loss that is none.
        distance: of the optimum from θ̂, in standard errors of the worst direction; NaN where it was not measured.
        remarks: what a reader must know.
        refit: what the information test needs; None where it is not served.

    Reference: huber1967behavior, white1982maximum
    """

    shapes: Mapping[str, torch.Size]
    estimate: Tensor
    covariance: Tensor
    curvature: Tensor
    noise: Tensor
    samples: int
    null: Tensor
    correction: Correction = "HC0"
    clusters: int | None = None
    log_likelihood: float | None = None
    distance: float = math.nan
    remarks: tuple[str, ...] = ()
    refit: Refit | None = field(default=None, repr=False)

    @staticmethod
    def of_moments(
        parameters: Mapping[str, Tensor],
        curvature: Tensor,
        noise: Tensor,
        samples: int,
        *,
        correction: Correction = "HC0",
        remarks: Sequence[str] = (),
    ) -> SandwichCovariance:
        """From moments measured elsewhere, as by an optimizer while it trains.

        Args:
            parameters: by name, in the order of the coordinates.
            curvature: H [d, d].
            noise: G [d, d], the covariance of one sample's gradient.
            samples: n, whose information the estimate holds.
            correction: "HC0", or "HC1" for n/(n - d).
            remarks: sentences for the summary.

        Raises:
            ValueError: for matrices that do not fit the parameters, n <= d, or a negative curvature.
        """
        call = "SandwichCovariance.of_moments(...)"
        theta = torch.cat([p.detach().double().flatten() for p in parameters.values()])
        if curvature.shape != noise.shape or curvature.shape != (len(theta), len(theta)):
            raise ValueError(
                f"{call}: H is {tuple(curvature.shape)} and G {tuple(noise.shape)} for {len(theta)} coordinates"
            )
        if correction not in ("HC0", "HC1"):
            raise ValueError(
                f"{call}: correction={correction!r} needs every sample again; write fisheropt.inference.sandwich(...)"
            )
        H, G = curvature.double(), noise.double()
        basis, null = identification(H)
        factor = correction_factor(correction, samples, basis.shape[1])
        return SandwichCovariance(
            shapes={name: p.shape for name, p in parameters.items()},
            estimate=theta - null @ (null.mT @ theta),
            covariance=factor * sandwich_covariance(H, G, samples, basis),
            curvature=H,
            noise=G,
            samples=samples,
            null=null,
            correction=correction,
            remarks=tuple(remarks),
        )

    @property
    def rank(self) -> int:
        """Identified directions."""
        return len(self.estimate) - self.null.shape[1]

    @property
    def dof(self) -> int:
        """Degrees of freedom of the noise: n less the rank, or the clusters less one."""
        return self.samples - self.rank if self.clusters is None else self.clusters - 1

    def estimates(self) -> dict[str, Tensor]:
        """θ̂ by parameter name; after a one-step estimate these are not the model's own."""
        return self._split(self.estimate)

    def standard_errors(self) -> dict[str, Tensor]:
        """By parameter name; NaN for a coordinate of which nothing is identified.

        A coordinate identified in part, as a softmax weight up to the shift, has that of its identified part.
        """
        return self._split(self._errors())

    def confidence_intervals(
        self, level: float = 0.95, *, dof: float | None = None
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Ends θ̂ ∓ q se of intervals by parameter name.

        Args:
            level: the probability to cover.
            dof: None takes the normal quantile, as statsmodels does beside robust errors; `dof=fit.dof` Student's t, which
                is wider and the better choice for few samples or clusters.
        """
        quantile = two_sided_quantile(level, dof)
        half = quantile * self._errors()
        low, high = self._split(self.estimate - half), self._split(self.estimate + half)
        return {name: (low[name], high[name]) for name in low}

    def wald(self, restrictions: Tensor | Sequence[str] | str, value: float | Tensor = 0.0) -> Wald:
        """The Wald test of Rθ = v.

        Args:
            restrictions: R [q, d], or names: "weight" for all its entries, "weight[0, 3]" for one.
            value: v, a number or [q].

        Raises:
            ValueError: for unknown names, or restrictions about what the data do not identify.

        Reference: wald1943tests
        """
        call = "fit.wald(restrictions, value)"
        rows = restriction(self.shapes, restrictions, call).to(self.estimate)
        if float((rows @ self.null).abs().sum()) > _GONE * float(rows.abs().sum()):
            raise ValueError(
                f"{call}: the restriction has a part in directions that the data do not identify; restrict contrasts "
                f"by a matrix R, such as the difference of two classes' weights"
            )
        target = torch.as_tensor(value, dtype=rows.dtype, device=rows.device).expand(len(rows))
        return wald_test(rows @ self.estimate - target, rows @ self.covariance @ rows.mT, call)

    def information_test(self, draws: int = 199, *, seed: int = 0) -> InformationTest:
        """White's question, is H = G, which holds where the model is true: a parametric bootstrap.

        Args:
            draws: data sets drawn from the fitted model, each fitted again.
            seed: of the draws.

        Raises:
            ValueError: where there is no likelihood to draw from, or with a penalty.

        Reference: white1982maximum, presnell2004ios
        """
        if self.refit is None:
            raise ValueError(
                "fit.information_test(): needs a likelihood, the data and l2=0; write "
                "fisheropt.inference.sandwich(model, loader, likelihood='bernoulli').information_test()"
            )
        return self.refit.test(draws, seed)

    def summary(self, *, level: float = 0.95, dof: float | None = None, rows: int = 60) -> str:
        """A table of coefficients, standard errors, z (t with `dof`) values, p-values and intervals.

        Args:
            level: of the intervals.
            dof: of Student's t; None for the normal law.
            rows: the largest number of coordinates shown.
        """
        law = "normal law" if dof is None else f"Student's t, {dof:g} degrees of freedom"
        groups = "" if self.clusters is None else f", {self.clusters} clusters"
        value = "" if self.log_likelihood is None else f"   log-likelihood {self.log_likelihood:.6g}"
        head = [
            f"Sandwich covariance of the estimate: {self.correction}{groups}, {law}",
            f"samples {self.samples}   parameters {len(self.estimate)} ({self.rank} identified)   "
            f"residual dof {self.dof}{value}",
        ]
        found = self.coordinates(level, dof)
        more = [f"{len(found) - rows} more coordinates: fit.coordinates()"] if len(found) > rows else []
        return table(head, found[:rows], [*more, *self.remarks], level, dof is not None)

    def __str__(self) -> str:
        return self.summary()

    def coordinates(self, level: float = 0.95, dof: float | None = None) -> list[dict[str, Any]]:
        """One dict a coordinate: name, coef, std_err, z, p_value, low, high."""
        quantile = two_sided_quantile(level, dof)
        pairs = zip(labels(self.shapes), self.estimate.tolist(), self._errors().tolist(), strict=True)
        return [
            {
                "name": name,
                "coef": coef,
                "std_err": error,
                "z": coef / error if error > 0 else math.nan,
                "p_value": two_sided_tail(coef / error if error > 0 else math.nan, dof),
                "low": coef - quantile * error,
                "high": coef + quantile * error,
            }
            for name, coef, error in pairs
        ]

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON."""
        return {
            "samples": self.samples,
            "parameters": len(self.estimate),
            "rank": self.rank,
            "dof": self.dof,
            "correction": self.correction,
            "clusters": self.clusters,
            "log_likelihood": self.log_likelihood,
            "distance": self.distance,
            "remarks": list(self.remarks),
            "coordinates": self.coordinates(),
        }

    def _errors(self) -> Tensor:
        errors = self.covariance.diagonal().clamp_min(0).sqrt()
        identified = 1 - self.null.square().sum(1)
        return torch.where(identified > _GONE, errors, math.nan)

    def _split(self, vector: Tensor) -> dict[str, Tensor]:
        parts = vector.split([math.prod(shape) for shape in self.shapes.values()])
        return {name: part.reshape(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}
