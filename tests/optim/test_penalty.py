"""FisherFloorPenalty beside any optimizer: its value and gradient (FF-8), its promises (FF-20), its errors."""

import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fisheropt
from fisheropt.products import information
from tests.optim.test_fisher_floor import separable, zeros

PSIS = ("hinge", "squared", "softmin")


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def directions(model, count=3):
    torch.manual_seed(1)
    return {name: torch.randn(count, *p.shape, dtype=torch.float64) for name, p in model.named_parameters()}


@pytest.mark.parametrize("psi", PSIS)
def test_the_gradient_is_that_of_the_value(psi):
    """FF-8: against central differences along random changes of the parameters."""
    model = network()
    x = torch.randn(12, 3, dtype=torch.float64)
    penalty = fisheropt.FisherFloorPenalty(model, "categorical", directions(model), weight=2.0, psi=psi)
    penalty(x)
    penalty.floor = 3 * penalty.smallest
    parameters = list(model.parameters())
    value = penalty(x)
    assert penalty.active and value > 0
    grads = torch.autograd.grad(value, parameters)
    for seed in range(3):
        torch.manual_seed(seed)
        changes = [torch.randn_like(p) for p in parameters]
        ends = []
        for step in (1e-6, -2e-6):
            with torch.no_grad():
                torch._foreach_add_(parameters, changes, alpha=step)
            ends.append(float(penalty(x).detach()))
        with torch.no_grad():
            torch._foreach_add_(parameters, changes, alpha=1e-6)
        expected = sum((g * c).sum() for g, c in zip(grads, changes, strict=True))
        assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(float(expected), rel=2e-5)


def test_the_value_is_the_formula_and_zero_above_the_floor():
    x, _ = separable(40, 5)
    model = zeros(5)
    smallest = float(torch.linalg.eigvalsh(x.T @ x / 160)[0])
    penalty = fisheropt.FisherFloorPenalty(model, "bernoulli", floor=2 * smallest, weight=3.0)
    assert float(penalty(x).detach()) == pytest.approx(1.5)
    penalty = fisheropt.FisherFloorPenalty(model, "bernoulli")
    value = penalty(x)
    assert float(value) == 0 and not penalty.active and not value.requires_grad
    assert penalty.floor == pytest.approx(smallest / 2) and penalty.weight == pytest.approx(1.3862943611)
    assert penalty.smallest == pytest.approx(smallest) and penalty.information.shape == (5, 5)


def test_a_resumed_run_keeps_its_floor_and_weight():
    """The next batch of a resumed run has other information, and would set another floor."""
    x, _ = separable(40, 5)
    model = zeros(5)
    first = fisheropt.FisherFloorPenalty(model, "bernoulli")
    assert first.state_dict() == {"floor": 0.0, "weight": 0.0}
    first(x)
    resumed = fisheropt.FisherFloorPenalty(model, "bernoulli")
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert float(resumed(0.3 * x).detach()) == float(first(0.3 * x).detach()) > 0
    assert resumed.state_dict() == first.state_dict() and resumed.guarantee(0.1) == first.guarantee(0.1)
    with pytest.raises(ValueError, match="give it what penalty.state_dict.. returned"):
        resumed.load_state_dict({"floor": 1.0})


@pytest.mark.parametrize("psi", PSIS)
def test_every_run_keeps_its_guarantee(psi):
    """FF-20: 24 of 24 runs of three penalties on separable data end at or above the a-priori bound."""
    kept = 0
    for seed in range(4):
        for weight in (0.5, 20.0):
            x, y = separable(seed=seed)
            model = zeros(20)
            penalty = fisheropt.FisherFloorPenalty(model, "bernoulli", weight=weight, psi=psi)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.5)

            def losses(model=model, x=x, y=y, penalty=penalty):
                loss = F.binary_cross_entropy_with_logits(model(x).squeeze(1), y)
                return loss, loss + penalty(x)

            reference, total = (float(value.detach()) for value in losses())
            assert reference == total, "the start meets the floor"
            for _ in range(60):
                optimizer.zero_grad()
                losses()[1].backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
            loss, objective = (float(value.detach()) for value in losses())
            bound = penalty.guarantee(reference - loss + max(0.0, objective - reference))
            kept += penalty.smallest >= bound - 1e-12
            certificate = penalty.certify(x)
            assert certificate.certified == (penalty.smallest >= penalty.floor * (1 - 1e-9))
    assert kept == 8


