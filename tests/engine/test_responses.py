"""The response of tracked directions on every case against the oracle, and its laws."""

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fisheropt
from fisheropt.likelihoods import resolve
from fisheropt.persample import Dense, Outer, joined
from fisheropt.statistics.response import Response
from fisheropt.taps import MicrobatchTap, SampleTap
from tests.cases import CASES
from tests.oracle import flattened, per_sample_gradients

K = 3
EXACT = {"rtol": 1e-9, "atol": 1e-11}


def directions(case, seed=7):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: fisheropt.DenseDirections(torch.randn(K, *p.shape, generator=generator, dtype=torch.float64))
        for name, p in case.model.named_parameters()
        if p.requires_grad
    }


def aimed(case, likelihood=None, seed=7):
    tap = SampleTap(case.model, Response(K, 2), None, resolve(likelihood))
    tap.aim(directions(case, seed))
    return tap


def flat(parts, case):
    """Rows over all parameters end to end: [rows, d]."""
    rows = max(part.shape[0] for part in parts.values())
    return torch.cat(
        [
            parts[n].flatten(1) if n in parts else torch.zeros(rows, p.numel(), dtype=torch.float64)
            for n, p in case.model.named_parameters()
            if p.requires_grad
        ],
        1,
    )


def check(scores, h, v):
    """Against hₙ [n, d] and directions [k, d]."""
    z = h @ v.T
    torch.testing.assert_close(torch.cat(scores.coordinates).double(), z, **EXACT)
    torch.testing.assert_close(torch.cat(scores.squared_norms), h.square().sum(1), **EXACT)
    return torch.cat([z, torch.ones(len(z), 1, dtype=z.dtype)], 1).T @ h


def truth(case):
    """Gradients of each sample's share of the mean loss, [n, d]."""
    return flattened(per_sample_gradients(case)) / case.samples


@pytest.mark.parametrize("name", CASES)
def test_the_response_is_the_second_moment_times_the_directions(name):
    """Also where a weight is tied, and where a module is called twice: ‖hₙ‖² has its cross terms."""
    case = CASES[name]()
    with aimed(case) as tap:
        case.loss().backward()
    v = flat({n: d.basis for n, d in directions(case).items()}, case)
    expected = check(tap.scores(), truth(case), v)
    torch.testing.assert_close(flat(tap.scores().responses, case), expected, **EXACT)


@pytest.mark.parametrize("name", CASES)
def test_microbatches_of_one_sample_are_samples(name):
    case = CASES[name]()
    named = {n: p for n, p in case.model.named_parameters() if p.requires_grad}
    with MicrobatchTap(named, Response(K, 2)) as tap:
        tap.aim(directions(case))
        for i in range(case.samples):
            (case.slice(i, i + 1).loss() / case.samples).backward()
    v = flat({n: d.basis for n, d in directions(case).items()}, case)
    expected = check(tap.scores(), truth(case), v)
    torch.testing.assert_close(flat(tap.scores().responses, case), expected, **EXACT)


@given(st.sampled_from(sorted(CASES)), st.sets(st.integers(1, 8), max_size=4), st.floats(0.01, 100))
def test_laws_additive_and_homogeneous(name, cuts, scale):
    """Cut into microbatches, the loss times s: Σhzᵀ and ‖h‖² are s² times as large, Σh is s times."""
    case = CASES[name]()
    bounds = [0, *sorted(cuts), case.samples]
    with aimed(case) as tap:
        for start, stop in zip(bounds, bounds[1:], strict=False):
            part = case.slice(start, stop)
            (scale * part.losses(case.model, *part.batch).sum() / case.samples).backward()
    v = flat({n: d.basis for n, d in directions(case).items()}, case)
    expected = check(tap.scores(), scale * truth(case), v)
    torch.testing.assert_close(flat(tap.scores().responses, case), expected, **EXACT)


def test_several_forwards_before_one_backward_stay_apart():
    case = CASES["mlp"]()
    with aimed(case) as tap:
        parts = [case.slice(0, 4), case.slice(4, 9)]
        sum(part.losses(case.model, *part.batch).sum() / case.samples for part in parts).backward()
    v = flat({n: d.basis for n, d in directions(case).items()}, case)
    h = truth(case)
    torch.testing.assert_close(flat(tap.scores().responses, case)[:K], v @ h.T @ h, **EXACT)


def test_a_backward_that_never_folds_leaves_nothing_behind():
    """torch.autograd.grad to an input alone passes the layers and not the fold."""
    case = CASES["mlp"]()
    with aimed(case) as tap:
        x = case.batch[0].requires_grad_()
        loss = case.loss()
        torch.autograd.grad(loss, x, retain_graph=True)
        loss.backward()
    v = flat({n: d.basis for n, d in directions(case).items()}, case)
    expected = check(tap.scores(), truth(case), v)
    torch.testing.assert_close(flat(tap.scores().responses, case), expected, **EXACT)


