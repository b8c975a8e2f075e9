"""amp.*: GradScaler and autocast, on the CPU."""

from __future__ import annotations

import torch
from torch import nn
from torch.amp import GradScaler
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from tests.optim.candidates import Candidate, every
from tests.optim.contract.problems import (
    assert_equal,
    assert_finite,
    backward,
    batches,
    network,
    numbers,
    train,
    trained,
    values,
)

SCALE = 1024.0


def scaled_step(scaler: GradScaler, optimizer: Optimizer, model: nn.Module, step: int, factor: float = 1.0) -> None:
    """One accumulated step under a gradient scaler; `factor` inf makes it overflow."""
    optimizer.zero_grad()
    for inputs, target in batches(step):
        loss = factor * nn.functional.mse_loss(model(inputs), target) / 3
        scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()


@every(given=None)
def test_amp_scaler(candidate: Candidate) -> None:
    """amp.scaler: scaled training equals unscaled training."""
    _assert_scaled_equals_unscaled(candidate)


def _assert_scaled_equals_unscaled(candidate: Candidate) -> None:
    scaled, plain = network(), network()
    optimizer, reference = candidate.build(scaled), candidate.build(plain)
    scaler = GradScaler("cpu", init_scale=SCALE, growth_interval=2)
    for step in range(6):
        scaled_step(scaler, optimizer, scaled, step)
        train(reference, plain, [step])
    assert scaler.get_scale() > SCALE
    assert_equal(values(scaled.parameters()), values(plain.parameters()), rtol=1e-4, atol=1e-4)


@every(given=None)
def test_amp_scaler_inf(candidate: Candidate) -> None:
    """amp.scaler: an inf changes neither parameters nor state, halves the scale, and is forgotten."""
    _assert_inf_is_skipped(candidate)


def _assert_inf_is_skipped(candidate: Candidate) -> None:
    model, optimizer = trained(candidate)
    twin, reference = trained(candidate)
    before, state = values(model.parameters()), {name: value for name, value in numbers(optimizer).items()}
    state = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in state.items()}
    scaler = GradScaler("cpu", init_scale=SCALE)
    scaled_step(scaler, optimizer, model, step=4, factor=float("inf"))
    assert_equal(values(model.parameters()), before)
    assert_equal(numbers(optimizer), state)
    assert scaler.get_scale() == SCALE / 2
    for step in (5, 6):
        scaled_step(scaler, optimizer, model, step)
        train(reference, twin, [step])
    assert_finite(values(model.parameters()))
    assert_equal(values(model.parameters()), values(twin.parameters()), rtol=1e-4, atol=1e-4)


@every(given=None)
def test_amp_scaler_unscaled_by_hand(candidate: Candidate) -> None:
    """amp.scaler: `unscale_` and clipping before the step, as users of clipping write it."""
    scaled, plain = network(), network()
    optimizer, reference = candidate.build(scaled), candidate.build(plain)
    scaler = GradScaler("cpu", init_scale=SCALE)
    for step in range(4):
        optimizer.zero_grad()
        for inputs, target in batches(step):
            scaler.scale(nn.functional.mse_loss(scaled(inputs), target) / 3).backward()
        scaler.unscale_(optimizer)
        clip_grad_norm_(scaled.parameters(), 0.5)
        scaler.step(optimizer)
        scaler.update()
        reference.zero_grad()
        backward(plain, step)
        clip_grad_norm_(plain.parameters(), 0.5)
        reference.step()
    assert_equal(values(scaled.parameters()), values(plain.parameters()), rtol=1e-4, atol=1e-4)


@every("fused")
def test_amp_fused(candidate: Candidate) -> None:
    """amp.fused: the same where the optimizer claims to unscale by itself."""
    fused = Candidate(candidate.cls, candidate.row, {**candidate.keywords, "fused": True})
    assert fused.build(network())._step_supports_amp_scaling
    _assert_scaled_equals_unscaled(fused)
    _assert_inf_is_skipped(fused)


@every(given=None)
def test_amp_autocast(candidate: Candidate) -> None:
    """amp.autocast: bfloat16 autocast with clipping and accumulation trains."""
    model = network()
    optimizer = candidate.build(model, 0.05)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        total = 0.0
        for inputs, target in batches(0):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = nn.functional.mse_loss(model(inputs).float(), target) / 3
            loss.backward()
            total += loss.item()
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(total)
    assert losses[-1] < losses[0]
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert_finite(values(model.parameters()))


@every(given="module")
def test_amp_autocast_is_entered_around_the_step_too(candidate: Candidate) -> None:
    """amp.autocast: a step inside the autocast region gives the numbers of one outside."""
    inside, outside = network(), network()
    first, second = candidate.build(inside), candidate.build(outside)
    for step in range(4):
        for model, optimizer in ((inside, first), (outside, second)):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                backward(model, step)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=model is inside):
                optimizer.step()
    assert_equal(values(inside.parameters()), values(outside.parameters()), rtol=1e-5, atol=1e-6)
