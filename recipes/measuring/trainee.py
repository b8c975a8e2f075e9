"""A model on one batch, and the plain calls that everything is compared with."""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes.measuring.models import Subject


@final
class Trainee:
    """A model of its own, the same at every start, with the subject's batch.

    Args:
        subject: what to build.
        device: where.
    """

    def __init__(self, subject: Subject, device: torch.device) -> None:
        torch.manual_seed(0)
        self.subject = subject
        self.model = subject.build().to(device)
        self.x, self.y = subject.inputs(subject.batch).to(device), subject.labels().to(device)

    def loss(self, model: nn.Module) -> Tensor:
        """The mean cross-entropy of this batch under a model, or what a peer has made of it."""
        return F.cross_entropy(model(self.x).flatten(0, -2), self.y.flatten())

    def backward(self) -> None:
        """Forward and backward."""
        self.loss(self.model).backward()

    def clear(self) -> None:
        """Leave no gradient behind."""
        for parameter in self.model.parameters():
            parameter.grad = None

    def pass_through(self) -> None:
        """The plain call: forward and backward."""
        self.backward()
        self.clear()

    @property
    def size(self) -> int:
        """Bytes of the parameters."""
        return sum(p.numel() * p.element_size() for p in self.model.parameters())


@final
class Step:
    """A whole training step with an optimizer.

    Args:
        trainee: whose model is trained.
        optimizers: that step, one after the other.
    """

    def __init__(self, trainee: Trainee, *optimizers: torch.optim.Optimizer) -> None:
        self.trainee, self.optimizers = trainee, optimizers

    def __call__(self) -> None:
        self.trainee.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        for optimizer in self.optimizers:
            optimizer.zero_grad()


def plain_step(subject: Subject, device: torch.device) -> Step:
    """The plain call of whole steps: torch's SGD without momentum."""
    trainee = Trainee(subject, device)
    return Step(trainee, torch.optim.SGD(trainee.model.parameters(), lr=1e-3))
