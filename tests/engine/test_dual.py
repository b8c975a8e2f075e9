"""Directions held as coefficients over an earlier batch: the same as the tensors that they stand for."""

import copy
import io
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fisheropt
from fisheropt.directions import dual
from fisheropt.persample import Outer
from tests.cases import CASES
from tests.oracle import flattened, per_sample_gradients

EXACT = {"rtol": 1e-9, "atol": 1e-11}
K = 3
sizes = st.integers(1, 5)


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def made(m, s, o, i, k):
    """Dual directions and, from their definition, the tensors."""
    found = fisheropt.DualDirections(random(m, s, o), random(m, s, i), random(m, k))
    return found, torch.einsum("mk,mso,msi->koi", found.coefficients, found.g, found.a)


@given(sizes, sizes, sizes, sizes, sizes, sizes, sizes, st.sampled_from([1, 1 << 23]))
def test_every_product_is_that_of_the_tensors(n, t, m, s, o, i, k, numbers):
    """Whichever way is cheaper, and in tiles."""
    held, dual._NUMBERS = dual._NUMBERS, numbers
    try:
        found, basis = made(m, s, o, i, k)
        form = Outer(random(n, t, o), random(n, t, i))
        expected = torch.einsum("noi,koi->nk", form.materialise(), basis)
        torch.testing.assert_close(form.project(found), expected, **EXACT)
        torch.testing.assert_close(found.of_dense(form.materialise()), expected, **EXACT)
        torch.testing.assert_close(found.dense().basis, basis, **EXACT)
        c = random(k)
        torch.testing.assert_close(found.combine(c), torch.einsum("k,koi->oi", c, basis), **EXACT)
        assert found.count == k
    finally:
        dual._NUMBERS = held


@pytest.mark.parametrize("way", ["crossed", "formed"])
def test_both_ways_at_sizes_that_choose_them(way):
    torch.manual_seed(0)
    m, s, o, i = (4, 1, 30, 40) if way == "crossed" else (40, 6, 3, 4)
    found, basis = made(m, s, o, i, K)
    form = Outer(random(20, s, o), random(20, s, i))
    torch.testing.assert_close(form.project(found), torch.einsum("noi,koi->nk", form.materialise(), basis), **EXACT)
    h = form.materialise()[: 1 if way == "crossed" else 20]
    torch.testing.assert_close(found.of_dense(h), torch.einsum("noi,koi->nk", h, basis), **EXACT)


def outer_names(case):
    """The parameters whose per-sample gradients are outer products, with their forms."""
    with fisheropt.observe(case.model, fisheropt.Gram()) as tap:
        case.loss().backward()
    forms = tap.gram().forms
    case.model.zero_grad()
    return {name: form for name, form in forms.items() if isinstance(form, Outer)}


def with_dual(name):
    """A case with dual directions in some parameters, and the others dense."""
    case = CASES[name]()
    outer, mixing, along = outer_names(case), random(case.samples, K), {}
    for n, p in case.model.named_parameters():
        if n in outer:
            along[n] = fisheropt.DualDirections(outer[n].g, outer[n].a.detach(), mixing)
        elif p.requires_grad:
            along[n] = fisheropt.DenseDirections(random(K, *p.shape))
    return case, along, {n: d.dense().basis if n in outer else d.basis for n, d in along.items()}


@pytest.mark.parametrize("name", CASES)
def test_a_projection_on_them_is_exact(name):
    """Whatever forms the parameters have in a later batch."""
    case, along, basis = with_dual(name)
    v = torch.cat([basis[n].flatten(1) for n, p in case.model.named_parameters() if p.requires_grad], 1)
    with fisheropt.observe(case.model, fisheropt.Projection(along)) as tap:
        case.loss().backward()
    expected = torch.cov((flattened(per_sample_gradients(case)) @ v.T).T)
    torch.testing.assert_close(tap.covariance().per_sample().matrix(), expected, **EXACT)


