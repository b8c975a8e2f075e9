"""FF-E5: a penalty on the smallest Fisher eigenvalue keeps separable data from taking the parameters to infinity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fisheropt import FisherFloorPenalty
from recipes.drawing import BLUE, DASHED, GREEN, GREY, INK, RED
from recipes.studies.arguments import require
from recipes.studies.base import Finding, Findings, Picture, Study, Tell
from recipes.studies.floor_logistic import Data, Penalty, descend, draw

HEAVY, LIGHT, HUGE = 1000.0, 10.0, 1e5
HELD = 0.95
BESIDE = 500
SPAN = "1.00 to 1.17"
LOOKS = 300


@final
@dataclass(frozen=True)
class Run:
    """A descent: steps, and per look and data set |θ|, the loss and λ_min/τ, [looks, s]."""

    steps: list[int]
    lengths: Tensor
    losses: Tensor
    ratios: Tensor


@final
class FloorPenalty(Study):
    """Descent on separable data with no penalty, a heavy hinge, a light hinge, and a squared hinge with tiny steps."""

    title: ClassVar[str] = "The floor as a penalty, on separable data"
    question: ClassVar[str] = (
        "Does a·max(0, 1 - λ_min/τ) hold the smallest Fisher eigenvalue where plain descent loses it? Logistic models, "
        "d = 20, n/d = 1.5, separable; τ is half of λ_min at θ = 0, and the gradient is clipped to norm 1."
    )
    reference: ClassVar[str] = "after huang2025spectral; FF-E5"

    def __init__(
        self, dimension: int = 20, samples: int = 30, runs: int = 8, steps: int = 5000, lr: float = 0.1, seed: int = 0
    ) -> None:
        """Take d, n, the number of data sets, steps of descent and their size."""
        require(0 < dimension < samples, f"dimension={dimension}, samples={samples}", "dimension=20 samples=30")
        require(runs > 0 and steps > 0 and lr > 0, f"runs={runs}, steps={steps}, lr={lr}", "runs=8 steps=5000 lr=.1")
        self.dimension, self.samples, self.runs, self.steps, self.lr = dimension, samples, runs, steps, lr
        self.seed = seed

    def run(self, tell: Tell) -> Findings:
        generator = torch.Generator().manual_seed(self.seed)
        data = draw(self.runs, self.samples, self.dimension, generator, separable=True)
        start = torch.linalg.eigvalsh(data.fisher(data.x.new_zeros(self.runs, self.dimension)))[:, 0]
        runs: dict[str, Run] = {}
        for number, (name, penalty, lr) in enumerate(
            (
                ("none", Penalty(start / 2, 0.0), self.lr),
                ("heavy", Penalty(start / 2, HEAVY), self.lr),
                ("light", Penalty(start / 2, LIGHT), self.lr),
                ("squared", Penalty(start / 2, HUGE, squared=True), 1 / HUGE),
            ),
            start=1,
        ):
            runs[name] = self._descend(data, penalty, lr)
            tell(number / 4, f"{name} penalty")
        beside = self._beside_torch(Data(data.x[:1], data.y[:1]), start[:1] / 2)
        rows = (*_held(runs["heavy"]), *beside, *_lost(runs["none"], runs["light"]), _stalled(runs["squared"]))
        return Findings(rows, (_picture(runs),))

    def _descend(self, data: Data, penalty: Penalty, lr: float) -> Run:
        steps: list[int] = []
        seen: list[tuple[Tensor, Tensor, Tensor]] = []

        def watch(step: int, theta: Tensor, least: Tensor) -> None:
            steps.append(step)
            seen.append((theta.norm(dim=1), data.loss(theta), least / penalty.tau))

        descend(data, self.steps, lr, penalty=penalty, max_norm=1.0, watch=watch, every=max(1, self.steps // LOOKS))
        lengths, losses, ratios = (torch.stack(parts) for parts in zip(*seen, strict=True))
        return Run(steps, lengths, losses, ratios)

    def _beside_torch(self, data: Data, tau: Tensor) -> list[Finding]:
        """The first data set by torch.optim.SGD with FisherFloorPenalty added to its loss, against the descent here."""
        steps = min(self.steps, BESIDE)
        model = nn.Linear(self.dimension, 1, bias=False, dtype=torch.float64)
        nn.init.zeros_(model.weight)
        optimizer = torch.optim.SGD(model.parameters(), lr=self.lr)
        penalty = FisherFloorPenalty(model, "bernoulli", floor=float(tau), weight=HEAVY * float(tau))
        for _ in range(steps):
            optimizer.zero_grad()
            loss = F.binary_cross_entropy_with_logits(model(data.x[0])[:, 0], data.y[0])
            (loss + penalty(data.x[0])).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        theta = descend(data, steps, self.lr, penalty=Penalty(tau, HEAVY), max_norm=1.0)
        away = float((model.weight.detach() - theta).norm() / theta.norm())
        ratio = float(torch.linalg.eigvalsh(data.fisher(model.weight.detach()))[0, 0] / tau)
        name = f"FisherFloorPenalty beside torch.optim.SGD, {steps} steps: "
        return [
            Finding.between(name + "λ_min/τ", ratio, 0.95, 1.22, expected=SPAN),
            Finding.between(name + "relative distance of θ from the descent here", away, None, 1e-3, expected=0.0),
        ]


def _held(heavy: Run) -> list[Finding]:
    touched = (heavy.ratios < 1 + 0.05).double().argmax(0)
    runs = torch.arange(heavy.ratios.shape[1])
    length, loss = heavy.lengths[touched, runs].median(), heavy.losses[touched, runs].median()
    ends = f"at the end |θ| = {float(heavy.lengths[-1].median()):.2g}, loss {float(heavy.losses[-1].median()):.2g}"
    when = f"the document does not say after how many steps; {ends}"
    name = "a/τ = 1000: "
    return [
        Finding.between(name + "smallest λ_min/τ at the end", float(heavy.ratios[-1].min()), 0.95, 1.22, expected=SPAN),
        Finding.between(name + "largest λ_min/τ at the end", float(heavy.ratios[-1].max()), 0.95, 1.22, expected=SPAN),
        Finding.between(name + "|θ| where the floor is met, median", float(length), None, 2.2 + 0.05, expected="at most 2.2",
                        remark=when),
        Finding.between(name + "loss where the floor is met, median", float(loss), 0.30 - 0.05, 0.34 + 0.05,
                        expected="0.30 to 0.34", remark=when),
    ]  # fmt: skip


def _lost(none: Run, light: Run) -> list[Finding]:
    ends = f"λ_min/τ {float(light.ratios[-1].min()):.2g} to {float(light.ratios[-1].max()):.2g}, document .015 to .14"
    failed = float((light.ratios[-1] < HELD).double().mean())
    return [
        Finding.between("no penalty: largest λ_min/τ at the end", float(none.ratios[-1].max()), None, 0.1),
        Finding.between("a/τ = 10: share of data sets that fail", failed, 0.5, None, expected="3 of 4", remark=ends),
    ]


def _stalled(squared: Run) -> Finding:
    return Finding.between(
        "squared hinge, a/τ = 1e5, step 1e-5: median λ_min/τ at the end",
        float(squared.ratios[-1].median()),
        1.5,
        2.0 + 1e-9,
        expected="up to 2.0",
        remark=f"stalls at |θ| = {float(squared.lengths[-1].median()):.2g}: clip a long step rather than shrink every step",
    )


def _picture(runs: dict[str, Run]) -> Picture:
    def draw_on(axes: Any) -> None:
        for name, colour, label in (
            ("none", RED, "no penalty"),
            ("light", GREY, "hinge, a/τ = 10"),
            ("heavy", BLUE, "hinge, a/τ = 1000"),
            ("squared", GREEN, "squared hinge, tiny steps"),
        ):
            run = runs[name]
            steps = [max(step, 1) for step in run.steps]
            for column in range(run.ratios.shape[1]):
                axes.plot(steps, run.ratios[:, column].clamp(min=1e-6), color=colour, linewidth=0.9, alpha=0.8,
                          label=label if column == 0 else None)  # fmt: skip
        axes.axhline(1, color=INK, linestyle=DASHED, linewidth=1.2)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("step")
        axes.set_ylabel("λ_min/τ")
        axes.legend(loc="lower left", fontsize=8.5)

    return Picture(
        "The floor over training",
        "A heavy hinge holds every data set at the dashed floor; a light one does not.",
        draw_on,
    )
