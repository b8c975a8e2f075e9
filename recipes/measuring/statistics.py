"""Rows of ours: every statistic, measured in every backward, with its reading."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn

import fisheropt
from fisheropt import DenseDirections, RankOneDirections
from fisheropt.statistics import JointStatistic, Statistic
from recipes.measuring.models import Subject
from recipes.measuring.row import EACH, NothingThere, Prepared, Row
from recipes.measuring.trainee import Trainee

COUNT = 16
MOST = 2**30
"""Bytes that a whole covariance may have."""

Make = Callable[[Trainee], Statistic]
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def statistics() -> list[Row]:
    """All of them, the cheapest first."""
    return [
        _row("noise trace", lambda trainee: fisheropt.Trace()),
        Row("noise trace, normalisation only", "statistics", _of_norms),
        _row("second moments", lambda trainee: fisheropt.SecondMoment()),
        _row(f"{COUNT} rank-one directions", _rank_one),
        _row(f"{COUNT} dense directions", _dense),
        _row(f"{COUNT} dual directions", _dual),
        _row(f"top {COUNT} noise eigenpairs", lambda trainee: fisheropt.Gram()),
        _row("Kronecker factors", lambda trainee: fisheropt.Kronecker()),
        _row("whole covariance", _whole),
    ]


@final
class Observed:
    """A forward and backward with a tap, and the covariances read from it.

    Args:
        trainee: whose gradients are observed.
        statistic: what to collect.
        parameters: which, by name; all if left out.
    """

    def __init__(self, trainee: Trainee, statistic: Statistic, parameters: list[str] | None = None) -> None:
        self._trainee, self._statistic = trainee, statistic
        self._eigenpairs = isinstance(statistic, fisheropt.Gram)
        self.tap = fisheropt.observe(trainee.model, statistic, parameters)

    def __call__(self) -> None:
        self._trainee.backward()
        self._read()
        self.tap.clear()
        self._trainee.clear()

    def _read(self) -> None:
        if self._eigenpairs:
            self.tap.gram().eigenpairs(COUNT)
            return
        if isinstance(self._statistic, JointStatistic):
            self.tap.covariance()
            return
        for moments in self.tap.all_sums().values():
            moments.covariance()


def _row(name: str, make: Make) -> Row:
    return Row(name, "statistics", lambda subject, device: _prepared(subject, device, make))


def _prepared(subject: Subject, device: torch.device, make: Make, parameters: list[str] | None = None) -> Prepared:
    def settle(trainee: Trainee) -> Observed:
        observed = Observed(trainee, make(trainee), parameters)
        observed()
        return observed

    return Prepared({EACH: settle(Trainee(subject, device))}, settle=settle)


def _of_norms(subject: Subject, device: torch.device) -> Prepared:
    """nanoGNS measures these alone, as they cost least."""
    layers = [(path, m) for path, m in Trainee(subject, device).model.named_modules() if isinstance(m, NORMS)]
    found = [f"{path}.{name}" for path, layer in layers for name, _ in layer.named_parameters(recurse=False)]
    if not found:
        raise NothingThere
    return _prepared(subject, device, lambda trainee: fisheropt.Trace(), found)


def _parts(trainee: Trainee) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in trainee.model.named_parameters()}


def _rank_one(trainee: Trainee) -> Statistic:
    def drawn(p: Tensor) -> RankOneDirections:
        inputs = p[0].numel()
        return RankOneDirections(p.new_empty(COUNT, len(p)).normal_(), p.new_empty(COUNT, inputs).normal_())

    return fisheropt.Projection({name: drawn(p) for name, p in _parts(trainee).items()})


def _dense(trainee: Trainee) -> Statistic:
    parts = _parts(trainee).items()
    return fisheropt.Projection({name: DenseDirections(p.new_empty(COUNT, *p.shape).normal_()) for name, p in parts})


def _dual(trainee: Trainee) -> Statistic:
    """Eigenvectors of an earlier batch's noise."""
    with fisheropt.observe(trainee.model, fisheropt.Gram()) as tap:
        trainee.backward()
        found = tap.gram().eigenpairs(COUNT).directions()
        tap.clear()
    trainee.clear()
    return fisheropt.Projection(found)


def _whole(trainee: Trainee) -> Statistic:
    size = sum(p.numel() for p in trainee.model.parameters())
    if 4 * size**2 > MOST:
        raise ValueError(f"{size} parameters: G would hold {4e-9 * size**2:.0f} GB")
    return fisheropt.FullCovariance()
