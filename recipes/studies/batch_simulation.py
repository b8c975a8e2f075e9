"""One pass over a stream under a controller, and the excess risk of its last iterate in units of tr(H^-1 G)/2n.

Numpy, as batches are many, small and of changing size. AB-E1: linear regression with the exact metric. AB-E2: streaming
logistic regression with a running estimate of the metric.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, final

import numpy as np
from numpy.typing import NDArray

from fisheropt.control import Controller, GradientNoise, Moment, Proposal

LARGEST_BATCH = 1e6
Array = NDArray[np.float64]
Choose = Callable[[int, float], int]
"""The next batch size from the last one and the proposal."""


class Stream(Protocol):
    """Data without end, a starting point, and the metric to step in."""

    samples: int
    optimum: Array
    hessian: Array
    bound: float

    def start(self, rng: np.random.Generator) -> Array:
        """Parameters before the first sample."""
        ...

    def gradients(self, theta: Array, size: int, rng: np.random.Generator) -> Array:
        """Gradients of fresh samples [size, d]."""
        ...

    def metric(self) -> Array:
        """P [d, d], from what was seen so far."""
        ...


@final
@dataclass
class Linear:
    """Features of variance h_i log-spaced over a factor 50, unit noise, P = H^-1; starts at A = 2."""

    width: int = 20
    samples: int = 20_000
    hessian: Array = field(init=False)

    def __post_init__(self) -> None:
        self.hessian = np.diag(np.logspace(0, -math.log10(50), self.width))
        self.optimum, self.bound = np.zeros(self.width), float(self.width)

    def start(self, rng: np.random.Generator) -> Array:
        """A random direction of length √2 in the metric."""
        direction = rng.standard_normal(self.width)
        return math.sqrt(2.0) * direction / np.linalg.norm(direction) / np.sqrt(self.hessian.diagonal())

    def gradients(self, theta: Array, size: int, rng: np.random.Generator) -> Array:
        """Of the squared residual over two."""
        x = rng.standard_normal((size, self.width)) * np.sqrt(self.hessian.diagonal())
        return x * (x @ theta - rng.standard_normal(size))[:, None]

    def metric(self) -> Array:
        """The exact one."""
        return np.diag(1 / self.hessian.diagonal())


@final
class Logistic:
    """Features of variances over a factor 100.

    Args:
        square: coefficient of a square that the model lacks; 0 where it is well specified.
        tails: degrees of freedom of the features' tails.
        width: d.
        samples: N.
    """

    def __init__(self, square: float = 0.0, tails: float = math.inf, width: int = 20, samples: int = 40_000) -> None:
        rng = np.random.default_rng(0)
        self.samples, self.square, self.tails = samples, square, tails
        self.scale = np.logspace(0, -1, width)
        theta = rng.standard_normal(width)
        self.theta = 2.0 * theta / np.linalg.norm(theta * self.scale)
        x, y = self.draw(200_000, rng)
        self.optimum = self.theta.copy()
        for _ in range(8 if square else 1):
            p = 1 / (1 + np.exp(-x @ self.optimum))
            self.hessian = (x * (p * (1 - p))[:, None]).T @ x / len(x)
            if square:
                self.optimum = self.optimum - np.linalg.solve(self.hessian, x.T @ (p - y) / len(x))
        scores = x * (p - y)[:, None]
        self.bound = float(np.trace(np.linalg.solve(self.hessian, scores.T @ scores / len(x))))

    def draw(self, size: int, rng: np.random.Generator) -> tuple[Array, Array]:
        """Features [size, d] and labels [size]."""
        x = rng.standard_normal((size, len(self.scale))) * self.scale
        if math.isfinite(self.tails):
            x *= np.sqrt((self.tails - 2) / rng.chisquare(self.tails, size))[:, None]
        logit = x @ self.theta + self.square * (x[:, 0] ** 2 - 1)
        return x, (rng.random(size) < 1 / (1 + np.exp(-logit))).astype(float)

    def start(self, rng: np.random.Generator) -> Array:
        """Zero, with nothing seen."""
        self.seen, self.fisher = 0, np.zeros_like(self.hessian)
        return np.zeros_like(self.theta)

    def gradients(self, theta: Array, size: int, rng: np.random.Generator) -> Array:
        """Of the log loss; the running model Fisher takes them in."""
        x, y = self.draw(size, rng)
        p = 1 / (1 + np.exp(-x @ theta))
        self.seen += size
        weight = max(0.1, size / self.seen)
        self.fisher = self.fisher + weight * ((x * (p * (1 - p))[:, None]).T @ x / size - self.fisher)
        return x * (p - y)[:, None]

    def metric(self) -> Array:
        """The inverse of the running model Fisher, damped."""
        damping = np.trace(self.fisher) * (1e-3 / len(self.theta) + 1 / self.seen)
        return np.linalg.inv(self.fisher + damping * np.eye(len(self.theta)))


def reading(gradients: Array, metric: Array) -> GradientNoise:
    """A, V and the participation of a batch."""
    size, mean = len(gradients), gradients.mean(0)
    centred = (gradients - mean) @ np.linalg.cholesky(metric)
    covariance = centred.T @ centred / (size - 1)
    noise = float(np.trace(covariance))
    fourth = float((np.square(centred).sum(1) ** 2).mean())
    square = (float(np.square(covariance).sum()) - fourth / size) * size / (size - 1)
    participation = noise**2 / square if square > 0 else math.nan
    return GradientNoise(float(mean @ metric @ mean) - noise / size, noise, participation, size)


def whole(_: int, proposed: float) -> int:
    """The proposal itself, in whole samples."""
    return round(proposed)


def one_pass(
    problem: Stream, controller: Controller, lr: float, smallest: int, seed: int, choose: Choose = whole
) -> tuple[float, int]:
    """Excess risk over its bound, and the steps that it took."""
    rng = np.random.default_rng(seed)
    theta, size, seen, steps = problem.start(rng), smallest, 0, 0
    proposal = Proposal(smallest, controller.initial_state())
    while seen < problem.samples:
        gradients = problem.gradients(theta, size, rng)
        metric = problem.metric()
        seen, steps = seen + size, steps + 1
        theta = theta - lr * proposal.lr_factor * metric @ gradients.mean(0)
        moment = Moment(lr, size, seen, (smallest, LARGEST_BATCH), problem.samples)
        proposal = controller.propose(proposal.state, reading(gradients, metric), moment)
        size = choose(size, proposal.batch_size)
    error = theta - problem.optimum
    return float(error @ problem.hessian @ error) * seen / problem.bound, steps


@final
@dataclass(frozen=True)
class Outcome:
    """Mean excess over seeds with its standard error, and the mean number of steps."""

    excess: float
    error: float
    steps: float


def over_seeds(
    problem: Stream, controller: Controller, lr: float, smallest: int, seeds: int, choose: Choose = whole
) -> Outcome:
    """The same for the seeds 0 to `seeds` - 1."""
    runs = [one_pass(problem, controller, lr, smallest, seed, choose) for seed in range(seeds)]
    excess = np.array([excess for excess, _ in runs])
    error = float(excess.std(ddof=1)) / seeds**0.5 if seeds > 1 else math.nan
    return Outcome(float(excess.mean()), error, float(np.mean([steps for _, steps in runs])))
