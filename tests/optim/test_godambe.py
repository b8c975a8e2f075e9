"""GodambeSGD against dense formulas, and its promise on one pass."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fisheropt
from tests.cases import CASES
from tests.oracle import covariance, flattened, per_sample_gradients


def vector(model):
    return nn.utils.parameters_to_vector(model.parameters()).detach().clone()


def step(case, optimizer):
    case.loss().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("name", ["linear", "mlp", "custom", "mixture", "tied"])
def test_the_fisher_step_is_the_formula(name):
    case = CASES[name]()
    gradients = per_sample_gradients(case)
    noise = covariance(gradients)
    expected = vector(case.model) - 0.3 * torch.linalg.solve(
        noise + 0.7 * torch.eye(len(noise), dtype=noise.dtype), flattened(gradients).mean(0)
    )
    optimizer = fisheropt.GodambeSGD(case.model, lr=0.3, metric="fisher", damping=0.7)
    step(case, optimizer)
    torch.testing.assert_close(vector(case.model), expected, rtol=1e-8, atol=1e-9)


def test_the_curvature_step_is_newtons_for_logistic_regression():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(50, 4, generator=generator, dtype=torch.float64)
    y = (torch.rand(50, generator=generator) > 0.5).double()
    model = nn.Linear(4, 1).double()
    a = torch.cat([x, torch.ones(50, 1)], 1)
    p = model(x).detach().sigmoid()
    hessian = (a * p * (1 - p)).T @ a / 50 + 0.01 * torch.eye(5)
    gradient = a.T @ (p.squeeze(1) - y) / 50 + 0.01 * vector(model)
    expected = vector(model) - torch.linalg.solve(hessian, gradient)
    optimizer = fisheropt.GodambeSGD(model, lr=1.0, likelihood="bernoulli", damping=0.0, weight_decay=0.01)
    F.binary_cross_entropy_with_logits(model(x).squeeze(1), y).backward()
    optimizer.step()
    torch.testing.assert_close(vector(model), expected, rtol=1e-7, atol=1e-9)


HEADS = {
    "categorical": lambda z: torch.diag_embed(z.softmax(-1)) - z.softmax(-1)[:, :, None] * z.softmax(-1)[:, None],
    "multilabel": lambda z: torch.diag_embed(z.sigmoid() * (1 - z.sigmoid())),
    "gaussian": lambda z: torch.eye(3).expand(len(z), 3, 3),
    "poisson": lambda z: torch.diag_embed(z.exp()),
}


@pytest.mark.parametrize("name", HEADS)
def test_cotangents_have_the_heads_information(name):
    """Mean of uuᵀ over 20,000 draws against the core I(z), within 4 standard errors of √(2/20,000) each."""
    likelihood = fisheropt.likelihoods.resolve(name)
    logits = torch.tensor([[0.3, -0.4, 1.1], [2.0, 0.1, -1.5]])
    repeated = logits.expand(20000, 2, 3).reshape(-1, 3)
    u = likelihood.cotangent(repeated, seed=5).reshape(20000, 2, 3)
    expected = HEADS[name](logits)
    assert ((torch.einsum("rno,rnp->nop", u, u) / 20000 - expected).abs() <= 0.04 * expected.abs().amax()).all()


def test_the_curvature_of_a_network_is_its_model_fisher():
    """Hutchinson's running mean over 3,000 measurements at lr 0 against the Gauss-Newton matrix, 5 % in Frobenius norm."""
    case = CASES["mlp"]()
    optimizer = fisheropt.GodambeSGD(case.model, lr=1e-300, likelihood="categorical", every=1)
    parameters = {n: p.detach() for n, p in case.model.named_parameters()}
    jacobian = torch.func.jacrev(lambda p: torch.func.functional_call(case.model, p, case.batch[:1]))(parameters)
    j = torch.cat([v.flatten(2) for v in jacobian.values()], 2)
    core = HEADS["categorical"](case.model(case.batch[0]).detach())
    expected = torch.einsum("nci,ncd,ndj->ij", j, core, j) / case.samples
    for _ in range(1500):
        step(case, optimizer)
    found = optimizer.param_groups[0]["information"]
    assert (found - expected).norm() <= 0.05 * expected.norm()


