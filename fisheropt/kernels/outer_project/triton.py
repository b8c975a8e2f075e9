"""One program a tile [o, i] and range of samples: hₙ is formed in registers, added up, and met with every direction."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fisheropt.kernels.triton import alike, block, on, precision, sample_tile, splits, summed, warps


@triton.jit
def outer_project_kernel(
    g,
    a,
    basis,
    total,
    coordinates,
    samples,
    positions,
    outputs,
    inputs,
    directions,
    share,
    g_n,
    g_t,
    g_o,
    a_n,
    a_t,
    a_i,
    v_k,
    v_o,
    v_i,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_T: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Writes the sum of a share of samples [part, o, i], and this tile's part of their coordinates [tile, n, k]."""
    tile, part = tl.program_id(0), tl.program_id(1)
    across = tl.cdiv(inputs, BLOCK_I)
    rows = (tile // across) * BLOCK_O + tl.arange(0, BLOCK_O)
    columns = (tile % across) * BLOCK_I + tl.arange(0, BLOCK_I)
    inside = (rows < outputs)[:, None] & (columns < inputs)[None, :]
    vectors = basis + rows[:, None].to(tl.int64) * v_o + columns[None, :].to(tl.int64) * v_i
    added = tl.zeros((BLOCK_O, BLOCK_I), tl.float32)
    for sample in range(part * share, min((part + 1) * share, samples)):
        h = sample_tile(
            g, a, sample, rows, columns, positions, outputs, inputs, g_n, g_t, g_o, a_n, a_t, a_i,
            BLOCK_O, BLOCK_I, BLOCK_T, PRECISION,
        )  # fmt: skip
        added += h
        z = coordinates + (tile.to(tl.int64) * samples + sample) * directions
        for k in range(0, directions):
            v = tl.load(vectors + tl.cast(k, tl.int64) * v_k, mask=inside, other=0.0).to(tl.float32)
            tl.store(z + k, tl.sum(tl.sum(h * v, axis=1), axis=0))
    out = (part.to(tl.int64) * outputs + rows[:, None]) * inputs + columns[None, :]
    tl.store(total + out, added, mask=inside)


def outer_project(g: Tensor, a: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Lay the tiles out, and add up what they leave: coordinates over tiles, the sum over ranges of samples."""
    g, a = alike(g, a)
    (samples, positions, outputs), inputs, directions = g.shape, a.shape[2], basis.shape[0]
    rows, columns = block(outputs), block(inputs)
    tiles = triton.cdiv(outputs, rows) * triton.cdiv(inputs, columns)
    parts = splits(tiles, samples, g.device)
    total = torch.empty(parts, outputs, inputs, dtype=torch.float32, device=g.device)
    coordinates = torch.empty(tiles, samples, directions, dtype=torch.float32, device=g.device)
    if tiles:
        with on(g.device):
            outer_project_kernel[(tiles, parts)](
                g, a, basis, total, coordinates, samples, positions, outputs, inputs, directions,
                triton.cdiv(samples, parts), *g.stride(), *a.stride(), *basis.stride(),
                BLOCK_O=rows, BLOCK_I=columns, BLOCK_T=block(positions, 32), PRECISION=precision(g.dtype),
                num_warps=warps(g.dtype),
            )  # fmt: skip
    return summed(total), coordinates.sum(0)
