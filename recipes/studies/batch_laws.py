"""AB-R2, R4, R7 and R9: rules in pure noise, the exact recursion, temperatures of schedules, and the error of chunks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar, final

import torch
from torch import Tensor

from fisheropt.control import (
    CABS,
    GOF,
    AdaScale,
    Controller,
    EqualTemperature,
    GradientNoise,
    InnerProduct,
    LinearDecay,
    Moment,
    NormTest,
    Proposal,
    Seesaw,
    Smith,
    as_batches,
)
from fisheropt.control.schedule import cosine, linear
from recipes.studies.base import Finding, Findings, Study, Tell

EXACT = 1e-12
TIGHT = 200.0


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
        "efficient recursion to rounding, and goes on at the largest batch by its step. CABS stays where the loss does, "
        "AdaScale's gain is all of b/b₀ in noise and nothing in signal, and each schedule has the temperature that it "
        "claims. Chunks measure tr G with the standard deviation of the formula."
    )
    reference: ClassVar[str] = "adaptive-batch, AB-R2, AB-R4, AB-R7 and AB-R9; weaknesses 1 to 3"

    def __init__(self, draws: int = 4000, seed: int = 0) -> None:
        self.draws, self.seed = draws, seed

    def run(self, tell: Tell) -> Findings:
        """Each law."""
        generator = torch.Generator().manual_seed(self.seed)
        rows = self._pure_noise(generator)
        tell(0.5, "pure noise")
        rows += _recursions()
        rows += [self._chunks(m, generator) for m in (4, 8, 16)]
        tell(0.9, "baselines")
        rows += [self._participation(generator), *_cabs(), *self._adascale(generator), *_temperatures(), *_steps()]
        return Findings(tuple(rows))

    def _pure_noise(self, generator: torch.Generator) -> list[Finding]:
        """Growth b'/b by the mean of ‖g‖², as the law has it, and its median over draws."""
        theta, b, d = 0.9, 64, 10
        spectrum = torch.linspace(0.2, 1.8, d, dtype=torch.float64)
        participation = float(spectrum.sum() ** 2 / spectrum.square().sum())
        noise = float(spectrum.sum())
        squared = self._norms(spectrum, b, generator)
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

    def _norms(self, spectrum: Tensor, b: int, generator: torch.Generator) -> Tensor:
        """‖g‖² of batches without any signal [draws]."""
        noise = torch.randn(self.draws, len(spectrum), generator=generator, dtype=torch.float64)
        return (noise.square() * spectrum / b).sum(1)

    def _participation(self, generator: torch.Generator) -> Finding:
        """The inner-product test at the d for which its growth is .0995."""
        b, theta, participation = 64, 0.9, 1 / (0.9**2 * 0.0995)
        spread = math.sqrt(3 * (14 / participation - 1) * 13 / 15)  # 14 evenly spaced values of that participation
        spectrum = torch.linspace(1 - spread, 1 + spread, 14, dtype=torch.float64)
        found = float(spectrum.sum() ** 2 / spectrum.square().sum())
        squared = self._norms(spectrum, b, generator)
        growth = _growth(InnerProduct(theta), float(squared.mean()), float(spectrum.sum()), found, b)
        error = growth * float(squared.std() / squared.mean()) / self.draws**0.5
        what = f"R4: growth of the inner-product test without signal, d = {found:.1f}"
        return Finding.near(what, growth, 0.0995, relative=0.1, error=error, remark="earlier measurement .098")

    def _adascale(self, generator: torch.Generator) -> list[Finding]:
        """The gain of batches eight times larger, from exact readings; and from noisy ones, whose A is seen above 0."""
        base, scale, noise = 32, 8, 10.0
        rows = []
        for what, signal, law in (("noise", 0.0, float(scale)), ("signal", 1e9, 1.0)):
            gain = _last(AdaScale(base), [GradientNoise(signal, noise, 10.0, base * scale)] * 100).lr_factor
            rows.append(Finding.near(f"AdaScale's gain in pure {what}, b = 8 b₀", gain, law, relative=1e-6))
        b, spectrum = base * scale, torch.ones(10, dtype=torch.float64)
        norms = self._norms(spectrum, b, generator).tolist()
        last = _last(AdaScale(base), [GradientNoise(x - noise / b, noise, 10.0, b) for x in norms])
        what, words = "its mean over a run in pure noise", "V exact; a positive average of A is held to be signal"
        return [*rows, Finding.told(what, last.state["progress"] / self.draws, expected=8.0, remark=words)]

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
    return rule.propose(rule.initial_state(), measured, Moment(0.1, b, b, (1e-9, 1e15))).batch_size / b


