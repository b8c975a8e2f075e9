"""The Gram matrix and the noise eigenpairs on every case against the oracle, and their laws."""

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fisheropt
from fisheropt.taps import MicrobatchTap
from tests.cases import CASES, Case
from tests.layers import LAYERS
from tests.oracle import covariance, per_sample_gradients

EXACT = {"rtol": 1e-9, "atol": 1e-11}
K = 5


def build(name):
    return (CASES | LAYERS)[name]()


def rows(directions, case):
    """The directions end to end over all parameters, [k, d]."""
    k = max(d.count for d in directions.values())
    units = torch.eye(k, dtype=torch.float64)
    parts = [
        torch.stack([directions[n].combine(u).flatten() for u in units])
        if n in directions
        else units.new_zeros(k, p.numel())
        for n, p in case.model.named_parameters()
        if p.requires_grad
    ]
    return torch.cat(parts, 1).double()


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def check(reading, case, scale=1.0):
    """Against the unbiased covariance of each sample's own gradient, [d, d]."""
    truth = covariance(per_sample_gradients(case)) * scale**2
    expected = torch.linalg.eigvalsh(truth).flip(0)
    found = reading.eigenpairs(K)
    k = len(found.values)
    size = float(expected[0])
    tolerance = {"rtol": 1e-9, "atol": 1e-9 * size}
    torch.testing.assert_close(found.values, expected[:k], **tolerance)
    assert k == K or float(expected[k:].abs().sum()) < 1e-9 * size
    v = rows(found.directions(), case)
    torch.testing.assert_close(v @ v.T, torch.eye(k, dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(v @ truth @ v.T, torch.diag(found.values), **tolerance)
    torch.testing.assert_close(torch.tensor(found.trace, dtype=torch.float64), truth.trace(), **tolerance)
    torch.testing.assert_close(torch.tensor(reading.trace().value, dtype=torch.float64), truth.trace(), **tolerance)
    assert found.dof == reading.dof == case.samples - 1
    assert float(found.residuals.max()) <= 1e-9 * size


@pytest.mark.parametrize("name", [*CASES, *LAYERS])
def test_eigenpairs_are_those_of_the_unbiased_covariance(name):
    """Tied weights, modules called twice, convolutions, tables, norms and bare parameters included."""
    case = build(name)
    with fisheropt.observe(case.model, fisheropt.Gram()) as tap:
        case.loss().backward()
    check(tap.gram(), case)


@pytest.mark.parametrize("name", CASES)
def test_microbatches_of_one_sample_are_samples(name):
    case = CASES[name]()
    named = {n: p for n, p in case.model.named_parameters() if p.requires_grad}
    with MicrobatchTap(named, fisheropt.Gram()) as tap:
        for i in range(case.samples):
            (case.slice(i, i + 1).loss() / case.samples).backward()
    check(tap.gram(), case)


@given(st.sampled_from(sorted(CASES)), st.sets(st.integers(1, 8), max_size=4), st.floats(0.01, 100))
def test_several_backwards_have_their_cross_terms(name, cuts, scale):
    """Cut into microbatches, the loss times s: the same eigenvectors, eigenvalues s² times as large; and s divides out."""
    case = CASES[name]()
    bounds = [0, *sorted(cuts), case.samples]
    with fisheropt.observe(case.model, fisheropt.Gram()) as tap:
        for start, stop in zip(bounds, bounds[1:], strict=False):
            part = case.slice(start, stop)
            (scale * part.losses(case.model, *part.batch).sum() / case.samples).backward()
    check(tap.gram(), case, scale)
    check(tap.gram().unscaled(scale), case)


def test_several_forwards_before_one_backward():
    case = CASES["mlp"]()
    with fisheropt.observe(case.model, fisheropt.Gram()) as tap:
        parts = [case.slice(0, 4), case.slice(4, 9)]
        sum(part.losses(case.model, *part.batch).sum() / case.samples for part in parts).backward()
    truth = torch.linalg.eigvalsh(covariance(per_sample_gradients(case))).flip(0)
    torch.testing.assert_close(tap.gram().eigenpairs(K).values, truth[:K], **EXACT)


class Either(nn.Module):
    """One of two layers, by name."""

    def __init__(self):
        super().__init__()
        self.of = nn.ModuleDict({"a": nn.Linear(4, 3), "b": nn.Linear(4, 3)}).double()

    def forward(self, x, name):
        return torch.tanh(self.of[name](x)).sum((1, 2))


def test_sequences_of_different_lengths_add_up():
    """And a parameter that one of the backwards does not come by has zeros there."""
    torch.manual_seed(0)
    either, batches = Either(), [(name, random(4, length, 4)) for name, length in (("a", 2), ("b", 5), ("a", 3))]
    with fisheropt.observe(either, fisheropt.Gram()) as tap:
        for name, x in batches:
            (either(x, name).sum() / 12).backward()
    found = tap.gram().eigenpairs(K)
    samples = [either(sample[None], name) for name, x in batches for sample in x]
    weights = list(either.parameters())
    grads = [torch.autograd.grad(y.sum(), weights, allow_unused=True, materialize_grads=True) for y in samples]
    h = torch.stack([torch.cat([g.flatten() for g in some]) for some in grads])
    torch.testing.assert_close(found.values, torch.linalg.eigvalsh(torch.cov(h.T)).flip(0)[:K], **EXACT)
    v = rows(found.directions(), Case(either, (), None))
    torch.testing.assert_close(v @ torch.cov(h.T) @ v.T, torch.diag(found.values), **EXACT)


def test_what_is_said_to_be_no_data_does_not_count():
    case = CASES["mlp"]()
    mask = torch.zeros(9, dtype=torch.bool)
    mask[[2, 7]] = True
    with fisheropt.observe(case.model, fisheropt.Gram()) as tap:
        tap.ignore(mask)
        losses = case.losses(case.model, *case.batch)
        (losses * ~mask).sum().div(7).backward()
    kept = copy.copy(case)
    kept.batch = tuple(x[~mask] for x in case.batch)
    check(tap.gram(), kept)


def test_activation_checkpoints_change_nothing():
    class Checkpointed(nn.Sequential):
        def forward(self, x):
            return torch.utils.checkpoint.checkpoint(super().forward, x, use_reentrant=False)

    case = CASES["mlp"]()
    case.written, case.model = case.model, Checkpointed(*case.model)
    with fisheropt.observe(case.model, fisheropt.Gram()) as tap:
        case.loss().backward()
    check(tap.gram(), case)


def test_clearing_forgets_and_frees():
    case = CASES["mlp"]()
    with fisheropt.observe(case.model, fisheropt.Gram()) as tap:
        case.loss().backward()
        tap.clear()
        with pytest.raises(RuntimeError, match="no sample was seen"):
            tap.gram()
        case.loss().backward()
    check(tap.gram(), case)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_has_a_reading_of_its_own(copied):
    """And takes no batch with it."""
    case = CASES["mlp"]()
    with fisheropt.observe(case.model, fisheropt.Gram()) as tap:
        case.loss().backward()
        model, twin = copied((case.model, tap))
    assert len(pickle.dumps(tap)) < 20_000
    twin.remove()
    twin.attach()
    twin.clear()
    twin.enable()
    case.loss(model).backward()
    check(tap.gram(), case)
    check(twin.gram(), case)


def test_samples_are_bounded():
    case = CASES["mlp"]()
    with fisheropt.observe(case.model, fisheropt.Gram(limit=17)):
        case.loss().backward()
        with pytest.raises(RuntimeError, match=r"tap\.clear\(\) after each step, or Gram\(limit=18\)"):
            case.loss().backward()


def test_an_input_that_is_written_over_is_noticed():
    case = CASES["mlp"]()
    with fisheropt.observe(case.model, fisheropt.Gram()) as tap:
        case.loss().backward()
        case.batch[0].mul_(2)
        with pytest.raises(RuntimeError, match=r"model\(x\.clone\(\)\)"):
            tap.gram()


def test_directions_outlive_the_batch():
    case = CASES["mlp"]()
    with fisheropt.observe(case.model, fisheropt.Gram()) as tap:
        case.loss().backward()
    found = tap.gram().eigenpairs(K).directions()
    before = rows(found, case)
    case.batch[0].mul_(2)
    torch.testing.assert_close(rows(found, case), before, rtol=0, atol=0)


def test_what_has_no_sums_says_so():
    case = CASES["linear"]()
    with fisheropt.observe(case.model, fisheropt.Gram()) as tap:
        case.loss().backward()
        for read in (tap.read, tap.covariance):
            with pytest.raises(TypeError, match=r"write tap\.gram\(\)"):
                read()
    with (
        fisheropt.observe(case.model, fisheropt.Trace()) as tap,
        pytest.raises(TypeError, match=r"fisheropt\.Gram\(\)"),
    ):
        tap.gram()
    with fisheropt.observe(case.model, fisheropt.Gram()) as tap:
        case.slice(0, 1).loss().backward()
        with pytest.raises(ValueError, match="needs two samples, 1 seen"):
            tap.gram()
        case.slice(1, 4).loss().backward()
        with pytest.raises(ValueError, match="five samples, 4 seen"):
            tap.gram().effective_rank()
        with pytest.raises(ValueError, match="number of pairs, 1 to 3"):
            tap.gram().eigenpairs(0)


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_model_is_told_so():
    torch._dynamo.reset()
    case = CASES["linear"]()
    tap = fisheropt.observe(case.model, fisheropt.Gram())
    model = torch.compile(case.model, backend="aot_eager", fullgraph=True)
    case.loss(model).backward()
    with pytest.raises(RuntimeError, match=r"without torch\.compile"):
        tap.gram()
    tap.remove()
