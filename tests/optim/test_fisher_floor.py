"""FisherFloorSGD against the oracle, on the separable problem, and on bad input."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fisheropt
from tests.cases import CASES
from tests.oracle import flattened, per_sample_gradients


def separable(samples=30, size=20, seed=0):
    """Logistic data without a finite maximum-likelihood estimate: as many dimensions as two thirds of the samples."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, size, generator=generator, dtype=torch.float64)
    return x, (x @ torch.randn(size, generator=generator, dtype=torch.float64) > 0).double()


def zeros(size):
    model = nn.Linear(size, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    return model


def train(model, optimizer, x, y, steps):
    for _ in range(steps):
        F.binary_cross_entropy_with_logits(model(x).squeeze(1), y).backward()
        optimizer.step()
        optimizer.zero_grad()


def information(model, x):
    p = model(x).detach().sigmoid()
    return (x * p * (1 - p)).T @ x / len(x)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_floor_holds_where_maximum_likelihood_diverges(seed):
    x, y = separable(seed=seed)
    plain, held = zeros(20), zeros(20)
    start = torch.linalg.eigvalsh(information(plain, x))[0]
    train(plain, torch.optim.SGD(plain.parameters(), lr=4.0), x, y, 8000)
    assert torch.linalg.eigvalsh(information(plain, x))[0] < 1e-6
    optimizer = fisheropt.FisherFloorSGD(held, lr=4.0, likelihood="bernoulli")
    train(held, optimizer, x, y, 1500)
    report = optimizer.report()
    (group,) = report.as_dict()["groups"]
    assert group["certified"] and group["held"] > 0
    assert group["floor"] <= start / 2 * (1 + 1e-6)
    effective = information(held, x) + optimizer.param_groups[0]["stiffness"]
    assert torch.linalg.eigvalsh(effective)[0] >= 0.99 * group["floor"]
    settled = held.weight.detach().clone()
    train(held, optimizer, x, y, 100)
    assert (held.weight - settled).norm() <= 5e-3 * settled.norm()
    assert "is held" in report.verdict and "certified" in report.verdict


def test_the_step_is_the_formula():
    """One step against (1 + ηA)⁻¹ (∇L + A(θ - θ₀)) with A of the oracle's Fisher information, densely."""
    case = CASES["linear"]()
    tau = 0.05
    optimizer = fisheropt.FisherFloorSGD(case.model, lr=0.1, floor=tau, every=1, smoothing=0.0)
    origin = nn.utils.parameters_to_vector(case.model.parameters()).detach().clone()
    for _ in range(3):
        theta = nn.utils.parameters_to_vector(case.model.parameters()).detach().clone()
        scores = flattened(per_sample_gradients(case))
        values, vectors = torch.linalg.eigh(scores.T @ scores / case.samples)
        stiffness = (vectors * (tau - values).clamp_min(0)) @ vectors.T
        implicit = torch.eye(len(values), dtype=torch.float64) + 0.1 * stiffness
        expected = theta - 0.1 * torch.linalg.solve(implicit, scores.mean(0) + stiffness @ (theta - origin))
        case.loss().backward()
        optimizer.step()
        optimizer.zero_grad()
        moved = nn.utils.parameters_to_vector(case.model.parameters()).detach()
        torch.testing.assert_close(moved, expected, rtol=1e-9, atol=1e-10)


def test_the_spectrum_and_the_model_fisher_are_the_oracles():
    x, y = separable(60, 5)
    model = zeros(5)
    optimizer = fisheropt.FisherFloorSGD(model, lr=0.1, mode="monitor", likelihood="bernoulli", smoothing=0.0, every=1)
    train(model, optimizer, x, y, 1)
    expected = torch.linalg.eigvalsh(x.T @ x / (4 * len(x)))
    torch.testing.assert_close(
        torch.tensor(optimizer.report().as_dict()["groups"][0]["eigenvalues"]).double(), expected
    )


def test_given_directions_are_watched_alone_and_only_their_span_matters():
    case = CASES["linear"]()
    basis = {"weight": torch.randn(2, 3, 4, dtype=torch.float64), "bias": torch.randn(2, 3, dtype=torch.float64)}
    mixed = {name: torch.stack([b[0] + b[1], 3 * b[0]]) for name, b in basis.items()}
    spectra = []
    for directions in (basis, mixed):
        optimizer = fisheropt.FisherFloorSGD(case.model, lr=0.0, directions=directions, mode="monitor", every=1)
        optimizer.param_groups[0]["lr"] = 1e-30
        case.loss().backward()
        optimizer.step()
        optimizer.zero_grad()
        spectra.append(torch.tensor(optimizer.report().as_dict()["groups"][0]["eigenvalues"]))
    flat = torch.cat([b.reshape(2, -1) for b in basis.values()], 1)
    q = torch.linalg.qr(flat.T).Q
    scores = flattened(per_sample_gradients(case)) @ q
    expected = torch.linalg.eigvalsh(scores.T @ scores / case.samples).float()
    for spectrum in spectra:
        torch.testing.assert_close(spectrum, expected)


def test_large_models_are_watched_in_random_directions():
    model = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 3))
    optimizer = fisheropt.FisherFloorSGD(model, lr=0.1)
    for _ in range(12):
        F.cross_entropy(model(torch.randn(16, 40)), torch.randint(0, 3, (16,))).backward()
        optimizer.step()
        optimizer.zero_grad()
    group = optimizer.report().as_dict()["groups"][0]
    assert group["directions"] == 16 and all(math.isfinite(v) for v in group["eigenvalues"])


