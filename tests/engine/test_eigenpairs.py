"""Inner products of every form, leading eigenpairs, and the estimates that are made of them with their errors."""

import pytest
import torch

import fisheropt
from fisheropt.persample import Convolved, Dense, Geometry, Outer, Rows, Tied
from fisheropt.persample import gram as products
from fisheropt.persample.stacked import stacked
from fisheropt.statistics.leading import leading
from fisheropt.statistics.pairwise import jackknife, pairwise
from tests.cases import CASES

EXACT = {"rtol": 1e-9, "atol": 1e-11}


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def convolved(samples, groups, channels):
    kernel = torch.Size((2 * channels, channels // groups, 3))
    geometry = Geometry((1,), (1,), (1,), groups)
    return Convolved(random(samples, kernel[0], 6), random(samples, channels, 6), kernel, geometry)


FORMS = {
    "outer": lambda n: Outer(random(n, 1, 7), random(n, 1, 5)),
    "narrow": lambda n: Outer(random(n, 1, 1), random(n, 1, 1)),
    "positions": lambda n: Outer(random(n, 20, 7), random(n, 20, 5)),
    "few wide positions": lambda n: Outer(random(n, 2, 60), random(n, 2, 50)),
    "rows": lambda n: Rows(random(n, 6, 3), torch.randint(0, 11, (n, 6)), 11),
    "tied": lambda n: Tied(
        Rows(random(n, 6, 3), torch.randint(0, 11, (n, 6)), 11), Outer(random(n, 4, 11), random(n, 4, 3))
    ),
    "dense": lambda n: Dense(random(n, 4, 3)),
    "scalar": lambda n: Dense(random(n)),
    "convolved": lambda n: convolved(n, 1, 4),
    "grouped": lambda n: convolved(n, 2, 4),
    "depthwise": lambda n: convolved(n, 4, 4),
}


@pytest.mark.parametrize("size", [1, 40, 1 << 20])
@pytest.mark.parametrize("name", FORMS)
def test_products_are_those_of_the_formed_gradients(name, size, monkeypatch):
    """Also in slices of the parameter, and in blocks of samples."""
    for name_of in ("SLICE", "WIDE"):
        monkeypatch.setattr(products, name_of, size)
    for samples in (3, 70):
        form = FORMS[name](samples)
        h = form.materialise().reshape(samples, -1)
        torch.testing.assert_close(products.gram([form]), h @ h.T, **EXACT)
    parts = [FORMS[name](2), FORMS[name](3)]
    h = torch.cat([part.materialise().reshape(part.samples, -1) for part in parts])
    torch.testing.assert_close(products.gram([stacked(parts)]), h @ h.T, **EXACT)


def test_a_gradient_that_several_parameters_share_counts_for_each():
    g, a, b = random(70, 1, 4), random(70, 1, 3), random(70, 1, 5)
    forms = [Outer(g, a), Dense(g[:, 0]), Outer(g, b), Dense(g[:, 0]), Dense(random(70, 2))]
    h = torch.cat([form.materialise().flatten(1) for form in forms], 1)
    torch.testing.assert_close(products.gram(forms), h @ h.T, **EXACT)


def test_forms_of_different_kinds_stack():
    parts = [Outer(random(2, 3, 4), random(2, 3, 5)), Dense(random(3, 4, 5)), Outer(random(1, 1, 4), random(1, 1, 5))]
    h = torch.cat([part.materialise() for part in parts])
    torch.testing.assert_close(stacked(parts).materialise(), h, **EXACT)
    shorter = [parts[0], parts[2]]
    torch.testing.assert_close(stacked(shorter).materialise(), torch.cat([p.materialise() for p in shorter]), **EXACT)


@pytest.mark.parametrize("rank", [5, 20, 60, 255])
def test_leading_pairs_keep_their_promise(rank):
    """An eigenvalue within the residual, orthonormal vectors, and no pair twice where rounding is all that is left."""
    torch.manual_seed(rank)
    x = random(256, rank) * torch.logspace(1, -1, rank, dtype=torch.float64)
    matrix = (x - x.mean(0)) @ (x - x.mean(0)).T
    truth = torch.linalg.eigvalsh(matrix).flip(0)[:16]
    scale = float(truth[0])
    for accuracy in (0.0, 0.05):
        found = leading(matrix, 16, accuracy)
        torch.testing.assert_close(
            found.vectors.T @ found.vectors, torch.eye(16, dtype=torch.float64), rtol=0, atol=1e-10
        )
        assert bool(((found.values - truth).abs() <= found.residuals + 1e-10 * scale).all())
        kept = truth > 1e-9 * scale
        assert bool((found.residuals <= max(accuracy, 1e-9) * truth)[kept].all())


def brute(k):
    """Unbiased tr G and tr G² by their definitions as sums over different samples."""
    n = len(k)
    off = k - torch.diag(k.diagonal())
    one = torch.ones_like(k) - torch.eye(n, dtype=k.dtype)
    three = torch.einsum("ij,jk,ik->", off, off, one)
    distinct = torch.einsum("ik,il,jk,jl->ijkl", one, one, one, one)
    four = torch.einsum("ij,kl,ijkl->", off, off, distinct)
    trace = k.trace() / n - off.sum() / (n * (n - 1))
    pairs, triples = n * (n - 1), n * (n - 1) * (n - 2)
    return trace, off.square().sum() / pairs - 2 * three / triples + four / (triples * (n - 3))


def test_pairwise_sums_are_over_different_samples():
    torch.manual_seed(0)
    x = random(8, 3) + 2
    k = x @ x.T
    every, without = pairwise(k)
    torch.testing.assert_close(torch.stack([every.trace(), every.square_trace()]), torch.stack(brute(k)), **EXACT)
    for left_out in range(8):
        rest = [i for i in range(8) if i != left_out]
        expected = torch.stack(brute(k[rest][:, rest]))
        found = torch.stack([without.trace()[left_out], without.square_trace()[left_out]])
        torch.testing.assert_close(found, expected, **EXACT)


def spiked(samples, trials, seed, dimension=400):
    """Gaussian gradients with one eigenvalue of 40 and others of 1, as Gram matrices about their means."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(trials, samples, dimension, generator=generator, dtype=torch.float64)
    x[:, :, 0] *= 40**0.5
    x = x - x.mean(1, keepdim=True)
    return [fisheropt.statistics.NoiseGram(m / (samples - 1), {}, torch.float64) for m in x @ x.mT]


def test_traces_and_ranks_are_unbiased_and_their_errors_true():
    """400 trials: means within 3.5 standard errors, mean squared errors as claimed within 20 %."""
    readings = spiked(40, 400, 0)
    trace = 439.0
    rank = trace**2 / (1600 + 399)
    for estimates, truth in (
        ([reading.trace() for reading in readings], trace),
        ([reading.effective_rank() for reading in readings], rank),
    ):
        values = torch.tensor([e.value for e in estimates])
        claimed = torch.tensor([e.standard_error for e in estimates])
        spread = float(values.std())
        assert abs(float(values.median()) - truth) < 0.15 * spread or abs(float(values.mean()) - truth) < 0.2 * spread
        assert 0.8 < float(claimed.square().mean().sqrt()) / spread < 1.35


def test_the_largest_eigenvalue_is_biased_and_the_reduced_one_less():
    """With 400 dimensions and 40 samples the rest adds 399/39 = 10 to an eigenvalue of 40."""
    readings = spiked(40, 200, 1)
    pairs = [reading.eigenpairs(3) for reading in readings]
    values = torch.stack([p.values[0] for p in pairs])
    reduced = torch.stack([p.reduced[0] for p in pairs])
    assert 8 < float(values.mean()) - 40 < 13
    assert abs(float(reduced.mean()) - 40) < 3.5 * float(reduced.std()) / 200**0.5
    claimed = torch.stack([p.standard_errors[0] for p in pairs])
    assert 0.8 < float(claimed.square().mean().sqrt() / values.std()) < 1.25


def test_the_jackknife_of_a_mean_is_its_standard_error():
    x = random(30)
    found = jackknife(x.mean(), (x.sum() - x) / 29)
    assert found.standard_error == pytest.approx(float(x.std()) / 30**0.5)


def test_the_table_says_what_the_numbers_are():
    case = CASES["mlp"]()
    with fisheropt.observe(case.model, fisheropt.Gram()) as tap:
        case.loss().backward()
    text = str(tap.gram().eigenpairs(3))
    assert "8 degrees of freedom" in text and "less the rest" in text and len(text.splitlines()) == 6
