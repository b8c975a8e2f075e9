"""What holds of every sandwich: units, orders and parametrisations do not matter, and what is not known is said."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fisheropt
from fisheropt.inference import SandwichCovariance, sandwich
from fisheropt.likelihoods import Categorical, Gaussian
from fisheropt.theory import sandwich as theory
from tests import oracle
from tests.cases import Case
from tests.inference.fits import features, fitted, linear, responses


def test_network_equals_the_oracle(network: Any) -> None:
    """G from vmap(grad), H from autograd; a Tanh network, where Hessian and Fisher differ."""
    model, x, y = network
    case = Case(model, (x, y), lambda f, a, b: ((f(a) - b) ** 2 / 2).sum(1))
    scores = oracle.flattened(oracle.per_sample_gradients(case))
    values = {name: p.detach() for name, p in model.named_parameters()}

    def mean(flat: torch.Tensor) -> torch.Tensor:
        parts = flat.split([p.numel() for p in values.values()])
        named = {name: part.reshape(p.shape) for (name, p), part in zip(values.items(), parts, strict=True)}
        return F.mse_loss(torch.func.functional_call(model, named, (x,)), y) / 2

    H = torch.autograd.functional.hessian(mean, torch.cat([p.flatten() for p in values.values()]))
    expected = torch.linalg.inv(H) @ (scores.T @ scores / len(x)) @ torch.linalg.inv(H) / len(x)
    batches = list(zip(x.split(150), y.split(150), strict=True))
    for found in (
        sandwich(model, batches, "gaussian", curvature="hessian"),
        sandwich(model, batches, loss=lambda a, b: F.mse_loss(a, b) / 2),
    ):
        torch.testing.assert_close(found.covariance, expected, rtol=1e-8, atol=1e-14)
    gauss_newton = sandwich(model, batches, "gaussian").covariance
    assert float((gauss_newton - expected).norm() / expected.norm()) > 1e-3


def test_batches_order_and_precision_do_not_matter(logistic: Any) -> None:
    model, x, y = logistic
    whole = sandwich(model, [(x, y)], "bernoulli", correction="HC3").covariance
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    parts = list(zip(x[order].split(77), y[order].split(77), strict=True))
    torch.testing.assert_close(sandwich(model, parts, "bernoulli", correction="HC3").covariance, whole)
    single = nn.Linear(4, 1)
    single.load_state_dict(model.state_dict())
    found = sandwich(single, [(x.float(), y.float())], "bernoulli", correction="HC3")
    assert found.covariance.dtype == torch.float64
    torch.testing.assert_close(found.covariance, whole, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("correction", ["HC0", "HC1", "HC2", "HC3"])
@pytest.mark.parametrize("scale", [1e-7, 1e6])
def test_units_of_a_feature_do_not_matter(logistic: Any, correction: Any, scale: float) -> None:
    """z values are invariant, and a feature in tiny units is not taken for one that is not identified."""
    model, x, y = logistic
    factor = torch.tensor([1.0, scale, 1.0, 1.0], dtype=torch.float64)
    scaled = linear(torch.cat(((model.weight / factor)[0], model.bias)).detach())
    first = sandwich(model, [(x, y)], "bernoulli", correction=correction)
    second = sandwich(scaled, [(x * factor, y)], "bernoulli", correction=correction)
    assert second.rank == 5
    for one, two in zip(first.coordinates(), second.coordinates(), strict=True):
        assert two["z"] == pytest.approx(one["z"], rel=1e-6)


@pytest.mark.parametrize("correction", ["HC0", "HC1", "HC2", "HC3"])
def test_two_softmax_outputs_are_a_logistic_regression(logistic: Any, correction: Any) -> None:
    """The difference of the classes has the logistic error; the shift of both is found and said."""
    model, x, y = logistic
    pair = nn.Linear(4, 2, dtype=torch.float64)
    with torch.no_grad():
        for p, q in zip(pair.parameters(), model.parameters(), strict=True):
            p[0], p[1] = 3.0, 3.0 + q[0]
    fit = sandwich(pair, [(x, y[:, 0].long())], "categorical", correction=correction)
    one = sandwich(model, [(x, y)], "bernoulli", correction=correction)
    assert (fit.rank, one.rank) == (5, 5)
    contrast = torch.zeros(5, 10, dtype=torch.float64)
    for row in range(4):
        contrast[row, row], contrast[row, 4 + row] = -1, 1
    contrast[4, 8], contrast[4, 9] = -1, 1
    torch.testing.assert_close(contrast @ fit.covariance @ contrast.T, one.covariance)
    torch.testing.assert_close(contrast @ fit.estimate, one.estimate)
    assert "5 directions are not identified" in fit.summary()
    assert fit.wald(contrast).statistic == pytest.approx(one.wald(["weight", "bias"]).statistic)
    with pytest.raises(ValueError, match="do not identify"):
        fit.wald(torch.eye(10, dtype=torch.float64)[:1])


def test_a_given_projector_equals_the_one_that_is_found(softmax: Any) -> None:
    model, x, y = softmax
    centre = torch.eye(3, dtype=torch.float64) - 1 / 3
    projector = torch.block_diag(torch.kron(centre, torch.eye(2, dtype=torch.float64)), centre)
    given = sandwich(model, [(x, y)], Categorical(), project=projector, correction="HC3")
    found = sandwich(model, [(x, y)], "categorical", correction="HC3")
    torch.testing.assert_close(given.covariance, found.covariance)
    assert given.rank == found.rank == 6


def test_matrix_leverage_is_the_effect_of_a_sample_on_its_own_fit(softmax: Any) -> None:
    """HC3 is the jackknife of Newton steps: s/(1 - h) moves the estimate as leaving the sample out does."""
    model, x, y = softmax
    fit = sandwich(model, [(x, y)], "categorical", correction="HC3")
    A = theory.restricted_inverse(fit.curvature, theory.identification(fit.curvature).basis) / len(x)
    moves = torch.zeros(len(x), 9, dtype=torch.float64)
    p = model(x).detach().softmax(1)
    for i in range(len(x)):
        design = torch.cat((torch.kron(torch.eye(3, dtype=torch.float64), x[i : i + 1]), torch.eye(3)), 1)
        own = design.T @ (torch.diag(p[i]) - torch.outer(p[i], p[i])) @ design
        without = torch.linalg.pinv(len(x) * fit.curvature - own, hermitian=True, rtol=1e-10)
        moves[i] = without @ design.T @ (p[i] - F.one_hot(y[i], 3))
    assert float((A @ fit.curvature).trace()) * len(x) == pytest.approx(6)
    torch.testing.assert_close(moves.T @ moves, fit.covariance)


def test_corrections_only_widen(softmax: Any) -> None:
    model, x, y = softmax
    sizes = [
        sandwich(model, [(x, y)], "categorical", correction=correction).covariance.trace()
        for correction in theory.CORRECTIONS
    ]
    assert float(sizes[0]) < float(sizes[2]) < float(sizes[3])
    assert float(sizes[1] / sizes[0]) == pytest.approx(300 / 294)


def test_singleton_clusters_are_independent_samples(logistic: Any) -> None:
    model, x, y = logistic
    one = sandwich(model, [(x, y)], "bernoulli", clusters=torch.arange(300), correction="HC0")
    torch.testing.assert_close(one.covariance, sandwich(model, [(x, y)], "bernoulli").covariance)


def test_doubled_data_have_the_same_clustered_covariance(logistic: Any) -> None:
    """Copies add no information, which clusters know and HC0 does not."""
    model, x, y = logistic
    twice = [(torch.cat((x, x)), torch.cat((y, y)))]
    clustered = sandwich(model, twice, "bernoulli", clusters=list(range(300)) * 2, correction="HC0")
    once = sandwich(model, [(x, y)], "bernoulli").covariance
    torch.testing.assert_close(clustered.covariance, once)
    torch.testing.assert_close(sandwich(model, twice, "bernoulli").covariance, once / 2)


def test_scale_of_a_gaussian_cancels() -> None:
    x = features(100, 2, 0)
    y = responses(x, "gaussian", 1)
    model = fitted(nn.Linear(2, 1, dtype=torch.float64), x, y, F.mse_loss)
    one, other = (sandwich(model, [(x, y)], Gaussian(v), correction="HC2").covariance for v in (1.0, 7.0))
    torch.testing.assert_close(one, other)


def test_penalty_is_the_penalised_estimating_equation() -> None:
    """With l2 the scores are those of the loss plus (λ/2)‖θ‖², and the optimum is that of weight decay."""
    x = features(120, 3, 2)
    y = responses(x, "bernoulli", 3)
    model = nn.Linear(3, 1, bias=False, dtype=torch.float64)

    def penalised(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return F.binary_cross_entropy_with_logits(output, target) + 0.05 * model.weight.square().sum()

    fitted(model, x, y, penalised)
    with pytest.raises(RuntimeError, match="one_step=True"):
        sandwich(model, [(x, y)], "bernoulli", tolerance=0.05)
    fit = sandwich(model, [(x, y)], "bernoulli", l2=0.1, tolerance=1e-6)
    p = model(x).detach().sigmoid()
    H = (x * p * (1 - p)).T @ x / 120 + 0.1 * torch.eye(3, dtype=torch.float64)
    scores = (p - y) * x + 0.1 * model.weight.detach()
    expected = torch.linalg.inv(H) @ (scores.T @ scores / 120) @ torch.linalg.inv(H) / 120
    torch.testing.assert_close(fit.covariance, expected)
    assert "penalised optimum" in str(fit)
    with pytest.raises(ValueError, match="l2=0"):
        fit.information_test()


def test_frozen_parameters_count_as_known(logistic: Any) -> None:
    model, x, y = logistic
    fit = sandwich(model, [(x, y)], "bernoulli", parameters=[model.weight])
    assert list(fit.standard_errors()) == ["weight"]
    assert fit.rank == 4
    model.bias.requires_grad_(False)
    again = sandwich(model, [(x, y)], "bernoulli")
    model.bias.requires_grad_(True)
    torch.testing.assert_close(again.covariance, fit.covariance)


def test_an_attached_optimizer_does_not_matter_and_is_not_disturbed(logistic: Any) -> None:
    model, x, y = logistic
    watched = nn.Linear(4, 1, dtype=torch.float64)
    watched.load_state_dict(model.state_dict())
    opt = fisheropt.GodambeSGD(watched, lr=0.0, likelihood="bernoulli")
    before = pickle.dumps(opt.state_dict())
    fit = sandwich(watched, [(x, y)], "bernoulli", one_step=True)
    assert pickle.dumps(opt.state_dict()) == before
    torch.testing.assert_close(fit.covariance, sandwich(model, [(x, y)], "bernoulli").covariance)
    assert torch.equal(watched.weight, model.weight)
    assert watched.weight.grad is None


def test_moments_of_a_pass_make_the_same_object(logistic: Any) -> None:
    model, x, y = logistic
    whole = sandwich(model, [(x, y)], "bernoulli", correction="HC1")
    named = dict(model.named_parameters())
    again = SandwichCovariance.of_moments(named, whole.curvature, whole.noise, 300, correction="HC1")
    torch.testing.assert_close(again.covariance, whole.covariance)
    with pytest.raises(ValueError, match="a likelihood, the data"):
        again.information_test()


def test_table_and_dict(logistic: Any) -> None:
    model, x, y = logistic
    fit = sandwich(model, [(x, y)], "bernoulli")
    text = fit.summary(rows=3, dof=fit.dof)
    for word in ("samples 300", "5 identified", "log-likelihood", "weight[0, 2]", "P>|t|", "[0.025", "2 more"):
        assert word in text
    assert "weight[0, 3]" not in text
    numbers = json.loads(json.dumps(fit.as_dict()))
    assert numbers["coordinates"][4]["name"] == "bias[0]"
    assert numbers["dof"] == 295
    again = pickle.loads(pickle.dumps(fit))
    assert torch.equal(again.covariance, fit.covariance)
    with pytest.raises(ValueError, match="like 'weight"):
        fit.wald("slope")
    assert fit.wald(["weight", "weight[0, 1]"]).dof == 4
    with pytest.raises(ValueError, match="contradict"):
        fit.wald(torch.tensor([[1.0, 0, 0, 0, 0]] * 2), torch.tensor([0.0, 1.0]))


def test_inputs_of_several_tensors(softmax: Any) -> None:
    model, x, y = softmax

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
            return self.inner(x * scale)

    scale = torch.full((300, 1), 2.0, dtype=torch.float64)
    for inputs in ((x / 2, scale), {"x": x / 2, "scale": scale}):
        fit = sandwich(Scaled(), [(inputs, y)], "categorical")
        torch.testing.assert_close(fit.covariance, sandwich(model, [(x, y)], "categorical").covariance)


def test_a_robust_loss() -> None:
    """Huber's M-estimator, whose loss has no second derivative in forward mode."""
    x = features(200, 2, 0)
    y = responses(x, "gaussian", 1)
    model = fitted(nn.Linear(2, 1, dtype=torch.float64), x, y, F.huber_loss)
    fit = sandwich(model, list(zip(x.split(80), y.split(80), strict=True)), loss=F.huber_loss)
    residual = (model(x) - y).detach()
    design = torch.cat((x, torch.ones(200, 1, dtype=torch.float64)), 1)
    H = (design * (residual.abs() <= 1)).T @ design / 200
    scores = residual.clamp(-1, 1) * design
    expected = torch.linalg.inv(H) @ (scores.T @ scores / 200) @ torch.linalg.inv(H) / 200
    torch.testing.assert_close(fit.covariance, expected)
    assert fit.log_likelihood is None
    with pytest.raises(ValueError, match="sum over samples"):
        sandwich(model, [(x, y)], loss=lambda a, b: F.huber_loss(a, b, reduction="sum"))
