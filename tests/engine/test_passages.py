"""Forwards and backwards that do not come in pairs: each forward counts once, when its loss is differentiated."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import fisheropt
from fisheropt.taps.outside import outside

EVERY = {
    "godambe": lambda model: fisheropt.GodambeSGD(model, lr=0.01, every=1),
    "floor": lambda model: fisheropt.FisherFloorSGD(model, lr=0.01, every=1, likelihood="categorical"),
    "batch": lambda model: fisheropt.AdaptiveBatchSGD(model, lr=0.01, every=1),
}


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))


def data(n=16):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 5, generator=generator), torch.randint(0, 3, (n,), generator=generator)


def channel(optimizer):
    return optimizer._taps[0].channel


def information(run):
    model = network()
    optimizer = EVERY["floor"](model)
    run(model, optimizer)
    optimizer.step()
    return optimizer.param_groups[0]["information"]


def plain(model, optimizer):
    x, y = data()
    F.cross_entropy(model(x), y).backward()


@pytest.mark.parametrize("size", [4, 16])
def test_a_forward_between_backward_and_step_leaves_the_model_fisher_alone(size):
    def strayed(model, optimizer):
        plain(model, optimizer)
        model(torch.zeros(size, 5))

    torch.testing.assert_close(information(strayed), information(plain), rtol=0, atol=0)


def test_the_model_fisher_is_that_of_the_forward_that_was_differentiated():
    """Also where several forwards of one size wait, and gradients are cleared after the forward."""

    def chosen(model, optimizer):
        x, y = data()
        held = model(x)
        for factor in (2.0, 3.0):
            model(factor * x)
        optimizer.zero_grad()
        F.cross_entropy(held, y).backward()

    torch.testing.assert_close(information(chosen), information(plain), rtol=0, atol=0)


def test_accumulated_microbatches_measure_the_model_fisher_of_all():
    x, y = data()
    model = network()
    optimizer = EVERY["floor"](model)
    for part in (slice(0, 4), slice(4, 16)):
        (F.cross_entropy(model(x[part]), y[part], reduction="sum") / 16).backward()
        model(x[:4])
    assert [float(reading.augmented[-1, -1]) for reading in channel(optimizer).information] == [4, 12]


@pytest.mark.parametrize("name", EVERY)
def test_two_losses_of_one_forward_are_added_or_refused(name):
    x, y = data()
    model = network()
    optimizer = EVERY[name](model)
    out = model(x)
    F.cross_entropy(out, y).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="a second backward.. went through one forward"):
        out.square().mean().backward()
    optimizer.zero_grad()
    out = model(x)
    (F.cross_entropy(out, y) + out.square().mean()).backward()
    optimizer.step()
    assert optimizer.report().groups[0].batch_size == 16


@pytest.mark.parametrize("name", EVERY)
def test_clearing_between_two_backwards_lets_the_last_count(name):
    x, y = data()
    model = network()
    optimizer = EVERY[name](model)
    out = model(x)
    F.cross_entropy(out, y).backward(retain_graph=True)
    optimizer.zero_grad()
    F.cross_entropy(out, y).backward()
    assert len(channel(optimizer).information) == (name == "floor")
    optimizer.step()
    assert optimizer.report().groups[0].batch_size == 16
    if name == "floor":
        torch.testing.assert_close(optimizer.param_groups[0]["information"], information(plain), rtol=0, atol=0)


@pytest.mark.parametrize("name", EVERY)
def test_gradients_that_are_only_looked_at_are_no_backward(name):
    x, y = data()
    model = network()
    optimizer = EVERY[name](model)
    loss = F.cross_entropy(model(x), y)
    looked = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    (loss + 1e-3 * sum(g.square().sum() for g in looked)).backward()
    optimizer.step()
    assert optimizer.report().groups[0].batch_size == 16


def test_a_discriminator_is_frozen_while_the_generator_trains():
    x, y = data()
    generator, discriminator = nn.Linear(2, 5), network()
    optimizer = EVERY["floor"](discriminator)
    discriminator.requires_grad_(False)
    F.cross_entropy(discriminator(generator(x[:, :2])), y).backward()
    discriminator(x)
    discriminator.requires_grad_(True)
    assert generator.weight.grad is not None and not channel(optimizer).information
    F.cross_entropy(discriminator(x), y).backward()
    optimizer.step()
    torch.testing.assert_close(optimizer.param_groups[0]["information"], information(plain), rtol=0, atol=0)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copied_model_collects_nothing_and_a_copied_optimizer_does(copied):
    x, y = data()
    model = network()
    optimizer = EVERY["floor"](model)
    plain(model, optimizer)
    alone = copied(model)
    placed = next(hook.channel for hook in alone._forward_hooks.values())
    F.cross_entropy(alone(x), y).backward()
    assert not placed.on and not placed.information
    model.zero_grad()
    twin, both = copied((model, optimizer))
    both.zero_grad()
    F.cross_entropy(twin(x), y).backward()
    both.step()
    assert both.report().measurements == 1


def test_forwards_without_a_step_pile_up_nothing():
    model = network()
    optimizer = EVERY["floor"](model)
    for _ in range(30):
        model(data()[0])
    assert not channel(optimizer).information


def test_validation_before_the_backward_of_a_checkpointed_model():
    class Checkpointed(nn.Sequential):
        def forward(self, x):
            return checkpoint(super().forward, x, use_reentrant=False)

    x, y = data()
    model = Checkpointed(*network())
    optimizer = EVERY["floor"](model)
    loss = F.cross_entropy(model(x), y)
    with torch.no_grad():
        model(x[:4])
    loss.backward()
    optimizer.step()
    torch.testing.assert_close(optimizer.param_groups[0]["information"], information(plain), rtol=1e-4, atol=1e-6)


class Reused(nn.Module):
    """Its weight is used in a call, which is seen, and outside one, which is not."""

    def __init__(self, outside):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.outside = nn.Linear(5, 5), outside

    def forward(self, x):
        hidden = torch.tanh(self.layer(x))
        return hidden @ (self.layer.weight if self.outside else self.layer.weight.detach())


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("used_outside", [False, True])
def test_a_weight_used_outside_its_module_is_told_of(name, used_outside):
    model = Reused(used_outside)
    optimizer = EVERY[name](model)
    x, y = torch.randn(16, 5), torch.randint(0, 5, (16,))
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    told = [line for line in optimizer.report().advice if "did not come through the samples" in line]
    assert bool(told) == used_outside


CHANGES = {
    "none": lambda model: None,
    "clipped": lambda model: nn.utils.clip_grad_norm_(model.parameters(), 1e-3),
    "scaled": lambda model: [p.grad.mul_(65536) for p in model.parameters()],
    "negated": lambda model: [p.grad.neg_() for p in model.parameters()],
    "partly frozen": lambda model: model[0].requires_grad_(False),
}


@pytest.mark.parametrize("statistic", [fisheropt.Trace(), fisheropt.FullCovariance(), fisheropt.SecondMoment()])
@pytest.mark.parametrize("change", CHANGES)
def test_a_gradient_at_another_scale_is_not_told_of(change, statistic):
    """Nor is one in bfloat16, whose rounding is relative to the samples and not to their mean."""
    x, y = data(64)
    model = network()
    if change == "partly frozen":
        CHANGES[change](model)
    with fisheropt.observe(model, statistic) as tap, torch.autocast("cpu", torch.bfloat16):
        F.cross_entropy(model(x), y).backward()
    if change != "partly frozen":
        CHANGES[change](model)
    assert outside(tap) == 0.0


@pytest.mark.parametrize("statistic", [fisheropt.Trace(), fisheropt.FullCovariance()])
def test_the_share_outside_is_the_sine_squared(statistic):
    model, (x, y) = network().double(), data()
    with fisheropt.observe(model, statistic) as tap:
        F.cross_entropy(model(x.double()), y).backward()
    inside = torch.cat([p.grad.flatten() for p in model.parameters()])
    for p in model.parameters():
        p.grad += p.detach()
        p.grad *= 1e-3
    total = torch.cat([p.grad.flatten() for p in model.parameters()])
    cosine = torch.cosine_similarity(inside, total, dim=0)
    assert outside(tap) == pytest.approx(float(1 - cosine.square()), rel=1e-9)
