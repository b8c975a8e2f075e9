"""A script that sets torch's default dtype is measured as any other."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fisheropt


@pytest.fixture(params=[torch.float64, torch.bfloat16])
def default(request):
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(before)


@pytest.mark.parametrize("statistic", [fisheropt.Trace, fisheropt.FullCovariance])
def test_samples_are_counted(default, statistic):
    """Also more of them than bfloat16 can count."""
    model = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1))
    with fisheropt.observe(model, statistic()) as tap:
        model(torch.randn(259, 3)).square().mean().backward()
        assert tap.read(None if statistic is fisheropt.FullCovariance else model[0].weight).count == 259


@pytest.mark.parametrize("name", ["AdaptiveBatchSGD", "FisherFloorSGD", "GodambeSGD"])
def test_optimizers_step(default, name):
    model = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1))
    opt = getattr(fisheropt, name)(model, lr=0.1, every=1)
    for _ in range(3):
        opt.zero_grad()
        model(torch.randn(16, 3)).square().mean().backward()
        opt.step()
    assert opt.report().measurements == 3
    assert opt.param_groups[0]["count"] == 16
