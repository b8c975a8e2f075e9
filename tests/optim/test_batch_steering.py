"""A controller beside an optimizer that is not ours."""

import copy
import pickle

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

import fisheropt
from tests.optim.test_steering import SAMPLES, Scripted, data, model

OPTIMIZERS = {
    "SGD": lambda net: torch.optim.SGD(net.parameters(), lr=0.2, momentum=0.5, weight_decay=0.01),
    "AdamW": lambda net: torch.optim.AdamW(net.parameters(), lr=0.02),
}


def run(make, controller, epochs=2, **options):
    net, samples = model(), data()
    sampler = fisheropt.AdaptiveBatchSampler(samples, 24, seed=3)
    optimizer = make(net)
    steering = None
    if controller is not None:
        steering = fisheropt.BatchSteering(net, optimizer, sampler=sampler, controller=controller, every=1, **options)
    sizes = []
    for _ in range(epochs):
        for x, y in DataLoader(samples, batch_sampler=sampler):
            sizes.append(len(x))
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(net(x).squeeze(1), y).backward()
            optimizer.step()
    return net, optimizer, sampler, steering, sizes


def same(first, second):
    return all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_watching_changes_nothing(make):
    plain, _, _, _, _ = run(make, None)
    watched, _, sampler, steering, _ = run(make, Scripted())
    assert same(plain, watched) and sampler.samples_seen == 2 * SAMPLES
    assert steering.report().steps == 8 and steering.report().groups[0].dof == pytest.approx(8 * 23, rel=0.3)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_the_batch_follows_and_the_learning_rate_is_put_back(make):
    net, optimizer, sampler, steering, sizes = run(make, Scripted((48.0,), lr_factor=0.5))
    lr = make(net).param_groups[0]["lr"]
    assert sizes[:2] == [24, 45] and sampler.batch_size == 45  # a power of √2
    assert optimizer.param_groups[0]["lr"] == lr
    unhurried, _, _, _, _ = run(make, Scripted((48.0,)))
    assert not same(net, unhurried)
    assert "BatchSteering(" in str(steering.report())


def test_it_sees_the_same_noise_as_our_optimizer():
    ours, beside = Scripted(), Scripted()
    run(lambda net: torch.optim.SGD(net.parameters(), lr=0.2), beside)
    net, samples = model(), data()
    sampler = fisheropt.AdaptiveBatchSampler(samples, 24, seed=3)
    optimizer = fisheropt.AdaptiveBatchSGD(net, lr=0.2, sampler=sampler, controller=ours, every=1)
    for _ in range(2):
        for x, y in DataLoader(samples, batch_sampler=sampler):
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(net(x).squeeze(1), y).backward()
            optimizer.step()
    for (a, at), (b, bt) in zip(ours.heard, beside.heard, strict=True):
        assert (a.signal, a.noise, at.samples, at.lr) == pytest.approx((b.signal, b.noise, bt.samples, bt.lr), rel=1e-9)


def test_a_gradient_scaler_divides_out():
    net, samples = model(), data()
    scaler, controller = torch.amp.GradScaler("cpu", init_scale=64.0), Scripted()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2)
    fisheropt.BatchSteering(net, optimizer, controller=controller, every=1)
    reference = Scripted()
    twin = copy.deepcopy(model())
    plain = torch.optim.SGD(twin.parameters(), lr=0.2)
    fisheropt.BatchSteering(twin, plain, controller=reference, every=1)
    x, y = samples.tensors
    scaler.scale(F.binary_cross_entropy_with_logits(net(x).squeeze(1), y)).backward()
    scaler.step(optimizer)
    F.binary_cross_entropy_with_logits(twin(x).squeeze(1), y).backward()
    plain.step()
    assert controller.heard[0][0].noise == pytest.approx(reference.heard[0][0].noise, rel=1e-6)


def test_it_is_saved_and_resumed():
    _, _, _, steering, _ = run(OPTIMIZERS["SGD"], "noise_scale")
    saved = pickle.loads(pickle.dumps(steering.state_dict()))
    net = model()
    fresh = fisheropt.BatchSteering(net, OPTIMIZERS["SGD"](net), controller="noise_scale")
    fresh.load_state_dict(saved)
    assert fresh.report().groups[0].noise_trace == steering.report().groups[0].noise_trace


def test_removed_it_leaves_no_trace():
    net = model()
    optimizer = OPTIMIZERS["SGD"](net)
    steering = fisheropt.BatchSteering(net, optimizer, controller=Scripted())
    x, y = data().tensors
    F.binary_cross_entropy_with_logits(net(x).squeeze(1), y).backward()
    optimizer.step()
    steering.remove()
    assert steering.report().measurements == 1
    F.binary_cross_entropy_with_logits(net(x).squeeze(1), y).backward()
    optimizer.step()
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in net.modules())


def test_what_it_cannot_serve_is_refused():
    net, samples = model(), data()
    optimizer = OPTIMIZERS["SGD"](net)
    with pytest.raises(ValueError, match="device_batch_size"):
        sampler = fisheropt.AdaptiveBatchSampler(samples, 24, device_batch_size=8)
        fisheropt.BatchSteering(net, optimizer, sampler=sampler)
    with pytest.raises(ValueError, match="twice"):
        fisheropt.BatchSteering(net, fisheropt.AdaptiveBatchSGD(net, lr=0.1))
    with pytest.raises(ValueError, match="AdaptiveBatchSGD"):
        fisheropt.BatchSteering(net, optimizer, controller="cabs")
    fisheropt.BatchSteering(net, optimizer)
    with pytest.raises(RuntimeError, match="step\\(closure\\)"):
        optimizer.step(lambda: None)


@pytest.mark.parametrize(("make", "coupled"), [("SGD", 1), ("Adam", 1), ("AdamW", 0)])
def test_decoupled_weight_decay_is_no_gradient(make, coupled):
    """AdamW decays its weights by itself: the signal is that of the loss, SGD's and Adam's that of the loss with decay."""
    net, controller = model(), Scripted()
    optimizer = getattr(torch.optim, make)(net.parameters(), lr=0.1, weight_decay=0.5)
    fisheropt.BatchSteering(net, optimizer, controller=controller)
    x, y = data().tensors
    F.binary_cross_entropy_with_logits(net(x).squeeze(1), y).backward()
    squared = sum((p.grad + 0.5 * coupled * p.detach()).square().sum() for p in net.parameters())
    optimizer.step()
    (reading, _) = controller.heard[0]
    assert reading.signal == pytest.approx(float(squared - reading.noise / SAMPLES), abs=1e-9)


class Raising(torch.optim.SGD):
    """Fails when told to, after the hooks before a step."""

    fails = False

    def step(self, closure=None):
        if self.fails:
            raise ArithmeticError
        super().step(closure)


def test_a_step_that_raises_leaves_the_learning_rate():
    net = model()
    optimizer = Raising(net.parameters(), lr=0.2)
    fisheropt.BatchSteering(net, optimizer, controller=Scripted(lr_factor=0.5), every=1)
    x, y = data().tensors
    for turn in range(4):
        F.binary_cross_entropy_with_logits(net(x).squeeze(1), y).backward()
        optimizer.fails = turn in (1, 2)
        if optimizer.fails:
            with pytest.raises(ArithmeticError):
                optimizer.step()
        else:
            optimizer.step()
    assert optimizer.param_groups[0]["lr"] == 0.2