@pytest.mark.parametrize("given", ["module", "parameters"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_is_skipped_counted_and_reported(given, bad):
    model = nn.Linear(3, 1)
    optimizer = fisheropt.FisherFloorSGD(
        model if given == "module" else model.parameters(), lr=0.1, momentum=0.9, every=1
    )
    x = torch.randn(8, 3)
    for _ in range(3):
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    kept = [p.detach().clone() for p in model.parameters()]
    group = optimizer.param_groups[0]
    state = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in group.items() if k != "params"}
    buffers = [optimizer.state[p]["momentum_buffer"].clone() for p in model.parameters()]
    (model(x) * bad).mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), kept, strict=True))
    assert all(
        torch.equal(optimizer.state[p]["momentum_buffer"], b) for p, b in zip(model.parameters(), buffers, strict=True)
    )
    for key in ("information", "covariance", "stiffness"):
        assert torch.equal(group[key], state[key])
    assert group["measured"] == state["measured"]
    assert optimizer.report().skipped == 1 and "1 skipped" in str(optimizer.report())
    model(x).square().mean().backward()
    optimizer.step()
    assert not torch.equal(next(model.parameters()), kept[0])


def test_a_non_finite_gradient_elsewhere_skips_every_group():
    parameters = [torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)]
    optimizer = fisheropt.FisherFloorSGD([{"params": [p]} for p in parameters], lr=0.1, mode="monitor")
    parameters[0].grad, parameters[1].grad = torch.ones(2), torch.tensor([1.0, float("nan"), 1.0])
    optimizer.step()
    assert all(torch.equal(p, torch.ones_like(p)) for p in parameters)


BAD = {
    "floor": {"floor": -1.0},
    "delta": {"delta": 1.0},
    "mode": {"mode": "hold"},
    "smoothing": {"smoothing": 1.0},
    "every": {"every": 0},
    "lr": {"lr": -0.1},
    "likelihood": {"likelihood": "normal"},
    "directions": {"directions": "all"},
}


@pytest.mark.parametrize("name", BAD)
def test_bad_numbers_are_refused_by_name(name):
    with pytest.raises(ValueError, match=name):
        fisheropt.FisherFloorSGD(nn.Linear(3, 1), **({"lr": 0.1} | BAD[name]))


def test_parameters_cannot_have_a_likelihood():
    with pytest.raises(ValueError, match="write FisherFloorSGD.model"):
        fisheropt.FisherFloorSGD(nn.Linear(3, 1).parameters(), lr=0.1, likelihood="bernoulli")


def test_every_number_of_the_report_has_its_uncertainty():
    case = CASES["mlp"]()
    optimizer = fisheropt.FisherFloorSGD(case.model, lr=0.1)
    for _ in range(12):
        case.loss().backward()
        optimizer.step()
        optimizer.zero_grad()
    group = optimizer.report().as_dict()["groups"][0]
    for key in ("noise_trace", "signal", "eigenvalues"):
        assert f"{key}_se" in group
    assert group["dof"] > 0 and group["count"] > 0
    text = str(optimizer.report())
    assert "±" in text and "degrees of freedom" in text and "effective samples" in text


def test_the_floor_holds_for_the_running_and_for_the_present_information():
    """Features take turns in being weak, so that the running mean and the present batch lack information apart."""
    model = nn.Linear(2, 1, bias=False).double()
    optimizer = fisheropt.FisherFloorSGD(model, lr=1e-9, likelihood="gaussian", floor=0.5, every=1, smoothing=0.9)
    for weak in (0, 0, 0, 0, 1):
        x = torch.randn(64, 2, dtype=torch.float64)
        x[:, weak] *= 0.1
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    group = optimizer.param_groups[0]
    assert group["certified"]
    for information in (group["information"], x.T @ x / 64):
        assert torch.linalg.eigvalsh(information + group["stiffness"])[0] >= 0.5 * (1 - 1e-9)