def _recursions() -> list[Finding]:
    """How far A is from V/(n₀ + n), with exact readings."""
    rules: dict[str, Controller] = {"GO-F": GOF(doubt=0.0, drift=0.0), "the norm test at θ = 1 - η": NormTest()}
    rows = [("GO-F", 1e9), *((name, TIGHT) for name in rules)]
    return [
        Finding.between(
            f"R2: largest error of A(n₀ + n)/V under {name} with exact readings"
            + (f", b ≤ {largest:.0f}" if largest == TIGHT else ""),
            _departure(rules[name], largest),
            None,
            EXACT,
        )
        for name, largest in rows
    ]


def _departure(rule: Controller, largest: float) -> float:
    eta, noise, signal, seen, worst = 0.3, 20.0, 2.0, 0.0, 0.0
    start = noise / signal
    proposal = Proposal(eta / (1 - eta) * start, rule.initial_state())
    for _ in range(30):
        size, step = proposal.batch_size, eta * proposal.lr_factor
        measured = GradientNoise(signal, noise, 20.0, size)  # type: ignore[arg-type]
        seen += size
        signal = (1 - step) ** 2 * signal + step**2 * noise / size
        worst = max(worst, abs(signal * (start + seen) / noise - 1))
        moment = Moment(eta, size, seen, (1.0, largest))  # type: ignore[arg-type]
        proposal = rule.propose(proposal.state, measured, moment)
    return worst


def _cabs() -> list[Finding]:
    """b over η tr G/L* at the irreducible loss, before and after the signal is gone."""
    eta, noise, loss = 0.1, 400.0, 0.05
    rows = []
    for signal in (1.0, 0.0):
        size = _last(CABS(), [GradientNoise(signal, noise, 10.0, 64)] * 100, lr=eta, loss=loss).batch_size
        what = f"CABS: b over η tr G/L*, A = {signal:.0f}"
        rows.append(Finding.near(what, size * loss / (eta * noise), 1.0, relative=EXACT))
    return rows


def _temperatures() -> list[Finding]:
    """Largest relative error of the temperature that each schedule claims, and of the same in a tight bound."""
    budget, start = 60_000, 48.0
    smith, seesaw = Smith(), Seesaw()
    claims = (
        ("linear decay", LinearDecay(), linear, 1.0),
        ("equal temperature", EqualTemperature(), linear, 1.0),
        ("Smith", smith, lambda spent: smith.factor ** -sum(spent >= begin for begin in smith.stages), 1.0),
        ("Seesaw", seesaw, lambda spent: seesaw.cut ** math.floor(math.log(cosine(spent), seesaw.cut) + 1e-9), 0.5),
    )
    rows = []
    for name, rule, claim, power in claims:
        for largest in (math.inf, TIGHT):
            worst = max(
                abs(factor / (size / start) ** power / claim(seen / budget) - 1)
                for seen, size, factor in _plan(rule, budget, start, largest)
            )
            bound = "" if largest == math.inf else f", b ≤ {largest:.0f}"
            temperature = "η/b" if power == 1.0 else "η/√b"
            rows.append(Finding.between(f"largest error of {temperature} in {name}{bound}", worst, None, EXACT))
    return rows


def _steps() -> list[Finding]:
    """AB-R7: serial steps of a linear decay, and of a batch that grows at equal temperature."""
    return [
        Finding.near(
            f"R7: steps of {name}, {budget} samples, b₀ = 16", len(as_batches("linear", budget, 16, bounds)), known
        )
        for budget, decay, growth in ((28_000, 1750, 878), (84_000, 5250, 2629))
        for name, bounds, known in (("linear decay", (16, 16), decay), ("batch growth", (1, math.inf), growth))
    ]


def _plan(rule: Controller, budget: int, start: float, largest: float) -> Iterator[tuple[float, float, float]]:
    """Samples before a step, its size and its factor."""
    proposal, seen = Proposal(start, rule.initial_state()), 0.0
    while seen < budget:
        yield seen, proposal.batch_size, proposal.lr_factor
        seen += proposal.batch_size
        moment = Moment(0.1, proposal.batch_size, seen, (1.0, largest), budget)  # type: ignore[arg-type]
        proposal = rule.propose(proposal.state, None, moment)


def _last(rule: Controller, readings: list[GradientNoise], lr: float = 0.1, loss: float = 1.0) -> Proposal:
    """The proposal after all readings, made on batches of their size."""
    proposal, seen = Proposal(0.0, rule.initial_state()), 0
    for reading in readings:
        seen += reading.batch_size
        moment = Moment(lr, reading.batch_size, seen, (1e-9, 1e15), loss=loss)
        proposal = rule.propose(proposal.state, reading, moment)
    return proposal
