"""The excess risk of a quadratic under a schedule of the temperature, and the schedule that ends lowest.

Modes of curvature h_i and noise g_i with excess e_i, on a clock n of samples:
de_i/dn = tau (-2 h_i e_i + tau h_i g_i/2). Short-sighted rules anneal for the fast modes and freeze the slow ones; the
optimum weighs a mode by what will be left of it at the end, w_i = exp(-2 h_i int_n^N tau). All of this is ours.
"""

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor

from fisheropt.theory.arguments import checked_positive

Rule = Callable[[Tensor, float, float], float]
"""Temperature of the next samples from the excess [d], the samples left, and the last temperature."""

_SWEEPS = 40
_MIXING = 0.5


@final
class Quadratic:
    """Modes of a quadratic objective.

    Args:
        h: Curvatures [d].
        g: Noise, the variance of one sample's gradient, [d].
        start: Excess risk e(0) [d].
        samples: N.
        points: Cells of a grid over the samples, finer at both ends; the temperature is constant in a cell.

    Reference: zantedeschi2026
    """

    def __init__(self, h: Tensor, g: Tensor, start: Tensor, samples: float, points: int = 1200) -> None:
        shapes = {tuple(x.shape) for x in (h, g, start)}
        if len(shapes) != 1 or h.ndim != 1 or not bool((h > 0).all()):
            raise ValueError(
                f"Quadratic(h, g, start): give three vectors of one length and h > 0, found shapes {shapes}"
            )
        self.h, self.g, self.start = h.double(), g.double(), start.double()
        self.samples, self.points = checked_positive(samples, "samples", "Quadratic"), points
        x = torch.linspace(0, 1, points + 1, dtype=torch.float64)
        self.grid = self.samples * x.square() * (3 - 2 * x)
        self.cells = self.grid.diff()

    @property
    def unit(self) -> float:
        """tr(H^-1 G)/2N, the excess risk of the best estimate from N samples."""
        return float((self.g / self.h).sum()) / (2 * self.samples)

    def advance(self, excess: Tensor, temperature: Tensor | float, samples: float) -> Tensor:
        """The excess [..., d] after so many samples at one temperature, exactly."""
        tau = torch.as_tensor(temperature, dtype=torch.float64)[..., None]
        kept = torch.exp(-2 * self.h * tau * samples)
        return excess * kept + tau * self.g / 4 * (1 - kept)

    def constant(self, temperature: Tensor) -> Tensor:
        """Final excess risk at constant temperatures [c], in units of tr(H^-1 G)/2N."""
        return self.advance(self.start, temperature, self.samples).sum(-1) / self.unit

    def scheduled(self, temperatures: Tensor) -> Tensor:
        """Final excess risk under schedules [points, ...], in units of tr(H^-1 G)/2N."""
        excess = self.start.expand(*temperatures.shape[1:], -1)
        for tau, cell in zip(temperatures, self.cells.tolist(), strict=True):
            excess = self.advance(excess, tau, cell)
        return excess.sum(-1) / self.unit

    def ruled(self, rule: Rule) -> tuple[float, Tensor]:
        """Final excess risk under a rule that sees the present excess, and the temperatures [points] it chose."""
        excess, tau, chosen = self.start, 0.0, []
        for seen, cell in zip(self.grid.tolist(), self.cells.tolist(), strict=False):
            tau = rule(excess, self.samples - seen, tau)
            chosen.append(tau)
            excess = self.advance(excess, tau, cell)
        return float(excess.sum()) / self.unit, torch.tensor(chosen, dtype=torch.float64)

    def weighted(self, excess: Tensor, weights: Tensor) -> float:
        """Sum w_i 2 h_i e_i / sum w_i h_i g_i, the best temperature for the weighted sum of excesses."""
        return float((weights * 2 * self.h * excess).sum() / (weights * self.h * self.g).sum())

    def greedy(self, excess: Tensor, left: float, last: float) -> float:
        """The rule of the steepest decrease of the total excess now."""
        return self.weighted(excess, torch.ones_like(self.h))

    def fisher(self, excess: Tensor, left: float, last: float) -> float:
        """The same for the excess in the Fisher metric, w_i = 1/h_i."""
        return self.weighted(excess, 1 / self.h)

    def lagged(self, excess: Tensor, left: float, last: float) -> float:
        """Weights exp(-h_i tau n_left), which products of gradients that far apart supply; by continuation."""
        tau = last or self.greedy(excess, left, last)
        for _ in range(20):
            exponent = -self.h * tau * left
            tau = self.weighted(excess, torch.exp(exponent - exponent.max()))
        return tau

    def best(self) -> tuple[float, Tensor]:
        """Excess risk and temperatures [points] of Pontryagin's schedule, tau = sum w 2 h e / sum w h g."""
        scales = torch.logspace(-3, 1, 41, dtype=torch.float64) * float(self.h.sum() / self.g.sum())
        decay = 1 - self.grid[:-1, None] / self.samples
        trials = decay * scales
        outcomes = self.scheduled(trials)
        tau = trials[:, int(outcomes.argmin())]
        lowest, kept = float(outcomes.min()), tau
        for _ in range(_SWEEPS):
            tau = torch.exp((1 - _MIXING) * tau.log() + _MIXING * self._improved(tau).log())
            value = float(self.scheduled(tau))
            if value < lowest:
                lowest, kept = value, tau
        return lowest, kept

    def _improved(self, tau: Tensor) -> Tensor:
        """The temperatures that the excesses and the weights under `tau` ask for."""
        spent = tau * self.cells
        ahead = spent.flip(0).cumsum(0).flip(0) - spent / 2
        excess, wanted = self.start, torch.empty_like(tau)
        for point, value in enumerate(tau):
            exponent = -2 * self.h * ahead[point]
            wanted[point] = self.weighted(excess, torch.exp(exponent - exponent.max()))
            excess = self.advance(excess, value, float(self.cells[point]))
        return wanted.clamp_min(1e-30)
