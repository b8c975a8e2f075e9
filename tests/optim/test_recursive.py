"""The short way of a linear model: the rows of its samples, and the step in few operations, are those of any model."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fisheropt
from fisheropt import GodambeSGD

CLOSE = {"rtol": 1e-9, "atol": 1e-11}


def data(outputs: int, n: int = 960, d: int = 5) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=g, dtype=torch.float64)
    if outputs > 1:
        return x, torch.randint(0, outputs, (n,), generator=g)
    return x, (torch.rand(n, 1, generator=g, dtype=torch.float64) < 0.4).double()


def loss(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z, y) if z.shape[1] > 1 else F.binary_cross_entropy_with_logits(z, y)


def trained(wrapped: bool, outputs: int, bias: bool, size: int = 16, **options) -> tuple[nn.Module, GodambeSGD]:
    layer = nn.Linear(5, outputs, bias=bias, dtype=torch.float64)
    for p in layer.parameters():
        nn.init.zeros_(p)
    model = nn.Sequential(layer, nn.Identity()) if wrapped else layer
    opt = GodambeSGD(model, options.pop("lr", 1.0), every=1, **options)
    x, y = data(outputs)
    for a, b in zip(x.split(size), y.split(size), strict=True):
        loss(model(a), b).backward()
        opt.step()
        opt.zero_grad()
    return model, opt


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "outputs, options",
    [
        (1, {"gain": "running", "likelihood": "bernoulli", "weight_decay": 1e-2}),
        (1, {"gain": "running", "likelihood": "bernoulli", "data_size": 480, "size": 40}),
        (1, {"lr": 0.3, "likelihood": "bernoulli"}),
        (1, {"gain": "running"}),
        (1, {"lr": 0.3, "metric": "godambe", "likelihood": "bernoulli"}),
        (1, {"lr": 0.3, "momentum": 0.5, "likelihood": "bernoulli"}),
        (3, {"gain": "running", "likelihood": "categorical", "weight_decay": 1e-2}),
    ],
)
def test_a_linear_model_is_trained_as_the_same_model_in_a_sequence(outputs, options, bias):
    """Steps, running means and their weights to rounding, whichever way the samples were seen."""
    short, long = (trained(wrapped, outputs, bias, **options) for wrapped in (False, True))
    for p, q in zip(short[0].parameters(), long[0].parameters(), strict=True):
        torch.testing.assert_close(p, q, **CLOSE)
    ours, theirs = short[1].param_groups[0], long[1].param_groups[0]
    for key in ("information", "covariance", "information_weight_squared", "gain_total", "measured", "samples"):
        torch.testing.assert_close(torch.as_tensor(ours[key]), torch.as_tensor(theirs[key]), **CLOSE)
    a, b = short[1].report().groups[0], long[1].report().groups[0]
    assert a.details["effective_dimension"] == pytest.approx(b.details["effective_dimension"], rel=1e-8)


@pytest.mark.parametrize("metric", ["curvature", "fisher"])
def test_data_that_change_are_noticed_at_the_same_step(metric):
    """The gain begins anew at the same reading, also where the gradient is clear of its noise at one reading only."""
    found = []
    for wrapped in (False, True):
        layer = nn.Linear(6, 1, dtype=torch.float64)
        for p in layer.parameters():
            nn.init.zeros_(p)
        model = nn.Sequential(layer) if wrapped else layer
        opt = GodambeSGD(model, 1.0, gain="running", metric=metric, likelihood="bernoulli")
        g, slope = torch.Generator().manual_seed(1), torch.linspace(-1, 1, 6, dtype=torch.float64)
        for step in range(130):
            x = torch.randn(16, 6, generator=g, dtype=torch.float64)
            chance = (x @ (slope if step < 100 else -5 * slope)).sigmoid()
            y = (torch.rand(16, generator=g, dtype=torch.float64) < chance).double()
            loss(model(x), y[:, None]).backward()
            opt.step()
            opt.zero_grad()
        found.append((opt.param_groups[0]["gain_from"], layer.weight.detach()))
    assert found[0][0] == found[1][0] >= 1600
    torch.testing.assert_close(found[0][1], found[1][1], **CLOSE)


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_likelihood_is_of_what_earlier_hooks_return(wrapped):
    """H = Σ x xᵀ s² with outputs s times those of the layer, for a Gaussian."""
    layer = nn.Linear(5, 1, bias=False, dtype=torch.float64)
    model = nn.Sequential(layer) if wrapped else layer
    model.register_forward_hook(lambda module, args, output: 3 * output)
    opt = GodambeSGD(model, 0.1, likelihood="gaussian", every=1)
    x, y = data(1, 24)
    (model(x) - y).square().mean().div(2).backward()
    opt.step()
    torch.testing.assert_close(opt.param_groups[0]["information"], 9 * x.T @ x / 24, **CLOSE)


@pytest.mark.parametrize("outputs, bias", [(1, False), (1, True), (3, True)])
def test_rows_have_the_covariance_of_the_samples_gradients(outputs, bias):
    """Two microbatches and a forward that is only looked at, against each sample's own backward."""
    model = nn.Linear(5, outputs, bias=bias, dtype=torch.float64)
    x, y = data(outputs, 24)
    parameters = list(model.parameters())
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(loss(model(a[None]), b[None]), parameters)])
        for a, b in zip(x, y, strict=True)
    ]
    with fisheropt.observe(model, fisheropt.FullCovariance()) as tap:
        torch.autograd.grad(loss(model(2 * x), y), parameters)
        for a, b in zip(x.split(10), y.split(10), strict=True):
            (loss(model(a), b) * len(a) / 24).backward()
        seen = tap.covariance().per_sample().value
        assert tap.read().count == 24
    torch.testing.assert_close(seen, torch.stack(rows).T.cov(), **CLOSE)
    assert not model._forward_hooks and not model.weight._post_accumulate_grad_hooks


def test_inputs_of_more_axes_and_other_weights_go_the_long_way():
    """A sequence of positions is summed within its sample; weights of functional_call have their samples seen too."""
    model = nn.Linear(5, 1, dtype=torch.float64)
    x, _ = data(1, 24)
    with fisheropt.observe(model, fisheropt.FullCovariance()) as tap:
        model(x.view(6, 4, 5)).square().sum((1, 2)).mean().backward()
        assert tap.read().count == 6
        tap.clear()
        given = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
        torch.func.functional_call(model, given, (x,)).square().mean().backward()
        assert tap.read().count == 24


def test_two_backwards_through_one_forward_are_refused():
    model = nn.Linear(5, 1, dtype=torch.float64)
    x, y = data(1, 24)
    with fisheropt.observe(model, fisheropt.FullCovariance()):
        value = loss(model(x), y)
        value.backward(retain_graph=True)
        with pytest.raises(RuntimeError, match="second backward"):
            value.backward()


@pytest.mark.parametrize("where", ["input", "gradient"])
def test_a_number_that_is_not_finite_changes_nothing(where):
    model, opt = trained(False, 1, True, gain="running", likelihood="bernoulli")
    held = copy.deepcopy((list(model.parameters()), opt.param_groups[0]["information"]))
    x, y = data(1, 16)
    if where == "input":
        x[3, 2] = float("inf")
    loss(model(x), y).backward()
    if where == "gradient":
        model.weight.grad[0, 1] = float("nan")
    opt.step()
    assert opt.param_groups[0]["skipped"] == 1
    torch.testing.assert_close((list(model.parameters()), opt.param_groups[0]["information"]), held, rtol=0, atol=0)
