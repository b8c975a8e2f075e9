"""Many small networks trained at once, each with a batch size and a step size that a controller sets as it goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor

from fisheropt.control import Controller, Moment, Proposal, history
from fisheropt.theory.sketch import CountSketch

PIXELS, HIDDEN, CLASSES = 64, 32, 10
TRAINING, FLIPPED, DECAY = 1400, 0.1, 1e-3
START, LARGEST = 16, 1024
MEMORY, SMALLEST = 0.99, 1e-3  # of the running mean of squared gradients, and what is added to its root
SIZES = (PIXELS * HIDDEN, HIDDEN, HIDDEN * CLASSES, CLASSES)


@final
@dataclass(frozen=True)
class Digits:
    """scikit-learn's digits in [0, 1]: training points of which a tenth has a random label, and the rest as it is."""

    images: Tensor
    labels: Tensor
    unseen: Tensor
    unseen_labels: Tensor

    @staticmethod
    def load(seed: int) -> Digits:
        """One division and one set of wrong labels a seed."""
        generator = torch.Generator().manual_seed(seed)
        data = load_digits()
        images = torch.tensor(data.data, dtype=torch.float32) / 16
        labels = torch.tensor(data.target)
        order = torch.randperm(len(labels), generator=generator)
        chosen, rest = order[:TRAINING], order[TRAINING:]
        noisy = labels[chosen].clone()
        wrong = torch.randperm(TRAINING, generator=generator)[: round(FLIPPED * TRAINING)]
        noisy[wrong] = torch.randint(CLASSES, (len(wrong),), generator=generator)
        return Digits(images[chosen], noisy, images[rest], labels[rest])


@final
@dataclass(frozen=True)
class Outcome:
    """Of each run [rates, seeds]: the training objective at the end, accuracy on unseen clean labels, and steps."""

    objective: Tensor
    accuracy: Tensor
    steps: Tensor


def train(
    digits: Digits,
    rule: Controller,
    rates: tuple[float, ...],
    seeds: int,
    epochs: int,
    diagonal: bool,
    width: int | None = history.WIDTH,
    seed: int = 0,
) -> Outcome:
    """Train a network 64-32-10 (tanh) for each rate and seed, on samples drawn with replacement.

    Args:
        digits: the data.
        rule: sets batch and step sizes.
        rates: step sizes eta.
        seeds: starts for each rate.
        epochs: samples drawn in all over the number of training points.
        diagonal: P = 1/(sqrt(v) + eps), v the running mean of single samples' squared gradients; else P = 1.
        width: of the sketch; None for gradients as they are.
        seed: of starts and draws.
    """
    runs = len(rates) * seeds
    lr = torch.tensor(rates).repeat_interleave(seeds)
    theta = torch.stack([_start(seed * 1000 + s) for s in range(seeds)]).repeat(len(rates), 1)
    drivers = [_Driver(rule, float(eta), epochs * TRAINING, width) for eta in lr]
    places = _places(width) if "sketches" in rule.needs and width is not None else None
    generator = torch.Generator().manual_seed(seed)
    second = torch.zeros_like(theta)
    step = 0
    while any(driver.left for driver in drivers):
        step += 1
        sizes = torch.tensor([float(driver.batch) for driver in drivers])
        longest = int(sizes.max())
        drawn = torch.randint(TRAINING, (runs, LARGEST), generator=generator)[:, :longest]  # the same for every rule
        weights = (torch.arange(longest) < sizes[:, None]) / sizes.clamp(min=1)[:, None]
        gradient, squared = _gradient(theta, digits.images[drawn], digits.labels[drawn], weights)
        metric = None
        if diagonal:
            second.lerp_(squared, 1 - MEMORY)
            metric = 1 / ((second / (1 - MEMORY**step)).sqrt() + SMALLEST)
        root = gradient if metric is None else gradient * metric.sqrt()
        sketches = root if places is None else _sketched(root, places, width)
        moved = torch.tensor([driver.step(sketch) for driver, sketch in zip(drivers, sketches, strict=True)])
        theta = theta - moved[:, None] * (gradient if metric is None else gradient * metric)
    shape = (len(rates), seeds)
    steps = torch.tensor([float(driver.steps) for driver in drivers])
    return Outcome(objective(theta, digits).view(shape), _accuracy(theta, digits).view(shape), steps.view(shape))


