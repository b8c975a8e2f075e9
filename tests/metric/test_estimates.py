"""Random estimates: unbiased within stated errors, and as variable as theory says (NF-B3 to B7, NF-9, NF-14, NF-17)."""

import math

import pytest
import torch

from fisheropt.likelihoods import Categorical, Likelihood, eigen_factor
from fisheropt.theory import estimator_quality as quality
from fisheropt.theory.simplex import core
from tests.metric.networks import CORES, dense, flat, metric, network, points, trained
from tests.products.test_products import jacobian

PROBES = 1500
FIVE = 5.0
"""Standard errors. Under normality 50 entries pass with probability 1 - 3e-5."""

UNBIASED = [(v, "categorical") for v in ("hutchinson", "eig", "monte_carlo", "monte_carlo_per_sample")]
UNBIASED += [("hutchinson", head) for head in CORES if head != "categorical"]
UNBIASED += [("monte_carlo", head) for head in ("bernoulli", "gaussian", "poisson")]


class Linear(Likelihood):
    """The mutation of NF-B5: √p ought to be the weight, not p."""

    def factor(self, logits, signs):
        p = logits.softmax(-1)
        u = p * signs
        return u - p * u.sum(-1, keepdim=True)


def excess(found, expected):
    """Largest deviation of the diagonal in standard errors, measured where draws differ, rounding allowed for."""
    variation = found.coefficient_of_variation()
    values = flat(found.diagonal())
    error = flat(variation.measured) * values
    return float(((values - expected).abs() / (error + 1e-9 * values.max())).max())


@pytest.mark.parametrize(("variant", "head"), UNBIASED)
def test_the_mean_over_probes_is_the_fisher_matrix(variant, head):
    """NF-B3, NF-9: five standard errors in every entry, and the trace in its own."""
    model, (x, _) = network(), points()
    expected = dense(model, x, CORES[head])
    found = metric(model, variant, head, num_probes=PROBES).update(x)
    assert excess(found, expected.diagonal()) < FIVE
    trace = found.trace()
    assert abs(trace.value - float(expected.trace())) < 4 * trace.error
    assert trace.dof == PROBES - 1


def test_the_mean_over_probes_is_so_off_the_diagonal():
    model, (x, _) = network(), points()
    expected = dense(model, x, CORES["categorical"])
    found = metric(model, num_probes=PROBES, keep=True).update(x).block("0")
    variance = expected[:25, :25].square() + expected.diagonal()[:25, None] * expected.diagonal()[:25]
    assert bool(((found - expected[:25, :25]).abs() < FIVE * (variance / PROBES).sqrt()).all())


def test_the_weight_is_the_root_of_p():
    """NF-B5, NF-14: with p in its place the trace is a fraction, and the test above fails."""
    model, (x, _) = network(4), points(9, 4)
    expected = dense(model, x, CORES["categorical"])
    found = metric(model, "hutchinson", Linear(), num_probes=PROBES).update(x)
    assert 0.15 < found.trace().value / float(expected.trace()) < 0.5
    assert excess(found, expected.diagonal()) > 4 * FIVE


def test_the_three_forms_are_one():
    """NF-B6: the cotangent, and the gradients of two scalars, with the same signs."""
    model, (x, _) = network(), points()
    signs = torch.randint(0, 2, (9, 3)).double() * 2 - 1
    parameters = list(model.parameters())

    def gradient(of, weight=None):
        return torch.cat([g.flatten() for g in torch.autograd.grad(of, parameters, weight)])

    z = model(x)
    u = Categorical().factor(z.detach(), signs)
    expected = gradient(z, u)
    log_p = model(x).log_softmax(1)
    assert float((gradient((log_p.exp().sqrt().detach() * log_p * signs).sum()) - expected).abs().max()) < 1e-14
    log_p = model(x).log_softmax(1)
    assert float((gradient((2 * (log_p / 2).exp() * signs).sum()) - expected).abs().max()) < 1e-14


@pytest.mark.parametrize("fit", [False, True])
@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_no_entry_varies_by_more_than_the_root_of_two(probe, fit):
    """NF-B4: measured CVs are those of the exact rows, whose CV never passes; a CV of this many probes is known to 5 %."""
    x, y = points(24, 2)
    model = trained(network(2), x, y) if fit else network(2)
    rows = torch.einsum("nap,nab->nbp", jacobian(model, x), _root(model(x).detach())).flatten(0, 1)
    kurtosis = 1.0 if probe == "rademacher" else 3.0
    exact = quality.diagonal_cv(rows, kurtosis=kurtosis)
    assert float(exact.max()) <= quality.diagonal_cv_bound(rows=len(rows), kurtosis=kurtosis) + 1e-12
    variation = metric(model, num_probes=PROBES, probe=probe).update(x).coefficient_of_variation()
    measured = flat(variation.measured) * math.sqrt(PROBES)
    torch.testing.assert_close(measured, exact, rtol=0.3, atol=1e-3)
    assert float(measured.max()) < 1.25 * math.sqrt(2)
    assert float(measured.mean() / exact.mean()) == pytest.approx(1, abs=0.06)
    assert variation.bound == pytest.approx(quality.diagonal_cv_bound(PROBES, 48, kurtosis))


def test_rademacher_is_never_worse_than_gaussian():
    model, (x, _) = network(2), points(5, 2)
    found = {p: metric(model, num_probes=PROBES, probe=p).update(x) for p in ("rademacher", "gaussian")}
    cv = {p: flat(m.coefficient_of_variation().measured) for p, m in found.items()}
    assert float(cv["rademacher"].mean()) < 0.95 * float(cv["gaussian"].mean())


