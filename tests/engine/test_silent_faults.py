"""Ordinary uses in which a wrong number could come without a word: each is exact, or refused by name."""

import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.prune import l1_unstructured

import fisheropt
from tests.cases import Case, batch, classification
from tests.engine.test_statistics import EXACT, check_full


@pytest.mark.filterwarnings("ignore")  # torch deprecates the old weight_norm and loops over its backward
@pytest.mark.parametrize("recompute", [nn.utils.weight_norm, lambda layer: prune(layer)])
def test_weights_that_a_pre_hook_computes(recompute):
    check_full(Case(nn.Sequential(recompute(nn.Linear(4, 3))).double(), batch(4, classes=3), classification))


@pytest.mark.filterwarnings("ignore")  # torch deprecates it
def test_spectral_norm_is_exact_in_eval_and_refused_in_train_mode():
    model = nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 3)).double()
    case = Case(model, batch(4, classes=3), classification)
    with fisheropt.observe(model, fisheropt.Trace()), pytest.raises(RuntimeError, match="power iteration"):
        case.loss()
    model.eval()
    check_full(case)


def prune(layer):
    return l1_unstructured(layer, "weight", amount=0.5)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(5, affine=False), nn.BatchNorm1d(5).requires_grad_(False)])
def test_batch_norm_without_trained_parameters_couples_samples_too(norm):
    model = nn.Sequential(nn.Linear(4, 5), norm, nn.Linear(5, 3))
    with fisheropt.observe(model, fisheropt.Trace()), pytest.raises(RuntimeError, match="couples the samples"):
        model(torch.randn(6, 4))


class Scaled(nn.Module):
    """One module called with two constants, so that each call must keep its own."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Module()
        self.inner.w = nn.Parameter(torch.ones(3))
        self.inner.forward = lambda x, k: x * self.inner.w * k

    def forward(self, x):
        return self.inner(x, 1.0) + self.inner(x, 10.0)


def test_constants_belong_to_their_call():
    model = Scaled().double()
    x = torch.randn(64, 3, dtype=torch.float64)
    with fisheropt.observe(model, fisheropt.FullCovariance()) as tap:
        model(x).sum(1).mean().backward()
    torch.testing.assert_close(tap.covariance().per_sample().matrix(), torch.cov((11 * x).T), **EXACT)


def test_convolutions_under_autocast():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.Flatten(), nn.Linear(8, 2))
    with fisheropt.observe(model, fisheropt.Trace()) as tap:
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(torch.randn(8, 1, 6, 6)), torch.randint(0, 2, (8,)))
        loss.backward()
    assert tap.covariance(model[0].weight).trace() > 0


def test_a_penalty_in_the_loss_is_no_noise():
    model = nn.Linear(3, 1).double()
    x = torch.randn(64, 3, dtype=torch.float64)
    readings = []
    for penalty in (0.0, 10.0):
        model.zero_grad()
        with fisheropt.observe(model, fisheropt.Trace()) as tap:
            (model(x).square().mean() + penalty * model.weight.square().sum()).backward()
        readings.append(tap.covariance(model.weight).value)
    torch.testing.assert_close(readings[1], readings[0], **EXACT)


def test_a_forward_without_a_backward_leaves_the_model_fisher_alone():
    found = []
    for stray in (False, True):
        torch.manual_seed(1)
        model, x = nn.Linear(3, 1), torch.randn(16, 3)
        optimizer = fisheropt.FisherFloorSGD(model, lr=0.1, likelihood="bernoulli", every=1)
        if stray:
            model(torch.full((8, 3), float("nan")))
            optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(model(x), torch.ones(16, 1)).backward()
        optimizer.step()
        assert optimizer.report().skipped == 0
        found.append(optimizer.param_groups[0]["information"])
    torch.testing.assert_close(found[1], found[0])


def test_autograd_grad_is_no_microbatch():
    model, x = nn.Linear(3, 1), torch.randn(4, 3)
    optimizer = fisheropt.AdaptiveBatchSGD(model.parameters(), lr=1e-9)
    for i in range(4):
        loss = model(x[i : i + 1]).square().mean() / 4
        torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        loss.backward()
    optimizer.step()
    assert optimizer.report().groups[0].batch_size == 4


def test_a_mean_far_above_the_noise_does_not_swallow_it():
    model = nn.Linear(3, 1)
    x = 1000 + torch.randn(64, 3)
    optimizer = fisheropt.GodambeSGD(model, lr=1e-9)
    model(x).mean().backward()
    optimizer.step()
    assert optimizer.report().groups[0].noise_trace == pytest.approx(float(x.var(0).sum()), rel=1e-2)


@pytest.mark.parametrize("damping", ["auto", 0.0])
def test_a_singular_metric_does_not_stop_training(damping):
    model = nn.Linear(3, 1)
    optimizer = fisheropt.GodambeSGD(model, lr=0.1, damping=damping)
    for _ in range(3):
        (model(torch.randn(1, 3).expand(64, 3)) - 1).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("options", [{}, {"likelihood": "bernoulli"}])
def test_reports_of_one_observation_are_json(options):
    model = nn.Linear(3, 1)
    optimizer = fisheropt.GodambeSGD(model, lr=0.1, **options)
    F.binary_cross_entropy_with_logits(model(torch.randn(1, 3)), torch.ones(1, 1)).backward()
    optimizer.step()
    json.dumps(optimizer.report().as_dict(), allow_nan=False)
    json.dumps(fisheropt.monitor.record(optimizer), allow_nan=False)
    assert str(optimizer.report())


def test_an_input_without_samples_is_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    with fisheropt.observe(model, fisheropt.Trace()), pytest.raises(RuntimeError, match="unsqueeze"):
        model(torch.randn(4))


def test_an_image_of_classes_is_not_taken_for_a_row():
    with pytest.raises(ValueError, match="Categorical.dim=1"):
        fisheropt.likelihoods.Categorical().cotangent(torch.randn(2, 3, 4, 4), 0)


def test_parameters_unfrozen_later_are_told_of():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    optimizer = fisheropt.FisherFloorSGD(model, lr=0.1)
    model[0].requires_grad_(True)
    F.cross_entropy(model(torch.randn(8, 3)), torch.randint(0, 2, (8,))).backward()
    optimizer.step()
    assert "2 parameters were frozen" in optimizer.report().advice[0]
