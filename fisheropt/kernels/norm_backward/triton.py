"""The kernel of `norm_samples` with the input's gradient, and one more program a sample for norms and coordinates."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fisheropt.kernels.norm_backward.reference import NormBackward
from fisheropt.kernels.norm_samples.triton import launch
from fisheropt.kernels.triton import block, on

_FEATURES = 128


@triton.jit
def measure_kernel(
    parts,
    basis,
    norms,
    coordinates,
    shares,
    samples,
    features,
    directions,
    v_k,
    v_i,
    BLOCK_K: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    """Writes ‖hₙ‖² [n] and ⟨hₙ, v_k⟩ [n, k] of hₙ, which is a sum over parts [part, n, i]."""
    sample = tl.program_id(0).to(tl.int64)
    ks = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    square = tl.zeros((BLOCK_I,), tl.float32)
    z = tl.zeros((BLOCK_K,), tl.float32)
    for start in range(0, features, BLOCK_I):
        columns = (start + tl.arange(0, BLOCK_I)).to(tl.int64)
        inside = columns < features
        h = tl.zeros((BLOCK_I,), tl.float32)
        for part in range(0, shares):
            h += tl.load(parts + (part * samples + sample) * features + columns, mask=inside, other=0.0)
        square += h * h
        at = basis + ks[:, None].to(tl.int64) * v_k + columns[None, :] * v_i
        v = tl.load(at, mask=(ks < directions)[:, None] & inside[None, :], other=0.0).to(tl.float32)
        z += tl.sum(v * h[None, :], axis=1)
    tl.store(coordinates + sample * directions + ks, z, mask=ks < directions)
    if tl.program_id(1) == 0:
        tl.store(norms + sample, tl.sum(square, axis=0))


def _measured(parts: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """‖hₙ‖² and ⟨hₙ, v_k⟩."""
    shares, samples, features = parts.shape
    directions = basis.shape[0]
    norms = torch.empty(samples, dtype=torch.float32, device=parts.device)
    coordinates = torch.empty(samples, directions, dtype=torch.float32, device=parts.device)
    together = block(directions, 16)
    if samples:
        with on(parts.device):
            measure_kernel[(samples, max(1, triton.cdiv(directions, together)))](
                parts, basis, norms, coordinates, shares, samples, features, directions, *basis.stride(),
                BLOCK_K=together, BLOCK_I=block(features, _FEATURES), num_warps=4,
            )  # fmt: skip
    return norms, coordinates


def norm_backward(
    x: Tensor,
    g: Tensor,
    weight: Tensor | None,
    scale_basis: Tensor,
    shift_basis: Tensor,
    eps: float,
    centred: bool,
) -> NormBackward:
    """Both kernels, the second for scale and shift each; sums over samples are torch's, of n·i numbers."""
    gradient = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    scales, shifts = launch(x, g, weight, eps, centred, gradient)
    scale_norms, scale_coordinates = _measured(scales, scale_basis)
    shift_norms, shift_coordinates = _measured(shifts, shift_basis)
    return NormBackward(
        gradient,
        scales.sum((0, 1)),
        shifts.sum((0, 1)),
        scale_norms,
        shift_norms,
        scale_coordinates,
        shift_coordinates,
    )
