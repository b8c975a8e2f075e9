"""FF-20, FF-9 and FF-10: what is certified of a floor, and whether it is true."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from fisheropt.theory.certificate import certify_floor_cholesky, lanczos_lower_bound, lanczos_resolution
from fisheropt.theory.penalty import PsiName, guaranteed_floor
from recipes.drawing import DASHED, INK, SERIES
from recipes.studies.arguments import require
from recipes.studies.base import Finding, Findings, Picture, Study, Tell
from recipes.studies.draws import normal
from recipes.studies.floor_logistic import Data, Penalty, descend, draw

HINGES = (("hinge", False), ("squared hinge", True))
NARROW = 1e-6
LANCZOS = 200
SPECTRA = ("Wishart, n = 4d", "one weak direction")


@final
class FloorCertificates(Study):
    """The guarantee of a penalty over many runs, and lower bounds by Cholesky and Lanczos."""

    title: ClassVar[str] = "Certificates of the floor"
    question: ClassVar[str] = (
        "Is a certified floor a true one? Penalty runs on logistic models, d = 20, promise λ_min ≥ τ(1 - gap/a), squared "
        "τ(1 - √(gap/a)); Cholesky and Lanczos bound what came out from below, Lanczos at d = 200 with a stated probability."
    )
    reference: ClassVar[str] = (
        "after huang2025spectral; higham2002accuracy, kuczynski1992estimating, FF-9, FF-10, FF-20"
    )

    def __init__(
        self,
        seeds: int = 4,
        weights: Sequence[float] = (100, 300, 1000),
        steps: int = 3000,
        lr: float = 0.1,
        starts: int = 100,
        depths: Sequence[int] = (10, 20, 40, 80),
        delta: float = 0.05,
        seed: int = 0,
    ) -> None:
        """Take data sets, weights a/τ, descent; Lanczos starts, steps and δ."""
        require(
            seeds > 0 and steps > 0 and lr > 0, f"seeds={seeds}, steps={steps}, lr={lr}", "seeds=4 steps=3000 lr=.1"
        )
        require(min(weights) > 0, f"weights={list(weights)}", "weights=[100, 1000], above zero")
        require(starts > 1, f"starts={starts}", "starts=100, two or more")
        require(0 < delta < 1, f"delta={delta}", "delta=.05")
        self.seeds, self.weights, self.steps, self.lr = seeds, tuple(map(float, weights)), steps, lr
        self.starts, self.depths, self.delta, self.seed = starts, tuple(map(int, depths)), delta, seed

    def run(self, tell: Tell) -> Findings:
        generator = torch.Generator().manual_seed(self.seed)
        ratios, bounds, exact = self._penalty_runs(tell, generator)
        slacks = {name: self._lanczos(name, generator, tell) for name in SPECTRA}
        rows = (
            *self._guaranteed(ratios, bounds),
            *self._factored(exact),
            *(row for name, table in slacks.items() for row in self._bounded(name, table)),
            Finding.near("resolution at d = 1e6, δ = 1e-3, 100 steps, in λ_max", lanczos_resolution(10**6, 1e-3, 100),
                         0.0052, absolute=1e-4),
        )  # fmt: skip
        return Findings(rows, (self._guarantee_picture(ratios, bounds), self._lanczos_picture(slacks)))

    def _penalty_runs(self, tell: Tell, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """λ_min/τ and its promised bound [shapes, weights, s]; and every final Fisher matrix."""
        data = draw(self.seeds, 30, 20, generator, separable=True)
        start = torch.linalg.eigvalsh(data.fisher(data.x.new_zeros(self.seeds, 20)))[:, 0]
        ratios = torch.empty(len(HINGES), len(self.weights), self.seeds, dtype=torch.float64)
        bounds, matrices = torch.empty_like(ratios), []
        for row, (name, squared) in enumerate(HINGES):
            for column, weight in enumerate(self.weights):
                penalty = Penalty(start / 2, weight, squared)
                theta = descend(data, self.steps, self.lr, penalty=penalty, max_norm=1.0)
                matrices.append(data.fisher(theta))
                least = torch.linalg.eigvalsh(matrices[-1])[:, 0]
                ratios[row, column], bounds[row, column] = least / penalty.tau, _promised(data, theta, least, penalty)
                tell(0.5 * (row + (column + 1) / len(self.weights)) / len(HINGES), f"{name}, a/τ = {weight:g}")
        return ratios, bounds, torch.cat(matrices)

    def _guaranteed(self, ratios: Tensor, bounds: Tensor) -> list[Finding]:
        held, total = int((ratios >= bounds).sum()), ratios.numel()
        words = f"{int((bounds > 0).sum())} of the bounds are above 0; their median is {float(bounds.median()):.2f} τ"
        return [
            Finding.between("penalty runs that keep their guarantee", held, total, total, expected=total, remark=words),
        ]

    def _factored(self, matrices: Tensor) -> list[Finding]:
        """Cholesky just below the true smallest eigenvalue, and just above it."""
        least = torch.linalg.eigvalsh(matrices)[:, 0].tolist()
        below = [
            certify_floor_cholesky(matrix, value * (1 - NARROW)) for matrix, value in zip(matrices, least, strict=True)
        ]
        above = [
            certify_floor_cholesky(matrix, value * (1 + NARROW)) for matrix, value in zip(matrices, least, strict=True)
        ]
        total = len(least)
        return [
            Finding.between("Cholesky certificates granted at λ_min less 1e-6", sum(map(bool, below)), total, total,
                            expected=total),
            Finding.between("Cholesky certificates granted at λ_min plus 1e-6", sum(map(bool, above)), 0, 0, expected=0,
                            remark="a false certificate"),
        ]  # fmt: skip

    def _lanczos(self, name: str, generator: torch.Generator, tell: Tell) -> Tensor:
        """(λ_min - bound)/(ε λ_max) of every start, [depths, starts]; negative where the bound is wrong."""
        matrix = _spectrum(name, generator)
        values = torch.linalg.eigvalsh(matrix)
        slacks = torch.empty(len(self.depths), self.starts, dtype=torch.float64)
        for row, steps in enumerate(self.depths):
            for start in range(self.starts):
                bound = lanczos_lower_bound(
                    matrix.mv, LANCZOS, float(values[-1]), delta=self.delta, steps=steps, generator=generator
                )
                slacks[row, start] = (float(values[0]) - bound.value) / bound.resolution
        tell(0.5 + 0.5 * (SPECTRA.index(name) + 1) / len(SPECTRA), f"Lanczos, {name}")
        return slacks

    def _bounded(self, name: str, slacks: Tensor) -> list[Finding]:
        rows = []
        for steps, slack in zip(self.depths, slacks, strict=True):
            covered = float((slack >= -1e-9).double().mean())
            eps = lanczos_resolution(LANCZOS, self.delta, steps)
            words = f"median slack {float(slack.median()):.2f} ε λ_max, ε = {eps:.2g}"
            rows.append(Finding.between(f"{name}: coverage of {steps} Lanczos steps", covered, 1 - self.delta, None,
                                        expected=1.0, remark=words))  # fmt: skip
        return rows

    def _guarantee_picture(self, ratios: Tensor, bounds: Tensor) -> Picture:
        def on(axes: Any) -> None:
            for row, (name, _) in enumerate(HINGES):
                axes.plot(
                    bounds[row].flatten(), ratios[row].flatten(), "o", color=SERIES[row], markersize=5, label=name
                )
            ends = [min(float(bounds.min()), 0.0), 1.05]
            axes.plot(ends, ends, color=INK, linestyle=DASHED, linewidth=1.2)
            axes.set_xlabel("promised λ_min/τ")
            axes.set_ylabel("λ_min/τ found")
            axes.legend(loc="lower right", fontsize=9)

        return Picture("Guarantee and outcome", "Every run lies above the dashed line of its own promise.", on)

    def _lanczos_picture(self, slacks: dict[str, Tensor]) -> Picture:
        def on(axes: Any) -> None:
            for number, (name, table) in enumerate(slacks.items()):
                eps = torch.tensor([lanczos_resolution(LANCZOS, self.delta, steps) for steps in self.depths])
                axes.plot(
                    self.depths, table.median(1).values * eps, "o-", color=SERIES[number], markersize=4, label=name
                )
            axes.plot(self.depths, eps, color=INK, linestyle=DASHED, linewidth=1.2, label="resolution ε")
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.set_xticks(self.depths, [f"{steps}" for steps in self.depths])
            axes.minorticks_off()
            axes.set_xlabel("Lanczos steps")
            axes.set_ylabel("(λ_min - bound)/λ_max")
            axes.legend(loc="upper right", fontsize=9)

        return Picture(
            "What the Lanczos bound gives away", "Its slack is the resolution, and falls with the steps squared.", on
        )


def _promised(data: Data, theta: Tensor, least: Tensor, penalty: Penalty) -> Tensor:
    """The bound on λ_min/τ from the losses alone: the start θ = 0 meets the floor, and is the reference."""
    loss, reference = data.loss(theta), math.log(2)
    excess = (loss + penalty.value(least) - reference).clamp(min=0)
    psi: PsiName = "squared" if penalty.squared else "hinge"
    return torch.tensor(
        [
            guaranteed_floor(tau, gap, penalty.weight * tau, psi) / tau
            for tau, gap in zip(penalty.tau.tolist(), (reference - loss + excess).tolist(), strict=True)
        ]
    )


def _spectrum(name: str, generator: torch.Generator) -> Tensor:
    if name == SPECTRA[0]:
        scores = normal(4 * LANCZOS, LANCZOS, generator=generator)
        return scores.T @ scores / len(scores)
    axis = torch.nn.functional.normalize(normal(LANCZOS, generator=generator), dim=0)
    return torch.eye(LANCZOS, dtype=torch.float64) - 0.99 * torch.outer(axis, axis)
