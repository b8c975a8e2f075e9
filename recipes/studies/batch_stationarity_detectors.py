"""Detectors of stationarity on recorded inner products, and the chains of SGD that they watch."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from fisheropt.control import GradientNoise, Moment
from fisheropt.control.certified import Certified
from fisheropt.theory.stationarity import (
    FEWEST,
    batch_means,
    running_product,
    sasa_interval,
    stationarity_certificate,
)
from fisheropt.theory.tails import two_sided_quantile
from recipes.studies.glm_chains import Glm, batches

EVERY = 20
BATCHES = 10


@final
@dataclass(frozen=True)
class Watched:
    """What a run of SGD shows of itself, step by step.

    Attributes:
        squared: A_k [steps], unbiased squared norms of the gradient from inside the batch.
        lagged: C_k [steps], products of the gradients of steps k and k + 1.
        drift: z_k [steps], <x, g> - (η/2)|g|² of each step.
        gradients: g_k [steps, d].
        noise: V_k [steps], unbiased traces of the covariance of one sample's gradient.
        lr: η.
        batch_size: b.
    """

    squared: Tensor
    lagged: Tensor
    drift: Tensor
    gradients: Tensor
    noise: Tensor
    lr: float
    batch_size: int


class Detector(ABC):
    """Says when a history looks stationary; asked every 20 steps from the 60th."""

    name: ClassVar[str]
    in_a_row: ClassVar[int] = 1

    @abstractmethod
    def stationary(self, seen: Watched, steps: int) -> bool:
        """Whether the first `steps` steps look so."""

    def first(self, seen: Watched) -> float:
        """The step of its detection; infinity for none."""
        agreed = 0
        for steps in asked(len(seen.squared)):
            agreed = agreed + 1 if self.stationary(seen, steps) else 0
            if agreed == self.in_a_row:
                return float(steps)
        return math.inf


def asked(steps: int) -> Iterator[int]:
    """The lengths of history at which a detector is asked."""
    yield from range(FEWEST, steps + 1, EVERY)


@final
class Certificate(Detector):
    """The decrease of the loss is clearly below half of a noiseless step's, twice in a row."""

    name = "certificate"
    in_a_row = 2

    def stationary(self, seen: Watched, steps: int) -> bool:
        """By `fisheropt.theory.stationarity`."""
        return stationarity_certificate(seen.squared[:steps], seen.lagged[:steps], seen.lr).stationary


@final
class Controlled(Detector):
    """The controller that lowers the temperature by that certificate, driven step by step, up to its first change."""

    name = "controller Certified"

    def stationary(self, seen: Watched, steps: int) -> bool:
        """Whether it has changed the batch size within `steps` steps."""
        return self.first(seen) <= steps

    def first(self, seen: Watched) -> float:
        """The step of its first change; infinity for none."""
        rule = Certified()
        state = rule.initial_state()
        for step, (signal, noise) in enumerate(zip(seen.squared.tolist(), seen.noise.tolist(), strict=True), start=1):
            reading = GradientNoise(signal, noise, math.nan, seen.batch_size) if step % 10 == 1 else None
            past = Past(seen.gradients[:step])
            moment = Moment(seen.lr, seen.batch_size, step * seen.batch_size, (1.0, 1e9), sketches=past)
            state = rule.propose(state, reading, moment).state
            if state["changes"]:
                return float(step)
        return math.inf


@final
@dataclass(frozen=True)
class Past:
    """Gradients up to now in the place of their sketches.

    Args:
        gradients: [steps, d].
    """

    gradients: Tensor

    @property
    def steps(self) -> int:
        """How many there are."""
        return len(self.gradients)

    def last(self, steps: int) -> Tensor:
        """The newest [steps, d]."""
        return self.gradients[len(self.gradients) - steps :]

    def mean(self, latest: int, steps: int) -> Tensor:
        """Of `steps` consecutive ones, the newest of which lies `latest` steps back."""
        end = len(self.gradients) - latest
        return self.gradients[end - steps : end].mean(0)


