"""The information test: the right size for true models, and power against false ones."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fisheropt.inference import draw, information, log_loss, sandwich
from fisheropt.inference.scores import Linear
from fisheropt.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood, Poisson
from fisheropt.theory import sandwich as theory
from tests.inference.fits import features, fitted, responses

HEADS = [Bernoulli(), Gaussian(2.0), Poisson(), Categorical()]


@pytest.mark.parametrize("head", HEADS, ids=lambda head: type(head).__name__)
def test_labels_are_drawn_from_the_likelihood(head: Likelihood) -> None:
    """E over draws of the score in the logits is zero, and its second moment is the core information."""
    logits = torch.tensor([[0.3, -1.0, 0.8]], dtype=torch.float64)
    many = logits.expand(40_000, -1).clone().requires_grad_()
    y = draw(head, many.detach(), torch.Generator().manual_seed(0))
    (u,) = torch.autograd.grad(log_loss(head, many, y).sum(), many)
    factor = torch.stack([head.factor(logits, unit[None])[0] for unit in torch.eye(3, dtype=torch.float64)], 1)
    errors = u.std(0) / len(u) ** 0.5
    assert bool((u.mean(0).abs() < 4 * errors).all())
    torch.testing.assert_close(u.T @ u / len(u), factor @ factor.T, rtol=0.1, atol=0.02)


@pytest.mark.parametrize("head", HEADS, ids=lambda head: type(head).__name__)
def test_log_loss_is_that_of_torch(head: Likelihood) -> None:
    logits = features(20, 3, 0)
    y = draw(head, logits, torch.Generator().manual_seed(1))
    distribution = {
        "Bernoulli": lambda: torch.distributions.Bernoulli(logits=logits),
        "Gaussian": lambda: torch.distributions.Normal(logits, 2**0.5),
        "Poisson": lambda: torch.distributions.Poisson(logits.exp()),
        "Categorical": lambda: torch.distributions.Categorical(logits=logits),
    }[type(head).__name__]()
    expected = -distribution.log_prob(y)
    torch.testing.assert_close(log_loss(head, logits, y), expected.sum(1) if expected.ndim > 1 else expected)


def test_a_class_axis_in_the_middle() -> None:
    logits = torch.randn(5, 3, 4, dtype=torch.float64)
    y = torch.randint(0, 3, (5, 4))
    expected = F.cross_entropy(logits, y, reduction="none").sum(1)
    torch.testing.assert_close(log_loss(Categorical(dim=1), logits, y), expected)


def p_values(head: Likelihood, sets: int, draws: int, seed: int) -> Tensor:
    """Of true models, n = 50 d, without the passes over a module."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(sets):
        x = torch.randn(100, 2, generator=generator, dtype=torch.float64)
        logits = 0.5 * x[:, :1]
        linear = Linear(logits, x[:, None], draw(head, logits, generator))
        gaps = [information.refitted_gaps(head, linear)]
        gaps += [
            information.refitted_gaps(head, linear._replace(targets=draw(head, logits, generator)))
            for _ in range(draws)
        ]
        found.append(information._outcome(torch.tensor(gaps, dtype=torch.float64)).p_value)
    return torch.tensor(found)


def test_size() -> None:
    """At its 10 % level a true linear model is rejected in 10 % of data sets; a count outside has odds of 1/250."""
    rejected = int((p_values(Gaussian(), 60, 9, 0) <= 0.1 + 1e-9).sum())
    assert 1 <= rejected <= 13


@pytest.mark.parametrize("likelihood", ["poisson", "gaussian"])
def test_power(likelihood: str) -> None:
    x = features(300, 3, 0)
    y = responses(x, likelihood, 1)
    loss: Any = F.poisson_nll_loss if likelihood == "poisson" else F.mse_loss
    model = fitted(nn.Linear(3, 1, dtype=torch.float64), x, y, loss)
    fit = sandwich(model, [(x, y)], likelihood)
    test = fit.information_test(draws=39)
    assert test.p_value == pytest.approx(1 / 40)
    assert "rely on the sandwich" in str(test)
    assert (
        test.dimension == pytest.approx(float(torch.linalg.solve(fit.curvature, fit.noise).trace()), rel=1e-6)
        or likelihood == "gaussian"
    )
    assert json.loads(json.dumps(test.as_dict()))["draws"] == 39


def test_a_true_softmax_passes_and_the_seed_repeats_it() -> None:
    """A gauge does not disturb it, nor does another variance of a Gaussian, which is fitted."""
    x = features(300, 2, 0)
    y = draw(Categorical(), features(3, 3, 1)[0] * x[:, :1], torch.Generator().manual_seed(2))
    fit = sandwich(fitted(nn.Linear(2, 3, dtype=torch.float64), x, y, F.cross_entropy), [(x, y)], "categorical")
    test = fit.information_test(draws=39, seed=3)
    assert test.p_value > 0.05
    assert 4 < test.expected < 8
    ratio = torch.linalg.solve(fit.curvature + fit.null @ fit.null.T, fit.noise)
    assert test.dimension == pytest.approx(float(ratio.trace()), rel=1e-6)
    assert test.distance == pytest.approx(float((ratio @ ratio).trace() - 2 * ratio.trace()) + fit.rank, rel=1e-6)
    assert fit.information_test(draws=39, seed=3) == test
    with pytest.raises(ValueError, match="write draws=199"):
        fit.information_test(draws=5)
    z = 3 * torch.randn(300, 1, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    line = fitted(nn.Linear(2, 1, dtype=torch.float64), x, z, F.mse_loss)
    assert sandwich(line, [(x, z)], "gaussian").information_test(draws=39).p_value > 0.05


@pytest.mark.parametrize("head", [Bernoulli(), Poisson(), Gaussian(1.0)], ids=lambda head: type(head).__name__)
def test_the_refit_finds_the_optimum_from_anywhere_near(head: Likelihood) -> None:
    x = features(200, 2, 0) / 2
    y = responses(x, {"Bernoulli": "bernoulli", "Poisson": "poisson"}.get(type(head).__name__, "gaussian"), 1)
    slopes = torch.tensor([[0.3], [-0.2]], dtype=torch.float64)
    starts = [x @ (slopes + shift) for shift in (0.0, 0.2)]
    one, other = (information.refitted_gaps(head, Linear(start, x[:, None], y)) for start in starts)
    assert one == pytest.approx(other, rel=1e-4, abs=1e-6)


def test_the_ratio_is_the_regression_s_t_value() -> None:
    """Of the intercept, up to its degrees of freedom, in the regression of the contributions on one and the scores."""
    x = features(200, 2, 0)
    p = torch.rand(200, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    scores = (p - p.mean()) * x
    scores = scores - scores.mean(0)
    roots = (p * (1 - p)).sqrt()[:, None] * x[:, None]
    gaps = theory.information_gaps(scores, roots)
    inverse = torch.linalg.inv(torch.einsum("nkr,nks->rs", roots, roots) / 200)
    own = torch.einsum("nr,rs,ns->n", scores, inverse, scores) - torch.einsum("nkr,rs,nks->n", roots, inverse, roots)
    slope = torch.linalg.lstsq(scores, own[:, None]).solution
    assert gaps.ratio == pytest.approx(float(own.sum() / (own - (scores @ slope)[:, 0]).norm()))
    assert gaps.dimension == pytest.approx(float(own.mean()) + 2)
