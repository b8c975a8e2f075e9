"""Weights that a call is lent: their gradients come with the statistic, and nothing else that one does with them changes."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fisheropt
from tests.engine.test_statistics import EXACT

STATISTICS = [fisheropt.Trace(), fisheropt.SecondMoment(), fisheropt.FullCovariance()]
LAYERS = {
    "linear": (lambda: nn.Linear(4, 3), (6, 4)),
    "sequence": (lambda: nn.Linear(4, 3), (6, 5, 4)),
    "convolution": (lambda: nn.Conv1d(2, 3, 3, padding=1), (6, 2, 5)),
    "transposed": (lambda: nn.ConvTranspose1d(2, 3, 3, stride=2), (6, 2, 5)),
    "layer norm": (lambda: nn.LayerNorm(4), (6, 5, 4)),
    "group norm": (lambda: nn.GroupNorm(2, 4), (6, 4, 3)),
}


def network(build):
    torch.manual_seed(0)
    return nn.Sequential(build(), nn.Tanh()).double()


def gradients(model):
    return [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("name", LAYERS)
def test_a_gradient_penalty_has_its_second_derivatives(name, statistic):
    """The input's gradient depends on a weight that the call was lent without its graph."""
    build, shape = LAYERS[name]
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)

    def penalised(model):
        given = x.clone().requires_grad_()
        loss = model(given).square().sum()
        slope, *rest = torch.autograd.grad(loss, [given, *model.parameters()], create_graph=True)
        (loss + slope.square().sum() + sum(g.pow(3).sum() for g in rest)).backward()
        return gradients(model)

    plain, model = penalised(network(build)), network(build)
    with fisheropt.observe(model, statistic):
        torch.testing.assert_close(penalised(model), plain, **EXACT)


CHANGES = {
    "clipped": lambda model: nn.utils.clip_grad_norm_(model.parameters(), 1e-3),
    "zeroed in place": lambda model: model.zero_grad(set_to_none=False),
    "dropped": lambda model: model.zero_grad(),
    "kept": lambda model: None,
}


@pytest.mark.parametrize("statistic", STATISTICS[:2])
@pytest.mark.parametrize("change", CHANGES)
def test_what_is_done_to_the_gradient_between_backwards_changes_no_reading(change, statistic):
    """The sum of the samples' gradients is p.grad's own memory until one of the two is written to."""
    x, readings = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64), []
    for between in (CHANGES[change], CHANGES["kept"]):
        model = network(LAYERS["linear"][0])
        with fisheropt.observe(model, statistic) as tap:
            for part in x:
                model(part).square().sum().backward()
                between(model)
            readings.append([tap.covariance(p).value for p in model.parameters()])
    torch.testing.assert_close(readings[0], readings[1], **EXACT)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_a_hook_that_uses_the_weight_keeps_its_gradient(statistic):
    x, found = torch.randn(6, 4, dtype=torch.float64), []
    for tapped in (False, True):
        model, penalties = network(LAYERS["linear"][0]), []
        if tapped:
            fisheropt.observe(model, statistic)
        model[0].register_forward_pre_hook(lambda module, args, to=penalties: to.append(module.weight.square().sum()))
        model[0].register_forward_hook(lambda module, args, output, to=penalties: to.append(module.weight.sum()))
        (model(x).sum() + penalties[0] + penalties[1]).backward()
        found.append(gradients(model))
    torch.testing.assert_close(found[1], found[0], **EXACT)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_a_look_at_gradients_has_them_and_leaves_no_reading(statistic):
    x, model = torch.randn(6, 4, dtype=torch.float64), network(LAYERS["linear"][0])
    plain = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    with fisheropt.observe(model, statistic) as tap:
        looked = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
        with pytest.raises(RuntimeError, match="no sample was seen"):
            tap.covariance(None if isinstance(statistic, fisheropt.FullCovariance) else model[0].weight)
    torch.testing.assert_close(looked, plain, **EXACT)


def test_a_call_that_fails_gives_the_weight_back():
    model = network(LAYERS["linear"][0])
    with fisheropt.observe(model, fisheropt.Trace()):
        with pytest.raises(RuntimeError, match="shapes"):
            model(torch.randn(6, 5, dtype=torch.float64))
        assert not {"weight", "bias"} & vars(model[0]).keys()
        assert model[0].weight.requires_grad


@pytest.mark.parametrize("statistic", STATISTICS)
def test_hooks_on_weights_and_frozen_ones_are_heeded(statistic):
    x, found = torch.randn(6, 4, dtype=torch.float64), []
    for tapped in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 3)).double()
        model[0].bias.requires_grad_(False)
        model[2].weight.register_hook(lambda g: 3 * g)
        seen = []
        model[2].weight.register_post_accumulate_grad_hook(lambda p, to=seen: to.append(p.grad.clone()))
        if tapped:
            fisheropt.observe(model, statistic)
        out = model(x)
        model[2].bias.requires_grad_(False)
        F.mse_loss(out, torch.ones_like(out)).backward()
        assert model[0].bias.grad is None and model[2].bias.grad is None
        found.append([model[0].weight.grad, model[2].weight.grad, *seen])
    torch.testing.assert_close(found[1], found[0], **EXACT)
