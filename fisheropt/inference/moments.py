"""Curvature, noise and mean score of the data at one point, in one pass; a second one for leverages."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fisheropt.inference.scores import Scores
from fisheropt.theory.sandwich import Correction, cluster_sums, leverage_adjusted, score_noise


class Moments(NamedTuple):
    """Of the penalised mean loss: curvature H [d, d], noise G [d, d] of the scores, their mean g [d], the mean loss alone."""

    curvature: Tensor
    noise: Tensor
    gradient: Tensor
    loss: float


class Setting(NamedTuple):
    """What the moments are of: ridge l2, the model Fisher or the Hessian as curvature, cluster [n] of each sample."""

    l2: float
    fisher: bool
    clusters: Tensor | None


def moments(scores: Scores, setting: Setting) -> Moments:
    """The moments at the present parameters."""
    shift = setting.l2 * scores.theta
    size = len(shift)
    identity = torch.eye(size, dtype=torch.float64, device=scores.device)
    curvature, gradient, loss = torch.zeros_like(identity), torch.zeros_like(shift), 0.0
    noise = _Noise(setting, size, scores)
    for chunk in scores.chunks(roots=setting.fisher):
        noise.add(chunk.first, chunk.scores + shift)
        gradient += chunk.scores.sum(0)
        loss += chunk.loss
        if chunk.roots is not None:
            rows = chunk.roots.flatten(0, 1)
            curvature += rows.mT @ rows
    mean = curvature / scores.samples if setting.fisher else scores.hessian()
    return Moments(
        mean + setting.l2 * identity, noise.value(), gradient / scores.samples + shift, loss / scores.samples
    )


def adjusted_noise(scores: Scores, setting: Setting, inverse: Tensor, correction: Correction) -> Tensor:
    """G [d, d] of scores adjusted for their leverage, A = `inverse` [d, d] of the whole information n H."""
    shift = setting.l2 * scores.theta
    noise = _Noise(setting, len(shift), scores)
    for chunk in scores.chunks(roots=True):
        assert chunk.roots is not None
        noise.add(chunk.first, leverage_adjusted(chunk.scores, chunk.roots, inverse, correction) + shift)
    return noise.value()


class _Noise:
    """The sum of outer products, of samples or of clusters."""

    def __init__(self, setting: Setting, size: int, scores: Scores) -> None:
        self._clusters, self._samples = setting.clusters, scores.samples
        self._sums: Tensor | None = None
        if self._clusters is not None:
            self._count = int(self._clusters.max()) + 1
            self._sums = torch.zeros(self._count, size, dtype=torch.float64, device=scores.device)
        self._total = torch.zeros(size, size, dtype=torch.float64, device=scores.device)

    def add(self, first: int, rows: Tensor) -> None:
        if self._sums is None or self._clusters is None:
            self._total += score_noise(rows) * len(rows)
        else:
            self._sums += cluster_sums(rows, self._clusters[first : first + len(rows)], self._count)

    def value(self) -> Tensor:
        return (self._total if self._sums is None else self._sums.mT @ self._sums) / self._samples
