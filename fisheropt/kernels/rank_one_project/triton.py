"""One program a range of rows (n, t) and of directions; the sum over t is torch's, of k numbers a row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fisheropt.kernels.triton import WIDEN, block, on, precision

_ROWS = 32
_FEW = 4096  # rows, below which a program takes half as many
_FEATURES = 64


@triton.jit
def along(x, x_n, x_t, vectors, v_k, v_d, sample, t, ks, live, directions, features,
          BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, x_d, PRECISION: tl.constexpr):  # fmt: skip
    """Rows of x times vectors, [rows, k], float32."""
    rows = x + sample * x_n + t * x_t
    found = tl.zeros((BLOCK_R, BLOCK_K), tl.float32)
    for start in range(0, features, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        here = d < features
        left = tl.load(rows[:, None] + d[None, :].to(tl.int64) * x_d, mask=live[:, None] & here[None, :], other=0.0)
        at = vectors + ks[None, :].to(tl.int64) * v_k + d[:, None].to(tl.int64) * v_d
        right = tl.load(at, mask=here[:, None] & (ks < directions)[None, :], other=0.0)
        if WIDEN:
            right = right.to(tl.float32)
        found = tl.dot(left.to(right.dtype), right, found, input_precision=PRECISION)
    return found


@triton.jit
def rank_one_project_kernel(
    g,
    a,
    left,
    right,
    products,
    rows,
    positions,
    outputs,
    inputs,
    directions,
    g_n,
    g_t,
    g_o,
    a_n,
    a_t,
    a_i,
    p_k,
    p_o,
    q_k,
    q_i,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
    PRECISION_G: tl.constexpr,
    PRECISION_A: tl.constexpr,
):
    """Writes (gₙₜ·p_k)(aₙₜ·q_k), [n·t, k]."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    ks = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    live = row < rows
    sample, t = row // positions, row % positions
    one = along(g, g_n, g_t, left, p_k, p_o, sample, t, ks, live, directions, outputs,
                BLOCK_R, BLOCK_K, BLOCK_O, g_o, PRECISION_G)  # fmt: skip
    other = along(a, a_n, a_t, right, q_k, q_i, sample, t, ks, live, directions, inputs,
                  BLOCK_R, BLOCK_K, BLOCK_I, a_i, PRECISION_A)  # fmt: skip
    out = row[:, None] * directions + ks[None, :]
    tl.store(products + out, one * other, mask=live[:, None] & (ks < directions)[None, :])


def rank_one_project(g: Tensor, a: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Lay rows and directions out, and add the positions of a sample up."""
    left = left.to(torch.promote_types(g.dtype, left.dtype))
    right = right.to(torch.promote_types(a.dtype, right.dtype))
    (samples, positions, outputs), inputs, directions = g.shape, a.shape[2], left.shape[0]
    rows, together = samples * positions, block(directions, 32)
    each = _ROWS if rows > _FEW else _ROWS // 2
    products = torch.empty(samples, positions, directions, dtype=torch.float32, device=g.device)
    grid = (triton.cdiv(rows, each), triton.cdiv(directions, together))
    if products.numel():
        with on(g.device):
            rank_one_project_kernel[grid](
                g, a, left, right, products, rows, positions, outputs, inputs, directions,
                *g.stride(), *a.stride(), *left.stride(), *right.stride(),
                BLOCK_R=each, BLOCK_K=together, BLOCK_O=block(outputs, _FEATURES), BLOCK_I=block(inputs, _FEATURES),
                PRECISION_G=precision(left.dtype), PRECISION_A=precision(right.dtype), num_warps=4,
            )  # fmt: skip
    return products[:, 0] if positions == 1 else products.sum(1)
