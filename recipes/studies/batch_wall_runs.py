"""Training runs that take turns in one process, so that what else the machine does falls on all of them alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import final

import torch
from torch import nn
from torch.optim import Optimizer

from fisheropt import AdaptiveBatchSampler, AdaptiveBatchSGD
from fisheropt.control import Controller, EqualTemperature, NormTest, SampleLR
from fisheropt.control.go_h import GOH
from recipes.studies.batch_wall_problems import Problem

MOST = 512
"""Largest batch size a rule may ask for."""
CHECKS = 30


@final
@dataclass(frozen=True)
class Trial:
    """A setting of a method.

    Attributes:
        batch_size: at the start.
        lr: η at the start.
    """

    batch_size: int
    lr: float

    def __str__(self) -> str:
        return f"b = {self.batch_size}, η = {self.lr:g}"


@final
@dataclass
class Course:
    """A run at its checkpoints, each a list: samples, steps, seconds on the clock and of this process, and the loss."""

    samples: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    process: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)

    def note(self, samples: int, steps: int, wall: float, process: float, loss: float) -> None:
        """Take in a checkpoint."""
        self.samples.append(samples)
        self.steps.append(steps)
        self.wall.append(wall)
        self.process.append(process)
        self.loss.append(loss)

    def until(self, target: float, unit: str) -> float:
        """How much of "samples", "steps", "wall" or "process" it takes to reach a loss; infinity if it does not."""
        spent: list[float] = getattr(self, unit)
        for index, loss in enumerate(self.loss):
            if loss <= target:
                if index == 0:
                    return spent[0]
                before = self.loss[index - 1]
                share = (before - target) / (before - loss)
                return spent[index - 1] + share * (spent[index] - spent[index - 1])
        return math.inf

    @property
    def end(self) -> float:
        """The last loss; infinity for a run that diverged."""
        last = self.loss[-1]
        return last if math.isfinite(last) else math.inf


@final
@dataclass
class Tools:
    """What a method trains with: an optimizer, and what is called after each step."""

    optimizer: Optimizer
    after: Callable[[], None] = lambda: None


Method = Callable[[nn.Module, AdaptiveBatchSampler, Problem, float], Tools]
"""From the model, the sampler, the problem and η to the tools."""


def fixed(model: nn.Module, sampler: AdaptiveBatchSampler, problem: Problem, lr: float) -> Tools:
    """torch.optim.SGD."""
    return Tools(torch.optim.SGD(model.parameters(), lr, weight_decay=problem.weight_decay))


def linear_decay(model: nn.Module, sampler: AdaptiveBatchSampler, problem: Problem, lr: float) -> Tools:
    """torch.optim.SGD with a step size that falls to zero."""
    optimizer = torch.optim.SGD(model.parameters(), lr, weight_decay=problem.weight_decay)
    return Tools(optimizer, SampleLR(optimizer, "linear", problem.budget, sampler).step)


def steered(controller: Controller) -> Method:
    """AdaptiveBatchSGD with that controller, which measures the first ten steps and each tenth."""

    def tools(model: nn.Module, sampler: AdaptiveBatchSampler, problem: Problem, lr: float) -> Tools:
        optimizer = AdaptiveBatchSGD(
            model,
            lr,
            sampler=sampler,
            controller=controller,
            budget=problem.budget,
            weight_decay=problem.weight_decay,
            overhead=math.inf,  # the first ten steps and each tenth, as the page's numbers were made
        )
        return Tools(optimizer)

    return tools


METHODS: dict[str, Method] = {
    "fixed": fixed,
    "linear decay": linear_decay,
    "GO-H": steered(GOH()),
    "norm test": steered(NormTest(theta=0.9)),
    "equal temperature": steered(EqualTemperature()),
}


def course(problem: Problem, method: Method, trial: Trial, seed: int, found: Course) -> Iterator[None]:
    """A run that yields at each checkpoint; only training is timed.

    Args:
        problem: to train on, for its number of epochs.
        method: to train with.
        trial: its setting.
        seed: of the start and the order of the samples.
        found: takes in the checkpoints.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = problem.build()
    number = len(problem.x)
    sampler = AdaptiveBatchSampler(range(number), trial.batch_size, max_batch_size=min(MOST, number), seed=seed)
    tools = method(model, sampler, problem, trial.lr)
    found.note(0, 0, 0.0, 0.0, problem.whole(model))
    batches: Iterator[list[int]] = iter(())
    steps, wall, process = 0, 0.0, 0.0
    for check in range(1, CHECKS + 1):
        clock, own = time.perf_counter(), time.process_time()
        while sampler.samples_seen < problem.budget * check / CHECKS:
            chosen = next(batches, None)
            if chosen is None:
                batches = iter(sampler)
                continue
            problem.loss(model, problem.x[chosen], problem.y[chosen]).backward()
            tools.optimizer.step()
            tools.optimizer.zero_grad()
            tools.after()
            steps += 1
        wall, process = wall + time.perf_counter() - clock, process + time.process_time() - own
        found.note(sampler.samples_seen, steps, wall, process, problem.whole(model))
        yield


def in_turns(runs: list[Iterator[None]]) -> None:
    """A checkpoint of each in turn, until all are done."""
    over = object()
    while runs:
        runs = [run for run in runs if next(run, over) is not over]
