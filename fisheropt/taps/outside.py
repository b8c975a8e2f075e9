"""How much of a gradient did not come through the samples of the tapped modules."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fisheropt.taps.layers import Layers
from fisheropt.taps.sample import SampleTap

_VISIBLE = 0.01
"""Ours: far above the rounding of bfloat16, whose relative variance is 2⁻¹⁶."""


def outside(tap: SampleTap) -> float:
    """sin² of the angle between p.grad and Σₙ hₙ, which are parallel where the modules' calls made the whole gradient.

    A scale, of the loss or by clipping, drops out. Zero as well where the difference drowns in the scatter of the
    samples, where a number is not finite, and under DistributedDataParallel, whose p.grad is of all ranks.
    Reads values back to the host.

    Args:
        tap: after a backward, before its readings are cleared.

    Returns:
        a share of ‖p.grad‖² in the tapped directions, in [0, 1].
    """
    if tap.channel.parallel:
        return 0.0
    products = _joint(tap) if tap.directions else _apart(tap)
    if products is None:
        return 0.0
    grad, cross, total, scatter = products.tolist()
    if not math.isfinite(grad + cross + total + scatter) or grad == 0:
        return 0.0
    if total == 0 or cross == 0:
        return 1.0
    share = max(0.0, 1 - cross * cross / (grad * total))
    residual = share * grad * (total / cross) ** 2  # of p.grad at the scale of Σₙ hₙ
    return share if min(share, residual / scatter) > _VISIBLE else 0.0


def _products(grad: Tensor, total: Tensor, scatter: Tensor) -> Tensor:
    """‖p.grad‖², ⟨p.grad, Σₙ hₙ⟩, ‖Σₙ hₙ‖² and Σₙ ‖hₙ‖²."""
    grad, total = grad.double().flatten(), total.double().flatten()
    return torch.stack([grad @ grad, grad @ total, total @ total, scatter.double()])


def _joint(tap: SampleTap) -> Tensor | None:
    """In the directions of a joint statistic."""
    layers = tap.layers()
    if layers is not None:
        return _by_layers(tap, layers)
    reading = tap.augmented()
    shares = [
        along.of_dense(_gradient(tap, name).unsqueeze(0))[0].double()
        for name, along in tap.directions.items()
        if _trained(tap.parameters[name])
    ]
    if reading is None or not shares:
        return None
    return _products(torch.stack(shares).sum(0), reading[:-1, -1], reading[:-1, :-1].trace())


def _by_layers(tap: SampleTap, layers: Layers) -> Tensor | None:
    """Over all parameters of a statistic that has their sums, which one direction would not show."""
    found = [
        _products(_gradient(tap, name), layers.sums[name], layers.moments[name].sum())
        for name, p in tap.parameters.items()
        if _trained(p) and name in layers.sums
    ]
    return torch.stack(found).sum(0) if found else None


def _apart(tap: SampleTap) -> Tensor | None:
    """Over all parameters of a statistic of each by itself."""
    found = [
        _products(_gradient(tap, name), _read(tap.channel.sums[name]), _read(tap.channel.leaves[name]).sum())
        for name, p in tap.parameters.items()
        if _trained(p)
    ]
    return torch.stack(found).sum(0) if found else None


def _read(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf).detach() if leaf.grad is None else leaf.grad


def _gradient(tap: SampleTap, name: str) -> Tensor:
    p = tap.parameters[name]
    assert p.grad is not None
    return p.grad.detach().to(tap.statistic.accumulator(p))


def _trained(p: Tensor) -> bool:
    return p.requires_grad and p.grad is not None and not p.grad.is_sparse
