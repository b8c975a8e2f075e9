"""Weights that a call is lent: their gradients come with the statistic, and nothing else that one does with them changes."""

import warnings

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


def descend(p):
    """A step as soon as a gradient is there; through .data nothing would notice that it came too early."""
    p.data.sub_(p.grad)


def hooked(model):
    for p in model.parameters():
        p.register_post_accumulate_grad_hook(descend)


def overlapped(model):
    with warnings.catch_warnings():  # of torch.jit.script, which that module uses
        warnings.simplefilter("ignore")
        from torch.distributed.optim import _apply_optimizer_in_backward
    _apply_optimizer_in_backward(torch.optim.SGD, model.parameters(), {"lr": 1.0})


@pytest.mark.parametrize("stepped", [hooked, overlapped])
@pytest.mark.parametrize("statistic", STATISTICS)
def test_a_step_inside_backward_comes_after_the_layers_that_read_the_weight(statistic, stepped):
    """A hook on a weight may change it: a lent one would have its gradient before that of the layer's input."""
    x, found = torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64), []
    for tapped in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, 3)).double()
        stepped(model)
        if tapped:
            fisheropt.observe(model, statistic)
        model(x).square().sum().backward()
        found.append([p.detach() for p in model.parameters()])
    torch.testing.assert_close(found[1], found[0], **EXACT)


def test_a_call_that_is_interrupted_costs_no_later_gradient(monkeypatch):
    """No hook comes after a KeyboardInterrupt, of which a notebook goes on."""

    def interrupted(*_):
        raise KeyboardInterrupt

    x, model = torch.randn(6, 4, dtype=torch.float64), network(LAYERS["linear"][0])
    model(x).square().sum().backward()
    plain = gradients(model)
    with fisheropt.observe(model, fisheropt.Trace()):
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(F, "linear", interrupted)
            model(x)
        model.zero_grad()
        model(x).square().sum().backward()
        torch.testing.assert_close(gradients(model), plain, **EXACT)


def test_a_forward_that_was_replaced_since_reads_its_own_weight():
    x, found = torch.randn(6, 4, dtype=torch.float64), []
    for tapped in (False, True):
        model = network(LAYERS["linear"][0])
        if tapped:
            fisheropt.observe(model, fisheropt.Trace())
        model[0].forward = lambda x, layer=model[0]: F.linear(x, layer.weight.square(), layer.bias)
        model(x).square().sum().backward()
        found.append(gradients(model))
    torch.testing.assert_close(found[1], found[0], **EXACT)


def test_weights_of_functional_call_have_their_gradient_where_the_models_own_are_frozen():
    x, model = torch.randn(6, 4, dtype=torch.float64), network(LAYERS["linear"][0])
    plain = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    with fisheropt.observe(model, fisheropt.Trace()):
        model.requires_grad_(False)
        given = {name: p.clone().requires_grad_() for name, p in model.named_parameters()}
        found = torch.autograd.grad(torch.func.functional_call(model, given, x).square().sum(), list(given.values()))
    torch.testing.assert_close(found, plain, **EXACT)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")
def test_clipping_by_foreach_changes_no_reading_on_a_device():
    """torch._foreach_* write through the const pointer of a tensor that shares its memory."""
    x, readings = torch.randn(6, 4, dtype=torch.float64, device="cuda"), []
    for change in ("clipped", "zeroed in place", "kept"):
        model = network(LAYERS["linear"][0]).cuda()
        with fisheropt.observe(model, fisheropt.Trace()) as tap:
            model(x).square().sum().backward()
            CHANGES[change](model)
            readings.append(tap.read(model[0].weight))
    for reading in readings[:2]:
        torch.testing.assert_close(reading, readings[2], **EXACT)


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
