"""The models on which every statistic, tap and optimizer is judged; a new one enters by one function."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CASES: dict[str, Callable[[], "Case"]] = {}


@dataclass
class Case:
    """A model, a batch and the loss of each sample."""

    model: nn.Module
    batch: tuple[Tensor, ...]
    losses: Callable[..., Tensor]
    shares: bool = False
    """Whether a parameter is used twice, so that only joint statistics are exact."""

    def loss(self, model=None) -> Tensor:
        """The mean over samples, as a user writes it."""
        return self.losses(self.model if model is None else model, *self.batch).mean()

    def slice(self, start: int, stop: int) -> "Case":
        return Case(self.model, tuple(x[start:stop] for x in self.batch), self.losses, self.shares)

    @property
    def samples(self) -> int:
        return len(self.batch[0])


def case(build: Callable[[], Case]) -> Callable[[], Case]:
    CASES[build.__name__] = build
    return build


def classification(model, x, y):
    return F.cross_entropy(model(x), y, reduction="none")


def regression(model, x, y):
    return (model(x) - y).square().flatten(1).sum(1)


def tokens(model, x, y):
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="none").unflatten(0, x.shape[:2]).mean(1)


def likelihood(model, x):
    return -model(x)


class Scale(nn.Module):
    """Bare parameters, and an output that its own backward has saved."""

    def __init__(self, size):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.randn(size)), nn.Parameter(torch.randn(size))

    def forward(self, x):
        return torch.tanh(x * self.scale + self.shift)


class Mixture(nn.Module):
    """The log-likelihood of each sample under a mixture of spherical Gaussians: no layer at all."""

    def __init__(self, components, size):
        super().__init__()
        self.logits = nn.Parameter(torch.randn(components))
        self.means = nn.Parameter(torch.randn(components, size))

    def forward(self, x):
        distances = (x.unsqueeze(1) - self.means).square().sum(-1)
        return torch.logsumexp(self.logits.log_softmax(0) - distances / 2, 1)


class Tied(nn.Module):
    """One weight that embeds and un-embeds."""

    def __init__(self, size):
        super().__init__()
        self.first, self.last = nn.Linear(size, size), nn.Linear(size, size, bias=False)
        self.last.weight = self.first.weight

    def forward(self, x):
        return self.last(torch.tanh(self.first(x)))


class Twice(nn.Module):
    """One module called twice."""

    def __init__(self, size):
        super().__init__()
        self.layer = nn.Linear(size, size)

    def forward(self, x):
        return self.layer(torch.tanh(self.layer(x)))


def batch(*shape, classes=None, samples=9):
    x = torch.randn(samples, *shape, dtype=torch.float64)
    return (x,) if classes is None else (x, torch.randint(0, classes, (samples,)))


@case
def linear():
    return Case(nn.Linear(4, 3).double(), batch(4, classes=3), classification)


@case
def mlp():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 3, bias=False)).double()
    return Case(model, batch(4, classes=3), classification)


@case
def sequence():
    model = nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 3)).double()
    x, _ = batch(7, 4, classes=3)
    return Case(model, (x, torch.randint(0, 3, (9, 7))), tokens)


@case
def short_sequence_of_wide_layers():
    model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 3)).double()
    x, _ = batch(2, 12, classes=3)
    return Case(model, (x, torch.randint(0, 3, (9, 2))), tokens)


@case
def custom():
    return Case(nn.Sequential(nn.Linear(4, 5), Scale(5), nn.Linear(5, 3)).double(), batch(4, classes=3), classification)


@case
def mixture():
    return Case(Mixture(3, 2).double(), batch(2), likelihood)


@case
def convolution():
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3)).double()
    return Case(model, batch(2, 4, 4, classes=3), classification)


@case
def normalised():
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.ReLU(), nn.GroupNorm(2, 6), nn.Linear(6, 3)).double()
    return Case(model, batch(4, classes=3), classification)


@case
def embedding():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3)).double()
    return Case(model, (torch.randint(0, 5, (9, 6)), torch.randint(0, 3, (9, 6))), tokens)


@case
def frozen():
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    model[0].weight.requires_grad_(False)
    return Case(model, batch(4, classes=3), classification)


@case
def tied():
    x, target = batch(4)[0], batch(4)[0]
    return Case(Tied(4).double(), (x, target), regression, shares=True)


@case
def called_twice():
    x, target = batch(4)[0], batch(4)[0]
    return Case(Twice(4).double(), (x, target), regression, shares=True)
