"""A run that saves itself after every part it trains on, to be killed anywhere and gone on with."""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

import fisheropt
from fisheropt.control import Controller, GradientNoise, Moment, Proposal

SAMPLES, FEATURES = 360, 5
SIZES = (6, 24, 9, 40, 13, 5, 30)


@final
@dataclass(frozen=True)
class Zigzag(Controller):
    """Another size after every step, whatever was measured; how often it was asked is its state."""

    name: ClassVar[str] = "zigzag"

    def initial_state(self) -> dict[str, float]:
        return {"asked": 0.0}

    def propose(self, state: dict[str, float], reading: GradientNoise | None, moment: Moment) -> Proposal:
        asked = state["asked"]
        return Proposal(moment.clip(SIZES[int(asked) % len(SIZES)]), {"asked": asked + 1})


@dataclass(frozen=True)
class Way:
    """How to train.

    Args:
        controller: its name; None to leave the sizes.
        workers: of the DataLoader.
        device: samples that it holds.
        epochs: to train.
        dropout: its probability.
        size: of the first batch.
    """

    controller: str | None = "zigzag"
    workers: int = 0
    device: int | None = 8
    epochs: int = 2
    dropout: float = 0.2
    size: int = 12


class Run:
    """Model, optimizer, sampler and loader of a rank, and what it trained on: its indices of each whole batch."""

    def __init__(self, way: Way) -> None:
        generator = torch.Generator().manual_seed(1)
        inputs = torch.randn(SAMPLES, FEATURES, generator=generator)
        targets = inputs.sin().sum(1, keepdim=True) + 0.1 * torch.randn(SAMPLES, 1, generator=generator)
        self.data = TensorDataset(inputs, targets, torch.arange(SAMPLES))
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(FEATURES, 6), nn.Tanh(), nn.Dropout(way.dropout), nn.Linear(6, 1))
        self.sampler = fisheropt.AdaptiveBatchSampler(
            self.data, way.size, max_batch_size=60, device_batch_size=way.device
        )
        self.sampler.commit(0)
        self.optimizer = fisheropt.AdaptiveBatchSGD(
            self.model, lr=0.05, momentum=0.5, sampler=self.sampler, controller=way.controller, every=1
        )
        self.loader = DataLoader(
            self.data, batch_sampler=self.sampler, num_workers=way.workers, generator=torch.Generator().manual_seed(2)
        )
        self.way = way
        self.network = DistributedDataParallel(self.model) if dist.is_initialized() else self.model
        self.batches: list[list[int]] = []
        self.random = torch.get_rng_state()

    def state(self) -> dict[str, Any]:
        """All that a user saves; of dropout what it was when the batch under way began, which will begin anew."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sampler": self.sampler.state_dict(),
            "random": self.random,
            "batches": self.batches,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.sampler.load_state_dict(state["sampler"])
        self.random, self.batches = state["random"], list(state["batches"])
        torch.set_rng_state(self.random)

    def finish(self) -> dict[str, Any]:
        """Train to the end, and the state there."""
        for _ in self.train():
            pass
        return self.state()

    def train(self) -> Iterator[int]:
        """Train to the end of the last epoch; after each part how many there were."""
        parts = 0
        while self.sampler.epoch < self.way.epochs:
            batch: list[int] = []
            for inputs, targets, indices in self.loader:
                before = self.sampler.samples_seen
                nn.functional.mse_loss(self.network(inputs), targets).backward()
                self.optimizer.step()
                self.optimizer.zero_grad()
                batch += indices.tolist()
                if self.sampler.samples_seen > before:
                    self.batches, batch = [*self.batches, batch], []
                    self.random = torch.get_rng_state()
                parts += 1
                yield parts


def run(way: Way, path: Path) -> None:
    """Train, and save into `path` after each part, as a whole or not at all; say on stdout that it is saved."""
    torch.set_num_threads(1)
    one = Run(way)
    for part in one.train():
        torch.save(one.state(), path.with_suffix(".new"))
        os.replace(path.with_suffix(".new"), path)
        print(part, flush=True)


if __name__ == "__main__":
    _, controller, workers, device, path = sys.argv
    run(Way(controller, int(workers), int(device)), Path(path))
