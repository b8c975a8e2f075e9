"""AB-E2 with the optimizer itself: one pass of AdaptiveBatchSGD over streaming logistic regression."""

from __future__ import annotations

import math
from typing import Any, ClassVar, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from fisheropt import AdaptiveBatchSampler, AdaptiveBatchSGD
from recipes import drawing
from recipes.studies.base import Finding, Findings, Picture, Study, StudyError, Tell
from recipes.studies.batch_logistic import LARGEST_STEPS, MODELS, RATES
from recipes.studies.batch_simulation import Logistic, Outcome

SMALLEST = 64
FIRST_SEED = 100


@final
class BatchOnePass(Study):
    """The last iterate of one pass, with the ladder of sizes, its hysteresis, and the metric that the optimizer measures.

    Args:
        seeds: data sets at each setting.
        samples: N of each.
        seed: unused: the data have seeds of their own.
    """

    title: ClassVar[str] = "AdaptiveBatchSGD, one pass"
    question: ClassVar[str] = (
        "Does the optimizer as users have it bring the last iterate of one pass near the statistical limit tr(H⁻¹G)/2n, at "
        "every step size, in few serial steps?"
    )
    reference: ClassVar[str] = "adaptive-batch, AB-E2"

    def __init__(self, seeds: int = 24, samples: int = 40_000, seed: int = 0) -> None:
        if seeds < 2:
            raise StudyError(f"seeds={seeds}: a standard error needs two at least.")
        self.seeds, self.samples, self.seed = seeds, samples, seed

    def run(self, tell: Tell) -> Findings:
        """Both models, each step size."""
        rows, outcomes = [], {}
        for place, (model, (square, tails, target)) in enumerate(MODELS.items()):
            problem = Logistic(square, tails, samples=self.samples)
            for index, lr in enumerate(RATES):
                tell((place + index / len(RATES)) / 2, f"{model}, η = {lr}")
                found = _over_seeds(problem, lr, self.seeds)
                outcomes[model, lr] = found
                what = f"{model}, η = {lr}"
                rows += [
                    Finding.between(f"{what}: excess", found.excess, None, target, error=found.error),
                    Finding.between(f"{what}: steps", found.steps, None, LARGEST_STEPS),
                ]
        return Findings(tuple(rows), (_picture(outcomes),))


def _over_seeds(problem: Logistic, lr: float, seeds: int) -> Outcome:
    runs = [one_pass(problem, lr, FIRST_SEED + seed) for seed in range(seeds)]
    excess = [excess for excess, _ in runs]
    error = float(np.std(excess, ddof=1)) / math.sqrt(seeds)
    return Outcome(float(np.mean(excess)), error, float(np.mean([steps for _, steps in runs])))


def one_pass(problem: Logistic, lr: float, seed: int) -> tuple[float, int]:
    """Excess risk of the last iterate in units of tr(H⁻¹G)/2n, and the steps that it took."""
    x, y = (torch.from_numpy(part) for part in problem.draw(problem.samples, np.random.default_rng(seed)))
    sampler = AdaptiveBatchSampler(TensorDataset(x, y), SMALLEST, min_batch_size=SMALLEST, seed=seed)
    model = nn.Linear(x.shape[1], 1, bias=False).double()
    nn.init.zeros_(model.weight)
    optimizer = AdaptiveBatchSGD(model, lr=lr, sampler=sampler, metric="curvature", likelihood="bernoulli")
    steps = 0
    for batch in sampler:
        F.binary_cross_entropy_with_logits(model(x[batch]).squeeze(1), y[batch]).backward()
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
    error = model.weight.detach()[0].numpy() - problem.optimum
    return float(error @ problem.hessian @ error) * problem.samples / problem.bound, steps


def _picture(outcomes: dict[tuple[str, float], Outcome]) -> Picture:
    def draw(axes: Any) -> None:
        for index, model in enumerate(MODELS):
            found = [outcomes[model, lr] for lr in RATES]
            bars = [2 * o.error for o in found]
            axes.errorbar(RATES, [o.excess for o in found], bars, fmt="o-", color=drawing.SERIES[index], label=model)
        axes.axhline(1.0, color=drawing.GREY, linewidth=1.0)
        axes.set_ylim(0, None)
        axes.set_xlabel("step size η")
        axes.set_ylabel("excess / limit")
        axes.legend(fontsize=8)

    return Picture(
        "Excess risk of the last iterate", "± 2 standard errors; the grey line is the statistical limit.", draw
    )
