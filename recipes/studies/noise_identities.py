"""SN-X1 and SN-X6: identities that hold to rounding."""

from __future__ import annotations

import itertools
from typing import ClassVar, final

import torch

from recipes.studies.base import Finding, Findings, Study, Tell
from recipes.studies.glm_chains import logistic


@final
class NoiseIdentities(Study):
    """Every batch enumerated, and the exact recursion of growing batches.

    Args:
        seed: of the data.
    """

    title: ClassVar[str] = "Exact identities of minibatch noise"
    question: ClassVar[str] = (
        "Is the covariance of a batch drawn without replacement (1/b)(1 - b/n) S, and that of two disjoint batches -S/n? "
        "All batches of a small logistic model are enumerated. And does a Newton step with batches b = η/(1-η)·tr(PG)/A "
        "have the excess risk tr(H⁻¹G)/2(n₀+n) at every step, for every η?"
    )
    reference: ClassVar[str] = "zantedeschi2026, SN-X1 and SN-X6"

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def run(self, tell: Tell) -> Findings:
        """Enumerate, then iterate."""
        within, between = self._enumerated(n=9, b=4)
        tell(0.5, "batches enumerated")
        recursion = [(eta, self._recursion(eta)) for eta in (0.1, 0.3, 0.5, 0.8)]
        rows = [
            Finding.between("X1: largest error of Cov(batch mean), all C(9,4) batches", within, None, 1e-14),
            Finding.between("X1: largest error of Cov(two disjoint batches) = -S/n", between, None, 1e-14),
        ]
        rows += [
            Finding.between(f"X6: largest |A_k (n₀ + n_k)/tr(PG) - 1| over 60 steps, η = {eta}", error, None, 1e-12)
            for eta, error in recursion
        ]
        return Findings(tuple(rows))

    def _enumerated(self, n: int, b: int) -> tuple[float, float]:
        generator = torch.Generator().manual_seed(self.seed)
        model = logistic(n, 3, 3.0, generator)
        scores = model.scores(torch.zeros(3, dtype=torch.float64))
        centred, S = scores - scores.mean(0), torch.cov(scores.T)
        means, crossed = [], torch.zeros(3, 3, dtype=torch.float64)
        count = 0
        for batch in itertools.combinations(range(n), b):
            rest = [i for i in range(n) if i not in batch]
            mean = centred[list(batch)].mean(0)
            means.append(mean)
            for other in itertools.combinations(rest, b):
                crossed += torch.outer(mean, centred[list(other)].mean(0))
                count += 1
        stacked = torch.stack(means)
        found = stacked.T @ stacked / len(stacked)
        return float((found - (1 - b / n) * S / b).abs().max()), float((crossed / count + S / n).abs().max())

    def _recursion(self, eta: float) -> float:
        """A <- (1-η)² A + η² V/b with P = H⁻¹, in exact moments."""
        noise, signal, seen, worst = 20.0, 2.0, 0.0, 0.0
        start = noise / signal
        for _ in range(60):
            size = eta / (1 - eta) * noise / signal
            signal = (1 - eta) ** 2 * signal + eta**2 * noise / size
            seen += size
            worst = max(worst, abs(signal * (start + seen) / noise - 1))
        return worst
