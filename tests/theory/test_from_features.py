"""Mixtures estimated from a linear head and its features; which eigenvalues are informative."""

import pytest
import torch

from fisheropt.theory.from_features import mixture_statistics
from fisheropt.theory.informative import informative, tracy_widom_quantile
from fisheropt.theory.spectrum import effective_spectrum
from tests.theory.mixture_samples import (
    generator,
    gram,
    orthonormal_means,
    random_head,
    sample_mixture,
    softmax_matrix,
)

THREE = [0.5, 0.3, 0.2]


@pytest.mark.parametrize("whiten", [False, True])
def test_unbiased_with_calibrated_errors(whiten):
    """Over 150 data sets: means within 4.5 standard errors (level 2e-4 of 27 entries), spread within 20 %."""
    dimension, repeats, snr = 40, 150, 4.0
    means, head = 1.3 * orthonormal_means(dimension, 3), random_head(dimension, 3, 0)
    colour = torch.linspace(0.6, 1.4, dimension, dtype=torch.float64) if whiten else torch.ones(dimension).double()
    truth = gram(head / snr**0.5, means * snr**0.5) if whiten else gram(head, means)
    found = []
    for seed in range(repeats):
        sample = sample_mixture(means, THREE, snr, 5 * dimension, seed)
        found.append(
            mixture_statistics((head / colour[:, None]).T, sample.features * colour, sample.components, whiten=whiten)
        )
    grams, errors = torch.stack([s.gram for s in found]), torch.stack([s.gram_se for s in found]).mean(0)
    noisy = errors > 1e-9
    bias = ((grams.mean(0) - truth) / errors * repeats**0.5)[noisy]
    assert float(bias.abs().max()) < 4.5
    assert ((grams.std(0) / errors)[noisy] - 1).abs().max() < 0.2
    torch.testing.assert_close(grams[0][~noisy], truth[~noisy])
    snrs = torch.tensor([s.snr for s in found])
    if whiten:
        assert bool((snrs == 1).all())
    else:
        assert float(snrs.mean()) == pytest.approx(snr, abs=4.5 * found[0].snr_se / repeats**0.5)
        assert float(snrs.std()) == pytest.approx(found[0].snr_se, rel=0.2)


def test_anisotropy_is_noticed():
    colour = torch.linspace(0.5, 1.5, 50, dtype=torch.float64)
    sample = sample_mixture(orthonormal_means(50, 2), [0.5, 0.5], 4.0, 500, 0)
    head = random_head(50, 2, 0).T
    truth = float(50 * colour.pow(4).sum() / colour.pow(2).sum() ** 2)
    assert mixture_statistics(head, sample.features * colour, sample.components).anisotropy == pytest.approx(
        truth, rel=0.05
    )
    assert mixture_statistics(head, sample.features, sample.components).anisotropy < 1.03


def test_predicts_the_measured_spectrum():
    """Head, bias and features in, informative eigenvalues out; compared with the matrix of those features."""
    dimension, count = 300, 1200
    means, head = orthonormal_means(dimension, 3), random_head(dimension, 3, 0)
    shift = torch.tensor([0.4, 0.0, -0.3], dtype=torch.float64)
    sample = sample_mixture(means, THREE, 8.0, count, 1)
    found = mixture_statistics(head.T, sample.features, sample.components, bias=shift)
    spectrum = effective_spectrum(
        found.gram,
        found.proportions,
        found.snr,
        found.ratio,
        class_of=found.class_of,
        bias=found.bias,
        samples=count,
    )
    logits = sample.features @ head + shift
    weight = logits.softmax(1)[:, 0] * (1 - logits.softmax(1)[:, 0])
    values = torch.linalg.eigvalsh((sample.features * weight[:, None]).T @ sample.features / count).flip(0)
    verdict = informative(values, spectrum, dimension)
    assert verdict.rank == verdict.predicted == 3
    assert verdict.mask.tolist() == [True] * 3 + [False] * (dimension - 3)
    torch.testing.assert_close(values[:3], spectrum.outliers, rtol=0.06, atol=0)
    torch.testing.assert_close(verdict.overlaps, spectrum.overlaps)
    assert verdict.damping == pytest.approx(float(values[3:].mean()), rel=0.03)


