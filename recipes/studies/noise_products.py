"""SN-X7: inner products of gradients, the gauge of stationarity and temperature."""

from __future__ import annotations

from typing import Any, ClassVar, final

import torch
from torch import Tensor

from recipes import drawing
from recipes.studies.base import Finding, Findings, Picture, Study, Tell
from recipes.studies.glm_chains import Glm, batches, descend, logistic


@final
class NoiseProducts(Study):
    """Within-batch and lag-one products on a logistic regression, transient and stationary.

    Args:
        chains: run side by side.
        steps: of each, half of them burn-in for the stationary part.
        seed: of data and batches.
    """

    title: ClassVar[str] = "Inner products of gradients"
    question: ClassVar[str] = (
        "A is the unbiased squared gradient norm from inside a batch, C the product of consecutive gradients. Is A + C = 0 "
        "at stationarity, and -(2/η) times the decrease of the loss before it? C alone, as in Pflug's test, turns negative "
        "long before."
    )
    reference: ClassVar[str] = "zantedeschi2026, SN-X7; sgd-noise 3.3"

    def __init__(self, chains: int = 400, steps: int = 1200, seed: int = 0) -> None:
        self.chains, self.steps, self.seed = chains, steps, seed

    def run(self, tell: Tell) -> Findings:
        """One run from far away, averaged over chains."""
        generator = torch.Generator().manual_seed(self.seed)
        model = logistic(4000, 10, 10.0, generator)
        lr, b = 0.8, 32
        A, C, losses = self._products(model, lr, b, generator, tell)
        half = self.steps // 2
        a, c = A[half:].mean(1), C[half:].mean(1)
        error = float((A[half:] + C[half:]).mean(0).std() / self.chains**0.5 / a.mean())
        gap = abs(float((a + c).mean() / a.mean()))
        rows = [
            Finding.between("X7: |A + C|/A at stationarity", gap, None, 0.05, expected=0.0, error=error),
            Finding.told("A at stationarity", float(a.mean()), expected=9.25e-3, remark="the document's data differ"),
            Finding.told("C at stationarity", float(c.mean()), expected=-9.27e-3),
        ]
        for first, last in ((0, 4), (4, 12), (12, 30)):
            decrease = -(2 / lr) * float(losses[last].mean() - losses[first].mean())
            total = float((A[first:last] + C[first:last]).mean(1).sum())
            spread = float((A[first:last] + C[first:last]).sum(0).std() / self.chains**0.5)
            what = f"Σ(A + C) over steps {first} to {last} against -(2/η) times the loss's change"
            rows.append(Finding.near(what, total, decrease, relative=0.04, absolute=3 * spread, error=spread))
        return Findings(tuple(rows), (_picture(A.mean(1), C.mean(1)),))

    def _products(self, model: Glm, lr: float, b: int, generator: torch.Generator, tell: Tell) -> tuple[Tensor, ...]:
        """A [steps - 1, chains], C [steps - 1, chains] and the losses [steps, chains]."""
        kept: list[Tensor] = []
        signal, losses = [], []
        n, every = len(model.x), max(1, self.steps // 10)
        drawn = batches(n, b, self.chains, generator)
        theta = torch.zeros(self.chains, model.x.shape[1], dtype=torch.float64)

        def see(step: int, at: Tensor, gradients: Tensor) -> None:
            other = model.gradients(at, next(halves))
            signal.append((gradients * other).sum(1))
            kept.append(gradients)
            losses.append(_losses(model, at) if step <= 30 else losses[-1])
            if step % every == 0:
                tell(step / self.steps, f"step {step}")

        halves = batches(n, b, self.chains, generator)
        descend(model, theta, drawn, lr, self.steps, see)
        path = torch.stack(kept)
        return torch.stack(signal)[:-1], (path[:-1] * path[1:]).sum(2), torch.stack(losses)


def _losses(model: Glm, theta: Tensor) -> Tensor:
    """Mean loss over all data for every chain [c]."""
    predictor = theta @ model.x.T
    return (torch.nn.functional.softplus(predictor) - predictor * model.y).mean(1)


def _picture(A: Tensor, C: Tensor) -> Picture:
    def draw(axes: Any) -> None:
        shown = 120
        axes.plot(range(shown), A[:shown], color=drawing.BLUE)
        axes.plot(range(shown), C[:shown], color=drawing.RED)
        axes.plot(range(shown), (A + C)[:shown], color=drawing.GREEN)
        axes.axhline(0, color=drawing.GREY, linewidth=1.0)
        axes.set_yscale("symlog", linthresh=5e-3)
        axes.set_xlabel("step")
        ends = [(float(A[shown]), "A", drawing.BLUE), (float(C[shown]), "C", drawing.RED)]
        for y, name, colour in ends:
            axes.annotate(name, (shown, y), color=colour, xytext=(4, 0), textcoords="offset points", va="center")
        axes.annotate("A + C", (shown, 0), color=drawing.GREEN, xytext=(4, 0), textcoords="offset points", va="center")

    return Picture("A, C and A + C", "C changes sign early; A + C reaches zero only at stationarity.", draw)
