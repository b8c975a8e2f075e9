"""Work in numbers that no machine enters: operations, traffic, calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

SIZE = 4
"""Bytes of a number, float32."""


class Work(NamedTuple):
    """What something takes.

    Args:
        flops: multiplications and additions.
        bytes: read and written.
        calls: of operations on tensors, each as much as a small one takes.
        held: bytes of the temporaries that are there at one time.
    """

    flops: float = 0.0
    bytes: float = 0.0
    calls: float = 0.0
    held: float = 0.0


def product(batch: int, rows: int, inner: int, columns: int) -> Work:
    """A product of matrices [rows, inner] and [inner, columns], so many times."""
    numbers = rows * inner + inner * columns + rows * columns
    return Work(2.0 * batch * rows * inner * columns, float(SIZE * batch * numbers), 1.0)


def passes(numbers: int, times: float = 1.0, calls: float = 1.0) -> Work:
    """Reading or writing so many numbers so many times."""
    return Work(0.0, SIZE * times * numbers, calls)


def both(*parts: Work) -> Work:
    """One after another; temporaries stay until the last."""
    flops = bytes_ = calls = held = 0.0
    for part in parts:
        flops, bytes_, calls, held = flops + part[0], bytes_ + part[1], calls + part[2], held + part[3]
    return Work(flops, bytes_, calls, held)


def holding(numbers: float) -> Work:
    """So many numbers kept for a while."""
    return Work(held=SIZE * numbers)


def times(work: Work, factor: float) -> Work:
    """The same so many times over, one at a time."""
    return Work(factor * work.flops, factor * work.bytes, factor * work.calls, work.held)


Ways = Callable[..., dict[str, Work]]
"""From the sizes of a form, and of what it is contracted with, the work of each way to one quantity, by name."""


def one(work: Work) -> dict[str, Work]:
    """Where there is nothing to choose."""
    return {"only": work}


def update(p: int) -> Work:
    """A gradient that is written, and read by the optimizer."""
    return passes(p, 4.0, 6.0)
