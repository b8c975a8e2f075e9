"""One program a tile [o, i] and range of samples: hₙ is formed in registers, and added up with its squares."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fisheropt.kernels.triton import alike, block, on, precision, sample_tile, splits, summed, warps


@triton.jit
def outer_square_sum_kernel(
    g,
    a,
    total,
    squares,
    lengths,
    samples,
    positions,
    outputs,
    inputs,
    share,
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
    """Writes both sums of a share of samples [part, o, i], and this tile's part of their squared norms [tile, n]."""
    tile, part = tl.program_id(0), tl.program_id(1)
    across = tl.cdiv(inputs, BLOCK_I)
    rows = (tile // across) * BLOCK_O + tl.arange(0, BLOCK_O)
    columns = (tile % across) * BLOCK_I + tl.arange(0, BLOCK_I)
    inside = (rows < outputs)[:, None] & (columns < inputs)[None, :]
    added = tl.zeros((BLOCK_O, BLOCK_I), tl.float32)
    squared = tl.zeros((BLOCK_O, BLOCK_I), tl.float32)
    for sample in range(part * share, min((part + 1) * share, samples)):
        h = sample_tile(
            g, a, sample, rows, columns, positions, outputs, inputs, g_n, g_t, g_o, a_n, a_t, a_i,
            BLOCK_O, BLOCK_I, BLOCK_T, PRECISION,
        )  # fmt: skip
        added += h
        h = h * h
        squared += h
        tl.store(lengths + tile.to(tl.int64) * samples + sample, tl.sum(tl.sum(h, axis=1), axis=0))
    out = (part.to(tl.int64) * outputs + rows[:, None]) * inputs + columns[None, :]
    tl.store(total + out, added, mask=inside)
    tl.store(squares + out, squared, mask=inside)


def outer_square_sum(g: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Lay the tiles out, and add up what they leave: norms over tiles, the sums over ranges of samples."""
    g, a = alike(g, a)
    (samples, positions, outputs), inputs = g.shape, a.shape[2]
    rows, columns = block(outputs), block(inputs)
    tiles = triton.cdiv(outputs, rows) * triton.cdiv(inputs, columns)
    parts = splits(tiles, samples, g.device)
    total = torch.empty(parts, outputs, inputs, dtype=torch.float32, device=g.device)
    squares = torch.empty(parts, outputs, inputs, dtype=torch.float32, device=g.device)
    lengths = torch.empty(tiles, samples, dtype=torch.float32, device=g.device)
    if tiles:
        with on(g.device):
            outer_square_sum_kernel[(tiles, parts)](
                g, a, total, squares, lengths, samples, positions, outputs, inputs,
                triton.cdiv(samples, parts), *g.stride(), *a.stride(),
                BLOCK_O=rows, BLOCK_I=columns, BLOCK_T=block(positions, 32), PRECISION=precision(g.dtype),
                num_warps=warps(g.dtype),
            )  # fmt: skip
    return summed(total), summed(squares), lengths.sum(0)
