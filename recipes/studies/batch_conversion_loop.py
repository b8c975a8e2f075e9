"""The network of the conversion study in the loop of a user: model, sampler, loader, optimizer."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from fisheropt import AdaptiveBatchSampler, AdaptiveBatchSGD
from fisheropt.control import Controller
from recipes.studies.batch_conversion_network import HIDDEN, WEIGHT_DECAY, NoisyDigits


def trained(
    data: NoisyDigits, controller: Controller, epochs: int, lr: float, batch_size: int, seed: int
) -> tuple[float, int]:
    """The objective at the end of shuffled epochs, and the steps that it took.

    Args:
        data: to learn.
        controller: of the batch size or the step.
        epochs: passes over the data.
        lr: η at the start.
        batch_size: at the start.
        seed: of the start and the order.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(64, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 10))
    sampler = AdaptiveBatchSampler(data.x, batch_size, seed=seed)
    loader = DataLoader(TensorDataset(data.x, data.y), batch_sampler=sampler)
    optimizer = AdaptiveBatchSGD(
        model,
        lr,
        sampler=sampler,
        controller=controller,
        budget=epochs * len(data.x),
        weight_decay=WEIGHT_DECAY,
        overhead=math.inf,  # the first ten steps and each tenth, as the page's numbers were made
    )
    steps = 0
    while sampler.epoch < epochs:
        for x, y in loader:
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
    with torch.no_grad():
        square = sum(float(p.square().sum()) for p in model.parameters())
        return float(F.cross_entropy(model(data.x), data.y)) + WEIGHT_DECAY / 2 * square, steps