def test_level_of_the_edge_test():
    """400 null spectra at level .05: 20 +- 4.4 false alarms; seven standard deviations are allowed above."""
    dimension, count, source = 100, 400, generator(0)
    spectrum = effective_spectrum(torch.zeros(4, 4), [0.5, 0.5], 1.0, count / dimension)
    alarms = 0
    for _ in range(400):
        noise = torch.randn(count, dimension, generator=source, dtype=torch.float64)
        alarms += (
            informative(torch.linalg.eigvalsh(noise.T @ noise / count / 4), spectrum, dimension, level=0.05).rank > 0
        )
    assert 5 <= alarms <= 40


def test_tracy_widom_quantiles():
    """Table of the law for beta = 1."""
    table = {0.5: -1.2686, 0.9: 0.4501, 0.95: 0.9793, 0.99: 2.0234, 0.999: 3.2724}
    assert {p: pytest.approx(tracy_widom_quantile(p), abs=0.03) for p in table} == table
    with pytest.raises(ValueError, match="probability"):
        tracy_widom_quantile(1.0)


def test_overlap_shrinks_towards_the_truth():
    """The overlap predicted for a kept eigenvector is its measured squared projection on span(x, mu)."""
    means, head = orthonormal_means(400, 2), random_head(400, 2, 5)
    sample = sample_mixture(means, [0.5, 0.5], 6.0, 1600, 0)
    spectrum = effective_spectrum(gram(head, means), [0.5, 0.5], 6.0, 4.0)
    values, vectors = torch.linalg.eigh(softmax_matrix(sample, head, sample.components, "hessian", 0))
    verdict = informative(values, spectrum, 400)
    basis = torch.linalg.qr(torch.cat((head, means), 1))[0]
    measured = (basis.T @ vectors[:, verdict.mask]).square().sum(0).flip(0)
    torch.testing.assert_close(measured, verdict.overlaps, rtol=0, atol=0.04)


def features(count=200, size=10, classes=2):
    labels = torch.arange(count) % classes
    return (
        torch.randn(classes, size, generator=generator(0)),
        torch.randn(count, size, generator=generator(1)),
        labels,
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda w, f, y: (w, f[:12], y[:12]), "too few samples to estimate the SNR"),
        (
            lambda w, f, y: (
                w,
                f,
                torch.cat((torch.zeros(199, dtype=torch.long), torch.ones(1, dtype=torch.long))),
            ),
            "one sample",
        ),
        (lambda w, f, y: (w[:, :4], f, y), "weights"),
        (lambda w, f, y: (w[:1], f, y), "weights"),
        (lambda w, f, y: (w, f, y[:5]), "labels"),
        (lambda w, f, y: (w, f, y.double()), "labels"),
        (lambda w, f, y: (w, f, y + 1), "rows of `weights`"),
        (lambda w, f, y: (w, f * torch.inf, y), "finite"),
    ],
)
def test_bad_features(make, message):
    with pytest.raises(ValueError, match=message):
        mixture_statistics(*make(*features()))


def test_too_few_samples_to_whiten():
    weights, inputs, labels = features(count=60, size=40)
    with pytest.raises(ValueError, match="too few to invert"):
        mixture_statistics(weights, inputs, labels, whiten=True)


def test_bad_eigenvalues():
    spectrum = effective_spectrum(torch.eye(4), [0.5, 0.5], 4.0, 4.0)
    with pytest.raises(ValueError, match="eigenvalues"):
        informative(torch.eye(3), spectrum, 3)
    with pytest.raises(ValueError, match="dimension"):
        informative(torch.ones(3), spectrum, 0)


def test_a_soft_edge_is_refused():
    """Trained, the limit of the information matrix ends in a tail without mass: no test of a level is possible there."""
    head = torch.tensor([[1.8, -0.6], [-0.6, 1.8]], dtype=torch.float64)
    trained = gram(head, torch.eye(2, dtype=torch.float64))
    limit = effective_spectrum(trained, [0.5, 0.5], 40.0, 1.0, kind="information")
    with pytest.raises(ValueError, match="samples="):
        informative(torch.ones(3), limit, 100)
    finite = effective_spectrum(trained, [0.5, 0.5], 40.0, 1.0, kind="information", samples=100)
    assert informative(torch.zeros(3), finite, 100).rank == 0
