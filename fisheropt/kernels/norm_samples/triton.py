"""One program a sample and range of its positions, with whole rows in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fisheropt.kernels.triton import on, splits, summed

_NUMBERS = 4096  # in the tile of one program


@triton.jit
def norm_kernel(
    x,
    g,
    weight,
    gradient,
    scales,
    shifts,
    samples,
    positions,
    features,
    share,
    eps,
    x_n,
    x_t,
    x_i,
    g_n,
    g_t,
    g_i,
    w_i,
    BLOCK_T: tl.constexpr,
    BLOCK_I: tl.constexpr,
    CENTRED: tl.constexpr,
    INPUT: tl.constexpr,
    SCALED: tl.constexpr,
):
    """Writes Σₜ gₙₜ x̂ₙₜ and Σₜ gₙₜ of a share of positions [part, n, i]; with INPUT the input's gradient [n, t, i] too."""
    sample, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    columns = tl.arange(0, BLOCK_I)
    inside = columns < features
    x += sample * x_n + columns[None, :].to(tl.int64) * x_i
    g += sample * g_n + columns[None, :].to(tl.int64) * g_i
    scale = tl.zeros((BLOCK_T, BLOCK_I), tl.float32)
    shift = tl.zeros((BLOCK_T, BLOCK_I), tl.float32)
    w = tl.full((BLOCK_I,), 1.0, tl.float32)
    if INPUT and SCALED:
        w = tl.load(weight + columns.to(tl.int64) * w_i, mask=inside, other=0.0).to(tl.float32)
    last = min((part + 1) * share, positions)
    for start in range(part * share, last, BLOCK_T):
        t = (start + tl.arange(0, BLOCK_T)).to(tl.int64)
        live = (t < last)[:, None] & inside[None, :]
        hat = tl.load(x + t[:, None] * x_t, mask=live, other=0.0).to(tl.float32)
        given = tl.load(g + t[:, None] * g_t, mask=live, other=0.0).to(tl.float32)
        if CENTRED:
            hat = tl.where(live, hat - (tl.sum(hat, axis=1) / features)[:, None], 0.0)
        inverse = 1.0 / tl.sqrt(tl.sum(hat * hat, axis=1) / features + eps)
        hat = hat * inverse[:, None]
        scale += given * hat
        shift += given
        if INPUT:
            given = given * w[None, :]
            pulled = given - hat * (tl.sum(given * hat, axis=1) / features)[:, None]
            if CENTRED:
                pulled = pulled - (tl.sum(given, axis=1) / features)[:, None]
            out = gradient + (sample * positions + t[:, None]) * features + columns[None, :]
            tl.store(out, (pulled * inverse[:, None]).to(gradient.dtype.element_ty), mask=live)
    h = (part.to(tl.int64) * samples + sample) * features + columns
    tl.store(scales + h, tl.sum(scale, axis=0), mask=inside)
    tl.store(shifts + h, tl.sum(shift, axis=0), mask=inside)


def launch(
    x: Tensor, g: Tensor, weight: Tensor | None, eps: float, centred: bool, gradient: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Lay samples and ranges of positions out; the input's gradient is written where one is given to be filled."""
    samples, positions, features = x.shape
    wide = triton.next_power_of_2(max(1, features))
    together = min(triton.next_power_of_2(max(1, positions)), max(1, min(16, _NUMBERS // wide)))
    parts = splits(samples, positions, x.device)
    scales = torch.empty(parts, samples, features, dtype=torch.float32, device=x.device)
    shifts = torch.empty(parts, samples, features, dtype=torch.float32, device=x.device)
    if scales.numel():
        with on(x.device):
            norm_kernel[(samples, parts)](
                x, g, x if weight is None else weight, x if gradient is None else gradient, scales, shifts,
                samples, positions, features, triton.cdiv(positions, parts), eps, *x.stride(), *g.stride(),
                0 if weight is None else weight.stride(0), BLOCK_T=together, BLOCK_I=wide,
                CENTRED=centred, INPUT=gradient is not None, SCALED=weight is not None,
                num_warps=16 if wide > _NUMBERS else 8,
            )  # fmt: skip
    return scales, shifts


def norm_samples(x: Tensor, g: Tensor, eps: float, centred: bool) -> tuple[Tensor, Tensor]:
    """Add up what the ranges of positions leave."""
    scales, shifts = launch(x, g, None, eps, centred, None)
    return summed(scales), summed(shifts)
