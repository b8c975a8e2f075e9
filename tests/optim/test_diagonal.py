"""GodambeSGD(structure="diagonal") against the dense diagonal."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fisheropt
from fisheropt.statistics.layerwise import Layerwise
from fisheropt.taps import SampleTap
from tests.cases import CASES
from tests.optim.layerwise_oracle import step, variances, vector
from tests.oracle import covariance, flattened, per_sample_gradients

EXACT = {"rtol": 1e-9, "atol": 1e-11}


def diagonal(case, **options):
    return fisheropt.GodambeSGD(case.model, lr=1e-3, structure="diagonal", metric="fisher", **options)


@pytest.mark.parametrize("name", CASES)
def test_the_moments_are_the_dense_diagonal(name):
    """For tied weights and modules called twice too, whose uses are summed before they are squared."""
    case = CASES[name]()
    expected = torch.cat([v.flatten() for v in variances(case).values()])
    optimizer = diagonal(case)
    step(case, optimizer)
    trained = [p for p in case.model.parameters() if p.requires_grad]
    found = torch.cat([optimizer.state[p]["moments"].flatten() for p in trained])
    torch.testing.assert_close(found, expected, **EXACT)
    torch.testing.assert_close(float(optimizer.param_groups[0]["covariance"]), float(expected.sum()))


@pytest.mark.parametrize("name", ["mlp", "tied", "convolution", "sequence"])
def test_the_first_step_is_the_formula(name):
    """P∇ for M = diag G, no longer than H ≤ tr H allows while nothing has shown what the diagonal leaves out."""
    case = CASES[name]()
    gradients = per_sample_gradients(case)
    mean, noise = flattened(gradients).mean(0), covariance(gradients).diagonal()
    direction = mean / (noise + 0.7)
    excess = max(1.0, float(noise.sum() * direction.square().sum() / (direction @ mean)))
    start, optimizer = vector(case.model), diagonal(case, damping=0.7)
    step(case, optimizer)
    torch.testing.assert_close(vector(case.model), start - 1e-3 * direction / excess, **EXACT)


def test_the_second_step_knows_how_much_the_diagonal_leaves_out():
    """The ratio sᵀ(G + ρ)s/sᵀ(diag G + ρ)s of the dense covariance along the first step s, measured at the second."""
    case = CASES["mlp"]()
    start, optimizer = vector(case.model), diagonal(case, damping=0.7)
    old = covariance(per_sample_gradients(case)).diagonal()
    step(case, optimizer)
    s = start - vector(case.model)
    gradients = per_sample_gradients(case)
    noise = covariance(gradients)
    expected = float((s @ noise @ s + 0.7 * s @ s) / (s.square() @ (old + 0.7)))
    step(case, optimizer)
    assert expected > 1
    assert optimizer.param_groups[0]["excess"] == pytest.approx(expected, rel=1e-6)


def test_the_curvature_is_the_diagonal_of_the_model_fisher():
    """Mean of the likelihood's readings over 400 measurements at lr 0 against JᵀIJ, within 4 standard errors of √(2/400)."""
    case = CASES["mlp"]()
    parameters = {n: p.detach() for n, p in case.model.named_parameters()}
    jacobian = torch.func.jacrev(lambda p: torch.func.functional_call(case.model, p, case.batch[:1]))(parameters)
    p = case.model(case.batch[0]).detach().softmax(-1)
    core = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    expected = {n: torch.einsum("ncx,ncd,ndx->x", j.flatten(2), core, j.flatten(2)) / 9 for n, j in jacobian.items()}
    tap = SampleTap(case.model, Layerwise(), likelihood=fisheropt.likelihoods.resolve("categorical"))
    total = {n: torch.zeros_like(v) for n, v in expected.items()}
    for _ in range(400):
        case.loss().backward()
        for n, m in tap.information().scores.moments.items():
            total[n] += m.flatten() / 9 / 400
        tap.clear()
    for n, v in expected.items():
        assert ((total[n] - v).abs() <= 4 * (2 / 400) ** 0.5 * v + 1e-12).all()


def test_a_step_is_no_longer_than_one_however_small_the_moments():
    """A pixel that was seen once has a moment near zero; with H ≤ tr H the first step is at most 1 long all the same."""
    torch.manual_seed(0)
    x = torch.randn(64, 20) * (torch.rand(64, 20) < 0.05)
    y = torch.randint(0, 3, (64,))
    model = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 3))
    optimizer = fisheropt.GodambeSGD(model, lr=1.0, structure="diagonal", likelihood="categorical")
    for _ in range(30):
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        assert F.cross_entropy(model(x), y) < 2.5  # 80 without the bound


def test_noise_that_shrinks_is_followed():
    """G falls to a hundredth, as where a fit improves: 25 readings later little of the old is left, in traces as in moments.

    It would be a fourth with a memory that grew all the while.
    """
    case = CASES["mlp"]()
    optimizer = diagonal(case, every=1)
    for reading in range(50):
        (case.loss() * (1.0 if reading < 25 else 0.1)).backward()
        optimizer.step()
        optimizer.zero_grad()
        if reading == 24:
            old = float(optimizer.param_groups[0]["traces"].sum())
    moments = sum(float(optimizer.state[p]["moments"].sum()) for p in case.model.parameters())
    assert moments == pytest.approx(float(optimizer.param_groups[0]["traces"].sum()))
    assert 0.01 * old < moments < 0.12 * old


def test_copies_and_pickles_go_on_alike():
    case = CASES["mlp"]()
    optimizer = diagonal(case)
    for _ in range(3):
        step(case, optimizer)
    twin_case, twin = copy.deepcopy((case, optimizer))
    again_case, again = pickle.loads(pickle.dumps((case.model, optimizer)))
    for _ in range(3):
        step(case, optimizer)
        step(twin_case, twin)
        F.cross_entropy(again_case(case.batch[0]), case.batch[1]).backward()
        again.step()
        again.zero_grad()
    assert torch.equal(vector(case.model), vector(twin_case.model))
    assert torch.equal(vector(case.model), vector(again_case))


def test_what_cannot_be_served_is_refused():
    with pytest.raises(ValueError, match="damping='auto'"):
        fisheropt.GodambeSGD(nn.Linear(3, 1), lr=0.1, structure="diagonal", damping="bulk")
