"""Where a sample has several labels, as a sequence has, H is that of the loss as F.cross_entropy takes it: their mean."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fisheropt
from fisheropt.likelihoods import Categorical, eigen_factor, lower_factor, of_loss, resolve, upper_factor
from fisheropt.optim.floor.penalty import automatic_weight
from fisheropt.products.information import information

FACTORS = {
    "root": lambda head, z, e: head.factor(z, e),
    "eigen": eigen_factor,
    "upper": upper_factor,
    "lower": lambda head, z, e: lower_factor(head, z, e, 2),
}


@pytest.mark.parametrize("positions", [1, 2, 7])
def test_a_token_said_several_times_is_one_token(positions):
    """The loss, its gradient and so its curvature do not change when every token is repeated."""
    torch.manual_seed(0)
    model, x = nn.Linear(4, 3).double(), torch.randn(6, 4).double()
    along = {"weight": torch.randn(5, 3, 4).double(), "bias": torch.randn(5, 3).double()}
    once = information(model, of_loss("categorical"), x, along)
    often = information(model, of_loss("categorical"), x[:, None].expand(-1, positions, -1), along)
    torch.testing.assert_close(often, once)
    summed = information(model, Categorical(), x[:, None].expand(-1, positions, -1), along)
    torch.testing.assert_close(summed, positions * once)


@pytest.mark.parametrize("name", FACTORS)
def test_every_factor_has_the_same_scale(name):
    z, e = torch.randn(2, 4, 3).double(), torch.randn(2, 4, 3).double()
    mean, total = (FACTORS[name](Categorical(averaged=averaged), z, e) for averaged in (True, False))
    torch.testing.assert_close(mean, total / 2)


def test_the_optimizer_measures_the_loss_of_tokens():
    """GodambeSGD's H over 1,500 draws at lr 0 is the Gauss-Newton matrix of the mean over tokens, up to 5 %."""
    torch.manual_seed(1)
    model, x = nn.Linear(2, 3, bias=False).double(), torch.randn(8, 5, 2).double()
    labels = torch.randint(0, 3, (8, 5))
    optimizer = fisheropt.GodambeSGD(model, lr=1e-300, likelihood="categorical", every=1)
    for _ in range(1500):
        F.cross_entropy(model(x).flatten(0, 1), labels.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    p, rows = model(x).detach().softmax(-1).flatten(0, 1), x.flatten(0, 1)
    core = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    expected = torch.einsum("nab,ni,nj->aibj", core, rows, rows).reshape(6, 6) / len(rows)
    assert (optimizer.param_groups[0]["information"] - expected).norm() <= 0.05 * expected.norm()


def test_the_automatic_weight_is_twice_the_loss_of_a_model_that_knows_nothing():
    logits, labels = torch.zeros(4, 7, 3), torch.zeros(4, 7, dtype=torch.long)
    mean = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    assert automatic_weight(of_loss("categorical"), logits.shape) == pytest.approx(2 * float(mean))
    assert automatic_weight(Categorical(), logits.shape) == pytest.approx(2 * 7 * math.log(3))


@pytest.mark.parametrize("name", ["multilabel", "gaussian", "poisson"])
def test_a_name_is_torchs_loss_a_mean_over_all_labels(name):
    z, e = torch.randn(3, 4).double(), torch.ones(3, 4).double()
    torch.testing.assert_close(of_loss(name).factor(z, e), resolve(name).factor(z, e) / 2)
    assert of_loss(resolve(name)) is resolve(name)