def test_drawn_labels_have_no_bound():
    """NF-B7: two classes, nearly certain; the CV from fourth moments, beside that of probes."""
    torch.manual_seed(3)
    x = torch.randn(6, 4).double()
    model = network(2)
    with torch.no_grad():
        model[2].weight.mul_(12)
    p = model(x).detach().softmax(1)
    directions = jacobian(model, x)[:, 0] - jacobian(model, x)[:, 1]
    q = p.prod(1)[:, None]
    fisher, fourth = q * directions.square(), q * (1 - 3 * q) * directions**4
    cv = (((fourth - 3 * fisher.square()).sum(0) / fisher.sum(0).square()) + 2).clamp(min=0).sqrt()
    assert float(cv.max()) > 1.5
    rows = torch.einsum("nap,nab->nbp", jacobian(model, x), _root(model(x).detach())).flatten(0, 1)
    assert float(quality.diagonal_cv(rows).max()) < math.sqrt(2)
    labels = metric(model, "monte_carlo", num_probes=4000).update(x).coefficient_of_variation()
    entry = int(cv.argmin())
    assert float(flat(labels.measured)[entry]) * math.sqrt(4000) == pytest.approx(float(cv[entry]), rel=0.2)
    assert labels.bound == math.inf
    assert math.isnan(metric(model, "monte_carlo").update(x).trace().error)


@pytest.mark.parametrize(("classes", "expected"), [(2, (0.0, 0.67)), (4, (0.70, 0.99)), (10, (1.07, 1.17))])
def test_eigenvectors_vary_less_on_one_input(classes, expected):
    """NF-17: mean CV of a random direction's information; logits standard normal."""
    torch.manual_seed(0)
    z, v = 1.5 * torch.randn(4000, classes).double(), torch.randn(4000, classes).double()
    unit = torch.eye(classes).double()
    found = []
    for of in (eigen_factor, lambda head, at, e: head.factor(at, e)):
        columns = torch.stack([of(Categorical(), z, e.expand_as(z)) for e in unit], -1)
        torch.testing.assert_close(columns @ columns.mT, core(z.softmax(-1)), rtol=0, atol=1e-14)
        a = (columns * v[..., None]).sum(1)
        found.append(float((2 - 2 * (a**4).sum(1) / a.square().sum(1).square()).clamp(min=0).sqrt().mean()))
    assert found == pytest.approx(expected, abs=0.12)


def test_two_classes_by_eigenvector_and_sample_are_exact():
    model, (x, _) = network(2), points(1, 2)
    found = metric(model, "eig", num_probes=3).update(x)
    torch.testing.assert_close(flat(found.diagonal()), dense(model, x, CORES["categorical"]).diagonal())


def test_updates_average_and_the_error_shrinks():
    """Independent draws of the same data: M probes once, or one probe M times."""
    model, (x, _) = network(), points()
    expected = dense(model, x, CORES["categorical"]).diagonal() / 9
    often = metric(model, reduction="mean")
    for _ in range(500):
        often.update(x)
    assert float((flat(often.diagonal()) / expected - 1).abs().max()) < 4 * math.sqrt(2 / 500)
    variation = often.coefficient_of_variation()
    assert variation.bound == pytest.approx(math.sqrt(2 * (1 - 1 / 27) / 500))
    assert (variation.draws, variation.measured, variation.warning) == (pytest.approx(500), {}, "")
    assert often.trace().how == "bound"


@pytest.mark.parametrize("decay", [0.9, 0.99])
def test_the_running_average_forgets_as_said(decay):
    """NF-6 through the metric: corrected from its first update on, CV_1 √((1 - b)/(1 + b)) in the long run."""
    model, (x, _) = network(), points()
    running = metric(model, ema=decay)
    first = metric(model).update(x)
    torch.testing.assert_close(flat(running.update(x).diagonal()), flat(first.diagonal()))
    weights, total = [], 0.0
    for _ in range(29):
        running.update(x)
    again = metric(model)
    for step in range(30):
        gain = decay ** (29 - step) * (1 - decay)
        before = flat(again.diagonal()) if again.updates else 0.0
        again.update(x)
        weights.append(gain)
        total = total + gain * (flat(again.diagonal()) - before)
    torch.testing.assert_close(flat(running.diagonal()), total / sum(weights))
    effective = sum(weights) ** 2 / sum(w * w for w in weights)
    assert running.coefficient_of_variation().draws == pytest.approx(effective)
    for _ in range(600 if decay == 0.9 else 0):
        running.update(x)
    if decay == 0.9:
        assert running.coefficient_of_variation().bound == pytest.approx(
            quality.ema_cv(math.sqrt(2 - 2 / 27), 0.9), rel=1e-6
        )


def test_the_error_of_the_trace_is_that_of_theory():
    """Measured over the probes against the exact variance."""
    model, (x, _) = network(), points()
    rows = torch.einsum("nap,nab->nbp", jacobian(model, x), _root(model(x).detach())).flatten(0, 1)
    error = math.sqrt(float(quality.trace_variance(rows, PROBES)))
    found = metric(model, num_probes=PROBES).update(x).trace()
    assert found.error == pytest.approx(error, rel=0.15)
    one = metric(model).update(x).trace()
    assert one.error / one.value >= math.sqrt(PROBES) * error / float(rows.square().sum())


def _root(z):
    """B [n, C, C] of a softmax, column by column."""
    return torch.stack([Categorical().factor(z, e.expand_as(z)) for e in torch.eye(z.shape[1]).double()], -1)
