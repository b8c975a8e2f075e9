"""What FisherFloorSGD's numbers rest on: distinct samples, held-out batches, and the flavours of the model Fisher."""

import pytest
import torch
from torch import nn

import fisheropt
from fisheropt.likelihoods import Bernoulli, Categorical, Gaussian, Poisson
from fisheropt.optim.floor.sampled import Sampled
from tests.optim.test_fisher_floor import information as logistic_information
from tests.optim.test_fisher_floor import separable, train, zeros


def test_the_smallest_information_seen_is_that_of_single_batches():
    model, seen = zeros(2), []
    optimizer = fisheropt.FisherFloorSGD(
        model, 1e-9, mode="penalty", likelihood="bernoulli", floor=1e-9, weight=1.0, every=1
    )
    for weak in (0, 1, 0, 1):
        x, y = separable(50, 2, seed=weak)
        x[:, weak] *= 0.1
        train(model, optimizer, x, y, 1)
        seen.append(float(torch.linalg.eigvalsh(x.T @ x / 200)[0]))
    assert optimizer.param_groups[0]["lowest"] == pytest.approx(min(seen), rel=1e-6)
    assert torch.linalg.eigvalsh(optimizer.param_groups[0]["information"])[0] > 10 * min(seen)


def test_a_small_batch_in_many_directions_is_not_taken_for_missing_information():
    """Of 32 samples in 20 directions the smallest eigenvalue is a twentieth of the truth; the floor is at an eighth."""
    x, y = separable(4000, 20)
    model, source = zeros(20), torch.Generator().manual_seed(0)
    optimizer = fisheropt.FisherFloorSGD(
        model, 1e-9, mode="penalty", likelihood="bernoulli", floor=1 / 32, weight=1.0, every=1
    )
    raw = []
    for step in range(60):
        chosen = torch.randint(0, 4000, (32,), generator=source)
        train(model, optimizer, x[chosen], y[chosen], 1)
        raw.append(float(torch.linalg.eigvalsh(x[chosen].T @ x[chosen] / 128)[0]))
        if step == 30:
            acted = optimizer.param_groups[0]["acted"]
    assert sorted(raw)[50] < 1 / 32, "most batches would look short of information"
    assert optimizer.param_groups[0]["acted"] == acted


class Loader(torch.utils.data.DataLoader):
    """Draws from the global generator, as any shuffling loader."""


def test_held_out_batches_are_measured_by_themselves_and_touch_no_random_state():
    x, y = separable(64, 4)
    apart, labels = separable(40, 4, seed=7)
    found = []
    for given in (None, Loader(list(zip(apart, labels, strict=True)), batch_size=20, shuffle=True)):
        torch.manual_seed(0)
        model = zeros(4)
        keywords = {"likelihood": "bernoulli", "floor": 0.01, "every": 1, "smoothing": 0.5}
        optimizer = fisheropt.FisherFloorSGD(model, 1e-9, held_out=given, **keywords)
        train(model, optimizer, x, y, 6)
        found.append((model.weight.detach().clone(), torch.rand(())))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    group = optimizer.report().as_dict()["groups"][0]
    expected = torch.linalg.eigvalsh(apart.T @ apart / 160)[0]
    assert group["held_out_smallest"] == pytest.approx(float(expected), rel=0.3)
    assert group["held_out_samples"] <= 40 and group["held_out_certified"]
    assert (
        "On 40 held-out samples" in optimizer.report().verdict and "reaches τ (Cholesky)" in optimizer.report().verdict
    )


@pytest.mark.parametrize("batch", ["inputs", "pair", "alone"])
def test_one_held_out_batch_is_the_oracles(batch):
    x, y = separable(64, 4)
    apart, labels = separable(25, 4, seed=7)
    given = {"inputs": apart, "pair": (apart, labels), "alone": (apart,)}[batch]
    model = zeros(4)
    optimizer = fisheropt.FisherFloorSGD(model, 1e-9, likelihood="bernoulli", mode="monitor", held_out=[given])
    train(model, optimizer, x, y, 3)
    torch.testing.assert_close(optimizer.param_groups[0]["held_information"], apart.T @ apart / 100)
    assert optimizer.report().as_dict()["groups"][0]["held_out_samples"] == 25