def test_the_report_tells_curvature_from_noise_with_an_error_bar():
    """Twice the loss has H = 2F and G = 4F: tr(H⁻¹G) is twice the number of parameters."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 3, generator=generator)
    y = (x.sum(1, keepdim=True) / 3 + 2**0.5 * torch.randn(4000, 1, generator=generator)).float()
    model = nn.Linear(3, 1, bias=False)
    optimizer = fisheropt.GodambeSGD(model, lr=0.5, likelihood="gaussian", every=1)
    for i in range(0, 4000, 40):
        ((model(x[i : i + 40]) - y[i : i + 40]).square() / 2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    group = optimizer.report().as_dict()["groups"][0]
    assert abs(group["effective_dimension"] - 6) <= 4 * group["effective_dimension_se"] + 0.6


def test_what_cannot_be_served_is_refused():
    with pytest.raises(ValueError, match="structure='full'"):
        fisheropt.GodambeSGD(nn.Linear(100, 50), lr=0.1, structure="full")
    with pytest.raises(ValueError, match="damping"):
        fisheropt.GodambeSGD(nn.Linear(3, 1), lr=0.1, damping=-1.0)
    with pytest.raises(ValueError, match="metric"):
        fisheropt.GodambeSGD(nn.Linear(3, 1), lr=0.1, metric="hessian")


def test_parameters_with_one_backward_a_step_are_told_so():
    model = nn.Linear(3, 1)
    optimizer = fisheropt.GodambeSGD(model.parameters(), lr=0.1)
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    assert "plain SGD" in optimizer.report().verdict
    with pytest.raises(RuntimeError, match="GodambeSGD.model"):
        optimizer.noise()


@pytest.mark.filterwarnings("ignore")
def test_the_likelihood_of_a_compiled_model_needs_the_compiled_module():
    torch._dynamo.reset()
    x = torch.randn(8, 3)
    model = nn.Linear(3, 1)
    compiled = torch.compile(model, backend="aot_eager")
    optimizer = fisheropt.GodambeSGD(model, lr=0.1, likelihood="gaussian")
    compiled(x).square().mean().backward()
    with pytest.raises(RuntimeError, match="torch.compile.model"):
        optimizer.step()


def streamed(seed, size=4000, width=5):
    """One pass of GodambeSGD over logistic data, measured at every step."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, width, generator=generator)
    y = (torch.rand(size, generator=generator) < (x @ torch.linspace(-1, 1, width)).sigmoid()).float()
    model = nn.Linear(width, 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    optimizer = fisheropt.GodambeSGD(model, lr=1.0, likelihood="bernoulli", gain="running", every=1)
    for rows, labels in zip(x.split(50), y.split(50), strict=True):
        F.binary_cross_entropy_with_logits(model(rows).squeeze(1), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer, x, y


def test_a_noisy_batch_is_not_taken_for_a_far_start():
    """Seed 0 has a batch whose gradient of pure noise is beyond four times its mean, near the end of the pass."""
    _, optimizer, *_ = streamed(0)
    assert optimizer.param_groups[0]["gain_from"] == 0


def test_training_gives_the_sandwich_that_a_second_look_gives():
    """Standard errors of one pass are within 10 % of those at the optimum, but for the samples that weigh less."""
    model, optimizer, x, y = streamed(1)
    own = optimizer.sandwich()
    again = fisheropt.inference.sandwich(model, [(x, y[:, None])], "bernoulli", one_step=True, tolerance=5.0)
    for name, errors in own.standard_errors().items():
        torch.testing.assert_close(
            errors * (own.samples / 4000) ** 0.5, again.standard_errors()[name], rtol=0.1, atol=0.0
        )
    assert 3000 < own.samples < 4000
    assert optimizer.sandwich(samples=4000).samples == 4000
    assert "measured while training" in own.summary()
    plain = fisheropt.GodambeSGD(nn.Linear(2, 1), lr=0.1)
    with pytest.raises(RuntimeError, match=r"fisheropt\.inference\.sandwich\(model"):
        plain.sandwich()


def classify(optimizer, model, steps, start=0, dtype=torch.float32):
    """Steps on Gaussian classes, each batch its own."""
    for i in range(start, start + steps):
        generator = torch.Generator().manual_seed(i)
        y = torch.randint(0, 4, (32,), generator=generator)
        x = (2 * torch.eye(4, 20)[y] + torch.randn(32, 20, generator=generator)).to(dtype)
        F.cross_entropy(model(x).float(), y).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("cut", [8, 9, 13])
def test_a_resumed_low_rank_run_is_the_same_run(dtype, cut):
    """Cut before a step that is measured, where torch's loading casts the directions, and before one that is not."""
    torch.manual_seed(0)
    model = nn.Linear(20, 4).to(dtype)
    options = {"lr": 0.1, "structure": "lowrank", "likelihood": "categorical", "damping": 1.0}
    optimizer = fisheropt.GodambeSGD(model, **options)
    classify(optimizer, model, cut, dtype=dtype)
    other = copy.deepcopy(nn.Linear(20, 4).to(dtype))
    other.load_state_dict(model.state_dict())
    again = fisheropt.GodambeSGD(other, **options)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for held, of in ((optimizer, model), (again, other)):
        classify(held, of, 12, cut, dtype)
    assert torch.equal(vector(model), vector(other))
    for key in ("eigenvalues", "gains", "scores", "sizes"):
        assert torch.equal(optimizer.param_groups[0][key], again.param_groups[0][key])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("likelihood", [None, "categorical"])
@pytest.mark.parametrize("structure", ["full", "lowrank"])
def test_a_batch_that_is_not_finite_is_skipped(bad, likelihood, structure):
    torch.manual_seed(0)
    model = nn.Linear(20, 4)
    optimizer = fisheropt.GodambeSGD(model, lr=0.1, structure=structure, likelihood=likelihood, every=1)
    classify(optimizer, model, 3)
    before = vector(model)
    x = torch.randn(8, 20)
    x[3, 2] = bad
    F.cross_entropy(model(x), torch.zeros(8, dtype=torch.long)).backward()
    optimizer.step()
    optimizer.zero_grad()
    assert torch.equal(vector(model), before) and optimizer.report().skipped == 1
    classify(optimizer, model, 3, 3)
    assert vector(model).isfinite().all() and not torch.equal(vector(model), before)


@pytest.mark.parametrize("structure", ["full", "lowrank"])
def test_gradients_of_unwatched_parameters_alone_are_plain(structure):
    """The head is frozen where the optimizer is built; later the rest is frozen and the head is not."""
    model = nn.Sequential(nn.Linear(20, 6), nn.Tanh(), nn.Linear(6, 4))
    model[2].requires_grad_(False)
    optimizer = fisheropt.GodambeSGD(model, lr=0.1, structure=structure)
    classify(optimizer, model, 3)
    model[0].requires_grad_(False)
    model[2].requires_grad_(True)
    before = model[2].bias.detach().clone()
    F.cross_entropy(model(torch.ones(8, 20)), torch.zeros(8, dtype=torch.long)).backward()
    gradient = model[2].bias.grad.clone()
    optimizer.step()
    torch.testing.assert_close(model[2].bias.detach(), before - 0.1 * gradient)


@pytest.mark.parametrize(("saved", "built"), [("full", "lowrank"), ("lowrank", "full")])
def test_a_state_of_another_structure_is_refused_in_words(saved, built):
    state = fisheropt.GodambeSGD(nn.Linear(3, 2), lr=0.1, structure=saved).state_dict()
    optimizer = fisheropt.GodambeSGD(nn.Linear(3, 2), lr=0.1, structure=built)
    with pytest.raises(ValueError, match="a trace over all parameters.*structure="):
        optimizer.load_state_dict(state)


def advised(loss, likelihood, lr=0.2, batch=16):
    """The advice after 60 batches of a true model, each measured."""
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = fisheropt.GodambeSGD(model, lr=lr, likelihood=likelihood, every=1)
    for _ in range(60):
        x = torch.randn(batch, 4)
        mean = x.sum(1, keepdim=True) / 2
        y = mean + torch.randn(batch, 1) if likelihood == "gaussian" else torch.bernoulli(mean.sigmoid())
        loss(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    return " ".join(optimizer.report().advice)


def test_a_loss_that_is_not_the_likelihoods_is_advised_of():
    """Its sum has G of 16² times that of the mean, a mean squared error without the half four times."""
    assert advised(lambda z, y: F.mse_loss(z, y) / 2, "gaussian") == ""
    assert advised(F.binary_cross_entropy_with_logits, "bernoulli") == ""
    assert "near 2²" in advised(F.mse_loss, "gaussian") and "mse_loss(output, target) / 2" in advised(
        F.mse_loss, "gaussian"
    )
    for loss, likelihood in ((F.mse_loss, "gaussian"), (F.binary_cross_entropy_with_logits, "bernoulli")):
        share = 0.5 if likelihood == "gaussian" else 1.0
        words = advised(lambda z, y, f=loss, c=share: c * f(z, y, reduction="sum"), likelihood, lr=0.01)
        assert (
            "near 16²" in words
            and "reduction='mean'" in words
            and ("variance 256" in words) == (likelihood == "gaussian")
        )
