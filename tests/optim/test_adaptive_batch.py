"""AdaptiveBatchSGD: what it measures, and what it does to the sampler."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import fisheropt
from fisheropt.control import Fixed, Proposal
from tests.cases import CASES
from tests.oracle import covariance, flattened, per_sample_gradients


@pytest.mark.parametrize("metric", [None, "fisher"])
def test_signal_and_noise_are_the_oracles(monkeypatch, metric):
    """A = ‖∇L‖²_P - V/b and V = tr(PG) as the controller receives them."""
    case = CASES["mlp"]()
    gradients = per_sample_gradients(case)
    noise, mean = covariance(gradients), flattened(gradients).mean(0)
    received = []

    def propose(self, state, reading, moment):
        received.append((reading, moment))
        return Proposal(moment.batch_size, state)

    monkeypatch.setattr(Fixed, "propose", propose)
    optimizer = fisheropt.AdaptiveBatchSGD(case.model, lr=0.1, controller="fixed", metric=metric, damping=0.5)
    case.loss().backward()
    optimizer.step()
    inverse = torch.eye(len(noise), dtype=noise.dtype)
    if metric:
        inverse = torch.linalg.inv(noise + 0.5 * inverse)
    (reading, moment) = received[0]
    assert moment.batch_size == moment.samples == case.samples and moment.lr == 0.1
    assert reading.noise == pytest.approx(float((inverse * noise).sum()), rel=1e-8)
    signal = float(mean @ inverse @ mean) - reading.noise / case.samples
    assert reading.signal == pytest.approx(signal, rel=1e-7, abs=1e-10)


def stream(samples=8000, size=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, size, generator=generator)
    truth = torch.linspace(-1, 1, size)
    return x, (torch.rand(samples, generator=generator) < (x @ truth).sigmoid()).float(), truth


def fit(seed=0, **options):
    x, y, truth = stream(seed=seed)
    data = TensorDataset(x, y)
    sampler = fisheropt.AdaptiveBatchSampler(data, 32, seed=seed)
    model = nn.Linear(x.shape[1], 1, bias=False)
    nn.init.zeros_(model.weight)
    optimizer = fisheropt.AdaptiveBatchSGD(model, sampler=sampler, **options)
    sizes = []
    for a, b in DataLoader(data, batch_sampler=sampler):
        sizes.append(len(a))
        F.binary_cross_entropy_with_logits(model(a).squeeze(1), b).backward()
        optimizer.step()
        optimizer.zero_grad()
    return sizes, optimizer, (model.weight.detach()[0] - truth), x, truth


def test_the_batch_grows_as_noise_takes_over_and_one_pass_is_nearly_efficient():
    """GO-F in the curvature metric: few steps, and a median excess over 5 runs within 2 of tr(H⁻¹G)/2N."""
    ratios, steps = [], []
    for seed in range(5):
        sizes, optimizer, error, x, truth = fit(seed, lr=0.5, metric="curvature", likelihood="bernoulli")
        p = (x @ truth).sigmoid()
        hessian = (x * (p * (1 - p))[:, None]).T @ x / len(x)
        ratios.append(float(error @ hessian @ error) * len(x) / len(error))
        steps.append(len(sizes))
        assert sizes[-2] > 4 * sizes[0] and sum(sizes) == len(x)
        assert optimizer.report().as_dict()["groups"][0]["controller"] == "go_f"
    assert sorted(ratios)[2] < 2 and max(steps) <= 60, (ratios, steps)


def test_without_a_sampler_it_only_proposes():
    case = CASES["mlp"]()
    optimizer = fisheropt.AdaptiveBatchSGD(case.model, lr=0.1)
    case.loss().backward()
    optimizer.step()
    report = optimizer.report()
    assert "proposes a batch of" in report.verdict and "AdaptiveBatchSampler" in report.advice[0]


def test_the_controllers_state_is_in_the_checkpoint():
    x, y, _ = stream(400)
    states = []
    for resume in (False, True):
        torch.manual_seed(0)
        model = nn.Linear(6, 1)
        optimizer = fisheropt.AdaptiveBatchSGD(model, lr=0.3, metric="fisher", every=1)
        for i in range(0, 400, 40):
            if resume and i == 200:
                saved = optimizer.state_dict()
                optimizer = fisheropt.AdaptiveBatchSGD(model, lr=0.3, metric="fisher", every=1)
                optimizer.load_state_dict(saved)
            F.binary_cross_entropy_with_logits(model(x[i : i + 40]).squeeze(1), y[i : i + 40]).backward()
            optimizer.step()
            optimizer.zero_grad()
        states.append(optimizer.state_dict()["param_groups"][0]["controller_state"])
    assert states[0] == states[1]


def test_an_unknown_controller_is_named():
    with pytest.raises(ValueError, match="go_f"):
        fisheropt.AdaptiveBatchSGD(nn.Linear(3, 1), lr=0.1, controller="goof")
