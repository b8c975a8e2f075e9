"""The core of a softmax head: spectrum, bounds and envelopes on random probabilities, ties and corners (NF-1, 2, 11-13)."""

import pytest
import torch

from fisheropt.theory import envelopes, simplex

CLASSES = (2, 3, 10, 50)
CONCENTRATIONS = (0.02, 0.5, 20.0)
ROUNDING = 1e-14


def probabilities(classes, concentration, count=300, seed=0):
    """Dirichlet draws, the first few replaced by corners, ties and near ties."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        law = torch.distributions.Dirichlet(torch.full((classes,), concentration, dtype=torch.float64))
        p = law.sample((count,))
    p[0] = torch.eye(classes, dtype=torch.float64)[0]
    p[1] = 1 / classes
    p[2, 0], p[2, 1:] = 1 - 1e-9, 1e-9 / (classes - 1)
    p[3], p[3, :2] = 0, 0.5
    p[4] = 1 / classes + torch.linspace(-1e-9, 1e-9, classes, dtype=torch.float64)
    return p / p.sum(-1, keepdim=True)


def cases():
    return pytest.mark.parametrize(
        "p", [probabilities(c, a) for c in CLASSES for a in CONCENTRATIONS], ids=lambda p: f"C={p.shape[1]}"
    )


def smallest(matrix):
    return float(torch.linalg.eigvalsh(matrix).min())


def standard(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@cases()
def test_eigenvalues_interlace_and_sum_to_the_trace(p):
    values = simplex.spectrum(p)
    low, high = simplex.interlacing(p)
    assert bool((values >= low - ROUNDING).all()) and bool((values <= high + ROUNDING).all())
    torch.testing.assert_close(values.sum(-1), simplex.core_trace(p), rtol=0, atol=ROUNDING)
    torch.testing.assert_close(values.norm(dim=-1), simplex.core_frobenius(p), rtol=0, atol=ROUNDING)
    assert float(simplex.core_times(p, torch.ones_like(p)).abs().max()) == 0


@cases()
def test_the_secular_root_is_the_largest_eigenvalue(p):
    """NF-2."""
    largest, vector = simplex.largest_eigenvalue(p), simplex.largest_eigenvector(p)
    torch.testing.assert_close(largest, simplex.spectrum(p)[:, -1], rtol=0, atol=ROUNDING)
    torch.testing.assert_close(vector.norm(dim=-1), torch.ones(len(p), dtype=torch.float64))
    image = (simplex.core(p) @ vector[..., None])[..., 0]
    assert float((image - largest[:, None] * vector).abs().max()) < ROUNDING
    assert bool((vector.gather(1, p.argmax(1, keepdim=True))[5:] >= 0).all())


@cases()
def test_no_bound_is_violated(p):
    """NF-1: every bound by itself, not only the best."""
    largest = simplex.spectrum(p)[:, -1]
    lower, upper = simplex.lower_bounds(p), simplex.upper_bounds(p)
    for bound in vars(lower).values():
        assert bool((bound <= largest + ROUNDING).all())
    for bound in vars(upper).values():
        assert bool((bound >= largest - ROUNDING).all())
    assert bool((lower.best <= upper.best + ROUNDING).all())


@cases()
def test_envelopes_hold_and_their_errors_are_as_stated(p):
    information, below, above = simplex.core(p), envelopes.lower_envelope(p), envelopes.upper_envelope(p)
    assert smallest(information - below) > -ROUNDING and smallest(above - information) > -ROUNDING
    upper_error, lower_error = envelopes.upper_error(p), envelopes.lower_error(p)
    torch.testing.assert_close((above - information).flatten(1).norm(dim=1), upper_error, rtol=0, atol=ROUNDING)
    torch.testing.assert_close(simplex.spectrum(p)[:, :-1].norm(dim=1), lower_error, rtol=0, atol=ROUNDING)
    assert bool((upper_error >= 1 / p.shape[1] - ROUNDING).all())
    assert bool((lower_error <= envelopes.lower_error_bound(p) + ROUNDING).all())


@cases()
@pytest.mark.parametrize("rank", [1, 3])
def test_the_safe_low_rank_form_is_below_for_any_vectors(p, rank):
    information, classes = simplex.core(p), p.shape[1]
    wild = standard(len(p), classes, rank) * 10 ** (4 * standard(len(p), 1, 1).clamp(-1, 1))
    repeated = wild[..., :1].expand(-1, -1, rank)
    flat = torch.ones(len(p), classes, rank, dtype=torch.float64) + 1e-9 * wild.sign()
    for vectors in (wild, repeated, flat, envelopes.leading_vectors(p, min(rank, classes), steps=2)):
        assert smallest(information - envelopes.low_rank(p, vectors)) > -ROUNDING


def test_the_safe_low_rank_form_is_the_pseudo_inverse_formula():
    p = probabilities(6, 1.0)[5:]
    information, Q = simplex.core(p), standard(len(p), 6, 3)
    expected = information @ Q @ torch.linalg.pinv(Q.mT @ information @ Q, hermitian=True) @ Q.mT @ information
    torch.testing.assert_close(envelopes.low_rank(p, Q), expected, rtol=1e-8, atol=1e-12)
    q = Q[..., :1]
    w = information @ q
    torch.testing.assert_close(envelopes.low_rank(p, q), w @ w.mT / (q.mT @ w), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(("steps", "expected"), [(1, 0.84), (3, 0.94), (10, 0.99)])
def test_the_safe_form_captures_most_of_the_largest_eigenvalue(steps, expected):
    """NF-12, from a random start: the shares of the document are means over concentrations and classes."""
    shares = []
    for classes in (3, 5, 10, 20, 50):
        for concentration in (0.1, 0.5, 1.0, 5.0):
            p = probabilities(classes, concentration)[5:]
            vector = standard(len(p), classes, 1)
            for _ in range(steps):
                vector = torch.linalg.qr(simplex.core(p) @ vector).Q
            captured = envelopes.low_rank(p, vector).diagonal(dim1=-2, dim2=-1).sum(-1)
            shares.append((captured / simplex.largest_eigenvalue(p)).mean())
    assert float(torch.stack(shares).mean()) == pytest.approx(expected, abs=0.05)


def test_the_naive_low_rank_form_is_not_below():
    """NF-13: the mutation must fail, also after thirty iterations."""
    for steps, least in ((0, 0.15), (3, 0.08), (30, 1e-4)):
        worst = 0.0
        for classes in (3, 5, 10, 50):
            for concentration in (0.3, 1.0, 20.0):
                p = probabilities(classes, concentration)[5:]
                information, vector = (
                    simplex.core(p),
                    torch.nn.functional.normalize(standard(len(p), classes, 1), dim=1),
                )
                for _ in range(steps):
                    vector = torch.linalg.qr(information @ vector).Q
                value = (vector.mT @ information @ vector).clamp(min=0)
                gap = torch.linalg.eigvalsh(information - value * vector @ vector.mT)[:, 0]
                worst = max(worst, float((-gap / simplex.largest_eigenvalue(p)).max()))
        assert worst > least


@pytest.mark.parametrize(("classes", "expected"), [(4, 0.667), (10, 0.556), (100, 0.505)])
def test_one_rank_is_not_enough_beside_a_corner(classes, expected):
    """NF-11, also where 1 - p is near the rounding of one."""
    for rest in (1e-6, 1e-9, 1e-13):
        p = torch.full((classes,), rest / (classes - 1), dtype=torch.float64)
        p[0] = 1 - rest
        assert float(envelopes.captured(p)) == pytest.approx(expected, abs=1e-3)
        assert expected == pytest.approx(classes / (2 * (classes - 1)), abs=1e-3)


def test_two_classes_are_solved_by_hand():
    p = probabilities(2, 1.0)[5:]
    expected = 2 * p[:, 0] * p[:, 1]
    torch.testing.assert_close(simplex.largest_eigenvalue(p), expected)
    torch.testing.assert_close(simplex.lower_bounds(p).two_largest, expected)
    torch.testing.assert_close(envelopes.lower_envelope(p), simplex.core(p), rtol=0, atol=1e-15)


def test_float32_and_extra_axes():
    p = probabilities(7, 0.3).reshape(3, 100, 7)
    single = p.float() / p.float().sum(-1, keepdim=True)
    torch.testing.assert_close(
        simplex.largest_eigenvalue(single).double(), simplex.largest_eigenvalue(p), rtol=0, atol=1e-6
    )
    factor = envelopes.low_rank_factor(single, envelopes.leading_vectors(single, 2))
    assert factor.shape == (3, 100, 7, 2)
    assert smallest(simplex.core(single.double()) - (factor @ factor.mT).double()) > -1e-6


def test_what_is_no_probability_is_refused():
    for wrong in ("0.5", torch.ones(3, dtype=torch.long), torch.ones(1), torch.randn(3), torch.tensor([1.5, -0.5])):
        with pytest.raises(ValueError, match=r"spectrum\(p\).*logits\.softmax\(-1\)"):
            simplex.spectrum(wrong)
    with pytest.raises(ValueError, match="sum to 1"):
        envelopes.upper_error(torch.tensor([float("nan"), 0.5]))