def test_a_second_backward_through_one_forward_is_refused():
    case = CASES["linear"]()
    with aimed(case):
        loss = case.loss()
        loss.backward(retain_graph=True)
        with pytest.raises(RuntimeError, match="Add the losses"):
            loss.backward()


def test_a_second_backward_counts_alone_after_clearing():
    case = CASES["linear"]()
    with aimed(case) as tap:
        loss = case.loss()
        loss.square().backward(retain_graph=True)
        tap.clear()
        loss.backward()
    h = truth(case)
    v = flat({n: d.basis for n, d in directions(case).items()}, case)
    torch.testing.assert_close(flat(tap.scores().responses, case)[:K], v @ h.T @ h, **EXACT)


def test_activation_checkpoints_change_nothing():
    class Checkpointed(nn.Sequential):
        def forward(self, x):
            return torch.utils.checkpoint.checkpoint(super().forward, x, use_reentrant=False)

    case = CASES["mlp"]()
    h = truth(case)
    case.model = Checkpointed(*case.model)
    with aimed(case) as tap:
        case.loss().backward()
    v = flat({n: d.basis for n, d in directions(case).items()}, case)
    expected = check(tap.scores(), h, v)
    torch.testing.assert_close(flat(tap.scores().responses, case), expected, **EXACT)


def test_with_a_likelihood_the_response_is_that_of_its_cotangents():
    """The loss's own backward then gives coordinates, norms and Σh, and no response."""
    case = CASES["linear"]()
    u = resolve("categorical").cotangent(case.model(case.batch[0]).detach(), 5)
    tap = aimed(case, "categorical")
    tap.channel.seed = 5
    case.loss().backward()
    a = torch.cat([case.batch[0], torch.ones(case.samples, 1, dtype=torch.float64)], 1)
    h = torch.cat([(u[:, :, None] * a[:, None, :-1]).flatten(1), u], 1)
    v = flat({n: d.basis for n, d in directions(case).items()}, case)
    information = tap.information().scores
    torch.testing.assert_close(flat(information.responses, case), check(information, h, v), **EXACT)
    check(tap.scores(), truth(case), v)
    torch.testing.assert_close(flat(tap.scores().responses, case)[0], truth(case).sum(0), **EXACT)
    tap.remove()


def test_directions_are_replaced_between_steps():
    case = CASES["mlp"]()
    with aimed(case) as tap:
        for seed in (7, 8):
            tap.aim(directions(case, seed))
            tap.clear()
            case.loss().backward()
            v = flat({n: d.basis for n, d in directions(case, seed).items()}, case)
            torch.testing.assert_close(flat(tap.scores().responses, case), check(tap.scores(), truth(case), v), **EXACT)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_has_directions_of_its_own(copied):
    case = CASES["mlp"]()
    tap = aimed(case)
    model, twin = copied((case.model, tap))
    tap.aim(directions(case, 8))
    twin.remove()
    twin.attach()
    case.losses(model, *case.batch).mean().backward()
    v = flat({n: d.basis for n, d in directions(case, 7).items()}, case)
    torch.testing.assert_close(flat(twin.scores().responses, case), check(twin.scores(), truth(case), v), **EXACT)
    tap.remove()


def test_clearing_forgets():
    case = CASES["linear"]()
    with aimed(case) as tap:
        for forget in (tap.clear, tap.drop_gradients):
            case.loss().backward()
            forget()
            assert tap.scores().responses == {} and tap.scores().squared_norms == []


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_model_is_told_so():
    torch._dynamo.reset()
    case = CASES["linear"]()
    tap = aimed(case)
    model = torch.compile(case.model, backend="aot_eager", fullgraph=True)
    case.loss(model).backward()
    with pytest.raises(RuntimeError, match=r"without torch\.compile"):
        tap.counts()
    tap.remove()


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), st.integers(1, 5), st.integers(1, 6))
def test_combine_is_a_sum_of_gradients(n, t, o, i, k):
    form = Outer(torch.randn(n, t, o, dtype=torch.float64), torch.randn(n, t, i, dtype=torch.float64))
    weights = torch.randn(n, k, dtype=torch.float64)
    expected = torch.einsum("nk,noi->koi", weights, form.materialise())
    torch.testing.assert_close(form.combine(weights), expected, **EXACT)
    torch.testing.assert_close(Dense(form.materialise()).combine(weights), expected, **EXACT)
    both = joined([form, Outer(form.g.new_ones(n, 2, o), form.a.new_ones(n, 2, i))])
    torch.testing.assert_close(both.materialise(), form.materialise() + 2, **EXACT)
    mixed = joined([form, Dense(form.materialise())])
    torch.testing.assert_close(mixed.materialise(), 2 * form.materialise(), **EXACT)
