"""Measured spectra against eigenvalues of formed matrices, and against the effective spectrum of a mixture."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fisheropt
from fisheropt import measured_spectrum
from fisheropt.products import EmpiricalFisher, Hessian, ModelFisher
from fisheropt.theory import effective_spectrum


def network(width=20):
    """P = 14 width + 10."""
    model = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 10)).double()
    return model, [(torch.randn(60, 3, dtype=torch.float64), torch.randint(0, 10, (60,)))]


def product_of(kind, model, data):
    return kind(model, "categorical" if kind is ModelFisher else F.cross_entropy, data)


def mixture(dimension=400, ratio=4, snr=4.0):
    """Logistic regression on two Gaussians: its Fisher matrix and the effective spectrum of that matrix."""
    samples = ratio * dimension
    means = torch.zeros(2, dimension, dtype=torch.float64)
    means[0, 0], means[1, 0] = 1, -1
    labels = torch.arange(samples) % 2
    x = means[labels] + torch.randn(samples, dimension, dtype=torch.float64) / snr**0.5
    head = torch.zeros(dimension, dtype=torch.float64)
    head[:2] = 1.0
    model = nn.Linear(dimension, 1, bias=False).double()
    model.weight.data.copy_(head)
    columns = torch.cat((torch.stack((head, 0 * head)), means))
    effective = effective_spectrum(columns @ columns.T, [0.5, 0.5], snr, ratio)
    return ModelFisher(model, "bernoulli", [(x, labels)]), effective


@pytest.mark.parametrize("kind", [Hessian, ModelFisher, EmpiricalFisher])
def test_lanczos_agrees_with_exact_within_its_bounds(kind):
    product = product_of(kind, *network())
    exact, found = (measured_spectrum(product, exact=how) for how in (True, False))
    assert exact.exact and not found.exact and found.steps == 80
    error = (found.eigenvalues - exact.eigenvalues).abs()
    assert bool((error <= found.residuals).all())
    assert float(found.residuals.max()) < 1e-3 * float(exact.eigenvalues[0])
    reference = torch.linalg.eigvalsh(product.dense()).flip(0)
    assert torch.allclose(exact.eigenvalues, reference[:10], atol=1e-13)
    assert exact.trace == pytest.approx(float(reference.sum()), rel=1e-12) and exact.trace_se == 0
    for spectrum in (exact, found):
        image = product @ spectrum.vectors
        left = (image - spectrum.vectors * spectrum.eigenvalues).norm(dim=0)
        assert bool((left <= spectrum.residuals + 1e-13).all())
        assert torch.allclose(spectrum.vectors.T @ spectrum.vectors, torch.eye(10).double(), atol=1e-10)


def test_few_steps_bound_the_distance_to_some_eigenvalue():
    product = product_of(Hessian, *network())
    values = torch.linalg.eigvalsh(product.dense())
    found = measured_spectrum(product, steps=12, exact=False)
    distance = (found.eigenvalues[:, None] - values).abs().min(1).values
    assert bool((distance <= found.residuals).all())
    assert float(found.residuals.max()) > 1e-6


def test_single_precision_says_how_far_it_can_be_trusted():
    model, data = network(20)
    product = product_of(ModelFisher, model, data)
    exact = measured_spectrum(product)
    single = product_of(ModelFisher, model.float(), [(x.float(), y) for x, y in data])
    found = measured_spectrum(single, exact=False)
    assert bool(((found.eigenvalues - exact.eigenvalues).abs() <= found.residuals).all())
    assert 1e-7 < float(found.residuals[0] / found.eigenvalues[0]) < 1e-4


def test_same_seed_same_numbers():
    product = product_of(EmpiricalFisher, *network(10))
    state = torch.get_rng_state()
    first, again, other = (measured_spectrum(product, exact=False, steps=20, seed=s) for s in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    for name in ("eigenvalues", "residuals", "vectors", "trace", "trace_se"):
        assert torch.equal(torch.as_tensor(getattr(first, name)), torch.as_tensor(getattr(again, name))), name
    grid = torch.linspace(0, 1, 9)
    assert torch.equal(first.cdf(grid), again.cdf(grid)) and first.trace != other.trace


def test_trace_is_within_three_standard_errors_as_often_as_students_law_says():
    """P(|t| > 3) = .0090 for 15 degrees of freedom: more than 5 of 100 has probability .0003."""
    product = product_of(Hessian, *network(4))
    exact = measured_spectrum(product).trace
    found = [measured_spectrum(product, exact=False, top=1, steps=2, seed=seed) for seed in range(100)]
    scores = torch.tensor([(spectrum.trace - exact) / spectrum.trace_se for spectrum in found])
    assert int((scores.abs() > 3).sum()) <= 5
    assert 0.52 < float((scores.abs() < 1).double().mean()) < 0.81 and abs(float(scores.mean())) < 0.3


def test_distribution_has_the_moments_of_the_matrix():
    product = product_of(ModelFisher, *network())
    values = torch.linalg.eigvalsh(product.dense())
    found = measured_spectrum(product, exact=False)
    for power in (1, 2, 3):
        mean, error = found.quadrature.mean(found.quadrature.nodes**power)
        assert float((mean - values.pow(power).mean()).abs()) < 4 * float(error)
    exact = measured_spectrum(product)
    grid = torch.linspace(-0.01, float(values[-1]) * 1.2, 401, dtype=torch.float64)
    for spectrum in (found, exact):
        width = float(values[-1]) / 60
        wide = torch.linspace(-10 * width, float(values[-1]) + 10 * width, 400, dtype=torch.float64)
        assert float(torch.trapezoid(spectrum.density(wide, width), wide)) == pytest.approx(1, abs=1e-6)
        cdf = spectrum.cdf(grid)
        assert bool((cdf.diff() >= -1e-15).all()) and float(cdf[0]) == 0 and float(cdf[-1]) == pytest.approx(1)
    counted = (values <= grid[:, None]).double().mean(1)
    assert torch.allclose(exact.cdf(grid), counted, atol=1e-12) and float(exact.cdf_se(grid).max()) == 0
    assert isinstance(float(exact.cdf(0.1)), float)


def test_cdf_is_within_its_standard_error_of_the_exact_one():
    """Mean square of the z-scores over the bulk is near 1; .02 is for the steps."""
    product, _ = mixture(60)
    exact = measured_spectrum(product)
    grid = torch.linspace(0.01, 0.1, 30, dtype=torch.float64)
    squares = []
    for seed in range(6):
        found = measured_spectrum(product, exact=False, steps=40, seed=seed)
        error = (found.cdf_se(grid).square() + 0.02**2 / 12).sqrt()
        squares.append(((found.cdf(grid) - exact.cdf(grid)) / error).square().mean())
    assert 0.3 < float(torch.stack(squares).mean()) < 1.5


def test_mixture_has_the_effective_spectrum():
    product, effective = mixture()
    exact = measured_spectrum(product)
    found = measured_spectrum(product, exact=False, steps=60, probes=64)
    grid = torch.linspace(0, effective.edge * 1.05, 400, dtype=torch.float64)
    assert float((exact.cdf(grid) - effective.cdf(grid)).abs().max()) < 0.015
    assert float((found.cdf(grid) - effective.cdf(grid)).abs().max()) < 0.03
    assert float(exact.eigenvalues[0]) == pytest.approx(float(effective.outliers[0]), rel=0.06)
    for spectrum in (exact, found):
        marked = spectrum.compare(effective, 400)
        assert marked.rank == marked.predicted == 1 and marked.mask.tolist() == [True] + [False] * 9


def test_probes_are_not_the_data():
    """Data from torch.manual_seed(s) and probes of seed s share no numbers, else the trace is far off."""
    for seed in range(4):
        torch.manual_seed(seed)
        model = nn.Linear(100, 1, bias=False).double()
        torch.manual_seed(seed)
        product = ModelFisher(model, "gaussian", [torch.randn(40, 100, dtype=torch.float64)])
        found = measured_spectrum(product, exact=False, steps=10, seed=seed)
        assert abs(found.trace - measured_spectrum(product).trace) < 5 * found.trace_se


def test_repeated_eigenvalues_are_found_as_often_as_they_are():
    """Four outputs with the same inputs; with all pairs known nothing is left to the probes."""
    model, x = nn.Linear(6, 4, bias=False).double(), torch.randn(9, 6, dtype=torch.float64)
    found = measured_spectrum(ModelFisher(model, "gaussian", [x]), top=8, exact=False)
    values = torch.linalg.eigvalsh(x.T @ x / 9).flip(0)
    assert torch.allclose(found.eigenvalues, values.repeat_interleave(4)[:8], atol=1e-12)
    assert found.trace == pytest.approx(4 * float(values.sum()), rel=1e-12) and found.trace_se < 1e-12
    assert 0.9 < float(found.cdf(found.eigenvalues[0])) < 1 - 1e-3


def test_text_says_what_is_exact():
    product = product_of(ModelFisher, *network(10))
    assert "P = 150, n = 60 (exact); trace" in str(measured_spectrum(product))
    text = str(measured_spectrum(product, exact=False, steps=20))
    assert "Lanczos, 20 steps, 16 probes" in text and "(standard error)" in text
    assert "±" in text.split("largest")[1] and text.endswith("...")


def test_large_models_are_measured_by_lanczos():
    model = nn.Linear(300, 10, bias=False)
    product = ModelFisher(model, "categorical", [(torch.randn(50, 300), torch.zeros(50))])
    found = measured_spectrum(product, top=3, steps=10, probes=2)
    assert found.size == 3000 and not found.exact and found.samples == 50
    assert found.vectors.shape == (3000, 3)


def test_bad_calls_are_refused():
    product = product_of(Hessian, *network(4))
    with pytest.raises(ValueError, match=r"top=99.*1 <= top <= 66 \(P\)"):
        measured_spectrum(product, top=99)
    with pytest.raises(ValueError, match=r"1 <= top <= 5 \(steps\)"):
        measured_spectrum(product, steps=5, exact=False)
    with pytest.raises(ValueError, match="probes >= 2"):
        measured_spectrum(product, exact=False, probes=1)
    with pytest.raises(ValueError, match="width must be positive"):
        measured_spectrum(product).density(0.0, 0.0)


def test_front_door():
    assert fisheropt.measured_spectrum is measured_spectrum and fisheropt.products.Hessian is Hessian
