"""What leaves nothing to chance, against dense matrices of the definition; bounds in every entry (NF-B1, B2, NF-3, NF-4)."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from fisheropt.likelihoods import Categorical
from fisheropt.theory import envelopes, simplex
from tests.metric.networks import CORES, dense, flat, metric, network, points, trained
from tests.products.test_products import jacobian


@pytest.mark.parametrize("head", CORES)
def test_exact_is_the_definition(head):
    """NF-3, for every head: diagonal, blocks, trace."""
    model, (x, _) = network(), points()
    found, expected = metric(model, "exact", head, keep=True).update(x), dense(model, x, CORES[head])
    torch.testing.assert_close(flat(found.diagonal()), expected.diagonal(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found.block("0"), expected[:25, :25], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found.block("2.bias"), expected[-3:, -3:], rtol=1e-12, atol=1e-14)
    assert found.trace().value == pytest.approx(float(expected.trace()), rel=1e-12)
    assert (found.trace().error, found.trace().how) == (0.0, "exact")
    assert found.trace("0").value + found.trace("2").value == pytest.approx(found.trace().value)


@pytest.mark.parametrize(("variant", "factor"), [("eig", "full"), ("upper", "upper"), ("lower", "lower")])
@pytest.mark.parametrize("head", CORES)
def test_every_factor_has_its_core(variant, factor, head):
    """BBᵀ of each variant from its definition; heads with a diagonal core are their own upper bound."""
    model, (x, _) = network(), points()

    def core(z):
        full = CORES[head](z)
        if factor == "lower":
            if head == "categorical":
                return envelopes.lower_envelope(z.softmax(-1))
            d = full.diagonal(dim1=-2, dim2=-1)
            return torch.diag_embed(d * torch.nn.functional.one_hot(d.argmax(-1), d.shape[-1]))
        return torch.diag_embed(z.softmax(-1)) if (factor, head) == ("upper", "categorical") else full

    found = flat(metric(model, variant, head, num_probes="all").update(x).diagonal())
    torch.testing.assert_close(found, dense(model, x, core).diagonal(), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(("classes", "fit"), list(itertools.product((2, 4), (False, True))))
def test_bounds_hold_in_every_entry(classes, fit):
    """NF-B1: LR <= F <= DG in every entry of the diagonal, and as matrices, for every rank."""
    x, y = points(24, classes)
    model = network(classes)
    model = trained(model, x, y) if fit else model
    fisher = metric(model, "exact", keep=True).update(x)
    upper = metric(model, "upper", num_probes="all", keep=True).update(x)
    below = [metric(model, "lower", num_probes="all", rank=k, keep=True).update(x) for k in range(1, classes + 1)]
    chain = [*(flat(m.diagonal()) for m in (*below, fisher, upper))]
    for small, large in itertools.pairwise(chain):
        assert bool((small <= large + 1e-12).all())
    blocks = [m.block("2") for m in (below[0], fisher, upper)]
    for small, large in itertools.pairwise(blocks):
        assert float(torch.linalg.eigvalsh(large - small).min()) > -1e-12
    torch.testing.assert_close(flat(below[-1].diagonal()), flat(fisher.diagonal()), rtol=1e-10, atol=1e-13)
    if classes == 2:
        torch.testing.assert_close(chain[0], flat(fisher.diagonal()), rtol=1e-12, atol=1e-15)


def test_frobenius_bounds_of_the_network():
    """NF-4: the errors of both sides are at most those of the core, stretched by J."""
    x, y = points(24, 4)
    model = trained(network(4), x, y, steps=60)
    p, squares = model(x).detach().softmax(1), torch.linalg.matrix_norm(jacobian(model, x), 2).square()
    full = dense(model, x, CORES["categorical"])
    upper = (dense(model, x, lambda z: torch.diag_embed(z.softmax(-1))) - full).norm()
    lower = (full - dense(model, x, lambda z: envelopes.lower_envelope(z.softmax(-1)))).norm()
    assert 0 < float(upper) < float((squares * envelopes.upper_error(p)).sum())
    assert 0 < float(lower) < float((squares * envelopes.lower_error_bound(p)).sum())


def test_logits_shifted_by_their_weighted_mean_have_their_upper_bound_at_f():
    """NF-10: a shift that leaves p as it is tightens the upper side, the p-weighted one up to F."""
    model, (x, _) = network(), points()
    logits = model(x)
    centred = logits - (logits.detach().softmax(1) * logits).sum(1, keepdim=True)
    found = metric(model, "upper", num_probes="all").update(logits=centred)
    torch.testing.assert_close(flat(found.diagonal()), dense(model, x, CORES["categorical"]).diagonal())


def test_interval_is_ordered_and_leaves_the_metric_alone():
    model, (x, _) = network(4), points(9, 4)
    exact = metric(model, "exact").update(x)
    before = exact.trace()
    for layer, found in exact.interval(x).items():
        assert found.lower.value < found.fisher.value < found.upper.value
        assert found.fisher.value == pytest.approx(exact.trace(layer).value)
    assert exact.trace() == before and exact.updates == 1
    assert list(exact.interval(x)) == list(exact.layers) == ["0", "2"]
    sampled = metric(model, num_probes=64).interval(logits=model(x))
    assert all(found.fisher.how == "measured" and found.fisher.dof == 63 for found in sampled.values())


def test_empirical_is_the_second_moment_at_the_labels():
    model, (x, y) = network(), points()
    rows = jacobian(model, x)
    scores = torch.einsum("nap,na->np", rows, F.one_hot(y, 3).double() - model(x).softmax(1).detach())
    found = metric(model, "empirical").update(x, targets=y)
    torch.testing.assert_close(flat(found.diagonal()), scores.square().sum(0))


def test_adversarial_labels_inflate_the_empirical_fisher_without_bound():
    """Lemma of section 3.3: (1 - e)/e for the unlikely label."""
    model = network(2)
    x = points(1)[0]
    with torch.no_grad():
        model[2].weight.mul_(10)
    p = model(x).softmax(1).detach()
    fisher = metric(model, "exact").update(x).trace().value
    found = metric(model, "empirical").update(x, targets=p.argmin(1)).trace().value
    assert found / fisher == pytest.approx(float(p.max() / p.min()), rel=1e-9)


@pytest.mark.parametrize("variant", ["exact", "empirical"])
def test_sums_add_over_updates_and_means_weigh_inputs(variant):
    model, (x, y) = network(), points()
    labels = (lambda s: {"targets": y[s]}) if variant == "empirical" else (lambda s: {})
    parts = metric(model, variant), metric(model, variant, reduction="mean")
    for part in parts:
        for s in (slice(0, 2), slice(2, 9)):
            part.update(x[s], **labels(s))
    whole = flat(metric(model, variant).update(x, **labels(slice(None))).diagonal())
    torch.testing.assert_close(flat(parts[0].diagonal()), whole)
    torch.testing.assert_close(flat(parts[1].diagonal()), whole / 9)


@pytest.mark.parametrize("head", ["categorical", "gaussian"])
def test_masks_and_weights(head):
    model, (x, _) = network(), points()
    weights = torch.rand(9).double()
    mask = torch.arange(9) % 3 > 0
    for variant, core in (("exact", CORES[head]), ("lower", None)):
        found = metric(model, variant, head, num_probes="all", reduction="mean").update(x, mask=mask, weights=weights)
        if core:
            expected = dense(model, x, core, weights * mask).diagonal() / (weights * mask).sum()
            torch.testing.assert_close(flat(found.diagonal()), expected, rtol=1e-6, atol=1e-9)
        logits = model(x)
        spoiled = torch.where(mask[:, None], logits, float("nan"))
        again = metric(model, variant, head, num_probes="all", reduction="mean")
        assert bool(flat(again.update(logits=logits, mask=mask, weights=weights).diagonal()).isfinite().all())
        with pytest.raises(FloatingPointError, match="not finite"):
            again.update(logits=torch.where(mask[:, None], float("nan"), logits), mask=mask)
        assert spoiled.isnan().any()


def test_sequences_and_other_axes_are_inputs_like_any_other():
    model, (x, _) = network(), points(12)
    flatly = flat(metric(model, "exact", reduction="mean").update(x).diagonal())
    sequence = metric(model, "exact", reduction="mean").update(x.reshape(4, 3, 4))
    torch.testing.assert_close(flat(sequence.diagonal()), flatly)
    images = model(x.reshape(4, 3, 4)).movedim(-1, 1)
    moved = metric(model, "exact", Categorical(dim=1), reduction="mean").update(logits=images)
    torch.testing.assert_close(flat(moved.diagonal()), flatly)
    single = network(1)
    column = metric(single, "exact", "bernoulli").update(x)
    torch.testing.assert_close(
        flat(column.diagonal()), flat(metric(single, "exact", "bernoulli").update(logits=single(x)[:, 0]).diagonal())
    )


def test_low_rank_solves_like_the_dense_matrix():
    """NF-10, Woodbury."""
    model, (x, _) = network(), points()
    found = metric(model, "exact", keep=True).update(x)
    full = dense(model, x, CORES["categorical"])
    leading = found.low_rank(18)
    v = torch.randn(len(full), 2).double()
    torch.testing.assert_close(leading.eigenvalues, torch.linalg.eigvalsh(full).flip(0)[:18], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(leading.times(v), full @ v)
    expected = torch.linalg.solve(full + 0.1 * torch.eye(len(full)).double(), v)
    torch.testing.assert_close(leading.solve(v, 0.1), expected)
    torch.testing.assert_close(leading.solve(v[:, 0], 0.1), expected[:, 0])
    best = found.low_rank(1)
    assert float(best.eigenvalues) == pytest.approx(float(torch.linalg.matrix_norm(full, 2)))


def test_saturated_logits_in_float32():
    """NF-16: the trace of the core's factor to four digits up to a gap of thirty."""
    for gap in (1.0, 10.0, 20.0, 30.0):
        z = torch.zeros(1, 5)
        z[0, 0] = gap
        columns = torch.stack([Categorical().factor(z, e[None])[0] for e in torch.eye(5)], 1)
        expected = float(simplex.core_trace(z.double().softmax(-1)))
        assert float(columns.double().square().sum()) == pytest.approx(expected, rel=1e-4)
