"""The two problems of the study of directions, and one training run on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from torch.nn import functional as F

from fisheropt import FisherFloorSGD

WATCHED = 6
_NULL = 1e-10  # of the largest eigenvalue before training


@final
@dataclass(frozen=True)
class Data:
    """One data set and its initial model.

    Args:
        model: before training.
        x: features.
        y: labels.
        batches: gives the indices of every step's batch.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    batches: Iterator[Tensor]


@final
@dataclass(frozen=True)
class Bench:
    """A problem.

    Args:
        name: in tables.
        data: makes the data set of a seed.
        loss: of logits and labels.
        likelihood: that it belongs to.
        steps: of training.
        lr: of SGD.
        small: whether its whole space can be watched.
        mode: of the optimizer.
    """

    name: str
    data: Callable[[int], Data]
    loss: Callable[[Tensor, Tensor], Tensor]
    likelihood: str
    steps: int
    lr: float
    small: bool
    mode: str


@final
@dataclass(frozen=True)
class Outcome:
    """What is left at the end.

    Args:
        smallest: log10 of the smallest eigenvalue of the true model Fisher matrix, among directions that carried
            information before training.
        start: the same before training.
        loss: on the training data.
    """

    smallest: float
    start: float
    loss: float


def logistic(dimension: int, steps: int) -> Bench:
    """Separable data, d and 1.5 d samples, full batches: maximum likelihood diverges and the information is lost."""

    def data(seed: int) -> Data:
        generator = torch.Generator().manual_seed(seed)
        count = dimension * 3 // 2
        x = torch.randn(count, dimension, generator=generator, dtype=torch.float64)
        y = (x @ torch.randn(dimension, generator=generator, dtype=torch.float64) > 0).double()
        model = nn.Linear(dimension, 1, bias=False).double()
        nn.init.zeros_(model.weight)
        return Data(model, x, y, iter(lambda: torch.arange(count), None))

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits.squeeze(-1), y)

    return Bench(f"logistic, d = {dimension}, anchor", data, loss, "bernoulli", steps, 4.0, small=True, mode="anchor")


def network(steps: int, mode: str, samples: int = 256, batch: int = 32) -> Bench:
    """A 10-24-3 tanh network on three blobs, as in FF-E6."""

    def data(seed: int) -> Data:
        generator = torch.Generator().manual_seed(seed)
        y = torch.arange(samples) % 3
        centres = torch.randn(3, 10, generator=generator, dtype=torch.float64)
        x = centres[y] + torch.randn(samples, 10, generator=generator, dtype=torch.float64)
        model = nn.Sequential(nn.Linear(10, 24), nn.Tanh(), nn.Linear(24, 3)).double()
        with torch.no_grad():
            for p in model.parameters():
                fan = p.shape[-1] if p.ndim > 1 else 24
                p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) / fan**0.5)
        return Data(model, x, y, _shuffled(samples, batch, generator))

    return Bench(f"network, {mode}", data, F.cross_entropy, "categorical", steps, 0.2, small=False, mode=mode)


def _shuffled(samples: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    while True:
        yield from torch.randperm(samples, generator=generator).split(batch)


def information(bench: Bench, model: nn.Module, x: Tensor) -> Tensor:
    """The exact model Fisher matrix of all parameters laid end to end, [d, d]."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def logits(values: dict[str, Tensor], one: Tensor) -> Tensor:
        return functional_call(model, values, (one.unsqueeze(0),)).squeeze(0)

    jacobians = vmap(jacrev(logits), in_dims=(None, 0))(parameters, x)
    j = torch.cat([part.flatten(2) for part in jacobians.values()], 2)
    z = model(x).detach()
    if bench.likelihood == "bernoulli":
        p = z.sigmoid()
        core = torch.diag_embed(p * (1 - p))
    else:
        p = z.softmax(-1)
        core = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    return torch.einsum("nad,nab,nbe->de", j, core, j) / len(x)


def train(bench: Bench, choice: str, seed: int, until: float | None = None) -> Outcome:
    """One run.

    Args:
        bench: the problem.
        choice: of the directions, a key of `floor_directions.CHOICES`.
        seed: of the data set, the initial parameters and the batches, the same for every choice.
        until: a training loss at which to stop.
    """
    data = bench.data(seed)
    before = information(bench, data.model, data.x)
    values, vectors = torch.linalg.eigh(before)
    carrying = vectors[:, values > _NULL * values[-1]]
    optimizer = FisherFloorSGD(data.model, lr=bench.lr, likelihood=bench.likelihood, **_settings(bench, choice, seed))
    _fit(bench, data, optimizer, until)
    after = carrying.T @ information(bench, data.model, data.x) @ carrying
    start = carrying.T @ before @ carrying
    return Outcome(_log_smallest(after), _log_smallest(start), _loss(bench, data))


def _loss(bench: Bench, data: Data) -> float:
    return float(bench.loss(data.model(data.x), data.y).detach())


def _fit(bench: Bench, data: Data, optimizer: FisherFloorSGD, until: float | None = None) -> None:
    for _ in range(bench.steps):
        if until is not None and _loss(bench, data) <= until:
            return
        here = next(data.batches)
        bench.loss(data.model(data.x[here]), data.y[here]).backward()
        optimizer.step()
        optimizer.zero_grad()


def _log_smallest(matrix: Tensor) -> float:
    smallest = float(torch.linalg.eigvalsh(matrix)[0])
    return math.log10(max(smallest, 1e-20))


def _settings(bench: Bench, choice: str, seed: int) -> dict[str, Any]:
    """The keywords of the optimizer for a choice of directions."""
    return (
        {"floor": 0}
        if choice in ("none", "stopped")
        else {"mode": bench.mode, "directions": _directions(bench, choice, seed)} | _often(choice)
    )


def _often(choice: str) -> dict[str, Any]:
    """The first ten steps and each tenth, as the page's numbers were made; tracked directions have their own schedule."""
    return {} if choice == "tracked" else {"overhead": math.inf}


def _directions(bench: Bench, choice: str, seed: int) -> str | dict[str, Tensor]:
    if choice in ("tracked", "whole"):
        return "tracked" if choice == "tracked" else "auto"
    data = bench.data(seed)
    if choice == "random":
        generator = torch.Generator().manual_seed(seed + 1)
        size = sum(p.numel() for p in data.model.parameters())
        return _by_name(torch.randint(0, 2, (WATCHED, size), generator=generator).double() * 2 - 1, data.model)
    if choice == "given_end":
        _fit(bench, data, FisherFloorSGD(data.model, lr=bench.lr, floor=0))
    return _by_name(_weakest(bench, bench.data(seed), data), data.model)


def _weakest(bench: Bench, start: Data, at: Data) -> Tensor:
    """The weakest eigenvectors of the true Fisher matrix among directions that carried information at the start."""
    values, vectors = torch.linalg.eigh(information(bench, start.model, start.x))
    carrying = vectors[:, values > _NULL * values[-1]]
    inside = torch.linalg.eigh(carrying.T @ information(bench, at.model, at.x) @ carrying).eigenvectors
    return (carrying @ inside[:, :WATCHED]).T


def _by_name(rows: Tensor, model: nn.Module) -> dict[str, Tensor]:
    named = dict(model.named_parameters())
    parts = rows.split([p.numel() for p in named.values()], 1)
    return {name: part.reshape(-1, *p.shape) for (name, p), part in zip(named.items(), parts, strict=True)}
