"""Digits with wrong labels and a small tanh network, several copies trained side by side along one plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

TRAINING = 1400
WRONG = 0.1
HIDDEN = 32
WEIGHT_DECAY = 1e-3

Plan = Sequence[tuple[int, float]]
"""Batch size and factor of the step size, step by step."""


@final
class NoisyDigits:
    """scikit-learn's digits, 1400 for training, a tenth of whose labels are wrong, and the rest with clean labels.

    The features are centred and divided by 8: the document did not record its scaling, and of six tried this one came
    nearest to its losses.

    Args:
        seed: of the split and the wrong labels.
    """

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        features, digits = load_digits(return_X_y=True)
        order = torch.randperm(len(features), generator=generator)
        x = torch.tensor(features, dtype=torch.float32)[order]
        y = torch.tensor(digits)[order]
        x = (x - x.mean(0)) / 8
        self.x, self.y = x[:TRAINING], y[:TRAINING].clone()
        self.test_x, self.test_y = x[TRAINING:], y[TRAINING:]
        wrong = torch.rand(TRAINING, generator=generator) < WRONG
        other = torch.randint(1, 10, (TRAINING,), generator=generator)
        self.y[wrong] = (self.y[wrong] + other[wrong]) % 10


@final
class Networks:
    """Copies of the network 64-32-10, each from a start of its own, in the initialisation of torch.nn.Linear.

    Args:
        number: of copies.
        generator: of the starts.
    """

    def __init__(self, number: int, generator: torch.Generator) -> None:
        shapes = ((64, HIDDEN, 64), (1, HIDDEN, 64), (HIDDEN, 10, HIDDEN), (1, 10, HIDDEN))
        drawn = (
            (2 * torch.rand(number, rows, columns, generator=generator) - 1) / fan_in**0.5
            for rows, columns, fan_in in shapes
        )
        self.weights = [weight.requires_grad_() for weight in drawn]
        self.number = number

    def losses(self, x: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy [copies] on inputs [copies, b, 64]."""
        first, bias, second, last = self.weights
        logits = torch.tanh(x @ first + bias) @ second + last
        return F.cross_entropy(logits.transpose(1, 2), y, reduction="none").mean(1)

    def objective(self, data: NoisyDigits) -> Tensor:
        """What is minimised [copies]: cross-entropy on the training points and (λ/2)|θ|²."""
        with torch.no_grad():
            loss = self.losses(data.x.expand(self.number, -1, -1), data.y.expand(self.number, -1))
            square = torch.stack([weight.square().sum((1, 2)) for weight in self.weights]).sum(0)
            return loss + WEIGHT_DECAY / 2 * square

    def accuracy(self, data: NoisyDigits) -> Tensor:
        """Share of clean labels found on the points left out [copies]."""
        with torch.no_grad():
            first, bias, second, last = self.weights
            logits = torch.tanh(data.test_x @ first + bias) @ second + last
            return (logits.argmax(2) == data.test_y).float().mean(1)

    def train(self, data: NoisyDigits, plan: Plan, lr: float, generator: torch.Generator) -> None:
        """SGD along the plan, batches drawn with replacement."""
        for size, factor in plan:
            chosen = torch.randint(TRAINING, (self.number, size), generator=generator)
            gradients = torch.autograd.grad(self.losses(data.x[chosen], data.y[chosen]).sum(), self.weights)
            with torch.no_grad():
                for weight, gradient in zip(self.weights, gradients, strict=True):
                    weight.sub_(lr * factor * (gradient + WEIGHT_DECAY * weight))
