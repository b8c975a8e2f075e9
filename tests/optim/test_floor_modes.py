"""The modes of FisherFloorSGD against dense linear algebra, and what they promise: floor, metric, halvings."""

import copy
import gc
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fisheropt
from fisheropt.products import information
from tests.optim.test_fisher_floor import information as logistic_information
from tests.optim.test_fisher_floor import separable, train, zeros

ROUNDING = 1e-9


def blobs(samples=256, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(3, 10, generator=generator)
    y = torch.arange(samples) % 3
    return centres[y] + torch.randn(samples, 10, generator=generator), y


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(10, 24), nn.Tanh(), nn.Linear(24, 3))


def unit_vectors(model):
    sizes = [p.numel() for p in model.parameters()]
    parts = torch.eye(sum(sizes), dtype=next(model.parameters()).dtype).split(sizes, 1)
    return {n: part.reshape(-1, *p.shape) for (n, p), part in zip(model.named_parameters(), parts, strict=True)}


def strongest(model, x, count=4):
    """The strongest directions of the model Fisher, and the eigenvalue of the last of them."""
    values, vectors = torch.linalg.eigh(information(model, "categorical", x, unit_vectors(model)).detach().double())
    sizes = [p.numel() for p in model.parameters()]
    parts = vectors[:, -count:].T.float().split(sizes, 1)
    named = zip(model.named_parameters(), parts, strict=True)
    return {name: part.reshape(count, *p.shape) for (name, p), part in named}, float(values[-count])


def smallest(model, x, directions):
    return float(torch.linalg.eigvalsh(information(model, "categorical", x, directions).detach().double())[0])


def classify(model, optimizer, x, y, steps, batch=32, each=None):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        chosen = torch.randint(0, len(x), (batch,), generator=generator)
        F.cross_entropy(model(x[chosen]), y[chosen]).backward()
        optimizer.step()
        optimizer.zero_grad()
        if each is not None:
            each()


@pytest.mark.parametrize("psi", ["hinge", "squared", "softmin"])
def test_a_penalty_step_is_the_formula(psi):
    """One full-batch step against autograd through a dense eigenvalue; with all data in the batch the margin is 1."""
    x, y = separable(60, 4)
    model, tau, weight, lr = zeros(4), 0.3, 2.0, 0.1
    nn.init.normal_(model.weight, std=0.3, generator=torch.Generator().manual_seed(0))
    keywords = {"mode": "penalty", "likelihood": "bernoulli", "floor": tau, "penalty": psi, "data_size": 60}
    optimizer = fisheropt.FisherFloorSGD(model, lr, weight=weight, max_norm=0.4, smoothing=0.0, **keywords)
    theta = model.weight.detach().clone().requires_grad_()
    p = (x @ theta.T).sigmoid()
    loss = F.binary_cross_entropy(p.squeeze(1), y)
    values = torch.linalg.eigvalsh((x * p * (1 - p)).T @ x / 60)
    kappa = 10 * torch.tensor(4.0).log() / tau
    least = -torch.logsumexp(-kappa * values, 0) / kappa if psi == "softmin" else values[0]
    charge = weight * (1 - least / tau) ** (2 if psi == "squared" else 1)
    (gradient,) = torch.autograd.grad(loss + charge, theta)
    assert gradient.norm() > 0.4, "the clipping is tested too"
    expected = theta.detach() - lr * gradient * 0.4 / gradient.norm()
    train(model, optimizer, x, y, 1)
    rtol = 2e-3 if psi == "softmin" else 1e-9  # weights below a thousandth are left out
    torch.testing.assert_close(model.weight.detach(), expected, rtol=rtol, atol=1e-12)


@pytest.mark.parametrize("weight", [1.1, 2.2])
def test_the_penalty_keeps_the_information_of_a_network(weight):
    """FF-E6, shortened: the information of all the data, not only of the batch, stays above τ."""
    x, y = blobs()
    lowest = {}
    for mode in ("monitor", "penalty"):
        model = network()
        directions, reference = strongest(model, x)
        tau, seen = reference / 2, []
        keywords = {"directions": directions, "floor": tau, "likelihood": "categorical"}
        optimizer = fisheropt.FisherFloorSGD(model, lr=0.2, mode=mode, weight=weight, **keywords)
        classify(model, optimizer, x, y, 120, each=lambda m=model, d=directions, s=seen: s.append(smallest(m, x, d)))
        lowest[mode] = min(seen) / tau
    assert lowest["monitor"] < 0.3
    assert lowest["penalty"] >= 0.99
    group = optimizer.report().as_dict()["groups"][0]
    assert 0.1 < group["acted"] / group["readings"] < 0.8
    assert "keeps the information itself above" in optimizer.report().verdict


