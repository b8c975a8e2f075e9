"""Every statistic on every case against the oracle, and the three laws as properties."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fisheropt
from fisheropt.statistics import ParameterStatistic
from fisheropt.taps import MicrobatchTap
from tests.cases import CASES
from tests.oracle import covariance, flattened, per_sample_gradients

EXACT = {"rtol": 1e-9, "atol": 1e-11}


def directions(case, k=3, kind=fisheropt.DenseDirections):
    """k random directions, dense, or rank one for matrices."""
    generator = torch.Generator().manual_seed(7)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        name: kind(draw(k, p.shape[0]), draw(k, p[0].numel()))
        if p.ndim > 1 and kind is fisheropt.RankOneDirections
        else fisheropt.DenseDirections(draw(k, *p.shape))
        for name, p in case.model.named_parameters()
        if p.requires_grad
    }


def projected(case, along, k=3):
    """The covariance in the directions, from the dense one."""
    units = torch.eye(k, dtype=torch.float64)
    basis = torch.cat([torch.stack([d.combine(u).reshape(-1) for u in units]) for d in along.values()], 1)
    return basis @ covariance(per_sample_gradients(case)) @ basis.T


def check_full(case):
    with fisheropt.observe(case.model, fisheropt.FullCovariance()) as tap:
        case.loss().backward()
    measured = tap.covariance()
    torch.testing.assert_close(measured.per_sample().matrix(), covariance(per_sample_gradients(case)), **EXACT)
    assert measured.dof == case.samples - 1


@pytest.mark.parametrize("name", CASES)
def test_full_covariance(name):
    check_full(CASES[name]())


@pytest.mark.parametrize("kind", [fisheropt.DenseDirections, fisheropt.RankOneDirections])
@pytest.mark.parametrize("name", CASES)
def test_projection(name, kind):
    case = CASES[name]()
    along = directions(case, kind=kind)
    with fisheropt.observe(case.model, fisheropt.Projection(along)) as tap:
        case.loss().backward()
    torch.testing.assert_close(tap.covariance().per_sample().matrix(), projected(case, along), **EXACT)


@pytest.mark.parametrize("name", sorted(CASES))
def test_second_moment_and_trace(name):
    case = CASES[name]()
    truth = per_sample_gradients(case)
    taps = [fisheropt.observe(case.model, s) for s in (fisheropt.SecondMoment(), fisheropt.Trace())]
    case.loss().backward()
    for parameter, gradients in ((case.model.get_parameter(n), g) for n, g in truth.items()):
        diagonal, trace = (tap.covariance(parameter).per_sample() for tap in taps)
        torch.testing.assert_close(diagonal.diagonal(), gradients.var(0), **EXACT)
        torch.testing.assert_close(trace.trace(), gradients.flatten(1).var(0).sum(), **EXACT)


@pytest.mark.parametrize("on", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_the_gradient_is_left_as_it_was(name, on):
    """To rounding where it is formed with the statistic, and bit for bit where the tap is off."""
    case = CASES[name]()
    case.loss().backward()
    plain = {n: p.grad.clone() for n, p in case.model.named_parameters() if p.grad is not None}
    for statistic in (fisheropt.FullCovariance(), fisheropt.Trace()):
        case.model.zero_grad()
        with fisheropt.observe(case.model, statistic) as tap:
            tap.enable(on)
            case.loss().backward()
        found = {n: p.grad for n, p in case.model.named_parameters() if p.grad is not None}
        assert found.keys() == plain.keys()
        for n, gradient in plain.items():
            torch.testing.assert_close(found[n], gradient, **(EXACT if on else {"rtol": 0, "atol": 0}))


@pytest.mark.parametrize("statistic", [fisheropt.Trace(), fisheropt.SecondMoment(), fisheropt.FullCovariance()])
@pytest.mark.parametrize("name", CASES)
def test_microbatches_of_one_sample_are_samples(name, statistic):
    case = CASES[name]()
    truth = per_sample_gradients(case)
    named = {n: p for n, p in case.model.named_parameters() if p.requires_grad}
    with MicrobatchTap(named, statistic) as tap:
        for i in range(case.samples):
            (case.slice(i, i + 1).loss() / case.samples).backward()
    if isinstance(statistic, fisheropt.FullCovariance):
        torch.testing.assert_close(tap.covariance().per_sample().matrix(), covariance(truth), **EXACT)
        return
    for parameter, gradients in ((named[n], g) for n, g in truth.items()):
        measured = tap.covariance(parameter).per_sample()
        torch.testing.assert_close(measured.trace(), gradients.flatten(1).var(0).sum(), **EXACT)


def readings(case, statistic, cuts=(), scale=1.0):
    """Raw sums of a statistic over the whole batch, cut into microbatches, for the loss times `scale`."""
    bounds = [0, *sorted(cuts), case.samples]
    case.model.zero_grad()
    with fisheropt.observe(case.model, statistic) as tap:
        for start, stop in zip(bounds, bounds[1:], strict=False):
            part = case.slice(start, stop)
            (scale * part.losses(case.model, *part.batch).sum() / case.samples).backward()
    if isinstance(statistic, fisheropt.FullCovariance):
        return [tap.read()]
    return [tap.read(p) for p in tap.parameters.values()]


STATISTICS = st.sampled_from([*(cls() for cls in ParameterStatistic.__subclasses__()), fisheropt.FullCovariance()])


@given(st.sampled_from(sorted(CASES)), STATISTICS, st.sets(st.integers(1, 8), max_size=4))
def test_law_additive(name, statistic, cuts):
    case = CASES[name]()
    for whole, parts in zip(readings(case, statistic), readings(case, statistic, cuts), strict=True):
        assert whole.count == parts.count == case.samples
        torch.testing.assert_close(parts.second, whole.second, **EXACT)
        torch.testing.assert_close(parts.covariance().value, whole.covariance().value, **EXACT)


@given(st.sampled_from(sorted(CASES)), STATISTICS, st.floats(0.01, 100) | st.floats(-100, -0.01))
def test_law_homogeneous(name, statistic, scale):
    case = CASES[name]()
    for plain, scaled in zip(readings(case, statistic), readings(case, statistic, scale=scale), strict=True):
        torch.testing.assert_close(scaled.unscaled(scale).second, plain.second, **EXACT)
        torch.testing.assert_close(scaled.unscaled(scale).total, plain.total, **EXACT)


@given(st.sampled_from(sorted(CASES)), st.integers(2, 9))
def test_law_centred(name, samples):
    """A batch in which all samples agree has a gradient and no noise; any batch has the covariance of the oracle."""
    case = CASES[name]()
    same = case.slice(0, 1)
    same.batch = tuple(x.expand(samples, *x.shape[1:]) for x in same.batch)
    (reading,) = readings(same, fisheropt.FullCovariance())
    assert reading.second.abs().max() > 0
    torch.testing.assert_close(reading.covariance().value, torch.zeros_like(reading.second), rtol=0, atol=1e-12)
    check_full(case.slice(0, samples))


def test_standard_error_is_what_repetition_shows():
    """The spread of the estimate over 4,000 Gaussian batches against the standard error reported, within 4 %."""
    samples, size = 12, 3
    root = torch.tensor([[1.0, 0, 0], [0.5, 2, 0], [0, 0.3, 0.7]], dtype=torch.float64)
    gradients = torch.randn(4000, samples, size, dtype=torch.float64) @ root.T / samples
    found = []
    for h in gradients:
        total = h.sum(0)
        found.append(fisheropt.Moments(h.T @ h, total.outer(total), samples, "matrix").covariance())
    spread = torch.stack([c.value for c in found]).std(0)
    truth = fisheropt.Covariance(root @ root.T / samples, samples, samples - 1, "matrix")
    torch.testing.assert_close(spread, truth.standard_error(), rtol=0.04, atol=0)


def test_flattening_order_is_that_of_the_parameters():
    case = CASES["mlp"]()
    with fisheropt.observe(case.model, fisheropt.FullCovariance()) as tap:
        case.loss().backward()
    mean = flattened(per_sample_gradients(case)).mean(0)
    torch.testing.assert_close(tap.augmented()[:-1, -1], mean, **EXACT)


def test_a_reading_needs_two_samples():
    case = CASES["linear"]().slice(0, 1)
    with fisheropt.observe(case.model, fisheropt.FullCovariance()) as tap:
        case.loss().backward()
    with pytest.raises(ValueError, match="two samples, 1 seen"):
        tap.covariance()


def test_what_was_not_measured_is_refused():
    case = CASES["linear"]()
    with fisheropt.observe(case.model, fisheropt.Trace()) as tap:
        case.loss().backward()
    with pytest.raises(TypeError, match="SecondMoment"):
        tap.covariance(case.model.weight).diagonal()
