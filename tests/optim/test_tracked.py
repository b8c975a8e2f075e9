"""Tracked directions of FisherFloorSGD: what they follow, what a change carries over, and what a checkpoint keeps."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fisheropt
from fisheropt.optim import renewal, subspace, tracking
from tests.optim.test_directions import step


def tracked(dtype=torch.float64, **keywords):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)
    keywords = {"directions": "tracked", "every": 1, "lr": 0.3, "likelihood": "categorical"} | keywords
    return model, fisheropt.FisherFloorSGD(model, **keywords)


def fit(model, optimizer, steps, first=0):
    for seed in range(first, first + steps):
        step(optimizer, model, seed=seed, inputs=10)


def basis_of(model, optimizer):
    return torch.cat([optimizer.state[p]["basis"].flatten(1) for p in model.parameters()], 1).T


def test_tracked_directions_stay_orthonormal_and_follow_the_displacement():
    model, optimizer = tracked()
    start = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    fit(model, optimizer, 60)
    basis, group = basis_of(model, optimizer), optimizer.param_groups[0]
    torch.testing.assert_close(basis.T @ basis, torch.eye(9, dtype=torch.float64))
    assert group["refreshes"] >= 2 and group["information"].shape == (6, 6)
    moved = nn.utils.parameters_to_vector(model.parameters()).detach() - start
    assert (basis.T @ moved).norm() > 0.8 * moved.norm(), "training has gone where nobody watched"
    origin = torch.cat([optimizer.state[p]["origin"].flatten() for p in model.parameters()])
    torch.testing.assert_close(origin, start)
    torch.testing.assert_close(group["anchor"], basis[:, :6].T @ start)


def test_what_is_carried_over_at_a_refresh_is_what_was_measured():
    """Every number that the floor uses after a change of directions is Wᵀ(·)W of a running mean in the old ones."""
    model, optimizer = tracked(floor=0.05)
    seen = {}
    follow = tracking.follow

    def spy(group, tap, state, reading, current):
        before = {name: d.basis.clone() for name, d in tap.directions.items()}
        mean = group["scouted"] * group["scouted_weight"] + current * reading.count
        mean = mean / (group["scouted_weight"] + reading.count)
        found, carried = follow(group, tap, state, reading, current)
        if carried and not seen:
            after = {name: d.basis[:6] for name, d in tap.directions.items()}
            w = subspace.gram(before, after)
            seen.update(w=w, mean=mean, information=group["information"].clone(), found=found, current=current)
        return found, carried

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracking, "follow", spy)
        fit(model, optimizer, 25)
    w = seen["w"]
    torch.testing.assert_close(w.T @ w, torch.eye(6, dtype=torch.float64))
    torch.testing.assert_close(seen["information"], w.T @ seen["mean"] @ w)
    torch.testing.assert_close(seen["found"], w.T @ seen["current"] @ w)


def test_directions_that_have_not_turned_are_kept():
    """Angle control: what was found within 20 degrees of what is watched changes nothing but the scouts."""
    values = torch.tensor([1e-3, 2e-3, 3e-3, 5e-3, 2.0, 3.0, 0.5, 0.6, 0.7], dtype=torch.float64)
    order = renewal.order(torch.diag(values), torch.zeros(9, dtype=torch.float64), 0.0, 6, 1e-5)
    assert order.turned < 1e-5 and order.sine < 1
    displaced = torch.zeros(9, dtype=torch.float64)
    displaced[7] = 1
    order = renewal.order(torch.diag(values), displaced, 1.0, 6, 1e-5)
    assert order.turned > 20 and order.rotation[7].norm() == pytest.approx(1.0)


def test_block_power_brings_the_strongest_direction_in():
    """Scouts of one response of a batch: after a few looks the top eigenvector is nearly inside of what is seen."""
    torch.manual_seed(0)
    scales = torch.ones(40, dtype=torch.float64)
    scales[7] = 6.0
    model = nn.Linear(40, 1, bias=False).double()
    optimizer = fisheropt.FisherFloorSGD(
        model, lr=1e-3, directions="tracked", likelihood="gaussian", mode="monitor", every=1
    )
    for _ in range(100):
        x = torch.randn(64, 40, dtype=torch.float64) * scales
        model(x).square().mean().div(2).backward()
        optimizer.step()
        optimizer.zero_grad()
    basis = optimizer.state[model.weight]["basis"].flatten(1)
    assert basis[:6, 7].norm() > 0.95
    assert max(optimizer.report().as_dict()["groups"][0]["eigenvalues"]) == pytest.approx(36, rel=0.3)


@pytest.mark.parametrize("how", ["state_dict", "deepcopy", "pickle"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_tracked_run_goes_on_as_if_nothing_had_happened(how, dtype):
    model, optimizer = tracked(dtype)
    fit(model, optimizer, 22)
    if how == "state_dict":
        other = copy.deepcopy(model)
        for module in other.modules():
            for hooks in (module._forward_hooks, module._forward_pre_hooks):
                hooks.clear()
        again = fisheropt.FisherFloorSGD(other, lr=0.3, directions="tracked", every=1, likelihood="categorical")
        again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    elif how == "deepcopy":
        other, again = copy.deepcopy((model, optimizer))
    else:
        other, again = pickle.loads(pickle.dumps((model, optimizer)))
    fit(model, optimizer, 22, first=22)
    fit(other, again, 22, first=22)
    assert optimizer.param_groups[0]["refreshes"] >= 2
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
    assert torch.equal(optimizer.param_groups[0]["information"], again.param_groups[0]["information"])


def test_tracked_directions_serve_parameters_and_exact_modes_too():
    model, _ = tracked()
    given = fisheropt.FisherFloorSGD(model.parameters(), lr=0.1, directions="tracked", every=1)
    for seed in range(30):
        for half in range(2):
            generator = torch.Generator().manual_seed(2 * seed + half)
            x = torch.randn(8, 10, generator=generator, dtype=torch.float64)
            (F.cross_entropy(model(x), torch.arange(8) % 3) / 2).backward()
        given.step()
        given.zero_grad()
    assert given.report().as_dict()["groups"][0]["refreshes"] >= 1
    model, exact = tracked(mode="penalty", weight=1.0)
    fit(model, exact, 45)
    assert exact.report().as_dict()["groups"][0]["refreshes"] >= 1
    basis, group = basis_of(model, exact)[:, :6], exact.param_groups[0]
    assert torch.linalg.eigvalsh(group["information"])[0] >= 0 and basis.shape[1] == 6


def test_small_groups_are_watched_whole_and_auto_is_not_tracked():
    assert len(fisheropt.FisherFloorSGD(nn.Linear(3, 2), directions="tracked").param_groups[0]["information"]) == 8
    assert len(fisheropt.FisherFloorSGD(nn.Linear(30, 20)).param_groups[0]["information"]) == 16


def test_deliberate_faults_are_seen():
    """Information kept in the old coordinates, and scouts that are not orthogonal."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracking, "carry", lambda group, rotation: None)
        with pytest.raises(AssertionError):
            test_what_is_carried_over_at_a_refresh_is_what_was_measured()
    with pytest.MonkeyPatch.context() as patch:

        def joined(kept, scouts, n):
            return {k: torch.cat([v, scouts[k][:n]]) for k, v in kept.items()}

        patch.setattr(renewal, "_completed", joined)
        with pytest.raises(AssertionError):
            test_tracked_directions_stay_orthonormal_and_follow_the_displacement()
