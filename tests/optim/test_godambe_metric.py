"""GodambeSGD(metric="godambe"): P = H⁻¹GH⁻¹ against dense matrices, and the natural gradient where H = G."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fisheropt
from tests.cases import CASES
from tests.optim.layerwise_oracle import step, vector

STRUCTURES = ["full", "kronecker", "diagonal"]


def run(metric, structure, steps=6, **options):
    """Parameters after steps of GodambeSGD on the same data."""
    case = CASES["mlp"]()
    optimizer = fisheropt.GodambeSGD(case.model, lr=0.3, structure=structure, metric=metric, every=1, **options)
    for _ in range(steps):
        step(case, optimizer)
    return vector(case.model)


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9, "weight_decay": 0.05}, {"damping": 0.5}], ids=str)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_with_h_equal_to_g_it_is_the_natural_gradient(structure, options):
    torch.manual_seed(0)
    natural = run("fisher", structure, **options)
    torch.manual_seed(0)
    torch.testing.assert_close(run("godambe", structure, **options), natural, rtol=1e-8, atol=1e-9)


def bernoulli(structure, damping=0.3, **options):
    """Logistic regression, in which the measured H has no randomness; the first step, H and G."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(50, 4, generator=generator, dtype=torch.float64)
    y = (torch.rand(50, generator=generator) > 0.7).double()
    model = nn.Linear(4, 1).double()
    z = model(x).detach().squeeze(1)
    a, p = torch.cat([x, torch.ones(50, 1)], 1), z.sigmoid()
    hessian, scores = (a.T * p * (1 - p)) @ a / 50, a * (p - y)[:, None]
    optimizer = fisheropt.GodambeSGD(
        model, lr=1e-3, metric="godambe", structure=structure, likelihood="bernoulli", damping=damping, **options
    )
    start = vector(model)
    F.binary_cross_entropy_with_logits(model(x).squeeze(1), y).backward()
    optimizer.step()
    return (start - vector(model)) / 1e-3, hessian, torch.cov(scores.T), scores.mean(0), optimizer


def test_the_step_is_the_formula():
    moved, h, g, mean, _ = bernoulli("full")
    identity = 0.3 * torch.eye(5)
    inverse = torch.linalg.inv(h + identity)
    torch.testing.assert_close(moved, inverse @ (g + identity) @ inverse @ mean, rtol=1e-6, atol=1e-7)


def test_the_diagonal_step_is_the_formula():
    moved, h, g, mean, _ = bernoulli("diagonal")
    h, g = h.diagonal(), g.diagonal()
    direction = (g + 0.3) / (h + 0.3).square() * mean
    excess = max(1.0, float(h.sum() * direction.square().sum() / (direction.square() @ (h + 0.3))))
    torch.testing.assert_close(moved, direction / excess, rtol=1e-8, atol=1e-10)


def test_the_first_turn_keeps_what_is_known_of_h_and_of_g():
    """With tr G far from tr H each has its own sum in the new basis, along products of the factors' eigenvalues."""
    _, h, g, _, optimizer = bernoulli("kronecker")
    assert abs(float(g.trace() / h.trace()) - 1) > 0.3
    weight, bias = optimizer.param_groups[0]["params"]
    own, factor = optimizer.state[weight], h[:4, :4]
    torch.testing.assert_close(own["right_factor"], factor, rtol=1e-8, atol=1e-10)
    values = torch.linalg.eigvalsh(factor)
    torch.testing.assert_close(own["moments"].flatten(), values, rtol=1e-8, atol=1e-10)
    expected = values * (g[:4, :4].trace() / factor.trace())
    torch.testing.assert_close(own["noise"].flatten(), expected, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(optimizer.state[bias]["noise"].sum(), g[4, 4], rtol=1e-8, atol=1e-10)


def test_a_step_is_measured_in_the_curvature():
    """At a learning rate without measure the step is 1 long in H + ρ, √(2 KL) to second order, and not in P⁻¹."""
    case = CASES["mlp"]()
    optimizer = fisheropt.GodambeSGD(
        case.model, lr=1e9, metric="godambe", structure="full", likelihood="categorical", damping=0.2
    )
    start = vector(case.model)
    step(case, optimizer)
    delta, group = vector(case.model) - start, optimizer.param_groups[0]
    assert float(delta @ group["information"] @ delta + 0.2 * delta @ delta) == pytest.approx(1.0, rel=1e-6)


def test_a_batch_of_one_has_no_sandwich():
    model = nn.Linear(3, 1)
    optimizer = fisheropt.GodambeSGD(model, lr=0.1, metric="godambe", structure="full", likelihood="gaussian")
    F.mse_loss(model(torch.randn(1, 3)), torch.randn(1, 1)).backward()
    before = vector(model)
    grad = torch.cat([p.grad.flatten() for p in model.parameters()])
    optimizer.step()
    torch.testing.assert_close(vector(model), before - 0.1 * grad)


def test_the_noise_in_the_metric_is_the_trace():
    """tr(PG) of the report against the dense one, for P = H⁻¹GH⁻¹."""
    _, h, g, _, optimizer = bernoulli("full", damping=0.3)
    identity = 0.3 * torch.eye(5)
    inverse = torch.linalg.inv(h + identity)
    expected = float((inverse @ (g + identity) @ inverse @ g).trace())
    found = optimizer.report().as_dict()["groups"][0]
    assert found["effective_dimension"] == pytest.approx(expected, rel=1e-6)


def test_low_rank_has_no_sandwich():
    case = CASES["mlp"]()
    with pytest.raises(ValueError, match="structure='kronecker'"):
        fisheropt.GodambeSGD(case.model, lr=0.1, metric="godambe", structure="lowrank", likelihood="categorical")
