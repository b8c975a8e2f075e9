"""AB-R7: a linear decay of the step size against the batch schedule of equal temperature."""

from __future__ import annotations

import math
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from fisheropt.control import Controller, EqualTemperature, Fixed, LinearDecay, Moment
from recipes import drawing
from recipes.studies.arguments import require
from recipes.studies.base import Finding, Findings, Picture, Study, Tell
from recipes.studies.batch_conversion_loop import trained
from recipes.studies.batch_conversion_network import TRAINING, Networks, NoisyDigits, Plan

LR, BATCH = 0.3, 16
RULES: dict[str, Controller] = {"fixed": Fixed(), "linear decay": LinearDecay(), "batch schedule": EqualTemperature()}
KNOWN = {
    20: {"linear decay": 0.5319, "batch schedule": 0.5319, "fixed": 0.488, "steps": (1750, 878)},
    60: {"linear decay": 0.3768, "batch schedule": 0.3773, "steps": (5250, 2629)},
}
CLOSE, FEWER = 0.005, 0.55


@final
class BatchConversion(Study):
    """The network and data of AB-E3 at η = .3 from batches of 16, over two budgets.

    Args:
        seeds: starts, trained side by side along one plan of sizes.
        loops: starts trained by AdaptiveBatchSGD and its sampler, on shuffled epochs; 0 for none.
        epochs: budgets, in passes over the 1400 points.
        seed: of the starts and the batches.
    """

    title: ClassVar[str] = "A learning-rate schedule as a batch schedule"
    question: ClassVar[str] = (
        "At equal temperature η/b, does growing batches end where a linear decay of the step size ends, in half the steps? "
        "Both plans come from their controllers, asked step by step. Objective: cross-entropy on the training points, a "
        "tenth of them with wrong labels, and (λ/2)|θ|²."
    )
    reference: ClassVar[str] = "adaptive-batch, AB-R7; smith2018dont"

    def __init__(
        self, seeds: int = 16, loops: int = 4, epochs: tuple[int, ...] | list[int] = (20, 60), seed: int = 0
    ) -> None:
        require(seeds >= 2, f"seeds={seeds}", "seeds=2 or more: a standard error needs two")
        require(loops == 0 or loops >= 2, f"loops={loops}", "loops=0, or 2 or more")
        require(min(epochs) >= 1, f"epochs={list(epochs)}", "epochs=[20, 60]")
        self.seeds, self.loops, self.epochs, self.seed = seeds, loops, tuple(epochs), seed

    def run(self, tell: Tell) -> Findings:
        """Each budget: the plans side by side, then the loop of a user."""
        rows: list[Finding] = []
        plans: dict[str, Plan] = {}
        for index, epochs in enumerate(self.epochs):
            plans = {name: plan(rule, epochs * TRAINING) for name, rule in RULES.items()}
            tell(index / len(self.epochs), f"{epochs} epochs, the plans")
            rows += self._planned(epochs, plans)
            tell((index + 0.6) / len(self.epochs), f"{epochs} epochs, the optimizer")
            rows += self._looped(epochs) if self.loops else []
        return Findings(tuple(rows), (_picture(self.epochs[-1], plans),))

    def _planned(self, epochs: int, plans: dict[str, Plan]) -> list[Finding]:
        """All seeds along the plans, with batches drawn with replacement."""
        data, known = NoisyDigits(), KNOWN.get(epochs, {})
        ends: dict[str, Tensor] = {}
        rows = []
        for name, steps in plans.items():
            networks = Networks(self.seeds, torch.Generator().manual_seed(self.seed))
            networks.train(data, steps, LR, torch.Generator().manual_seed(self.seed + 1))
            ends[name] = networks.objective(data)
            clean = networks.accuracy(data)
            words = f"{len(steps)} steps; clean accuracy {100 * float(clean.mean()):.2f} ± {100 * _error(clean):.2f} %"
            rows.append(
                Finding.told(
                    f"{epochs} epochs: objective, {name}",
                    float(ends[name].mean()),
                    error=_error(ends[name]),
                    expected=known.get(name),
                    remark=words,
                )
            )
        return rows + _compared(f"{epochs} epochs", ends, plans, known.get("steps"))

    def _looped(self, epochs: int) -> list[Finding]:
        """The same through AdaptiveBatchSGD, whose sizes move on a ladder and whose epochs are shuffled."""
        data = NoisyDigits()
        ends: dict[str, Tensor] = {}
        steps: dict[str, Plan] = {}
        for name in ("linear decay", "batch schedule"):
            runs = [trained(data, RULES[name], epochs, LR, BATCH, self.seed + seed) for seed in range(self.loops)]
            ends[name], steps[name] = torch.tensor([end for end, _ in runs]), [(0, 0.0)] * runs[0][1]
        return _compared(f"{epochs} epochs, AdaptiveBatchSGD", ends, steps, None)


def plan(controller: Controller, budget: int) -> Plan:
    """What a controller that is asked at every step and told nothing of the noise makes of a budget of samples."""
    size, factor, seen, state, steps = float(BATCH), 1.0, 0, controller.initial_state(), []
    while seen < budget:
        whole = min(round(size), budget - seen)
        steps.append((whole, factor))
        seen += whole
        moment = Moment(LR, whole, seen, (1.0, math.inf), budget)
        proposal = controller.propose(state, None, moment)
        state, size, factor = proposal.state, min(proposal.batch_size, budget), proposal.lr_factor
    return steps


def _compared(
    where: str, ends: dict[str, Tensor], steps: dict[str, Plan], known: tuple[int, int] | None
) -> list[Finding]:
    """The difference in pairs, within .005; the largest of any pair is told; and the share of steps."""
    gaps = ends["batch schedule"] - ends["linear decay"]
    taken = [len(steps[name]) for name in ("linear decay", "batch schedule")]
    words = f"largest of {len(gaps)} pairs {float(gaps.abs().max()):.4f}"
    seen = f"{taken[1]} of {taken[0]} steps" + (f"; document {known[1]} of {known[0]}" if known else "")
    return [
        Finding.between(
            f"{where}: batch schedule less linear decay",
            float(gaps.mean()),
            -CLOSE,
            CLOSE,
            expected=0.0,
            error=_error(gaps),
            remark=words,
        ),
        Finding.between(f"{where}: share of the steps", taken[1] / taken[0], None, FEWER, remark=seen),
    ]


def _error(values: Tensor) -> float:
    return float(values.std()) / len(values) ** 0.5


def _picture(epochs: int, plans: dict[str, Plan]) -> Picture:
    def draw(axes: Any) -> None:
        above, below = axes
        for index, name in enumerate(("linear decay", "batch schedule")):
            sizes = torch.tensor([size for size, _ in plans[name]]).double()
            factors = torch.tensor([factor for _, factor in plans[name]]).double()
            share = (sizes.cumsum(0) - sizes) / sizes.sum()
            colour = drawing.SERIES[index]
            above.plot(share.tolist(), sizes.tolist(), color=colour, label=name)
            below.plot(share.tolist(), (LR * factors / sizes).tolist(), color=colour)
        above.set_yscale("log")
        above.set_ylabel("batch size")
        above.legend(fontsize=8)
        below.set_ylabel("temperature η/b")
        below.set_xlabel("share of the samples")

    words = "One temperature, two ways of reaching it: the batch schedule takes half the steps."
    return Picture(f"Sizes and temperatures, {epochs} epochs", words, draw, height=4.0, rows=2)
