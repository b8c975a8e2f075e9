"""AB-R2, R4 and R9: what rules do in pure noise, the exact recursion, and how well chunks measure the noise."""

from __future__ import annotations

from typing import ClassVar, final

import torch

from fisheropt.control import GOF, GradientNoise, InnerProduct, NormTest
from recipes.studies.base import Finding, Findings, Study, Tell


@final
class BatchLaws(Study):
    """Laws of the rules and of their estimators.

    Args:
        draws: gradients of pure noise, or sets of chunks.
        seed: of the draws.
    """

    title: ClassVar[str] = "Laws of batch-size rules"
    question: ClassVar[str] = (
        "Without any signal the sampled norm test asks for a batch larger by 1/θ² at every step, for ever, and the "
        "inner-product test for one smaller by 1/(θ²d): neither has a fixed point. With exact readings GO-F follows the "
        "efficient recursion to rounding. Chunks measure tr G with the standard deviation of the formula."
    )
    reference: ClassVar[str] = "adaptive-batch, AB-R2, AB-R4 and AB-R9"

    def __init__(self, draws: int = 4000, seed: int = 0) -> None:
        self.draws, self.seed = draws, seed

    def run(self, tell: Tell) -> Findings:
        """Each law."""
        generator = torch.Generator().manual_seed(self.seed)
        rows = self._pure_noise(generator)
        tell(0.5, "pure noise")
        rows.append(
            Finding.between(
                "R2: largest error of A(n₀ + n)/V under GO-F with exact readings", self._exact(), None, 1e-12
            )
        )
        rows += [self._chunks(m, generator) for m in (4, 8, 16)]
        return Findings(tuple(rows))

    def _pure_noise(self, generator: torch.Generator) -> list[Finding]:
        """Growth b'/b by the mean of ‖g‖², as the law has it, and its median over draws."""
        theta, b, d = 0.9, 64, 10
        spectrum = torch.linspace(0.2, 1.8, d, dtype=torch.float64)
        participation = float(spectrum.sum() ** 2 / spectrum.square().sum())
        noise = float(spectrum.sum())
        squared = (torch.randn(self.draws, d, generator=generator, dtype=torch.float64).square() * spectrum / b).sum(1)
        rows = []
        for name, rule, law in (
            ("norm test", NormTest(theta), 1 / theta**2),
            ("inner-product test", InnerProduct(theta), 1 / (theta**2 * participation)),
        ):
            mean = _growth(rule, float(squared.mean()), noise, participation, b)
            median = float(torch.tensor([_growth(rule, float(x), noise, participation, b) for x in squared]).median())
            rows.append(Finding.near(f"R4: growth of the {name} without signal", mean, law, relative=0.1))
            rows.append(
                Finding.told(
                    f"R4: its median over single readings, {name}", median, expected=1.33 if "norm" in name else None
                )
            )
        return rows

    def _exact(self) -> float:
        rule, eta, noise, signal, seen, worst = GOF(doubt=0.0, drift=0.0), 0.3, 20.0, 2.0, 0.0, 0.0
        state, size = rule.initial_state(), eta / (1 - eta) * noise / signal
        start = noise / signal
        for _ in range(30):
            measured = GradientNoise(signal, noise, 20.0, size)  # type: ignore[arg-type]
            seen += size
            signal = (1 - eta) ** 2 * signal + eta**2 * noise / size
            worst = max(worst, abs(signal * (start + seen) / noise - 1))
            state, size = rule.propose(state, measured, lr=eta, batch_size=size, samples=seen, bounds=(1.0, 1e9))  # type: ignore[arg-type]
        return worst

    def _chunks(self, chunks: int, generator: torch.Generator) -> Finding:
        """The standard deviation of V from the spread of chunk means, over √(2 tr G²/(M-1))."""
        spectrum = torch.linspace(0.2, 1.8, 10, dtype=torch.float64)
        means = torch.randn(self.draws, chunks, 10, generator=generator, dtype=torch.float64) * spectrum.sqrt()
        found = means.var(1).sum(1)
        ratio = float(found.std() / (2 * spectrum.square().sum() / (chunks - 1)).sqrt())
        error = ratio / (2 * self.draws) ** 0.5
        return Finding.near(
            f"R9: s.d. of V from {chunks} chunks over its formula", ratio, 1.0, absolute=0.03, error=error
        )


def _growth(rule: NormTest | InnerProduct, squared: float, noise: float, participation: float, b: int) -> float:
    measured = GradientNoise(squared - noise / b, noise, participation, b)
    _, wanted = rule.propose({}, measured, lr=0.1, batch_size=b, samples=b, bounds=(1e-9, 1e15))
    return wanted / b
