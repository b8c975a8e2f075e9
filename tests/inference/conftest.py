"""Fitted models, once a module."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.inference.fits import features, fitted, responses


@pytest.fixture(scope="module")
def logistic() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    x = features(300, 4, 3)
    y = responses(x, "bernoulli", 4)
    return fitted(nn.Linear(4, 1, dtype=torch.float64), x, y, F.binary_cross_entropy_with_logits), x, y


@pytest.fixture(scope="module")
def softmax() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    x = features(300, 2, 5)
    y = torch.randint(0, 3, (300,), generator=torch.Generator().manual_seed(6))
    y = torch.where(x[:, 0] > 1, 2, y)
    return fitted(nn.Linear(2, 3, dtype=torch.float64), x, y, F.cross_entropy), x, y


@pytest.fixture(scope="module")
def network() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Few parameters and many samples, so that there is one optimum nearby and it is identified."""
    torch.manual_seed(0)
    x = features(400, 2, 7)
    y = 2 * (x[:, :1] + 0.3).tanh() + 0.3 * responses(x, "gaussian", 8)
    model = nn.Sequential(nn.Linear(2, 1), nn.Tanh(), nn.Linear(1, 1)).double()
    return fitted(model, x, y, lambda a, b: F.mse_loss(a, b) / 2, 200), x, y