def test_the_weight_is_twice_the_loss_of_ignorance():
    x, y = blobs(64)
    model = network()
    optimizer = fisheropt.FisherFloorSGD(model, 0.1, mode="penalty", likelihood="categorical", floor=1.0,
                                         directions=strongest(model, x)[0])  # fmt: skip
    classify(model, optimizer, x, y, 1)
    assert optimizer.param_groups[0]["charge"] == pytest.approx(2 * torch.tensor(3.0).log().item())


def test_the_metric_step_is_the_formula():
    x, _ = separable(200, 3)
    x = x * torch.tensor([1.0, 0.5, 0.05], dtype=torch.float64)
    y = torch.randn(200, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model, tau = zeros(3), 0.02
    optimizer = fisheropt.FisherFloorSGD(model, 0.1, mode="metric", likelihood="gaussian", floor=tau, smoothing=0.0)
    values, vectors = torch.linalg.eigh(x.T @ x / 200)
    gradient = -(y * x).mean(0)
    expected = -0.1 * (vectors * (values[-1] / values.clamp_min(tau))) @ vectors.T @ gradient
    (F.mse_loss(model(x), y) / 2).backward()
    optimizer.step()
    torch.testing.assert_close(model.weight[0].detach(), expected, rtol=1e-9, atol=0)
    assert values[0] < tau < values[1], "one direction is at the floor"
    report = optimizer.report()
    assert report.as_dict()["groups"][0]["held"] == 1 and "certifies the step, not the model" in report.verdict


def test_the_learning_rate_of_sgd_carries_over_to_the_metric():
    """At 1.8 over the largest curvature both are stable, and the metric settles the weak directions sooner."""
    x, _ = separable(500, 6)
    x = x * torch.logspace(0, -1.5, 6, dtype=torch.float64)
    truth = torch.ones(6, dtype=torch.float64)
    lr = 1.8 / float(torch.linalg.eigvalsh(x.T @ x / 500)[-1])
    errors = {}
    for mode in ("monitor", "metric"):
        model = zeros(6)
        optimizer = fisheropt.FisherFloorSGD(model, lr, mode=mode, likelihood="gaussian", floor=1e-3, every=1)
        for _ in range(60):
            ((model(x).squeeze(1) - x @ truth).square().mean() / 2).backward()
            optimizer.step()
            optimizer.zero_grad()
        errors[mode] = float((model.weight[0].detach() - truth).norm())
    assert errors["metric"] < 0.1 * errors["monitor"]


def test_the_automatic_metric_waits_for_evidence():
    """τ = Λ*: with few samples no direction is trusted and the step is that of SGD; with many it is not."""
    for size, held in ((30, 5), (4000, 0)):
        x, y = separable(size, 5)
        model = zeros(5)
        keywords = {"mode": "metric", "likelihood": "bernoulli", "data_size": size}
        train(model, optimizer := fisheropt.FisherFloorSGD(model, 0.1, **keywords), x, y, 3)
        group = optimizer.report().as_dict()["groups"][0]
        assert group["held"] == held and group["floor"] == pytest.approx(group["lambda_star"])


def test_backtracking_never_leaves_the_floor_and_halves_the_step_of_sgd():
    x, y = separable(30, 5)
    plain, held = zeros(5), zeros(5)
    tau = 0.5 * float(torch.linalg.eigvalsh(logistic_information(held, x))[0])
    keywords = {"mode": "backtrack", "likelihood": "bernoulli", "floor": tau, "data_size": 30}
    optimizer = fisheropt.FisherFloorSGD(held, 8.0, momentum=0.5, **keywords)
    twin = torch.optim.SGD(plain.parameters(), 8.0, momentum=0.5)
    lowest, lengths = [], set()
    for _ in range(60):
        plain.load_state_dict(held.state_dict())
        before = held.weight.detach().clone()
        train(plain, twin, x, y, 1)
        train(held, optimizer, x, y, 1)
        lowest.append(float(torch.linalg.eigvalsh(logistic_information(held, x))[0]))
        moved, full = held.weight.detach() - before, plain.weight.detach() - before
        share = float(moved.norm() / full.norm())
        torch.testing.assert_close(moved, share * full, rtol=1e-6, atol=1e-9)
        lengths.add(round(share, 6))
    assert min(lowest) >= tau * (1 - ROUNDING)
    assert lengths <= {0.0, *(round(2.0**-j, 6) for j in range(11))} and len(lengths) > 2
    group = optimizer.report().as_dict()["groups"][0]
    assert group["halvings"] > 0 and "halvings so far" in optimizer.report().verdict


def test_plain_steps_would_leave_that_floor():
    x, y = separable(30, 5)
    model = zeros(5)
    tau = 0.5 * float(torch.linalg.eigvalsh(logistic_information(model, x))[0])
    train(model, torch.optim.SGD(model.parameters(), 8.0, momentum=0.5), x, y, 60)
    assert torch.linalg.eigvalsh(logistic_information(model, x))[0] < tau / 2


def test_random_directions_of_rank_one_are_counted_as_orthonormal_ones():
    """With Q = V(VᵀV)^(-1/2) the anchor adds A to the curvature itself: QᵀQ = 1, which V is not."""
    model = nn.Sequential(nn.Linear(18, 12), nn.Tanh(), nn.Linear(12, 3)).double()
    x, y = torch.randn(300, 18, dtype=torch.float64), torch.randint(0, 3, (300,))
    optimizer = fisheropt.FisherFloorSGD(model, 1e-9, likelihood="categorical", fisher="exact", every=1)
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    watch = optimizer._watch(optimizer.param_groups[0])
    vectors = watch._vectors(torch.eye(16, dtype=torch.float64))
    flat = torch.cat([v.flatten(1) for v in vectors.values()], 1)
    torch.testing.assert_close(flat @ flat.T, torch.eye(16, dtype=torch.float64), rtol=0, atol=1e-6)
    assert (optimizer.param_groups[0]["frame"] - torch.eye(16, dtype=torch.float64)).abs().max() > 1e-3
    names = {id(p): n for n, p in model.named_parameters()}
    expected = information(model, "categorical", x, {names[i]: v for i, v in vectors.items()}).detach()
    torch.testing.assert_close(optimizer.param_groups[0]["information"], expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("way", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
@pytest.mark.parametrize("mode", ["penalty", "backtrack"])
def test_a_copy_acts_on_its_own_model(way, mode):
    x, y = separable(40, 4)
    model = zeros(4)
    keywords = {"likelihood": "bernoulli", "floor": 0.2, "held_out": [x], "weight": 2.0}
    optimizer = fisheropt.FisherFloorSGD(model, 0.5, mode=mode, **keywords)
    train(model, optimizer, x, y, 3)
    twin, own = way((model, optimizer))
    for pair in ((model, optimizer), (twin, own)):
        train(*pair, x, y, 3)
    assert torch.equal(twin.weight, model.weight)
    assert own._exact.model is twin and own._exact.batch is not optimizer._exact.batch
    del optimizer, own, pair
    gc.collect()
    assert not model._forward_hooks and not twin._forward_hooks


def test_a_forward_elsewhere_is_not_taken_for_the_batch():
    """Validation without gradients between forward and step; and a step without any forward takes no penalty."""
    x, y = separable(40, 4)
    moved = []
    for stray in (False, True):
        model = zeros(4)
        optimizer = fisheropt.FisherFloorSGD(model, 0.5, mode="penalty", likelihood="bernoulli", floor=0.3, weight=1.0)
        for _ in range(2):
            F.binary_cross_entropy_with_logits(model(x).squeeze(1), y).backward()
            if stray:
                with torch.no_grad():
                    model(torch.full((3, 4), 1e6, dtype=torch.float64))
            optimizer.step()
            optimizer.zero_grad()
        moved.append(model.weight.detach().clone())
        assert not optimizer._exact.batch.seen, "the batch is let go after the step"
    assert torch.equal(*moved)
    model.weight.grad = torch.ones_like(model.weight)
    before = model.weight.detach().clone()
    optimizer.step()
    torch.testing.assert_close(model.weight.detach(), before - 0.5)


BAD = {
    "FisherFloorSGD.mode='penalty'. needs": {"mode": "penalty"},
    "write FisherFloorSGD.model, mode='backtrack', likelihood=": {"mode": "backtrack"},
    "held_out=. needs": {"held_out": [torch.ones(2, 3)]},
    "fisher='exact'. needs": {"fisher": "exact"},
    "fisher='half': write one of": {"fisher": "half"},
    "write one of .'hinge', 'squared', 'softmin'.": {"penalty": "cubed"},
    "weight=-1 must be": {"weight": -1},
    "max_norm=0 must be": {"max_norm": 0},
    "data_size=0 must be": {"data_size": 0},
    "leave out differentiable=True": {"mode": "backtrack", "likelihood": "bernoulli", "differentiable": True},
    "weight='auto' is 2 ln C": {"mode": "penalty", "likelihood": "gaussian"},
    "leave out fisher='sampled'": {"mode": "penalty", "likelihood": "bernoulli", "fisher": "sampled"},
    "cannot be gone through again": {"likelihood": "bernoulli", "held_out": iter([torch.ones(2, 3)])},
}


@pytest.mark.parametrize("message", BAD)
def test_settings_that_make_no_sense_are_named(message):
    with pytest.raises(ValueError, match=message):
        fisheropt.FisherFloorSGD(nn.Linear(3, 1), lr=0.1, **BAD[message])


def test_a_group_cannot_ask_for_what_the_optimizer_was_not_built_for():
    optimizer = fisheropt.FisherFloorSGD(nn.Linear(3, 1), lr=0.1, likelihood="bernoulli")
    with pytest.raises(ValueError, match="fisher='exact'"):
        optimizer.add_param_group({"params": [torch.ones(2, requires_grad=True)], "mode": "penalty"})