def test_repeats_are_no_evidence_once_the_number_of_samples_is_known():
    x, y = separable(40, 4)
    stars, advised = [], []
    for size in (None, 40, 10**9):
        model = zeros(4)
        optimizer = fisheropt.FisherFloorSGD(model, 1e-9, mode="monitor", likelihood="bernoulli", data_size=size)
        train(model, optimizer, x, y, 30)
        group = optimizer.report().as_dict()["groups"][0]
        stars.append(group["lambda_star"])
        advised.append(any("write data_size=len(dataset)" in line for line in optimizer.report().advice))
        assert (group["evidence"] == 40) == (size == 40)
    assert stars[0] == stars[2] < stars[1] and advised == [True, False, False]


def test_the_report_says_how_many_samples_would_settle_the_rest():
    x, y = separable(200, 3)
    x = x * torch.tensor([1.0, 1.0, 0.3], dtype=torch.float64)
    model = zeros(3)
    optimizer = fisheropt.FisherFloorSGD(model, 1e-9, mode="monitor", likelihood="bernoulli", data_size=200)
    train(model, optimizer, x, y, 3)
    group = optimizer.report().as_dict()["groups"][0]
    assert group["samples_to_identify"] > 1000 and "more samples would settle the" in optimizer.report().verdict


@pytest.mark.parametrize("fisher", ["hutchinson", "exact", "sampled"])
def test_every_flavour_measures_the_model_fisher(fisher):
    """Of one logit the first two are exact; drawn labels scatter by √(2/n), here within five standard errors."""
    x, y = separable(400, 2)
    model = zeros(2)
    nn.init.ones_(model.weight)
    keywords = {"mode": "monitor", "likelihood": "bernoulli", "fisher": fisher, "smoothing": 0.99, "every": 1}
    optimizer = fisheropt.FisherFloorSGD(model, 1e-12, **keywords)
    train(model, optimizer, x, y, 20)
    error = 5 * (2 / (400 * 20)) ** 0.5 if fisher == "sampled" else 1e-9
    expected = logistic_information(model, x)
    found = optimizer.param_groups[0]["information"]
    assert (found - expected).norm() <= error * expected.norm() * 2
    assert fisher != "sampled" or (found - expected).norm() > 1e-4 * expected.norm()


@pytest.mark.parametrize("head", [Categorical(), Categorical(dim=1), Bernoulli(), Gaussian(2.0), Poisson()])
def test_scores_of_drawn_labels_have_the_information_as_covariance(head):
    """E ssᵀ = I(z) at 40000 draws; five standard errors of an entry that is at most 4."""
    torch.manual_seed(0)
    logits = torch.randn(3, dtype=torch.float64)
    drawn = Sampled(head).cotangent(logits.expand(40000, 3), seed=5)
    units = torch.stack([head.factor(logits[None], e[None])[0] for e in torch.eye(3, dtype=torch.float64)])
    expected = units.T @ units
    assert drawn.mean(0).abs().max() < 5 * 4 / 200
    assert (drawn.T @ drawn / 40000 - expected).abs().max() < 5 * 4 * float(expected.max()) / 200
    assert not torch.equal(drawn, Sampled(head).cotangent(logits.expand(40000, 3), seed=6))


@pytest.mark.parametrize(("batches", "message"), [([], "has no batches"), ([(1, 2, 3)], "batches of 3 parts")])
def test_held_out_batches_that_make_no_sense_are_named(batches, message):
    x, y = separable(20, 3)
    model = zeros(3)
    optimizer = fisheropt.FisherFloorSGD(model, lr=0.1, likelihood="bernoulli", held_out=batches)
    with pytest.raises(ValueError, match=message):
        train(model, optimizer, x, y, 1)
