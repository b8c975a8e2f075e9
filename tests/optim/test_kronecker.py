"""GodambeSGD(structure="kronecker"): factors, basis and moments against dense matrices, the step, two ranks."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fisheropt
from fisheropt.persample import Dense, Outer, Rows, Tied
from fisheropt.statistics.kronecker import partial_traces, second_moment_in
from tests.cases import CASES
from tests.optim.candidates import Candidate
from tests.optim.contract import ranks
from tests.optim.layerwise_oracle import matrices, step, variances, vector
from tests.optim.layerwise_oracle import partial_traces as dense_traces
from tests.oracle import covariance, flattened, per_sample_gradients

UNSHARED = list(CASES)
EXACT = {"rtol": 1e-8, "atol": 1e-10}


def kronecker(case, **options):
    return fisheropt.GodambeSGD(case.model, lr=1e-3, structure="kronecker", metric="fisher", every=1, **options)


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("name", UNSHARED)
def test_the_statistic_is_the_partial_traces_of_the_covariance(name):
    case, statistic = CASES[name](), fisheropt.Kronecker()
    with fisheropt.observe(case.model, statistic) as tap:
        case.loss().backward()
    for at, h in matrices(case).items():
        p = case.model.get_parameter(at)
        found = statistic.factors(tap.covariance(p).per_sample(), p)
        for factor, expected in zip(found, dense_traces(h), strict=True):
            torch.testing.assert_close(factor, expected, **EXACT)
        errors = statistic.standard_error(tap.covariance(p).per_sample(), p)
        torch.testing.assert_close(errors.left.diagonal(), (2 / 8) ** 0.5 * found.left.diagonal(), **EXACT)


def test_a_side_that_is_too_long_has_no_factor():
    case, statistic = CASES["mlp"](), fisheropt.Kronecker(longest=5)
    with fisheropt.observe(case.model, statistic) as tap:
        case.loss().backward()
    weight = case.model[0].weight  # 6 by 4
    left, right = statistic.factors(tap.covariance(weight), weight)
    assert left is None and right.shape == (4, 4)
    with pytest.raises(TypeError, match="Kronecker.*factors"):
        tap.covariance(weight).trace()


OUTER, ROWS = Outer(draw(5, 1, 4), draw(5, 1, 3)), Rows(draw(5, 6, 3), torch.randint(0, 4, (5, 6)), 4)
LONG = Outer(draw(5, 9, 4), draw(5, 9, 3))
FORMS = [OUTER, Outer(draw(5, 2, 4), draw(5, 2, 3)), LONG, ROWS, Dense(draw(5, 4, 3)), Tied(ROWS, LONG)]


@pytest.mark.parametrize("form", FORMS, ids=lambda f: type(f).__name__)
@pytest.mark.parametrize("sides", [(True, True), (True, False), (False, True), (False, False)])
def test_every_form_has_the_factors_and_moments_of_its_gradients(form, sides):
    h = form.materialise()
    left, right = (torch.linalg.qr(draw(n, n)).Q if on else None for n, on in zip((4, 3), sides, strict=True))
    turned = h if left is None else left.T @ h
    turned = turned if right is None else turned @ right
    torch.testing.assert_close(second_moment_in(form, left, right), turned.square().sum(0), **EXACT)
    found = partial_traces(form, *sides)
    for on, factor, expected in zip(sides, found, (h @ h.mT, h.mT @ h), strict=True):
        assert (factor is not None) == on
        if on:
            torch.testing.assert_close(factor, expected.sum(0), **EXACT)


@pytest.mark.parametrize("name", CASES)
def test_the_moments_are_the_dense_ones_in_the_basis(name):
    """The second reading is the variance along the basis of the first's factors, cross terms of tied weights included."""
    case = CASES[name]()
    optimizer, gradients = kronecker(case), matrices(case)
    step(case, optimizer)
    named = {n: p for n, p in case.model.named_parameters() if p.requires_grad}
    first = {n: {k: v.clone() for k, v in optimizer.state[p].items()} for n, p in named.items()}
    for n, h in gradients.items():
        product = first[n]["moments"].reshape(h.shape[1:])
        torch.testing.assert_close(product.sum(), h.var(0).sum(), **EXACT)
        for side, factor in zip(("left", "right"), dense_traces(h), strict=True):
            if len(factor) > 1:
                held = first[n][f"{side}_factor"]
                torch.testing.assert_close(held, factor, **EXACT)
                basis = first[n][f"{side}_basis"]
                off = basis.T @ held @ basis
                assert (off - off.diagonal().diag()).abs().max() <= 1e-9 * held.trace() + 1e-15
    expected = variances(case, *({n: s.get(f"{side}_basis") for n, s in first.items()} for side in ("left", "right")))
    share = 9 / (9 / 2 + 9)
    step(case, optimizer)
    for n, p in named.items():
        own = optimizer.state[p]
        old = first[n]["moments"].reshape(expected[n].shape)
        mixed = torch.lerp(old, expected[n], share)
        for side in ("left", "right"):  # the second reading turned the basis once more
            if f"{side}_basis" in own:
                overlap = (first[n][f"{side}_basis"].T @ own[f"{side}_basis"]).square()
                mixed = overlap.T @ mixed if side == "left" else mixed @ overlap
        torch.testing.assert_close(own["moments"].reshape(mixed.shape), mixed, **EXACT)


