"""What marks the limit, and is no optimizer of torch's form: exact solvers, EM, offline maximum likelihood."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from recipes.problems import em
from recipes.problems.newton import minimise
from recipes.problems.readers import Array
from recipes.problems.softmax import SoftmaxObjective, Tally
from recipes.racing.walks import Point

SOLVERS = ("newton-cholesky", "lbfgs", "liblinear", "saga")


def maximum_likelihood(x: Array, y: Array) -> Array:
    """The offline estimate by Newton's method, [d]."""
    counts = torch.from_numpy(np.stack([1.0 - y, y], 1).astype(np.float64))
    objective = SoftmaxObjective(Tally(torch.from_numpy(x).double(), counts), 0.0, intercept=False)
    return minimise(objective).w[0].numpy()


def scikit(
    solver: str, x: Array, y: Array, objective: Callable[[Tensor], float], tried: Sequence[int], enough: float
) -> Iterator[Point]:
    """Fits of ever more iterations, each from the start and timed by itself; C = 1 is the ridge 1/n of the recipes."""
    for iterations in tried:
        options = {"solver": solver, "max_iter": iterations, "tol": 1e-14, "random_state": 0}
        model = LogisticRegression(C=1.0, fit_intercept=False, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            began = time.process_time()
            model.fit(x, y)
        spent = time.process_time() - began
        yield Point(float(iterations), spent, objective(torch.from_numpy(model.coef_[0]).double()))


def expectation_maximisation(x: Array, k: int, seed: int) -> Iterator[Point]:
    """EM with diagonal covariances from the start that the entrants have."""
    first = em.start(x, k, False, np.random.default_rng(seed))
    spent, began = 0.0, time.process_time()
    for index, fit in enumerate(islice(em.iterations(x, first, full=False), em.ITERATIONS)):
        spent += time.process_time() - began
        yield Point(float(index), spent, fit.loss)
        began = time.process_time()
