"""SN-X2, X3 and X4: the stationary covariance of SGD against its Lyapunov equation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from fisheropt.theory.lyapunov import stationary_covariance
from recipes import drawing
from recipes.studies.base import Finding, Findings, Picture, Study, StudyError, Tell
from recipes.studies.glm_chains import Glm, batches, inflated_poisson, logistic, relative, stationary

KAPPAS = ((10, 0.572, 1.34), (30, 0.699, 3.40), (100, 0.778, 9.21), (1000, 0.853, 66.1))


@final
class NoiseStationary(Study):
    """Simulated SGD on a logistic and a misspecified Poisson regression.

    Args:
        chains: run side by side.
        steps: of each after burn-in.
        seed: of data and batches.
    """

    title: ClassVar[str] = "Stationary covariance of SGD"
    question: ClassVar[str] = (
        "Does SGD at stationarity have the covariance that the discrete Lyapunov equation predicts from curvature H and "
        "gradient covariance G? And do the continuous equation, one temperature for all directions, or the Fisher "
        "information in place of G predict it?"
    )
    reference: ClassVar[str] = "zantedeschi2026, SN-X2, SN-X3 and SN-X4"

    def __init__(self, chains: int = 300, steps: int = 3000, seed: int = 0) -> None:
        if chains < 2 or steps < 100:
            raise StudyError(f"chains={chains}, steps={steps}: write two chains and 100 steps at least.")
        self.chains, self.steps, self.seed = chains, steps, seed

    def run(self, tell: Tell) -> Findings:
        """Simulate each model at each batch size, and compare."""
        generator = torch.Generator().manual_seed(self.seed)
        rows, spectra = [], {}
        model = logistic(4000, 10, 10.0, generator)
        for index, (b, limit) in enumerate(((64, 0.05), (256, 0.03))):
            tell(0.1 + 0.3 * index, f"logistic, batch size {b}")
            found, discrete, continuous = self._laws(model, 0.8, b, generator)
            spectra[b] = (found.diagonal(), discrete.diagonal(), continuous.diagonal())
            rows.append(
                Finding.between(f"X2: error of the discrete law, b = {b}", relative(found, discrete), None, limit)
            )
            rows.append(
                Finding.told(
                    f"X2: error of the continuous equation, b = {b}", relative(found, continuous), expected=".12 to .15"
                )
            )
        rows += self._scalar_rows()
        tell(0.6, "three kinds of noise")
        rows += self._synthetic_rows(model, generator)
        tell(0.8, "misspecified Poisson")
        rows += self._poisson_rows(generator)
        return Findings(tuple(rows), (_picture(spectra),))

    def _laws(self, model: Glm, lr: float, b: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Simulated, discrete and continuous covariance."""
        centre = model.optimum()
        H, G = model.curvature(centre), model.covariance(centre)
        drawn = batches(len(model.x), b, self.chains, generator)
        found = stationary(model, drawn, lr, self.chains, self._burn(H, lr), self.steps)
        laws = [stationary_covariance(H, G, lr, b, method=method) for method in ("discrete", "continuous")]  # type: ignore[arg-type]
        return found, laws[0], laws[1]

    def _burn(self, H: Tensor, lr: float) -> int:
        return math.ceil(3 / (lr * float(torch.linalg.eigvalsh(H)[0])))

    def _scalar_rows(self) -> list[Finding]:
        """One temperature for all directions, and isotropic noise of the right trace, by formula."""
        rows = []
        for kappa, scalar, isotropic in KAPPAS:
            h = torch.logspace(0, math.log10(kappa), 10, dtype=torch.float64)
            H = torch.diag(h)
            law = stationary_covariance(H, H, 1e-6, 1, method="continuous")
            inverse = torch.diag(1 / h)
            best = inverse * ((law * inverse).sum() / inverse.square().sum())
            white = stationary_covariance(H, torch.eye(10) * h.mean(), 1e-6, 1, method="continuous")
            rows.append(
                Finding.near(f"X3: error of one temperature, κ = {kappa}", relative(best, law), scalar, absolute=5e-4)
            )
            rows.append(
                Finding.near(
                    f"X3: error of isotropic noise, κ = {kappa}", relative(white, law), isotropic, relative=5e-3
                )
            )
        return rows

    def _synthetic_rows(self, model: Glm, generator: torch.Generator) -> list[Finding]:
        """Full gradients with Gaussian noise of covariance F/b or isotropic, against the prediction with G."""
        lr, b, centre = 0.8, 64, model.optimum()
        H, G = model.curvature(centre), model.covariance(centre)
        law = stationary_covariance(H, G, lr, b)
        rows = []
        for name, noise in (("Gaussian noise of covariance F", H), ("isotropic noise", torch.eye(10) * H.trace() / 10)):
            found = self._gaussian(H, noise.double(), lr, b, generator)
            low, high = (None, 0.08) if "F" in name else (0.5, None)
            rows.append(
                Finding.between(f"X3: simulated {name}, error against SGD's law", relative(found, law), low, high)
            )
        return rows

    def _gaussian(self, H: Tensor, noise: Tensor, lr: float, b: int, generator: torch.Generator) -> Tensor:
        root = torch.linalg.cholesky(noise) / b**0.5
        theta = torch.zeros(self.chains, len(H), dtype=torch.float64)
        total, burn = torch.zeros_like(H), self._burn(H, lr)
        for step in range(burn + self.steps):
            theta = theta - lr * (
                theta @ H + torch.randn(theta.shape, generator=generator, dtype=torch.float64) @ root.T
            )
            if step >= burn:
                total += theta.T @ theta
        return total / (self.steps * self.chains)

    def _poisson_rows(self, generator: torch.Generator) -> list[Finding]:
        model = inflated_poisson(4000, 8, generator)
        centre, lr, b = model.optimum(), 0.2, 128
        H, G = model.curvature(centre), model.covariance(centre)
        drawn: Iterator[Tensor] = batches(len(model.x), b, self.chains, generator)
        found = stationary(model, drawn, lr, self.chains, self._burn(H, lr), self.steps)
        sandwich = torch.linalg.solve(H, torch.linalg.solve(H, G).T)
        errors = [relative(found, stationary_covariance(H, noise, lr, b)) for noise in (G, H, sandwich)]
        tic = float(torch.linalg.solve(H, G).trace())
        return [
            Finding.told(
                "X4: tr(H⁻¹G) of the Poisson regression with 8 parameters", tic, expected=31.9, remark="our data"
            ),
            Finding.between("X4: error with noise G", errors[0], None, 0.05),
            Finding.between("X4: error with noise F", errors[1], 0.5, None),
            Finding.told(
                "X4: error with the sandwich as noise", errors[2], expected=25.7, remark="the noise is G, not H⁻¹GH⁻¹"
            ),
        ]


def _picture(spectra: dict[int, tuple[Tensor, ...]]) -> Picture:
    def draw(axes: Any) -> None:
        for index, (b, (found, discrete, continuous)) in enumerate(spectra.items()):
            colour = drawing.SERIES[index]
            axes.plot(range(1, 11), discrete, color=colour, label=f"discrete, b = {b}")
            axes.plot(
                range(1, 11), continuous, color=colour, linestyle=drawing.DASHED, linewidth=1.2, label="continuous"
            )
            axes.plot(range(1, 11), found, "o", color=colour, markersize=4, label="simulated")
        axes.set_yscale("log")
        axes.set_xlabel("coordinate, by falling feature variance")
        axes.set_ylabel("stationary variance")
        axes.legend(fontsize=8)

    return Picture("Variance of each parameter", "Dots: simulated SGD at η = .8; lines: the two equations.", draw)
