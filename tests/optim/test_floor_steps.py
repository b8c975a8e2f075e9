"""What a floor's step rests on and where it leads: an anchor of any strength, all the samples of a step, and no others."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fisheropt
from tests.optim.test_fisher_floor import information, separable, train, zeros
from tests.optim.test_floor_modes import blobs, network

LOSS = F.binary_cross_entropy_with_logits


def anchored(lr, floor, **keywords):
    x, y = separable(40, 4)
    model = zeros(4)
    optimizer = fisheropt.FisherFloorSGD(model, lr, floor=floor, likelihood="bernoulli", every=1, **keywords)
    return model, optimizer, x, y


@pytest.mark.parametrize("momentum", [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}])
@pytest.mark.parametrize("floor", [5.0, 1e6])
def test_no_anchor_is_too_strong_for_the_step(floor, momentum):
    """An explicit pull diverges for ηA > 2; this one ends where ∇L + A(θ - θ₀) vanishes."""
    model, optimizer, x, y = anchored(0.5, floor, smoothing=0.0, **momentum)
    train(model, optimizer, x, y, 500)
    model.zero_grad()
    LOSS(model(x).squeeze(1), y).backward()
    pull = optimizer.param_groups[0]["stiffness"] @ model.weight.detach()[0]
    torch.testing.assert_close(pull, -model.weight.grad[0], rtol=1e-6, atol=1e-9)
    assert optimizer.report().as_dict()["groups"][0]["certified"]


def test_a_weak_anchor_is_that_of_the_explicit_formula():
    """The difference is of second order in ηA: a tenth of the step has a hundredth of it."""
    apart = []
    for lr in (1e-2, 1e-3):
        model, optimizer, x, y = anchored(lr, 1.0)
        train(model, optimizer, x, y, 1)
        with torch.no_grad():
            model.weight += 1.0
        before = model.weight.detach().clone()
        gradient = torch.autograd.grad(LOSS(model(x).squeeze(1), y), model.weight)[0][0]
        train(model, optimizer, x, y, 1)
        group = optimizer.param_groups[0]
        explicit = before[0] - lr * (gradient + group["stiffness"] @ (before[0] - group["anchor"]))
        apart.append(float((model.weight.detach()[0] - explicit).norm()))
        assert 0 < apart[-1] < 3 * lr**2
    assert 50 < apart[0] / apart[1] < 150


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_tensor_lr_makes_the_same_step(shape):
    moved = []
    for lr in (0.25, torch.full(shape, 0.25, dtype=torch.float64)):
        model, optimizer, x, y = anchored(lr, 5.0)
        train(model, optimizer, x, y, 4)
        moved.append(model.weight.detach().clone())
    torch.testing.assert_close(*moved, rtol=1e-12, atol=0)


MODES = [{"mode": "penalty", "weight": 2.0}, {"mode": "backtrack"}, {"fisher": "exact"}]


@pytest.mark.parametrize("keywords", MODES, ids=str)
@pytest.mark.parametrize("cut", [[20, 20], [10, 30], [32, 4, 4]])
def test_accumulated_forwards_are_one_batch(keywords, cut):
    """Microbatches of any size make the step, and the information, of all samples at once."""
    x, y = separable(40, 4)
    x = x * torch.linspace(0.2, 2, 40, dtype=torch.float64)[:, None]
    found = []
    for sizes in ([40], cut):
        model = zeros(4)
        optimizer = fisheropt.FisherFloorSGD(model, 2.0, likelihood="bernoulli", floor=0.15, every=1, **keywords)
        for _ in range(3):
            for part, label in zip(x.split(sizes), y.split(sizes), strict=True):
                (LOSS(model(part).squeeze(1), label) * len(part) / 40).backward()
            optimizer.step()
            optimizer.zero_grad()
        found.append((model.weight.detach().clone(), optimizer.param_groups[0]["information"]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("keywords", MODES, ids=str)
def test_only_forwards_that_backward_went_through_count(keywords):
    """Not one with gradients after backward, not one thrown away before it, not one whose gradients were cleared."""
    x, y = separable(40, 4)
    stray = 5 * torch.ones(30, 4, dtype=torch.float64)
    moved = []
    for strays in (False, True):
        model = zeros(4)
        optimizer = fisheropt.FisherFloorSGD(model, 2.0, likelihood="bernoulli", floor=0.15, every=1, **keywords)
        for _ in range(3):
            if strays:
                model(stray).sum().backward()
                optimizer.zero_grad()
                model(stray)
            loss = LOSS(model(x).squeeze(1), y)
            if strays:
                model(stray)
            loss.backward()
            if strays:
                model(stray)
            optimizer.step()
            optimizer.zero_grad()
        moved.append((model.weight.detach().clone(), optimizer.param_groups[0]["information"]))
    assert torch.equal(moved[0][0], moved[1][0]) and torch.equal(moved[0][1], moved[1][1])


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = zeros(4)

    def forward(self, x, **options):
        return self.inner(x) * options.get("scale", 1.0) + options.get("shift", 0.0)


@pytest.mark.parametrize("named", [False, True])
def test_arguments_by_name_are_kept(named):
    x, y = separable(40, 4)
    model = Scaled()
    keywords = {"likelihood": "bernoulli", "fisher": "exact", "mode": "monitor", "every": 1}
    optimizer = fisheropt.FisherFloorSGD(model, 1e-9, **keywords)
    output = model(x=x, scale=2.0, shift=1.0) if named else model(x, scale=2.0, shift=1.0)
    LOSS(output.squeeze(1), y).backward()
    optimizer.step()
    p = torch.tensor(1.0, dtype=torch.float64).sigmoid()
    torch.testing.assert_close(optimizer.param_groups[0]["information"], 4 * p * (1 - p) * x.T @ x / 40)


def two_groups(batches, **keywords):
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    groups = [{"params": list(model[0].parameters())}, {"params": list(model[2].parameters())}]
    optimizer = fisheropt.FisherFloorSGD(model, 1e-9, likelihood="bernoulli", held_out=batches, every=1, **keywords)
    optimizer._taps.pop().remove()
    optimizer.param_groups.clear()
    for group in groups:
        optimizer.add_param_group(group)
    return model, optimizer


def test_two_groups_see_the_same_held_out_batches_each_once():
    torch.manual_seed(0)
    x, y = separable(40, 4)
    batches = [separable(size, 4, seed=size)[0] for size in (20, 30, 50)]
    model, optimizer = two_groups(batches, smoothing=0.999)
    for distinct in (20, 50, 100, 100, 100):
        train(model, optimizer, x, y, 1)
        for group in optimizer.report().as_dict()["groups"]:
            assert group["held_out_samples"] == pytest.approx(distinct, rel=0.01)


@pytest.mark.parametrize("way", ["state", "copy", "pickle"])
def test_held_out_evidence_goes_on_where_it_was(way):
    x, y = separable(40, 4)
    batches = [separable(size, 4, seed=size)[0] for size in (20, 30, 50)]
    keywords = {"likelihood": "bernoulli", "held_out": batches, "every": 1, "smoothing": 0.5}
    model = zeros(4)
    optimizer = fisheropt.FisherFloorSGD(model, 1e-9, **keywords)
    train(model, optimizer, x, y, 2)
    if way == "state":
        twin = copy.deepcopy(model)
        twin._forward_hooks.clear(), twin._forward_pre_hooks.clear()
        own = fisheropt.FisherFloorSGD(twin, 1e-9, **keywords)
        own.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    else:
        pair = (model, optimizer)
        twin, own = copy.deepcopy(pair) if way == "copy" else pickle.loads(pickle.dumps(pair))
    for steps in (1, 2):
        train(model, optimizer, x, y, steps)
        train(twin, own, x, y, steps)
        one, other = (o.report().as_dict()["groups"][0] for o in (optimizer, own))
        assert one == other and one["held_out_samples"] <= 100


CALLS = [
    {"mode": "penalty", "weight": 2.0, "floor": 1.0},
    {"mode": "backtrack"},
    {"directions": "tracked", "held_out": [torch.zeros(8, 10)]},
    {"held_out": [torch.zeros(8, 10)]},
]


@pytest.mark.parametrize("keywords", CALLS, ids=str)
@pytest.mark.parametrize("floor", [0, 1.0])
def test_a_group_of_other_parameters_steps_beside_the_model(keywords, floor):
    """One without a tap, and one outside the model, which no held-out batch and no jvp can reach."""
    x, y = blobs(32)
    model, outside = network(), nn.Parameter(torch.ones(3))
    optimizer = fisheropt.FisherFloorSGD(model, 0.1, likelihood="categorical", **keywords)
    optimizer.add_param_group({"params": [outside], "floor": floor, "mode": "anchor"})
    for _ in range(3):
        (F.cross_entropy(model(x), y) + outside.square().sum()).backward()
        outside.square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert 0 < float(outside.detach().abs().max()) < 1 and outside.isfinite().all()
    assert ("held_out_samples" in optimizer.report().as_dict()["groups"][0]) == ("held_out" in keywords)
    copy.deepcopy((model, outside, optimizer))


def test_a_model_that_is_not_finite_in_eval_mode_is_reported():
    x, y = blobs(32)
    norm = nn.Linear(10, 10)
    norm.register_buffer("scale", torch.tensor(float("inf")))
    norm.forward = lambda x: F.linear(x, norm.weight, norm.bias) * (1.0 if norm.training else norm.scale)
    model = nn.Sequential(norm, nn.Linear(10, 3))
    optimizer = fisheropt.FisherFloorSGD(model, 0.1, likelihood="categorical", fisher="exact", every=1)
    for _ in range(2):
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    report = optimizer.report()
    assert "not finite at any of 2 readings" in str(report) and "eval mode" in str(report)
    norm.scale.fill_(1.0)
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    assert any("2 readings was not finite" in line for line in optimizer.report().advice)


def test_a_floor_that_does_nothing_says_so():
    x, y = blobs(32)
    model = network()
    optimizer = fisheropt.FisherFloorSGD(model, 0.1, likelihood="categorical", floor=1e-9, every=1)
    for _ in range(3):
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    verdict, group = optimizer.report().verdict, optimizer.report().as_dict()["groups"][0]
    assert group["held"] == 0 and group["below"] > 0
    assert "not acting" in verdict and "so far are those of plain SGD" in verdict and "is held" not in verdict
    assert f"times smaller than Λ* = {group['lambda_star']:.3g}" in verdict


def test_backtracking_and_the_metric_promise_no_more_than_they_do():
    x, y = separable(40, 4)
    x = x * torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    for mode in ("backtrack", "metric"):
        model = zeros(4)
        optimizer = fisheropt.FisherFloorSGD(model, 0.1, mode=mode, likelihood="bernoulli", floor=0.5, data_size=40)
        train(model, optimizer, x, y, 1)
        optimizer.param_groups[0]["lowest"] = -1e-18
        report = optimizer.report()
        assert float(torch.linalg.eigvalsh(information(zeros(4), x))[0]) < 0.5
        assert not report.as_dict()["groups"][0]["certified"] and "NOT reach" in report.verdict
        assert mode == "metric" or "smallest seen was 0." in report.verdict
        assert "stays above" not in report.verdict


def test_rounding_in_single_precision_is_no_information() -> None:
    """The shift of both logits, 31 of 62 directions of a float32 head, is left out by the exact reading too."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 30, generator=generator)
    model = nn.Linear(30, 2)
    optimizer = fisheropt.FisherFloorSGD(model, lr=0.1, mode="penalty", likelihood="categorical", every=1)
    for rows in x.split(50):
        F.cross_entropy(model(rows), (rows[:, 0] > 0).long()).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert optimizer.report().groups[0].details["directions"] == 31
