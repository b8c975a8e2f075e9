"""From a configuration to the objects of a run: problem, model, sampler, loader, optimizer, schedule."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from fisheropt import AdaptiveBatchSampler, FisherOptimizer
from recipes.parallel import Alone, Parallel
from recipes.problems import Problem
from recipes.schema import check


@dataclass(frozen=True)
class Parts:
    """What a training loop needs, and the sample clock that its intervals go by.

    `model` is what the loop calls: the problem's own, or what several processes wrap around it.
    """

    problem: Problem
    model: nn.Module
    parallel: Parallel
    sampler: AdaptiveBatchSampler
    loader: DataLoader[Any]
    optimizer: Optimizer
    schedule: LambdaLR
    epochs: int
    tick: int

    @property
    def samples(self) -> int:
        """Training samples."""
        return len(self.problem.train)

    @property
    def ticks(self) -> int:
        """Time on the sample clock: one tick every `tick` samples seen."""
        return self.sampler.samples_seen // self.tick

    @property
    def total(self) -> int:
        """Ticks of the whole run."""
        return self.epochs * self.samples // self.tick


def assemble(cfg: DictConfig, parallel: Parallel | None = None) -> Parts:
    """Seed, then build in the order problem, model, data, optimizer, schedule.

    Args:
        cfg: the run's configuration.
        parallel: the processes of the run, which have joined; None for this one alone.
    """
    parallel = Alone() if parallel is None else parallel
    seed(cfg.seed)
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    problem: Problem = instantiate(cfg.problem)
    check(cfg, len(problem.train), parallel.ranks)
    model = parallel.wrapped(problem.model)
    sampler = build_sampler(cfg, problem, parallel)
    optimizer = build_optimizer(cfg.optimizer, problem, sampler, cfg.epochs)
    total = cfg.epochs * len(problem.train) // cfg.batch_size
    schedule = instantiate(cfg.schedule)(optimizer, total)
    if not parallel.first:
        seed(_apart(cfg.seed, parallel.rank))
    loader = _loader(problem, sampler, parallel)
    return Parts(problem, model, parallel, sampler, loader, optimizer, schedule, cfg.epochs, cfg.batch_size)


def build_sampler(cfg: DictConfig, problem: Problem, parallel: Parallel) -> AdaptiveBatchSampler:
    """The order of the data, the same for every optimizer, and this process' part of each batch.

    Only an adaptive optimizer changes the batch's size.
    """
    smallest = min(cfg.min_batch_size, cfg.batch_size)
    bounds = {"min_batch_size": smallest, "max_batch_size": cfg.max_batch_size}
    place = {"num_replicas": parallel.ranks, "rank": parallel.rank}
    return AdaptiveBatchSampler(problem.train, cfg.batch_size, seed=cfg.seed, **bounds, **place)


def build_optimizer(cfg: DictConfig, problem: Problem, sampler: AdaptiveBatchSampler, epochs: int) -> Optimizer:
    """The optimizer that the file of conf/optimizer describes; ours see the model, others its parameters.

    `likelihood: auto` becomes the problem's, `sampler: auto` and `budget: auto` the run's.
    """
    factory = instantiate(cfg)
    given = {"likelihood": problem.likelihood, "sampler": sampler, "budget": max(epochs, 1) * len(problem.train)}
    automatic = {key: value for key, value in given.items() if cfg.get(key) == "auto"}
    ours = isinstance(factory.func, type) and issubclass(factory.func, FisherOptimizer)
    optimizer: Optimizer = factory(problem.model if ours else problem.model.parameters(), **automatic)
    return optimizer


def seed(value: int) -> None:
    """Seed every global generator: the jobs of a sweep share one process, and so its generators."""
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value)


def _apart(value: int, rank: int) -> int:
    """A seed of the process' own, so that dropout differs between them; the parameters are drawn before."""
    return int(np.random.SeedSequence([value % 2**32, rank]).generate_state(1)[0])


def _loader(problem: Problem, sampler: AdaptiveBatchSampler, parallel: Parallel) -> DataLoader[Any]:
    """Whole batches by one indexing each; a generator of its own, so that epochs draw from no other."""
    own = torch.Generator()
    return DataLoader(problem.train, sampler=sampler, batch_size=None, collate_fn=parallel.placed, generator=own)