@pytest.mark.parametrize("seed", range(2))
def test_a_steep_hinge_holds_the_floor_where_the_plain_loss_loses_it(seed):
    """FF-E5: λ/τ in [1.00, 1.17] ± .05 at a/τ = 1000, and no floor to speak of without it."""
    x, y = separable(seed=seed)
    ratios = []
    for on in (False, True):
        model = zeros(20)
        floor = float(torch.linalg.eigvalsh(x.T @ x / 120)[0]) / 2
        penalty = fisheropt.FisherFloorPenalty(model, "bernoulli", floor=floor, weight=1000 * floor)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1 if on else 2.0)
        for _ in range(400):
            optimizer.zero_grad()
            loss = F.binary_cross_entropy_with_logits(model(x).squeeze(1), y)
            (loss + penalty(x) if on else loss).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        penalty(x)
        ratios.append(penalty.smallest / floor)
    assert ratios[0] < 0.3
    assert 0.95 <= ratios[1] <= 1.22


def test_a_model_with_dropout_is_computed_in_eval_mode_and_left_in_train_mode():
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2)).double()
    x = torch.randn(20, 3, dtype=torch.float64)
    penalty = fisheropt.FisherFloorPenalty(model, "categorical", directions(model), floor=100.0)
    torch.manual_seed(3)
    value = penalty(x)
    assert torch.rand(()) == torch.rand((), generator=torch.Generator().manual_seed(3))
    assert all(module.training for module in model.modules())
    value.backward()
    assert float(penalty(x).detach()) == float(value.detach())


def test_any_optimizer_and_float32_parameters():
    model = network().float()
    along = {name: v.float() for name, v in directions(model).items()}
    penalty = fisheropt.FisherFloorPenalty(model, "categorical", along)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    x, y = torch.randn(30, 3), torch.randint(0, 3, (30,))
    for _ in range(5):
        optimizer.zero_grad()
        total = F.cross_entropy(model(x), y) + penalty(x)
        assert total.dtype == torch.float32
        total.backward()
        optimizer.step()
    torch.testing.assert_close(
        torch.linalg.eigvalsh(penalty.information)[0].item(), penalty.smallest, rtol=1e-9, atol=0
    )


def test_random_directions_are_made_orthonormal():
    model = nn.Sequential(nn.Linear(20, 15), nn.Tanh(), nn.Linear(15, 3)).double()
    x = torch.randn(200, 20, dtype=torch.float64)
    penalty = fisheropt.FisherFloorPenalty(model, "categorical")
    flat = torch.cat([v.flatten(1) for v in penalty.vectors.values()], 1)
    torch.testing.assert_close(flat @ flat.T, torch.eye(16, dtype=torch.float64))
    penalty(x)
    torch.testing.assert_close(penalty.information, information(model, "categorical", x, penalty.vectors).detach())


BAD = {
    "write 'auto' or a number": lambda: fisheropt.FisherFloorPenalty(zeros(3), "bernoulli", floor=-1.0),
    "weight='auto' is 2 ln C": lambda: fisheropt.FisherFloorPenalty(zeros(3), "gaussian"),
    "likelihood=None": lambda: fisheropt.FisherFloorPenalty(zeros(3), None),
    "write one of": lambda: fisheropt.FisherFloorPenalty(zeros(3), "bernoulli", psi="cubed"),
    "carry no information": lambda: fisheropt.FisherFloorPenalty(zeros(5), "bernoulli")(separable(3, 5)[0]),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments_are_named(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()


def test_what_was_not_measured_is_not_told():
    penalty = fisheropt.FisherFloorPenalty(zeros(3), "bernoulli")
    for ask in (lambda: penalty.smallest, lambda: penalty.guarantee(0.1), lambda: penalty.certify(torch.ones(2, 3))):
        with pytest.raises(RuntimeError, match="call penalty\\(inputs\\) first"):
            ask()
    with pytest.raises(FloatingPointError, match="not finite"):
        penalty(torch.full((4, 3), float("nan"), dtype=torch.float64))