def test_it_is_the_dense_step_where_the_noise_is_exactly_a_kronecker_product():
    """Inputs on a grid against outputs' gradients on another, each pair once: g and a are independent in the sample."""
    a, g = draw(6, 3), draw(5, 4)
    a, g = a - a.mean(0), g - g.mean(0) + 2.0
    x, u = a.repeat(5, 1), g.repeat_interleave(6, 0)
    model = nn.Linear(3, 4, bias=False).double()

    def loss(model):
        return (model(x) * u).sum(1).mean() + (model.weight.detach() * 0).sum()

    h = torch.einsum("no,ni->noi", u, x).flatten(1)
    second, mean = torch.cov(h.T), h.mean(0)
    optimizer = fisheropt.GodambeSGD(
        model, lr=1e-3, structure="kronecker", metric="fisher", damping=0.7, weight_decay=0.1
    )
    start = vector(model)
    mean = mean + 0.1 * start
    direction = torch.linalg.solve(second + 0.8 * torch.eye(12), mean)
    excess = max(1.0, float(second.trace() * direction.square().sum() / (direction @ mean)))
    loss(model).backward()
    optimizer.step()
    torch.testing.assert_close(vector(model), start - 1e-3 * direction / excess, rtol=1e-8, atol=1e-10)


def test_a_vector_has_its_whole_block():
    case = CASES["mixture"]()
    optimizer = kronecker(case, damping=0.5)
    gradients = per_sample_gradients(case)["logits"]
    block, mean = torch.cov(gradients.T), gradients.mean(0)
    start = case.model.logits.detach().clone()
    step(case, optimizer)
    moved = start - case.model.logits.detach()
    expected = torch.linalg.solve(block + 0.5 * torch.eye(3), mean)
    torch.testing.assert_close(moved / moved.norm(), expected / expected.norm(), rtol=1e-6, atol=1e-8)


def test_the_sum_of_the_moments_survives_each_turn():
    case = CASES["sequence"]()
    optimizer = kronecker(case)
    for _ in range(7):
        step(case, optimizer)
    group = optimizer.param_groups[0]
    assert group["turned"] == 4  # at readings 0, 1, 2 and 4
    sums = torch.stack([optimizer.state[p]["moments"].sum() for p in case.model.parameters()])
    torch.testing.assert_close(sums, group["traces"])
    traces = torch.stack([optimizer.state[p]["left_factor"].trace() for p in case.model.parameters()])
    torch.testing.assert_close(traces, group["traces"])


