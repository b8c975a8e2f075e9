"""One launch for all tensors of a dtype: a table of addresses tells each program its tensor."""

from __future__ import annotations

from itertools import accumulate

import torch
import triton
import triton.language as tl
from torch import Tensor

from fisheropt.kernels.sgd_update import reference
from fisheropt.kernels.triton import on

_NUMBERS = 2048  # a program
_ALIGNED = 16  # bytes: what lets a thread load four floats at once
_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@triton.jit
def sgd_update_kernel(
    table,
    tensors,
    lr,
    momentum,
    dampening,
    weight_decay,
    P: tl.constexpr,
    D: tl.constexpr,
    B: tl.constexpr,
    MOMENTUM: tl.constexpr,
    NESTEROV: tl.constexpr,
    MAXIMIZE: tl.constexpr,
    EVEN: tl.constexpr,
    NUMBERS: tl.constexpr,
):
    """Updates one block of one tensor; table [5, tensors] has addresses of p, d, b, sizes, and the first program of each."""
    program = tl.program_id(0).to(tl.int64)
    low, high = 0, tensors
    while high - low > 1:  # the last tensor that begins at this program or before
        middle = (low + high) // 2
        before = tl.load(table + 4 * tensors + middle) <= program
        low = tl.where(before, middle, low)
        high = tl.where(before, high, middle)
    size = tl.load(table + 3 * tensors + low)
    if EVEN:
        size = tl.multiple_of(size, 16)  # so that no thread's run of numbers ends inside
    first = (program - tl.load(table + 4 * tensors + low)) * NUMBERS
    at = first + tl.arange(0, NUMBERS)
    inside = at < size
    ps = tl.multiple_of(tl.load(table + low).to(tl.pointer_type(P)), 16)
    ds = tl.multiple_of(tl.load(table + tensors + low).to(tl.pointer_type(D)), 16)
    p = tl.load(ps + at, mask=inside, other=0.0).to(tl.float32)
    d = tl.load(ds + at, mask=inside, other=0.0).to(tl.float32)
    if MAXIMIZE:
        d = -d
    d += weight_decay * p
    if MOMENTUM:
        bs = tl.multiple_of(tl.load(table + 2 * tensors + low).to(tl.pointer_type(B)), 16)
        b = tl.load(bs + at, mask=inside, other=0.0).to(tl.float32)
        b = momentum * b + (1.0 - dampening) * d
        tl.store(bs + at, b.to(B), mask=inside)
        d = d + momentum * b if NESTEROV else b
    tl.store(ps + at, (p - lr * d).to(P), mask=inside)


def sgd_update(
    parameters: list[Tensor],
    directions: list[Tensor],
    buffers: list[Tensor],
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
) -> None:
    """One launch a device and combination of dtypes; what is not one dense run of memory takes the reference."""
    kinds: dict[tuple[object, ...], list[list[Tensor]]] = {}
    strays: list[list[Tensor]] = []
    for j, p in enumerate(parameters):
        row = [p, directions[j], *([buffers[j]] if momentum else [])]
        if p.numel():
            kind = (p.device, *(x.dtype for x in row), _even(row))
            (kinds.setdefault(kind, []) if _runs(row) else strays).append(row)
    for rows in kinds.values():
        _launch(rows, lr, momentum, dampening, weight_decay, nesterov, maximize)
    if strays:
        columns = [list(column) for column in zip(*strays, strict=True)]
        left = columns[2] if momentum else []
        reference.sgd_update(columns[0], columns[1], left, lr, momentum, dampening, weight_decay, nesterov, maximize)


def _runs(row: list[Tensor]) -> bool:
    """Whether the same number lies at the same place of each, with no gaps."""
    p = row[0]
    if any(x.stride() != p.stride() or x.data_ptr() % _ALIGNED for x in row):
        return False
    dense = 1
    for stride, size in sorted((p.stride(j), p.shape[j]) for j in range(p.ndim) if p.shape[j] > 1):
        if stride != dense:
            return False
        dense *= size
    return True


def _even(row: list[Tensor]) -> bool:
    """Whether a thread's run of numbers never ends inside."""
    return row[0].numel() % 16 == 0


def _launch(
    rows: list[list[Tensor]],
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
) -> None:
    p, *others = rows[0]
    sizes = [row[0].numel() for row in rows]
    ends = list(accumulate(triton.cdiv(size, _NUMBERS) for size in sizes))
    addresses = [[row[j].data_ptr() for row in rows] for j in (0, 1, -1)]
    table = torch.tensor([*addresses, sizes, [0, *ends[:-1]]], pin_memory=p.is_cuda)
    with on(p.device):
        table = table.to(p.device, non_blocking=True)
        sgd_update_kernel[(ends[-1],)](
            table, len(rows), lr, momentum, dampening, weight_decay,
            P=_TYPES[p.dtype], D=_TYPES[others[0].dtype], B=_TYPES[others[-1].dtype], MOMENTUM=bool(momentum),
            NESTEROV=nesterov, MAXIMIZE=maximize, EVEN=_even(rows[0]), NUMBERS=_NUMBERS, num_warps=8,
        )  # fmt: skip
