"""Deliberate faults: each breaks the package on purpose, and a test of the suite must turn red.

Those of the engine are in tests/engine/test_mutations.py.
"""

from dataclasses import replace

import pytest
import torch

import fisheropt
from fisheropt.optim.amp import LossScale
from fisheropt.statistics import Moments
from fisheropt.taps.channel import Channel
from tests.cases import CASES
from tests.engine import test_statistics as statistics
from tests.optim import test_loss_scale
from tests.optim.candidates import Candidate
from tests.optim.contract import test_state


def uncentred(self):
    return fisheropt.Covariance(self.second, self.count, self.dof, self.shape)


def without_bessel(self):
    return fisheropt.Covariance(self.second - self.total / self.count, self.count, self.dof, self.shape)


@pytest.mark.parametrize("fault", [uncentred, without_bessel])
def test_a_wrong_covariance_is_seen(monkeypatch, fault):
    monkeypatch.setattr(Moments, "covariance", fault)
    with pytest.raises(AssertionError):
        statistics.check_full(CASES["mlp"]())


@pytest.mark.parametrize("fault", [lambda self: 1.0, lambda self: float(self.of_statistics or 1) ** 0.5])
def test_a_wrong_loss_scale_is_seen(monkeypatch, fault):
    monkeypatch.setattr(LossScale, "statistics", fault)
    with pytest.raises(AssertionError):
        test_loss_scale.test_noise_and_steps_are_those_without_a_scaler("FisherFloorSGD", "plain")


def test_statistics_lost_on_accumulation_are_seen(monkeypatch):
    open_sink = Channel.observing

    def forgetful(self):
        self.drop_gradients()  # as if each forward began a reading of its own
        return open_sink(self)

    monkeypatch.setattr(Channel, "observing", forgetful)
    with pytest.raises(AssertionError):
        statistics.test_law_additive.hypothesis.inner_test("mlp", fisheropt.FullCovariance(), {3})


def test_state_in_an_attribute_is_seen(monkeypatch):
    """The information is moved out of the group after each step, as if it were an attribute."""
    learn, held = fisheropt.FisherFloorSGD._learn, {}

    def forgetful(self, group, reading):
        if id(self) in held:
            group["information"], group["information_weight"] = held[id(self)]
        learn(self, group, reading)
        held[id(self)] = group["information"].clone(), group["information_weight"]
        group["information"], group["information_weight"] = torch.zeros_like(group["information"]), 0.0

    monkeypatch.setattr(fisheropt.FisherFloorSGD, "_learn", forgetful)
    candidate = Candidate(fisheropt.FisherFloorSGD, "acting", {"floor": 4.0, "every": 1}, "module")
    with pytest.raises(AssertionError):
        test_state.test_state_round_trip(candidate)


def test_a_count_off_by_one_is_seen(monkeypatch):
    """Degrees of freedom are asserted, not only values."""
    monkeypatch.setattr(Moments, "dof", property(lambda self: self.count))
    covariance = Moments.covariance
    monkeypatch.setattr(Moments, "covariance", lambda self: replace(covariance(self), dof=self.count))
    with pytest.raises(AssertionError):
        statistics.check_full(CASES["mlp"]())
