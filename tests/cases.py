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
    written: nn.Module | None = None
    """The same model, with the same names, in operations that vmap knows; the model itself if left out."""

    def loss(self, model=None) -> Tensor:
        """The mean over samples, as a user writes it."""
        return self.losses(self.model if model is None else model, *self.batch).mean()

    def slice(self, start: int, stop: int) -> "Case":
        return Case(self.model, tuple(x[start:stop] for x in self.batch), self.losses, self.written)

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
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="none").unflatten(0, y.shape).mean(1)


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


class LowRank(nn.Module):
    """A layer whose weight stays and a product of two small ones that learns, as in adapters of low rank."""

    def __init__(self, inputs, outputs, rank):
        super().__init__()
        self.base = nn.Linear(inputs, outputs)
        self.down, self.up = nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


class Language(nn.Module):
    """One table that embeds and un-embeds tokens, which recur in a sample."""

    def __init__(self, vocabulary, size, table):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, size, padding_idx=table)
        self.mix, self.last = nn.Linear(size, size), nn.Linear(size, vocabulary, bias=False)
        self.last.weight = self.embed.weight

    def forward(self, x):
        return self.last(torch.tanh(self.mix(self.embed(x))))


class Twice(nn.Module):
    """One module called twice."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(torch.tanh(self.layer(x)))


class Pairs(nn.Module):
    """One table looked up in two calls of a forward."""

    def __init__(self, table):
        super().__init__()
        self.table = table

    def forward(self, x):
        return self.table(x[:, ::2]) * torch.tanh(self.table(x[:, 1::2]))


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
def adapted():
    """A frozen layer and a low-rank one beside it."""
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), LowRank(6, 5, 2), nn.Tanh(), nn.Linear(5, 3)).double()
    model[2].base.requires_grad_(False)
    return Case(model, batch(4, classes=3), classification)


@case
def frozen():
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    model[0].weight.requires_grad_(False)
    return Case(model, batch(4, classes=3), classification)


@case
def tied():
    x, target = batch(4)[0], batch(4)[0]
    return Case(Tied(4).double(), (x, target), regression)


@case
def tied_table():
    return Case(Language(5, 4, None).double(), (torch.randint(0, 5, (9, 6)), torch.randint(0, 5, (9, 6))), tokens)


@case
def table_called_twice():
    table = nn.Embedding(5, 4)
    model = nn.Sequential(Pairs(table), nn.Linear(4, 3)).double()
    return Case(model, (torch.randint(0, 5, (9, 6)), torch.randint(0, 3, (9, 3))), tokens)


@case
def convolution_called_twice():
    model = nn.Sequential(Twice(nn.Conv1d(2, 2, 3, padding=1)), nn.Flatten(), nn.Linear(8, 3)).double()
    return Case(model, batch(2, 4, classes=3), classification)


@case
def called_twice():
    x, target = batch(4)[0], batch(4)[0]
    return Case(Twice(nn.Linear(4, 4)).double(), (x, target), regression)
