"""AB-R8: what a schedule of the temperature can reach on a quadratic, in exact moments."""

from __future__ import annotations

import math
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from fisheropt.theory.temperature_schedule import Quadratic
from recipes import drawing
from recipes.studies.base import Finding, Findings, Picture, Study, Tell

KAPPAS = (10, 100, 1000)
KNOWN = {
    "best schedule": (1.31, 1.86, 2.44),
    "lag = samples left": (1.33, 1.97, 2.98),
    "linear decay, best scale": (2.3, 4.5, 9.5),
    "1/t, best": (1.6, 4.8, 20.0),
    "greedy, Fisher metric": (1.8, 8.5, 43.0),
    "constant, best": (5.7, 22.0, 88.0),
}
GREEDY = (3.0, 50.0, 190.0)


@final
class BatchHorizon(Study):
    """Twenty modes of curvature 1 to 1/κ with noise of the same shape, and 1000κ samples.

    Args:
        points: of the grid over the samples.
        seed: unused, as nothing is random.
    """

    title: ClassVar[str] = "Short horizons"
    question: ClassVar[str] = (
        "How far from the statistical limit does the best schedule of the temperature end, and how far do rules that look "
        "at the next step alone? Greedy rules anneal for the fast directions and freeze the slow ones. Weights that forget "
        "what the rest of the run will forget, which products of distant gradients supply, come close to the optimum."
    )
    reference: ClassVar[str] = "adaptive-batch, AB-R8"

    def __init__(self, points: int = 800, seed: int = 0) -> None:
        self.points, self.seed = points, seed

    def run(self, tell: Tell) -> Findings:
        """Each condition number, each rule."""
        rows, drawn = [], {}
        for index, kappa in enumerate(KAPPAS):
            tell(index / len(KAPPAS), f"κ = {kappa}")
            h = torch.logspace(0, -math.log10(kappa), 20, dtype=torch.float64)
            problem = Quadratic(h, h, h / 2, 1000 * kappa, self.points)
            found, paths = self._outcomes(problem)
            drawn[kappa] = (problem, paths)
            for name, known in KNOWN.items():
                rows.append(Finding.near(f"{name}, κ = {kappa}", found[name], known[index], relative=0.05))
            rows.append(Finding.between(f"greedy, κ = {kappa}", found["greedy"], GREEDY[index], None))
        return Findings(tuple(rows), (_picture(*drawn[100]),))

    def _outcomes(self, problem: Quadratic) -> tuple[dict[str, float], dict[str, Tensor]]:
        scales = torch.logspace(-6, 0.5, 200, dtype=torch.float64)
        share = problem.grid[:-1, None] / problem.samples
        sizes, delays = torch.logspace(-0.5, 2.5, 25).double(), torch.logspace(-4, 1, 16).double()
        inverse = torch.cartesian_prod(sizes, delays).T / problem.samples
        greedy, path = problem.ruled(problem.greedy)
        lagged, lag_path = problem.ruled(problem.lagged)
        best, best_path = problem.best()
        found = {
            "best schedule": best,
            "lag = samples left": lagged,
            "linear decay, best scale": float(problem.scheduled((1 - share) * scales).min()),
            "1/t, best": float(problem.scheduled(inverse[0] / (share + inverse[1] * problem.samples)).min()),
            "greedy, Fisher metric": problem.ruled(problem.fisher)[0],
            "constant, best": float(problem.constant(scales).min()),
            "greedy": greedy,
        }
        return found, {"greedy": path, "lag": lag_path, "best": best_path}


def _picture(problem: Quadratic, paths: dict[str, Tensor]) -> Picture:
    share = (problem.grid[:-1] / problem.samples).tolist()

    def draw(axes: Any) -> None:
        for index, (name, path) in enumerate(paths.items()):
            axes.plot(share, path, color=drawing.SERIES[index], label=name)
        axes.set_yscale("log")
        axes.set_ylim(1e-5, 1)
        axes.set_xlabel("share of the samples")
        axes.set_ylabel("temperature")
        axes.legend(fontsize=8)

    return Picture("Temperature over a run, κ = 100", "The greedy rule cools at once; the optimum waits.", draw)
