"""The squared gradient A as a filter sees it: a prediction for every step, a correction by every reading."""

import math
from typing import NamedTuple

from fisheropt.control.base import GradientNoise

SMALLEST_SIGNAL = 0.05
LARGEST_LOG_ODDS = 50.0


class Noise(NamedTuple):
    """V and d, averaged over readings."""

    trace: float
    participation: float

    def error(self, signal: float, batch: float) -> float:
        """Variance of a reading of A on b samples: (2 (V/b)^2 + 4 A V/b)/d."""
        share = self.trace / batch
        return (2.0 * share**2 + 4.0 * signal * share) / self.participation


class Belief(NamedTuple):
    """Mean and variance of A."""

    signal: float
    variance: float

    def after(self, steps: int, step: float, batch: float, noise: Noise, drift: float) -> "Belief":
        """A <- (1-e)^2 A + e^2 V/b for each of the steps e, which misses a part of size `drift` A."""
        if not steps:
            return self
        kept, added = (1.0 - step) ** 2, step**2 * noise.trace / batch
        spread = (2.0 * added**2 + 4.0 * kept * self.signal * added) / noise.participation
        return Belief(
            kept**steps * self.signal + added * _geometric(kept, steps),
            kept ** (2 * steps) * self.variance
            + spread * _geometric(kept**2, steps)
            + steps * (drift * self.signal) ** 2,
        )

    def given(self, reading: GradientNoise, step: float, noise: Noise) -> tuple["Belief", float]:
        """Kalman's correction, and the log-likelihood of the reading.

        A stays above a fraction of what the noise of one step alone makes of it, however low the reading.
        """
        error = noise.error(self.signal, reading.batch_size)
        total = self.variance + error
        surprise = reading.signal - self.signal
        floor = SMALLEST_SIGNAL * step * noise.trace / reading.batch_size
        signal = max(self.signal + self.variance / total * surprise, floor)
        distance = min(surprise**2 / total, 2.0 * LARGEST_LOG_ODDS)
        return Belief(signal, self.variance * (error / total)), -0.5 * (distance + math.log(total))


class Mixture(NamedTuple):
    """Two beliefs: the metric is right, a step contracts by 1 - eta; or slow, by 1 - eta h only."""

    right: Belief
    slow: Belief
    log_odds: float

    @staticmethod
    def first(reading: GradientNoise, lr: float, noise: Noise) -> "Mixture":
        """Both beliefs as the first reading has it."""
        signal = max(reading.signal, SMALLEST_SIGNAL * lr * noise.trace / reading.batch_size)
        belief = Belief(signal, noise.error(signal, reading.batch_size))
        return Mixture(belief, belief, 0.0)

    def after(self, steps: int, lr: float, slowness: float, batch: float, noise: Noise, drift: float) -> "Mixture":
        """Prediction over the steps, by both."""
        return Mixture(
            self.right.after(steps, lr, batch, noise, drift),
            self.slow.after(steps, lr * slowness, batch, noise, drift),
            self.log_odds,
        )

    def given(self, reading: GradientNoise, lr: float, slowness: float, noise: Noise, memory: float) -> "Mixture":
        """Correction of both, and of the odds between them; older evidence fades by `memory`."""
        right, likely = self.right.given(reading, lr, noise)
        slow, likely_slow = self.slow.given(reading, lr * slowness, noise)
        log_odds = memory * self.log_odds + likely_slow - likely
        return Mixture(right, slow, min(max(log_odds, -LARGEST_LOG_ODDS), LARGEST_LOG_ODDS))

    def best_batch(self, lr: float, slowness: float, noise: Noise, doubt: float) -> float:
        """The size that gains most information a sample, b = B/(sqrt(K A) - K).

        A step makes A' = K + B/b, K = E (1-e)^2 A, B = E e^2 V, and (1/A' - 1/A)/b is largest there. With
        one belief that is e/(1-e) V/A.
        """
        odds = doubt / (1.0 - doubt) * math.exp(self.log_odds)
        weight = odds / (1.0 + odds)
        terms = ((1.0 - weight, lr, self.right.signal), (weight, lr * slowness, self.slow.signal))
        signal = sum(w * a for w, _, a in terms)
        kept = sum(w * (1.0 - e) ** 2 * a for w, e, a in terms)
        added = sum(w * e**2 for w, e, _ in terms) * noise.trace
        return added / (math.sqrt(kept * signal) - kept)


def _geometric(ratio: float, count: int) -> float:
    """1 + ratio + ... + ratio^(count-1), for 0 <= ratio < 1."""
    return (1.0 - ratio**count) / (1.0 - ratio)
