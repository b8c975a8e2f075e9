"""What the Triton forms share: one sample's gradient in a tile, and how work is laid out on a device."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from fisheropt.kernels.kernel import INTERPRETED

WIDEN = tl.constexpr(INTERPRETED)
"""Triton's interpreter takes the bits of a bfloat16 for an integer when it multiplies matrices."""

_WIDEST = 64  # rows and columns of a tile: three of them in float32 fit 128 threads
_PROGRAMS = 2  # a multiprocessor


@triton.jit
def sample_tile(
    g,
    a,
    sample,
    rows,
    columns,
    positions,
    outputs,
    inputs,
    g_n,
    g_t,
    g_o,
    a_n,
    a_t,
    a_i,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_T: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Σₜ gₙₜ aₙₜᵀ of one sample, [rows, columns], float32."""
    g += tl.cast(sample, tl.int64) * g_n + rows[:, None].to(tl.int64) * g_o
    a += tl.cast(sample, tl.int64) * a_n + columns[None, :].to(tl.int64) * a_i
    h = tl.zeros((BLOCK_O, BLOCK_I), tl.float32)
    for start in range(0, positions, BLOCK_T):
        t = start + tl.arange(0, BLOCK_T)
        here = t < positions
        left = tl.load(g + t[None, :].to(tl.int64) * g_t, mask=(rows < outputs)[:, None] & here[None, :], other=0.0)
        right = tl.load(a + t[:, None].to(tl.int64) * a_t, mask=here[:, None] & (columns < inputs)[None, :], other=0.0)
        if WIDEN:
            left, right = left.to(tl.float32), right.to(tl.float32)
        h = tl.dot(left, right, h, input_precision=PRECISION)
    return h


def block(size: int, widest: int = _WIDEST) -> int:
    """The power of two that covers a size, within what a product of matrices takes."""
    return max(16, min(widest, triton.next_power_of_2(max(1, size))))


def precision(dtype: torch.dtype) -> str:
    """How float32 is multiplied: as good as torch.get_float32_matmul_precision() asks for, by three products of tf32."""
    if dtype is not torch.float32:
        return "ieee"  # products of half numbers are exact in float32
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def warps(dtype: torch.dtype) -> int:
    """How many share a tile: three products of tf32 need twice the registers."""
    return 8 if dtype is torch.float32 else 4


def splits(tiles: int, samples: int, device: torch.device) -> int:
    """Into how many ranges of samples to cut, that all multiprocessors have work."""
    if device.type != "cuda":
        return min(2, max(1, samples))  # the interpreter: one cut, that it is tested
    wanted = _PROGRAMS * torch.cuda.get_device_properties(device).multi_processor_count
    return max(1, min(samples, wanted // max(1, tiles)))


def alike(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Both in one dtype that holds either, as a product of matrices needs them."""
    dtype = torch.promote_types(left.dtype, right.dtype)
    return left.to(dtype), right.to(dtype)


def summed(parts: Tensor) -> Tensor:
    """The sum over parts, always in the same order."""
    return parts[0] if len(parts) == 1 else parts.sum(0)


def on(device: torch.device) -> AbstractContextManager[object]:
    """Makes the device the one that Triton launches on."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
