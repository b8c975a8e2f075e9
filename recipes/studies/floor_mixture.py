"""FF-E3: in a mixture the threshold of the Fisher matrix and the error of the estimate are two different things."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from fisheropt.theory import mixture
from fisheropt.theory.asymptotics import threshold_ratio
from fisheropt.theory.moments import second_moment
from fisheropt.theory.status import Status
from fisheropt.theory.threshold import threshold_report
from recipes.drawing import BLUE, DASHED, GREEN, INK, RED
from recipes.studies.arguments import require, rising
from recipes.studies.base import Finding, Findings, Picture, Study, Tell
from recipes.studies.draws import share
from recipes.studies.floor_samples import crossing

HALF = 0.5
ITERATIONS = 5000
COLLAPSE = 0.15
VERDICTS = 10
SEEDS = 20
TWENTY = f"accepted within two standard errors, with that of the {SEEDS} seeds behind the expected number"


@final
@dataclass(frozen=True)
class Reading:
    """What one data set says.

    Attributes:
        estimate: |μ̂ - μ| < r/2.
        kept: λ_min(Γₙ) > λ_min(Γ)/2.
        raw: ‖Γₙ - Γ‖ < λ_min(Γ)/2, the threshold.
        whitened: ‖Γ^(-1/2) Γₙ Γ^(-1/2) - I‖ < 1/2.
        warned: the Cramér-Rao error √(tr Γₙ(μ̂)⁻¹ / n) exceeds |μ̂|/2.
    """

    estimate: bool
    kept: bool
    raw: bool
    whitened: bool
    warned: bool


@final
class FloorMixture(Study):
    """The mixture 1/2 N(μ, I) + 1/2 N(-μ, I): maximum likelihood by EM from the truth, and its Fisher matrix."""

    title: ClassVar[str] = "A threshold that is met, an estimate that is bad"
    question: ClassVar[str] = (
        "Does a well-known Fisher matrix make a good estimate? Two Gaussians at ±μ, |μ| = r, EM started at the truth: for "
        "r = 1 the estimate becomes good first, for r = 1/2 the Fisher matrix does."
    )
    reference: ClassVar[str] = "after huang2025spectral; dempster1977maximum, FF-E3"

    def __init__(
        self,
        dimensions: Sequence[int] = (16, 32, 64),
        clear: Sequence[float] = (6, 8, 10, 12, 16, 20, 33.6),
        blurred: Sequence[float] = (40, 51.8, 65, 78.4, 85, 95, 110),
        draws: int = 100,
        seed: int = 0,
    ) -> None:
        """Take d, n/d for r = 1 (`clear`) and for r = 1/2 (`blurred`), and draws a point."""
        self.dimensions = [int(d) for d in rising(dimensions, "dimensions", "16, 32, 64")]
        self.grids = {1.0: rising(clear, "clear", "6, 8, 12, 16"), 0.5: rising(blurred, "blurred", "51.8, 85, 110")}
        require(draws > 1, f"draws={draws}", "draws=20, two or more")
        self.draws, self.seed = draws, seed

    def run(self, tell: Tell) -> Findings:
        generator = torch.Generator().manual_seed(self.seed)
        work = sum(d**2 * ratio for grid in self.grids.values() for d in self.dimensions for ratio in grid)
        done, cells = 0.0, {}
        for radius, grid in self.grids.items():
            for d in self.dimensions:
                for ratio in grid:
                    cells[radius, d, ratio] = [read(radius, d, round(ratio * d), generator) for _ in range(self.draws)]
                    done += d**2 * ratio
                    tell(done / work, f"r = {radius:g}, d = {d}, n/d = {ratio:g}")
        self.cells = cells
        self.verdicts = [verdict(d, generator) for d in self.dimensions for _ in range(min(self.draws, VERDICTS))]
        rows = (*self._constants(), *self._clear(), *self._blurred(), self._coincide())
        return Findings(rows, tuple(self._picture(radius) for radius in self.grids))

    def _pooled(self, radius: float, ratio: float, name: str) -> tuple[float, float]:
        hits = [getattr(reading, name) for d in self.dimensions for reading in self.cells[radius, d, ratio]]
        return share(torch.tensor(hits))

    def _constants(self) -> list[Finding]:
        rows = []
        for radius, bound, threshold in ((1.0, 7.27, 33.6), (0.5, 78.4, 51.8)):
            along, across = mixture.fisher_coefficients(radius)
            cramer_rao = 1 / (across * (HALF * radius) ** 2)
            name = f"r = {radius:g}: n/d at which "
            rows.append(Finding.near(name + "Cramér-Rao allows an error of r/2", cramer_rao, bound, relative=1e-3))
            rows.append(Finding.near(name + "λ_min = 2‖error‖ (Gaussian formula)", threshold_ratio(across / along),
                                     threshold, relative=2e-3))  # fmt: skip
        return rows

    def _clear(self) -> list[Finding]:
        rows = []
        for ratio, name, words, low, high in (
            (8.0, "estimate", "P(error < r/2)", 0.5, 0.6),
            (12.0, "estimate", "P(error < r/2)", 0.9, 1.0),
            (8.0, "kept", "P(λ_min(Γₙ) > λ_min/2)", 0.0, 0.0),
            (16.0, "kept", "P(λ_min(Γₙ) > λ_min/2)", 0.9, 1.0),
        ):
            if ratio in self.grids[1.0]:
                seen, error = self._pooled(1.0, ratio, name)
                expected = f"{low:g} to {high:g}" if high > low else f"{low:g}"
                below, above = (2 * math.hypot(error, _error_of_twenty(end)) for end in (low, high))
                remark = TWENTY if low <= seen <= high else f"outside of what is stated; {TWENTY}"
                rows.append(Finding.between(f"r = 1, n/d = {ratio:g}: {words}", seen, low - below, high + above,
                                            expected=expected, error=error, remark=remark))  # fmt: skip
        return rows

    def _blurred(self) -> list[Finding]:
        grid = self.grids[0.5]
        curve = [self._pooled(0.5, ratio, "estimate")[0] for ratio in grid]
        rows = [
            Finding.between("r = 1/2: n/d where P(error < r/2) = 1/2", crossing(grid, curve, 0.5), 78.4, 95.0,
                            expected="85 to 95", remark="accepted from the Cramér-Rao point on")
        ]  # fmt: skip
        if 51.8 not in grid:
            return rows
        seen = {name: self._pooled(0.5, 51.8, name) for name in ("estimate", "raw", "whitened", "warned")}
        where = "r = 1/2, n/d = 51.8: "
        catch = "the whitened criterion is met here as well, so its truth does not tell a bad estimate"
        biased = "nor does Cramér-Rao read from the data: where the error is large, |μ̂| and with it Γₙ(μ̂) are too large"
        return [
            *rows,
            Finding.between(where + "P(error < r/2)", seen["estimate"][0], None, 0.2, expected="bad estimate",
                            error=seen["estimate"][1]),
            Finding.between(where + "P(λ_min > 2‖error‖)", seen["raw"][0], 0.5, None, expected="threshold met",
                            error=seen["raw"][1]),
            Finding.told(where + "P(whitened error < 1/2)", seen["whitened"][0], error=seen["whitened"][1], remark=catch),
            *self._verdicts(where),
            Finding.told(where + "P(√(tr Γₙ(μ̂)⁻¹/n) > |μ̂|/2)", seen["warned"][0], error=seen["warned"][1], remark=biased),
        ]  # fmt: skip

    def _verdicts(self, where: str) -> list[Finding]:
        """What `threshold_report` tells a user, who has the scores at the estimate."""
        rows = []
        for name in ("raw", "whitened"):
            above, error = share(torch.tensor([getattr(verdict, name) is Status.ABOVE for verdict in self.verdicts]))
            words = f"P({name} reading of threshold_report says ABOVE)"
            remark = "by the width of its Λ*: it knows nothing of the estimate" if name == "whitened" else ""
            rows.append(Finding.between(where + words, above, None, 0.05 + 2 * error, expected="caught", error=error,
                                        remark=remark))  # fmt: skip
        return rows

    def _coincide(self) -> Finding:
        curves = torch.tensor(
            [
                [[reading.estimate for reading in self.cells[1.0, d, ratio]] for ratio in self.grids[1.0]]
                for d in self.dimensions
            ]
        )
        shares = curves.double().mean(-1)
        distance, error = float((shares.amax(0) - shares.amin(0)).max()), math.sqrt(0.5 / self.draws)
        steeper = "" if distance <= COLLAPSE else "the curves do steepen with d; "
        return Finding.between(
            "r = 1: largest distance of two curves of different d",
            distance,
            None,
            COLLAPSE + error,
            expected=f"{COLLAPSE:g}",
            remark=f"{steeper}accepted with {error:.2f}, a standard error of such a distance",
        )

    def _picture(self, radius: float) -> Picture:
        grid = self.grids[radius]
        along, across = mixture.fisher_coefficients(radius)

        def draw(axes: Any) -> None:
            for name, colour, label in (
                ("estimate", BLUE, "|μ̂ - μ| < r/2"),
                ("kept", GREEN, "λ_min(Γₙ) > λ_min/2"),
                ("raw", RED, "λ_min > 2‖Γₙ - Γ‖"),
            ):
                axes.plot(grid, [self._pooled(radius, ratio, name)[0] for ratio in grid], color=colour, label=label)
                for d, marker in zip(self.dimensions, "osD^v", strict=False):
                    shares = [
                        share(torch.tensor([getattr(r, name) for r in self.cells[radius, d, q]]))[0] for q in grid
                    ]
                    axes.plot(grid, shares, marker, color=colour, markersize=3, alpha=0.55)
            axes.axvline(1 / (across * (HALF * radius) ** 2), color=BLUE, linestyle=DASHED, linewidth=1.2)
            axes.axvline(threshold_ratio(across / along), color=RED, linestyle=DASHED, linewidth=1.2)
            axes.set_xlabel("n/d")
            axes.set_ylabel("share of data sets")
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=8.5, labelcolor=INK)

        words = "Lines pool the dimensions (markers); dashed: Cramér-Rao (blue) and the Gaussian threshold (red)."
        return Picture(f"Mixture with r = {radius:g}", words, draw)


@final
@dataclass(frozen=True)
class Verdict:
    """The two readings of a report."""

    raw: Status
    whitened: Status


def verdict(d: int, generator: torch.Generator) -> Verdict:
    """The readings for r = 1/2 and n/d = 51.8, from the scores at the estimate, as a user has them."""
    mean = torch.eye(d, dtype=torch.float64)[0] / 2
    points = mixture.sample(mean, round(51.8 * d), generator)
    report = threshold_report(mixture.score(maximum_likelihood(mean, points), points), generator=generator)
    return Verdict(report.status, report.whitened_status)


def _error_of_twenty(expected: float) -> float:
    """Standard error of a share that was `expected` in so many seeds; never zero."""
    moderate = (SEEDS * expected + 1) / (SEEDS + 2)
    return math.sqrt(moderate * (1 - moderate) / SEEDS)


def read(radius: float, d: int, n: int, generator: torch.Generator) -> Reading:
    """Draw n points in d dimensions, estimate μ, and compare Fisher matrix and estimate with the truth."""
    mean = torch.zeros(d, dtype=torch.float64)
    mean[0] = radius
    points = mixture.sample(mean, n, generator)
    estimate = maximum_likelihood(mean, points)
    truth = mixture.fisher_matrix(mean).diagonal()
    moment = second_moment(mixture.score(mean, points))
    relative = torch.linalg.eigvalsh(moment / truth.sqrt() / truth.sqrt()[:, None])
    raw = torch.linalg.eigvalsh(moment - torch.diag(truth)).abs().max()
    fitted = second_moment(mixture.score(estimate, points))
    predicted = torch.linalg.inv(fitted).trace().clamp(min=0).div(n).sqrt()
    return Reading(
        estimate=bool((estimate - mean).norm() < HALF * radius),
        kept=bool(torch.linalg.eigvalsh(moment)[0] > HALF * truth.min()),
        raw=bool(raw < truth.min() / 2),
        whitened=bool((relative - 1).abs().max() < HALF),
        warned=bool(predicted > HALF * estimate.norm()),
    )


def maximum_likelihood(start: Tensor, points: Tensor) -> Tensor:
    """μ ← mean of x tanh⟨μ, x⟩ until it moves by less than 1e-5 of its length."""
    mean = start
    for _ in range(ITERATIONS):
        last, mean = mean, (points * torch.tanh(points @ mean)[:, None]).mean(0)
        if float((mean - last).norm()) < 1e-5 * float(start.norm()):
            break
    return mean
