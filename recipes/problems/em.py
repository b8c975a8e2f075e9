"""Maximum likelihood of a Gaussian mixture by expectation-maximisation, from several starts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import final

import numpy as np
from scipy.special import logsumexp

from recipes.problems.readers import Array

ITERATIONS = 20_000
COLLAPSED = 1e-4


@final
@dataclass(frozen=True)
class Fit:
    """A stationary point of the likelihood.

    Attributes:
        loss: mean negative log-likelihood.
        weights: [k].
        means: [k, d].
        covariances: [k, d, d].
    """

    loss: float
    weights: Array
    means: Array
    covariances: Array


def best_fit(x: Array, k: int, *, full: bool, starts: int, seed: int) -> Fit | None:
    """The best of `starts` runs on x [n, d], leaving out those that collapse onto a few samples."""
    rng = np.random.default_rng(seed)
    fits = [_run(x, k, full, rng) for _ in range(starts)]
    return min((fit for fit in fits if fit is not None), key=lambda fit: fit.loss, default=None)


def start(x: Array, k: int, full: bool, rng: np.random.Generator) -> Fit:
    """Equal weights, k samples as the means, and everywhere the covariance of all samples."""
    covariance = _masked(np.atleast_2d(np.cov(x.T, bias=True)), full)
    means = x[rng.choice(len(x), k, replace=False)]
    return Fit(np.inf, np.full(k, 1.0 / k), means, np.repeat(covariance[None], k, 0))


def iterations(x: Array, first: Fit, *, full: bool) -> Iterator[Fit]:
    """The iterates from `first`, each with the loss of the one before, while the likelihood rises in float64."""
    fit = first
    while True:
        log_joint = np.log(fit.weights) + _log_densities(x, fit)
        log_p = logsumexp(log_joint, axis=1)
        loss = -float(log_p.mean())
        if loss > fit.loss - 1e-15 * (1.0 + abs(loss)):
            return
        fit = _maximise(x, np.exp(log_joint - log_p[:, None]), loss, full)
        yield fit


def _run(x: Array, k: int, full: bool, rng: np.random.Generator) -> Fit | None:
    """Iterate to the end; None where a component collapses."""
    fit = first = start(x, k, full, rng)
    whole = np.linalg.eigvalsh(first.covariances[0])[0]
    for fit in islice(iterations(x, first, full=full), ITERATIONS):
        if fit.weights.min() * len(x) < 1.5 or np.linalg.eigvalsh(fit.covariances).min() < COLLAPSED * whole:
            return None
    return fit


def _maximise(x: Array, responsibilities: Array, loss: float, full: bool) -> Fit:
    totals = responsibilities.sum(0)
    means = responsibilities.T @ x / totals[:, None]
    centred = x[:, None, :] - means
    covariances = (
        np.einsum("nk,nki,nkj->kij", responsibilities, centred, centred, optimize=True) / totals[:, None, None]
    )
    return Fit(loss, totals / len(x), means, _masked(covariances, full))


def _masked(covariances: Array, full: bool) -> Array:
    return covariances if full else covariances * np.eye(covariances.shape[-1])


def _log_densities(x: Array, fit: Fit) -> Array:
    factors = np.linalg.cholesky(np.linalg.inv(fit.covariances))
    z = np.einsum("nki,kij->nkj", x[:, None, :] - fit.means, factors, optimize=True)
    logs = np.log(np.diagonal(factors, axis1=1, axis2=2)).sum(1)
    log_densities: Array = -0.5 * (z**2).sum(2) - 0.5 * x.shape[1] * np.log(2.0 * np.pi) + logs
    return log_densities
