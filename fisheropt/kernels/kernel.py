"""What a kernel is: a definition in torch, a fast form in Triton, and an op that chooses between them by device.

Index legend: n sample, t position, o output and i input feature, k direction.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, NamedTuple, final

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

FORCED = os.environ.get("FISHEROPT_KERNELS") == "reference"
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and not FORCED
AVAILABLE = find_spec("triton") is not None and torch.version.hip is None and not FORCED
"""Whether Triton may be used; neither is asked again, so that a compiler can take them for constants."""

TILE = 1 << 23  # numbers in one temporary of several samples: 32 MiB of float32


class Sizes(NamedTuple):
    """How many samples, positions, outputs, inputs and directions."""

    n: int
    t: int
    o: int
    i: int
    k: int


@final
@dataclass(frozen=True)
class Kernel:
    """One kernel, as the tests find it.

    Args:
        op: a custom op, which calls the Triton form where `served` says so, and the reference otherwise.
        reference: the definition.
        example: the op's arguments of given sizes, of tensors that its second argument makes.
        mutates: at which places the op writes to its arguments.
    """

    op: Callable[..., Any]
    reference: Callable[..., Any]
    example: Callable[[Sizes, Callable[..., Tensor]], tuple[Any, ...]]
    mutates: tuple[int, ...] = ()


KERNELS: dict[str, Kernel] = {}


def register(kernel: Kernel) -> Kernel:
    """Enter a kernel under the name of its reference."""
    KERNELS[kernel.reference.__name__] = kernel
    return kernel


def served(*tensors: Tensor) -> bool:
    """Whether Triton takes these tensors: of float32 or less, on a CUDA device of compute capability 8 or 9.

    Earlier ones have no tensor cores for float32; for 10.0 Triton 3.7 fails to compile two of the kernels. In Triton's
    interpreter tensors on the CPU are taken too. FISHEROPT_KERNELS=reference forces the references.
    """
    if not AVAILABLE or any(x.dtype not in _NARROW for x in tensors):
        return False
    if all(x.is_cuda for x in tensors):
        return torch.cuda.get_device_capability(tensors[0].device)[0] in (8, 9)
    return INTERPRETED


def on_cuda(*tensors: Tensor) -> bool:
    """Whether a call of an op can pay: an op costs some 10 µs, and on a CPU is nothing but torch.

    An op has no rule for tensors in shards, and does not need one: their owners see what is local.
    """
    return AVAILABLE and all(x.is_cuda and not isinstance(x, DTensor) for x in tensors)


def accumulator(*tensors: Tensor) -> torch.dtype:
    """The dtype to add up in: float32, or float64 where a tensor has it."""
    dtype = torch.float32
    for x in tensors:
        dtype = torch.promote_types(dtype, x.dtype)
    return dtype


_NARROW = frozenset({torch.float32, torch.bfloat16, torch.float16})