@final
class _Driver:
    """One run's controller: asks it at each step, and does what it says at once."""

    def __init__(self, rule: Controller, lr: float, budget: int, width: int | None) -> None:
        self.rule, self.lr, self.budget = rule, lr, budget
        self.proposal = Proposal(float(START), rule.initial_state())
        self.steps = self.seen = 0
        capacity = min(budget // START + 1, history.CAPACITY)
        self.group: dict[str, Any] = {}
        if "sketches" in rule.needs:
            self.group = history.fresh(capacity, sum(SIZES) if width is None else width)

    @property
    def left(self) -> int:
        """Samples."""
        return self.budget - self.seen

    @property
    def batch(self) -> int:
        """Size of the next batch, which ends with the budget."""
        return min(round(self.proposal.batch_size), self.left)

    def step(self, sketch: Tensor) -> float:
        """The step size for the gradient that was sketched; 0 for a run that has come to its end."""
        size = self.batch
        if not size:
            return 0.0
        self.steps, self.seen = self.steps + 1, self.seen + size
        ring = None
        if self.group:
            history.add(self.group, sketch)
            ring = history.Ring(self.group)
        short = min(size / round(self.proposal.batch_size), 1.0)  # a rest of few samples keeps the temperature
        moved = self.lr * self.proposal.lr_factor * short
        moment = Moment(self.lr, size, self.seen, (START, LARGEST), self.budget, sketches=ring)
        self.proposal = self.rule.propose(self.proposal.state, None, moment)
        return moved


def objective(theta: Tensor, digits: Digits) -> Tensor:
    """Mean cross-entropy on the training points as labelled, without the weight decay: [runs]."""
    logits = _forward(theta, digits.images.expand(len(theta), -1, -1))[1]
    labels = digits.labels.expand(len(theta), -1)
    return F.cross_entropy(logits.transpose(1, 2), labels, reduction="none").mean(1)


def _accuracy(theta: Tensor, digits: Digits) -> Tensor:
    logits = _forward(theta, digits.unseen.expand(len(theta), -1, -1))[1]
    return (logits.argmax(2) == digits.unseen_labels).float().mean(1)


def _weights(theta: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    first, first_bias, second, second_bias = theta.split(SIZES, 1)
    shapes = (-1, PIXELS, HIDDEN), (-1, HIDDEN, CLASSES)
    return first.view(shapes[0]), first_bias[:, None], second.view(shapes[1]), second_bias[:, None]


def _forward(theta: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden layer and logits."""
    first, first_bias, second, second_bias = _weights(theta)
    hidden = torch.baddbmm(first_bias, images, first).tanh()
    return hidden, torch.baddbmm(second_bias, hidden, second)


def _gradient(theta: Tensor, images: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean gradient of each run's samples, weight decay included, and their mean square: [runs, parameters]."""
    hidden, logits = _forward(theta, images)
    errors = logits.softmax(2) - F.one_hot(labels, CLASSES)
    inner = (errors @ _weights(theta)[2].mT) * (1 - hidden.square())
    mean = _outer(images, inner, hidden, errors, weights)
    square = _outer(images.square(), inner.square(), hidden.square(), errors.square(), weights)
    return mean + DECAY * theta, square + DECAY * theta * (2 * mean + DECAY * theta)


def _outer(images: Tensor, inner: Tensor, hidden: Tensor, errors: Tensor, weights: Tensor) -> Tensor:
    inner, errors = inner * weights[:, :, None], errors * weights[:, :, None]
    parts = (images.mT @ inner, inner.sum(1), hidden.mT @ errors, errors.sum(1))
    return torch.cat([part.flatten(1) for part in parts], 1)


def _start(seed: int) -> Tensor:
    """Weights and biases uniform within 1/sqrt(inputs), as torch begins."""
    generator = torch.Generator().manual_seed(seed)
    bounds = (PIXELS**-0.5, PIXELS**-0.5, HIDDEN**-0.5, HIDDEN**-0.5)
    draws = [(2 * torch.rand(n, generator=generator) - 1) * bound for n, bound in zip(SIZES, bounds, strict=True)]
    return torch.cat(draws)


def _places(width: int) -> tuple[Tensor, Tensor]:
    """Bucket and sign of each parameter, from the sketches of the unit vectors: many runs are sketched in one call."""
    sketch = CountSketch(width)
    found = torch.stack([sketch([torch.ones(1)], offset=i) for i in range(sum(SIZES))])
    return found.abs().argmax(1), found.sum(1)


def _sketched(vectors: Tensor, places: tuple[Tensor, Tensor], width: int | None) -> Tensor:
    assert width is not None
    return vectors.new_zeros(len(vectors), width).index_add_(1, places[0], vectors * places[1])