def test_eigenvectors_of_one_batch_measure_the_next():
    """In the batch that they are of, the covariance along them is diagonal; in the next it is that of the dense ones."""
    case, other = CASES["mlp"](), CASES["mlp"]()
    with fisheropt.observe(case.model, fisheropt.Gram()) as tap:
        case.loss().backward()
    pairs = tap.gram().eigenpairs(2 * K)
    along = pairs.directions()
    assert any(isinstance(d, fisheropt.DualDirections) for d in along.values())
    with fisheropt.observe(case.model, fisheropt.Projection(along)) as tap:
        case.loss().backward()
        own = tap.covariance().per_sample().matrix()
        tap.clear()
        case.losses(case.model, *other.batch).mean().backward()
        next_one = tap.covariance().per_sample().matrix()
    torch.testing.assert_close(own, torch.diag(pairs.values), **EXACT)
    dense = {n: d.dense() if isinstance(d, fisheropt.DualDirections) else d for n, d in along.items()}
    other.model = case.model
    v = torch.cat([dense[n].basis.flatten(1) for n, _ in case.model.named_parameters()], 1)
    h = flattened(per_sample_gradients(other))
    torch.testing.assert_close(next_one, torch.cov((h @ v.T).T), **EXACT)


def test_dense_where_that_holds_fewer_numbers():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(60, 50), nn.Tanh(), nn.Linear(50, 2))
    with fisheropt.observe(model, fisheropt.Gram()) as tap:
        model(torch.randn(16, 60)).square().sum().backward()
    found = tap.gram().eigenpairs(8).directions()
    kinds = {name: type(d).__name__ for name, d in found.items()}
    assert kinds == {
        "0.weight": "DualDirections",
        "0.bias": "DenseDirections",
        "2.weight": "DenseDirections",
        "2.bias": "DenseDirections",
    }


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_model_is_projected_on_them():
    torch._dynamo.reset()
    case, along, basis = with_dual("mlp")
    v = torch.cat([basis[n].flatten(1) for n, _ in case.model.named_parameters()], 1)
    with fisheropt.observe(case.model, fisheropt.Projection(along)) as tap:
        case.loss(torch.compile(case.model, backend="aot_eager", fullgraph=True)).backward()
    expected = torch.cov((flattened(per_sample_gradients(case)) @ v.T).T)
    torch.testing.assert_close(tap.covariance().per_sample().matrix(), expected, **EXACT)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_they_are_copied_with_what_holds_them(copied):
    found, basis = made(4, 1, 5, 6, K)
    torch.testing.assert_close(copied(found).dense().basis, basis, **EXACT)


def floored(model, directions):
    return fisheropt.FisherFloorSGD(model, lr=0.1, floor=0.05, directions=directions, every=1)


def test_fisher_floor_watches_them():
    """Step for step as with the tensors that they stand for; and the state has no directions, as of tensors."""
    torch.manual_seed(0)
    case = CASES["mlp"]()
    with fisheropt.observe(case.model, fisheropt.Gram()) as tap:
        case.loss().backward()
    along = tap.gram().eigenpairs(K).directions()
    case.model.zero_grad()
    dense = {n: d.dense().basis if isinstance(d, fisheropt.DualDirections) else d.basis for n, d in along.items()}
    twin = copy.deepcopy(case.model)
    first, second = floored(case.model, along), floored(twin, dense)
    for _ in range(3):
        for model, optimizer in ((case.model, first), (twin, second)):
            case.losses(model, *case.batch).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    for p, q in zip(case.model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-8)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    first.load_state_dict(torch.load(file, weights_only=True))


def test_tensors_and_directions_do_not_mix():
    case = CASES["mlp"]()
    mixed = {
        "0.weight": fisheropt.DualDirections(random(2, 1, 6), random(2, 1, 4), random(2, 1)),
        "0.bias": random(1, 6),
    }
    with pytest.raises(ValueError, match=r"found Tensor .* DualDirections"):
        floored(case.model, mixed)
