"""Noise and steps do not depend on the scale that GradScaler puts on the loss."""

import pytest
import torch
from torch import nn

import fisheropt
from tests.cases import CASES
from tests.oracle import covariance, per_sample_gradients


def run(optimizer, case, scaler, way):
    (case.loss() if scaler is None else scaler.scale(case.loss())).backward()
    if way == "unscale":
        scaler.unscale_(optimizer)
    if way == "clip":
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(case.model.parameters(), 1e9)
    optimizer.step() if scaler is None else scaler.step(optimizer)
    if scaler is not None:
        scaler.update()
    optimizer.zero_grad()


@pytest.mark.parametrize("way", ["plain", "unscale", "clip"])
@pytest.mark.parametrize("name", ["FisherFloorSGD", "GodambeSGD", "AdaptiveBatchSGD"])
def test_noise_and_steps_are_those_without_a_scaler(name, way):
    found = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=1024.0)):
        torch.manual_seed(0)
        case = CASES["mlp"]()
        truth = covariance(per_sample_gradients(case))
        optimizer = fisheropt.get(name)(case.model, lr=0.1)
        run(optimizer, case, scaler, "plain" if scaler is None else way)
        noise = optimizer.noise().per_sample()
        torch.testing.assert_close(noise.trace(), truth.trace(), rtol=1e-9, atol=0)
        for _ in range(3):
            run(optimizer, case, scaler, "plain" if scaler is None else way)
        found.append(nn.utils.parameters_to_vector(case.model.parameters()))
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-7)


def test_an_overflow_changes_nothing_but_the_scale():
    case = CASES["linear"]()
    optimizer = fisheropt.FisherFloorSGD(case.model, lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    run(optimizer, case, scaler, "plain")
    kept = nn.utils.parameters_to_vector(case.model.parameters()).clone()
    held = {k: v for k, v in optimizer.param_groups[0].items() if isinstance(v, float)}
    scaler.scale(case.loss() * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    assert torch.equal(nn.utils.parameters_to_vector(case.model.parameters()), kept)
    assert held == {k: v for k, v in optimizer.param_groups[0].items() if isinstance(v, float)}
    assert scaler.get_scale() == 512.0
