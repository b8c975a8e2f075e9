"""Rows of whole steps: our optimizers, measuring on every step and on their own schedule, torch's, and SINGD."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from torch.optim import Optimizer

import fisheropt
from fisheropt import FisherOptimizer
from recipes.measuring.models import Subject
from recipes.measuring.row import EACH, MEASURED, ORDINARY, Prepared, Row
from recipes.measuring.schedule import NEVER, share
from recipes.measuring.trainee import Step, Trainee

RATE = 1e-3
WARM = 3  # steps before one is timed, each measured, so that the metric is there
SINGD_INTERVAL = 10  # its own default

Build = Callable[..., FisherOptimizer]
DEFAULTS = ("FisherFloorSGD", "GodambeSGD", "AdaptiveBatchSGD")
"""As they come, without an option: the rows that have a target."""


def optimizers() -> list[Row]:
    """Torch's, ours as they come and with options, then SINGD."""
    floor, godambe, adaptive = fisheropt.FisherFloorSGD, fisheropt.GodambeSGD, fisheropt.AdaptiveBatchSGD
    known: dict[str, Any] = {"likelihood": "categorical"}
    return [
        _torch("SGD, momentum", lambda model: torch.optim.SGD(model.parameters(), RATE, momentum=0.9)),
        _torch("AdamW", lambda model: torch.optim.AdamW(model.parameters(), RATE)),
        _ours("FisherFloorSGD", floor),
        _ours("FisherFloorSGD, likelihood", floor, **known),
        _ours("GodambeSGD", godambe),
        _ours("GodambeSGD, likelihood", godambe, **known),
        _ours("GodambeSGD, diagonal, likelihood", godambe, structure="diagonal", **known),
        _ours("GodambeSGD, Kronecker, likelihood", godambe, structure="kronecker", **known),
        _ours("AdaptiveBatchSGD", adaptive),
        Row("SINGD", "optimizers", _singd, "singd"),
    ]


def _torch(name: str, make: Callable[[nn.Module], Optimizer]) -> Row:
    def start(trainee: Trainee) -> Step:
        return _warm(Step(trainee, make(trainee.model)))

    def prepare(subject: Subject, device: torch.device) -> Prepared:
        return Prepared({EACH: start(Trainee(subject, device))}, True, settle=start)

    return Row(name, "optimizers", prepare, "torch")


def _ours(name: str, build: Build, **options: Any) -> Row:
    def start(trainee: Trainee, **more: Any) -> Step:
        return Step(trainee, build(trainee.model, RATE, **options, **more))

    def prepare(subject: Subject, device: torch.device) -> Prepared:
        measured, ordinary = (_warm(start(Trainee(subject, device), every=1)) for _ in range(2))
        scheduled = _warm(start(Trainee(subject, device)))
        for group in ordinary.optimizers[0].param_groups:
            group["every"] = NEVER
        ordinary()  # the last one measured: whether the next is due is settled when a step ends
        return Prepared(
            {ORDINARY: ordinary, MEASURED: measured},
            True,
            share(cast(FisherOptimizer, scheduled.optimizers[0])),
            fresh=lambda: start(Trainee(subject, device)),
            settle=lambda trainee: _warm(start(trainee, every=1)),
        )

    return Row(name, "optimizers", prepare)


def _singd(subject: Subject, device: torch.device) -> Prepared:
    def start(every: int) -> Step:
        return _singd_step(Trainee(subject, device), every)

    measured = _warm(start(1))
    others = len(measured.optimizers) > 1
    return Prepared(
        {ORDINARY: _warm(start(NEVER)), MEASURED: measured},
        True,
        1 / SINGD_INTERVAL,
        fresh=lambda: start(SINGD_INTERVAL),
        settle=lambda trainee: _warm(_singd_step(trainee, 1)),
        remark="AdamW for the parameters outside of linear and convolutional layers" if others else "",
    )


def _singd_step(trainee: Trainee, every: int) -> Step:
    """SINGD takes linear and convolutional layers; AdamW the rest."""
    from singd.optim.optimizer import SINGD

    layers = [m for m in trainee.model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    served = {id(p) for layer in layers for p in layer.parameters(recurse=False)}
    others = [p for p in trainee.model.parameters() if id(p) not in served]
    mean = "batch" if trainee.subject.length is None else "batch+sequence"
    own = SINGD(trainee.model, lr=RATE, T=every, loss_average=mean, warn_unsupported=False)
    return Step(trainee, own, *([torch.optim.AdamW(others, RATE, weight_decay=0.0)] if others else []))


def _warm(step: Step) -> Step:
    """The same after its first steps."""
    for _ in range(WARM):
        step()
    return step
