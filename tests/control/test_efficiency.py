"""Excess risk of the last iterate under the controllers, in units of its lower bound tr(H^-1 G)/2n.

AB-E1: linear regression, the exact metric. AB-E2: streaming logistic regression, a running estimate of the metric.
A mean over the runs below has a standard error of about 0.07, so bounds are the stated target plus two of them where
a target is close.
"""

import math

import numpy as np
import pytest

from fisheropt.control.base import Controller
from fisheropt.control.go_f import GOF
from fisheropt.control.norm_test import NormTest
from fisheropt.control.quantise import quantise
from recipes.studies.batch_simulation import Choose, Linear, Logistic, over_seeds, whole

STANDARD_ERROR = 0.07


def _mean(
    problem: Linear | Logistic, controller: Controller, lr: float, smallest: int, seeds: int, choose: Choose = whole
) -> tuple[float, float]:
    outcome = over_seeds(problem, controller, lr, smallest, seeds, choose)
    return outcome.excess, outcome.steps


@pytest.mark.parametrize(
    ("lr", "smallest", "published", "steps"), [(0.1, 24, 1.11, 72), (0.3, 24, 1.17, 26), (0.5, 48, 1.24, 15)]
)
def test_go_f_is_near_efficient_with_the_exact_metric(lr: float, smallest: int, published: float, steps: int) -> None:
    """AB-E1, AB-R3: the table within 15 %, and no more steps than it."""
    excess, taken = _mean(Linear(), GOF(), lr, smallest, 40)
    assert excess <= 1.15 * published
    assert taken <= 1.1 * steps


def test_the_quantiser_costs_little() -> None:
    def choose(size: int, proposed: float) -> int:
        return quantise(size, proposed, 24, 10**6)

    assert _mean(Linear(), GOF(), 0.3, 24, 40, choose)[0] <= 1.17 + 2 * STANDARD_ERROR


def test_the_norm_test_is_near_efficient_at_one_minus_eta_and_not_at_one() -> None:
    """AB-R3."""
    assert _mean(Linear(), NormTest(), 0.3, 24, 30)[0] <= 1.4
    assert _mean(Linear(), NormTest(1.0), 0.3, 24, 4)[0] >= 2.0


@pytest.mark.parametrize(
    ("square", "tails", "target"),
    [(0.0, math.inf, 1.25), (2.0, 5.0, 1.5)],
    ids=["well specified", "misspecified"],
)
def test_go_f_is_near_efficient_with_an_estimated_metric(square: float, tails: float, target: float) -> None:
    """AB-E2: each step size within two standard errors of the target, their mean below it."""
    problem = Logistic(square, tails)
    excess = [_mean(problem, GOF(), lr, 64, 24)[0] for lr in (0.1, 0.3, 0.5, 0.8)]
    assert max(excess) <= target + 2 * STANDARD_ERROR
    assert np.mean(excess) <= target