@final
class SasaStatistic(Detector):
    """The interval of mean z on the last half holds zero."""

    name = "SASA+ statistic"

    def stationary(self, seen: Watched, steps: int) -> bool:
        """By batch means, as the certificate."""
        low, high = sasa_interval(seen.drift[steps // 2 : steps])
        return low <= 0 <= high


@final
class RunningSum(Detector):
    """The sum of all C since the start is negative."""

    name = "Chee-Toulis sum"

    def stationary(self, seen: Watched, steps: int) -> bool:
        """After Chee and Toulis, with no burn-in."""
        return bool(running_product(seen.lagged[:steps])[-1] < 0)


@final
class NotPositive(Detector):
    """The decrease of the loss, mean(A + C) on the last half, is not significantly positive at 5 %."""

    name = "not significantly positive"

    def stationary(self, seen: Watched, steps: int) -> bool:
        """One-sided, by batch means."""
        half = slice(steps // 2, steps)
        mean, error = batch_means(seen.squared[half] + seen.lagged[half])
        return mean <= two_sided_quantile(0.9, BATCHES - 1) * error


DETECTORS: tuple[Detector, ...] = (Certificate(), Controlled(), SasaStatistic(), RunningSum(), NotPositive())


@final
@dataclass(frozen=True)
class Chains:
    """Chains of SGD side by side, and the mean course of their excess risk.

    Attributes:
        watched: of each chain.
        excess: mean excess risk [times] over all chains.
        every: steps between two entries of `excess`.
    """

    watched: tuple[Watched, ...]
    excess: Tensor
    every: int

    def above(self, step: float, floor: float) -> float:
        """Mean excess at a step over the floor; the last known where the step is beyond."""
        return float(self.excess[min(int(step) // self.every, len(self.excess) - 1)]) / floor


def chains(
    model: Glm, lr: float, b: int, steps: int, number: int, watched: int, generator: torch.Generator, every: int = 10
) -> Chains:
    """Run them from zero, with batches drawn with replacement.

    Args:
        model: the data.
        lr: η.
        b: batch size.
        steps: of each.
        number: of chains, for the mean course.
        watched: of them that detectors see.
        generator: of the batches.
        every: steps between two measurements of the excess.
    """
    drawn = batches(len(model.x), b, number, generator)
    theta = torch.zeros(number, model.x.shape[1], dtype=torch.float64)
    best, excess = float(_losses(model, model.optimum()[None])), []
    squared, drift, gradients, traces = [], [], [], []
    for step in range(steps):
        if step % every == 0:
            excess.append(_losses(model, theta).mean() - best)
        scores = _scores(model, theta, next(drawn))
        g = scores.mean(1)
        norm, each = g.square().sum(1), scores.square().sum((1, 2))
        squared.append(((b * norm - each / b) / (b - 1))[:watched])
        traces.append(((each - b * norm) / (b - 1))[:watched])
        drift.append(((theta * g).sum(1) - lr / 2 * norm)[:watched])
        gradients.append(g[:watched])
        theta = theta - lr * g
    path = torch.stack(gradients)
    lagged = (path[:-1] * path[1:]).sum(2)
    columns = (torch.stack(squared)[:-1].T, lagged.T, torch.stack(drift)[:-1].T, path[:-1].transpose(0, 1))
    kept = zip(*columns, torch.stack(traces)[:-1].T, strict=True)
    return Chains(tuple(Watched(*seen, lr, b) for seen in kept), torch.stack(excess), every)


def _scores(model: Glm, theta: Tensor, chosen: Tensor) -> Tensor:
    """Gradients of the samples' losses [chains, b, d]."""
    x, y = model.x[chosen], model.y[chosen]
    residuals = model.mean((x @ theta[:, :, None])[..., 0]) - y
    return residuals[..., None] * x


def _losses(model: Glm, theta: Tensor) -> Tensor:
    """Mean logistic loss over all data for every chain [c]."""
    predictor = theta @ model.x.T
    return (torch.nn.functional.softplus(predictor) - predictor * model.y).mean(1)
