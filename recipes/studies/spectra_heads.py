"""Linear heads on features that they were not trained on: of a mixture, of a small network, of digits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes.problems.sources import load
from recipes.studies.draws import normal
from recipes.studies.spectra_samples import Setting, features, orthonormal, random_head

DIGITS = (3, 5, 8)
_STEPS, _BATCH, _RATE, _DECAY = 1500, 64, 0.2, 1e-3


@final
@dataclass(frozen=True)
class Head:
    """Softmax head with fresh features.

    Attributes:
        name: in the rows.
        weights: [C, p].
        bias: [C].
        features: [n, p], independent of the weights.
        labels: [n].
        means: [k, p] class means, independent of the features.
        covariance: [p, p] within the classes, independent of the features.
    """

    name: str
    weights: Tensor
    bias: Tensor
    features: Tensor
    labels: Tensor
    means: Tensor
    covariance: Tensor

    def layer(self) -> nn.Linear:
        """As a module."""
        classes, size = self.weights.shape
        layer: nn.Linear = nn.utils.skip_init(nn.Linear, size, classes, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(self.weights)
            layer.bias.copy_(self.bias)
        return layer

    def whitened(self) -> Head:
        """The same logits from features of covariance about one within the classes."""
        values, vectors = torch.linalg.eigh(self.covariance)
        root, inverse = ((vectors * values**power) @ vectors.T for power in (0.5, -0.5))
        return replace(
            self,
            name=f"{self.name}, whitened",
            weights=self.weights @ root,
            features=self.features @ inverse,
            means=self.means @ inverse,
            covariance=torch.eye(len(root), dtype=torch.float64),
        )


def _pooled(inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of each class, [k, p], and the covariance within them, [p, p]."""
    chosen = F.one_hot(labels).double()
    means = chosen.T @ inputs / chosen.sum(0)[:, None]
    residuals = inputs - means[labels]
    return means, residuals.T @ residuals / (len(residuals) - len(means))


def of_mixture(dimension: int, ratio: float, generator: torch.Generator) -> Head:
    """Three classes, a head near the trained one, exactly in the setting of the theory."""
    means = orthonormal(dimension, 3)
    setting = Setting(means, means + 0.4 * random_head(dimension, 3, generator), (0.4, 0.35, 0.25), 8.0)
    inputs, labels = features(setting, round(ratio * dimension), generator)
    noise = torch.eye(dimension, dtype=torch.float64) / setting.snr
    return Head("mixture, linear", setting.head.T, torch.zeros(3).double(), inputs, labels, means.T, noise)


def of_network(width: int, count: int, generator: torch.Generator) -> Head:
    """The last layer of a network with one hidden layer, on a mixture that no linear head separates."""
    means = orthonormal(30, 4) * 1.5

    def draw(size: int) -> tuple[Tensor, Tensor]:
        setting = Setting(means, means, (0.25,) * 4, 4.0)
        inputs, components = features(setting, size, generator)
        order = torch.randperm(size, generator=generator)
        return inputs[order], components[order] // 2

    return _last_layer("mixture, network", draw(4000), draw(count), width, generator)


def of_digits(width: int, generator: torch.Generator) -> Head:
    """Scikit-learn's digits 3, 5 and 8, half to train on: pixels at width 0, else the hidden layer of a network."""
    table = load("digits", ".", label=None, context=1, with_test=False).train
    chosen = [index for index, digit in enumerate(table.y) if digit in DIGITS]
    inputs = torch.from_numpy(table.x[chosen]).double()
    labels = torch.tensor([DIGITS.index(int(digit)) for digit in table.y[chosen]])
    order = torch.randperm(len(labels), generator=generator)
    train, fresh = order[: len(order) // 2], order[len(order) // 2 :]
    spread = inputs[train].std(0)
    inputs = ((inputs - inputs[train].mean(0)) / spread)[:, spread > 0.5]
    name = "digits, network" if width else "digits, pixels"
    return _last_layer(name, (inputs[train], labels[train]), (inputs[fresh], labels[fresh]), width, generator)


def _last_layer(
    name: str, train: tuple[Tensor, Tensor], fresh: tuple[Tensor, Tensor], width: int, generator: torch.Generator
) -> Head:
    """Train by SGD with weight decay, and take the last layer on the fresh samples."""
    classes = int(train[1].max()) + 1
    body, layer = _network(train[0].shape[1], width, classes, generator)
    model = nn.Sequential(body, layer)
    optimizer = torch.optim.SGD(model.parameters(), lr=_RATE, weight_decay=_DECAY)
    for _ in range(_STEPS):
        batch = torch.randint(len(train[1]), (_BATCH,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(train[0][batch]), train[1][batch]).backward()
        optimizer.step()
    with torch.no_grad():
        seen, new = body(train[0]), body(fresh[0])
        return Head(name, layer.weight.clone(), layer.bias.clone(), new, fresh[1], *_pooled(seen, train[1]))


def _network(inputs: int, width: int, classes: int, generator: torch.Generator) -> tuple[nn.Module, nn.Linear]:
    body = nn.Sequential(nn.Linear(inputs, width), nn.Tanh()).double() if width else nn.Identity()
    layer = nn.Linear(width or inputs, classes).double()
    with torch.no_grad():
        for p in [*body.parameters(), *layer.parameters()]:
            p.copy_(normal(*p.shape, generator=generator) / p.shape[-1] ** 0.5 if p.ndim > 1 else torch.zeros_like(p))
    return body, layer
