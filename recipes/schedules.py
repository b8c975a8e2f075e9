"""Learning rates over a run: lr_t = lr * f(t), each f a function of the tick t of the sample clock.

All are LambdaLR with a stateless factor, so a resumed run continues with the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def constant(optimizer: Optimizer, total: int) -> LambdaLR:
    """f(t) = 1."""
    return _lambda(optimizer, _constant)


def cosine(optimizer: Optimizer, total: int, *, final: float = 0.0, warmup: int = 0) -> LambdaLR:
    """f(t) = final + (1 - final) (1 + cos(pi s)) / 2, s = (t - warmup) / (total - warmup), after a warmup."""
    return _lambda(optimizer, partial(_cosine, total, final, warmup))


def linear(optimizer: Optimizer, total: int, *, final: float = 0.0, warmup: int = 0) -> LambdaLR:
    """f(t) = 1 + (final - 1) s, s = (t - warmup) / (total - warmup), after a warmup."""
    return _lambda(optimizer, partial(_linear, total, final, warmup))


def step(optimizer: Optimizer, total: int, *, gamma: float = 0.1, at: tuple[float, ...] = (0.5, 0.75)) -> LambdaLR:
    """f(t) = gamma^k, where k counts the fractions `at` of the run that are over."""
    return _lambda(optimizer, partial(_step, total, gamma, tuple(at)))


def inverse_time(optimizer: Optimizer, total: int, *, fraction: float = 0.1) -> LambdaLR:
    """f(t) = 1 / (1 + t / t0), t0 = fraction * total: with this decay SGD converges, after Robbins and Monro.

    Reference: robbins1951
    """
    return _lambda(optimizer, partial(_inverse_time, fraction * max(total, 1)))


def _lambda(optimizer: Optimizer, factor: Callable[[int], float]) -> LambdaLR:
    return LambdaLR(optimizer, factor)


def _constant(tick: int) -> float:
    return 1.0


def _cosine(total: int, final: float, warmup: int, tick: int) -> float:
    if tick < warmup:
        return (tick + 1) / warmup
    return final + (1.0 - final) * (1.0 + math.cos(math.pi * _progress(total, warmup, tick))) / 2.0


def _linear(total: int, final: float, warmup: int, tick: int) -> float:
    if tick < warmup:
        return (tick + 1) / warmup
    return 1.0 + (final - 1.0) * _progress(total, warmup, tick)


def _step(total: int, gamma: float, at: tuple[float, ...], tick: int) -> float:
    return float(gamma ** sum(tick >= fraction * total for fraction in at))


def _inverse_time(t0: float, tick: int) -> float:
    return 1.0 / (1.0 + tick / t0)


def _progress(total: int, warmup: int, tick: int) -> float:
    return min(1.0, (tick - warmup) / max(1, total - warmup))
