"""What the data identify, by whatever name it is asked for, and what has no noise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fisheropt.inference import sandwich
from tests.inference.fits import features, fitted, responses


@pytest.mark.parametrize("wanted", ["weight[0, 0]", "weight", ["bias[1]", "weight[2, 1]"]])
def test_a_name_is_answered_where_its_matrix_is(softmax: Any, wanted: Any) -> None:
    model, x, y = softmax
    fit = sandwich(model, [(x, y)], "categorical")
    with pytest.raises(ValueError, match="do not identify.*contrasts"):
        fit.wald(wanted)
    contrast = torch.zeros(1, 9, dtype=torch.float64)
    contrast[0, 0], contrast[0, 2] = 1, -1
    assert fit.wald(contrast).dof == 1


def penalised(dead: float) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A logistic fit with l2 = .1 and a feature that is always zero, whose weight is `dead`."""
    x = features(300, 3, 0)
    x[:, 2] = 0
    y = responses(x, "bernoulli", 1)
    model = nn.Linear(3, 1, dtype=torch.float64)

    def loss(z: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        penalty = sum(p.square().sum() for p in model.parameters())
        return F.binary_cross_entropy_with_logits(z, target) + 0.05 * penalty

    fitted(model, x, y, loss)
    with torch.no_grad():
        model.weight[0, 2] = dead
    return model, x, y


@pytest.mark.parametrize("dead", [0.0, 1e-12, -1e-9])
def test_a_step_that_no_loss_would_show_is_no_distance(dead: float) -> None:
    model, x, y = penalised(dead)
    fit = sandwich(model, [(x, y)], "bernoulli", l2=0.1)
    assert fit.distance < 0.01
    assert float(fit.standard_errors()["weight"][0, 2]) < 1e-9


def test_a_step_that_matters_is_a_distance_without_noise_too() -> None:
    model, x, y = penalised(0.5)
    with pytest.raises(RuntimeError, match="standard errors"):
        sandwich(model, [(x, y)], "bernoulli", l2=0.1)


@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_the_distance_is_in_standard_errors_whatever_the_units(logistic: Any, unit: float) -> None:
    """Against the Newton step in the metric of the covariance, at a point one standard error or so away."""
    model, x, y = logistic
    moved = nn.Linear(4, 1, dtype=torch.float64)
    with torch.no_grad():
        moved.weight.copy_(model.weight * 1.1)
        moved.bias.copy_(model.bias)
        moved.weight[0, 1] /= unit
    x = x.clone()
    x[:, 1] *= unit
    fit = sandwich(moved, [(x, y)], "bernoulli", tolerance=float("inf"))
    z = moved(x).detach()
    a = torch.cat((x, torch.ones(300, 1, dtype=torch.float64)), 1)
    step = torch.linalg.solve(fit.curvature, a.T @ (z.sigmoid() - y) / 300)[:, 0]
    scale = fit.covariance.diagonal().sqrt()
    unitless = fit.covariance / scale / scale[:, None]
    expected = float((step / scale) @ torch.linalg.solve(unitless, step / scale)) ** 0.5
    assert fit.distance == pytest.approx(expected, rel=1e-6)
