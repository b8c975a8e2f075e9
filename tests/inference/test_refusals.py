"""What is refused or only told, and that the message says what to write."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fisheropt.inference import sandwich
from fisheropt.likelihoods import Likelihood
from tests.inference.fits import features, fitted, linear, responses


def test_far_from_the_optimum_is_refused(logistic: Any) -> None:
    model, x, y = logistic
    errors = sandwich(model, [(x, y)], "bernoulli")
    far = linear(errors.estimate + errors.covariance.diagonal().sqrt())
    with pytest.raises(RuntimeError, match="standard errors in the worst direction.*one_step=True"):
        sandwich(far, [(x, y)], "bernoulli")
    told = sandwich(far, [(x, y)], "bernoulli", tolerance=math.inf)
    assert 1 < told.distance < 5
    assert "train further" in str(told)
    stepped = sandwich(far, [(x, y)], "bernoulli", one_step=True)
    assert stepped.distance < 0.5


def test_separated_classes_have_no_optimum() -> None:
    x = features(60, 2, 0)
    y = (x[:, :1] > 0).double()
    model = fitted(nn.Linear(2, 1, dtype=torch.float64), x, y, F.binary_cross_entropy_with_logits, 8)
    with pytest.raises(RuntimeError, match="separated"):
        sandwich(model, [(x, y)], "bernoulli")
    with pytest.raises(RuntimeError, match="after the Newton step, too"):
        sandwich(model, [(x, y)], "bernoulli", one_step=True, tolerance=0.5)


def test_a_dead_feature_has_no_error_and_the_others_keep_theirs(logistic: Any) -> None:
    model, x, y = logistic
    dead = torch.cat((x, torch.zeros(300, 1, dtype=torch.float64)), 1)
    wide = linear(torch.cat((model.weight[0], torch.tensor([5.0]), model.bias)).detach())
    fit = sandwich(wide, [(dead, y)], "bernoulli")
    errors = fit.standard_errors()["weight"][0]
    assert errors[4].isnan()
    torch.testing.assert_close(errors[:4], sandwich(model, [(x, y)], "bernoulli").standard_errors()["weight"][0])
    assert "NaN where nothing is left" in str(fit)
    with pytest.raises(ValueError, match="do not identify"):
        fit.wald("weight[0, 4]")


def test_a_saddle_is_refused(network: Any) -> None:
    """At zero weights the Hessian of the network is indefinite."""
    model, x, y = network
    flat = nn.Sequential(nn.Linear(2, 1), nn.Tanh(), nn.Linear(1, 1)).double()
    for p in flat.parameters():
        nn.init.constant_(p, 0.01)
    with pytest.raises(ValueError, match="negative eigenvalues.*curvature='fisher'"):
        sandwich(flat, [(x, y)], "gaussian", curvature="hessian")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"likelihood": None}, "found neither"),
        ({"loss": F.binary_cross_entropy_with_logits}, "found both"),
        ({"correction": "HC4"}, "write one of"),
        ({"correction": "HC2", "clusters": range(300)}, "correction='HC1'"),
        ({"correction": "HC3", "curvature": "hessian"}, "leverages need the model Fisher"),
        ({"curvature": "gauss"}, "'fisher' or 'hessian'"),
        ({"clusters": [0, 1]}, "one label for each of the 300"),
        ({"clusters": [0] * 300}, "found one cluster"),
        ({"likelihood": "categorical"}, "write the classes as integers"),
        ({"likelihood": "gausian"}, "is not known"),
        ({"parameters": ["nothing"]}, "no parameter 'nothing'"),
        ({"project": torch.eye(3)}, "d = 5"),
    ],
)
def test_errors_teach(logistic: Any, options: dict[str, Any], message: str) -> None:
    model, x, y = logistic
    with pytest.raises(ValueError, match=message):
        sandwich(model, [(x, y)], **{"likelihood": "bernoulli"} | options)


def test_other_refusals(logistic: Any) -> None:
    model, x, y = logistic
    with pytest.raises(ValueError, match=r"y\[:, None\]"):
        sandwich(model, [(x, y[:, 0])], "bernoulli")
    with pytest.raises(ValueError, match="degree of freedom"):
        sandwich(model, [(x[:5], y[:5])], "bernoulli", tolerance=math.inf)
    with pytest.raises(ValueError, match="shuffle=False"):
        loader = DataLoader(TensorDataset(x, y), 50, shuffle=True)
        sandwich(model, loader, "bernoulli", clusters=range(300))
    with pytest.raises(FloatingPointError, match="score of sample 7 "):
        bad = x.clone()
        bad[7] = math.nan
        sandwich(model, [(bad, y)], "bernoulli")
    with pytest.raises(RuntimeError, match=r"model.eval\(\)"):
        sandwich(nn.Sequential(nn.Dropout(), model), [(x, y)], "bernoulli")
    with pytest.raises(TypeError, match="log_loss.register"):
        sandwich(model, [(x, y)], Unvalued())


class Unvalued(Likelihood):
    def factor(self, logits: torch.Tensor, signs: torch.Tensor) -> torch.Tensor:
        return signs


def test_a_leverage_of_one_is_refused_for_hc3_alone() -> None:
    """A feature that one sample alone has is fitted to that sample."""
    x = features(50, 2, 0)
    x[:, 1] = 0
    x[0, 1] = 1
    y = responses(x, "gaussian", 1)
    model = fitted(nn.Linear(2, 1, dtype=torch.float64), x, y, F.mse_loss)
    assert sandwich(model, [(x, y)], "gaussian", correction="HC1", tolerance=math.inf).rank == 3
    with pytest.raises(ValueError, match="leverage 1"):
        sandwich(model, [(x, y)], "gaussian", correction="HC3", tolerance=math.inf)