def test_momentum_is_shortened_when_steps_prove_too_long():
    """κ divides all of a step: what momentum holds of steps that a smaller κ has made is divided by the rest of it."""
    case = CASES["mlp"]()
    optimizer = kronecker(case, momentum=0.9, damping=0.5)
    for _ in range(3):
        step(case, optimizer)
    group, risen = optimizer.param_groups[0], 0
    for factor in (3.0, 1.0, 4.0, 1.0):
        old, before = group["excess"], {p: optimizer.state[p]["momentum_buffer"].clone() for p in group["params"]}
        (factor * case.loss()).backward()
        optimizer.step()
        optimizer.zero_grad()
        share = min(1.0, old / group["excess"])
        risen += share < 1
        for p, buffer in before.items():
            own = optimizer.state[p]
            torch.testing.assert_close(own["momentum_buffer"], 0.9 * share * buffer + own["direction"], **EXACT)
    assert 0 < risen < 4


def test_momentum_does_not_run_away_on_a_convolution():
    """The loss rose from 2.3 to 88 while momentum went on with steps that a later reading had found too long."""
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(1)
    prototypes = torch.randn(10, 1, 12, 12, generator=generator)
    y = torch.randint(0, 10, (512,), generator=generator)
    x = prototypes[y] + torch.randn(512, 1, 12, 12, generator=generator)
    first = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*first, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(144, 32), nn.ReLU(), nn.Linear(32, 10))
    options = {"structure": "kronecker", "likelihood": "categorical"}
    optimizer = fisheropt.GodambeSGD(model, lr=0.03, momentum=0.9, **options)
    for _ in range(40):
        chosen = torch.randint(0, 512, (32,), generator=generator)
        F.cross_entropy(model(x[chosen]), y[chosen]).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        assert F.cross_entropy(model(x), y) < 1.5


def test_the_report_says_what_is_kept():
    case = CASES["mlp"]()
    optimizer = kronecker(case)
    for _ in range(3):
        step(case, optimizer)
    found = optimizer.report().as_dict()["groups"][0]
    assert found["effective_dimension"] > 0 and found["effective_dimension_se"] > 0
    assert found["layer_traces"].keys() == dict(case.model.named_parameters()).keys()
    trace = float(covariance(per_sample_gradients(case)).trace())
    assert sum(found["layer_traces"].values()) == pytest.approx(trace, rel=0.05)
    assert "tensors have in common" in optimizer.report().verdict


@pytest.mark.parametrize("structure", ["kronecker", "diagonal"])
def test_the_state_of_half_precision_stays_in_float32(structure):
    model = nn.Linear(6, 5).bfloat16()
    options = {"lr": 0.01, "metric": "fisher", "structure": structure, "every": 1}
    optimizer = fisheropt.GodambeSGD(model, **options)
    for _ in range(3):
        model(torch.randn(8, 6).bfloat16()).float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    fresh = fisheropt.GodambeSGD(model, **options)
    fresh.load_state_dict(optimizer.state_dict())
    for p in model.parameters():
        for key, value in optimizer.state[p].items():
            assert value.dtype == torch.float32 and torch.equal(fresh.state[p][key], value)


def test_two_ranks_are_one_process():
    """Under DDP: bit-identical ranks, and one process on the whole batch within 1e-4."""
    likelihood = {"likelihood": "gaussian", "every": 1, "damping": 0.5}
    rows = {
        "noise": {"structure": "diagonal", "every": 1, "damping": 0.5},
        "likelihood": {"structure": "kronecker"} | likelihood,
        "godambe": {"structure": "diagonal", "metric": "godambe"} | likelihood,
    }
    jobs = [("ddp", Candidate(fisheropt.GodambeSGD, name, row, "module")) for name, row in rows.items()]
    assert ranks.run(jobs) == ["", "", ""]


def test_gradients_are_compared_with_all_parameters_at_hand():
    """The noise trace of the report is the dense one."""
    case = CASES["convolution"]()
    optimizer = kronecker(case)
    gradients = flattened(per_sample_gradients(case))
    step(case, optimizer)
    assert float(optimizer.noise().per_sample().trace()) == pytest.approx(float(gradients.var(0).sum()), rel=1e-9)
