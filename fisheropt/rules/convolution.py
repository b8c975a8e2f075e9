"""Convolutions of one to three axes, and transposed ones."""

from __future__ import annotations

from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from fisheropt.persample import Convolved, Dense, Geometry, PerSample
from fisheropt.rules.registry import Rule, batched, needed, rule


@final
@rule(nn.Conv1d)
@rule(nn.Conv2d)
@rule(nn.Conv3d)
class Convolution(Rule):
    """Weight hₙ = Σₜ gₙₜ aₙₜᵀ over patches aₙₜ of the padded input, bias hₙ = Σₜ gₙₜ."""

    in_place: ClassVar[bool] = True
    serves: ClassVar[frozenset[str] | None] = frozenset({"weight", "bias"})
    lends: ClassVar[frozenset[str]] = frozenset({"weight", "bias"})

    def prepare(self, module: nn.Module) -> Rule:
        return self

    def saved(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Tensor, ...], Any]:
        assert isinstance(module.weight, Tensor)
        x = batched(module, args, kwargs, module.weight.ndim)
        return (x,) if needed(module) else (), None

    def forms(
        self, module: nn.Module, names: tuple[str, ...], saved: tuple[Tensor, ...], context: Any, grad: Tensor
    ) -> dict[str, PerSample]:
        assert isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
        forms: dict[str, PerSample] = {}
        if saved and "weight" in names:
            x, padding = _padded(module, saved[0])
            geometry = Geometry(module.stride, padding, module.dilation, module.groups)
            forms["weight"] = Convolved(grad, x, module.weight.shape, geometry)
        if "bias" in names:
            forms["bias"] = _bias(grad)
        return forms


@final
@rule(nn.ConvTranspose1d)
@rule(nn.ConvTranspose2d)
@rule(nn.ConvTranspose3d)
class TransposedConvolution(Rule):
    """The convolution read backwards: its output's gradient is what the kernel slides over, its input what comes out."""

    in_place: ClassVar[bool] = True
    serves: ClassVar[frozenset[str] | None] = frozenset({"weight", "bias"})
    lends: ClassVar[frozenset[str]] = frozenset({"weight", "bias"})

    def prepare(self, module: nn.Module) -> Rule:
        return self

    def saved(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Tensor, ...], Any]:
        assert isinstance(module.weight, Tensor)
        x = batched(module, args, kwargs, module.weight.ndim)
        return (x,) if needed(module) else (), None

    def forms(
        self, module: nn.Module, names: tuple[str, ...], saved: tuple[Tensor, ...], context: Any, grad: Tensor
    ) -> dict[str, PerSample]:
        assert isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d))
        forms: dict[str, PerSample] = {}
        if saved and "weight" in names:
            slid, padding = _slid(module, saved[0], grad)
            geometry = Geometry(module.stride, padding, module.dilation, module.groups)
            forms["weight"] = Convolved(saved[0], slid, module.weight.shape, geometry)
        if "bias" in names:
            forms["bias"] = _bias(grad)
        return forms


def _bias(grad: Tensor) -> Dense:
    return Dense(grad.flatten(2).sum(2, dtype=torch.promote_types(grad.dtype, torch.float32)))


def _slid(
    module: nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d, x: Tensor, grad: Tensor
) -> tuple[Tensor, tuple[int, ...]]:
    """The output's gradient, and its margins; where the output has room for another position, that is cut off."""
    assert isinstance(module.padding, tuple)
    axes = zip(module.stride, module.padding, module.dilation, module.kernel_size, strict=True)
    needed = [
        (size - 1) * step - 2 * margin + apart * (width - 1) + 1
        for size, (step, margin, apart, width) in zip(x.shape[2:], axes, strict=True)
    ]
    extra = [found - size for found, size in zip(grad.shape[2:], needed, strict=True)]
    if all(more < step for more, step in zip(extra, module.stride, strict=True)):
        return grad, module.padding
    sides = [side for margin, more in zip(module.padding, extra, strict=True) for side in (margin - more, margin)]
    return pad(grad, sides[::-1]), tuple(0 for _ in extra)


def _padded(module: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """The input, and what zeros its convolution still adds on both sides of each axis; other margins are written out."""
    margins = [(left, right) for left, right in _margins(module)]
    if module.padding_mode == "zeros" and all(left == right for left, right in margins):
        return x, tuple(left for left, _ in margins)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return pad(x, [size for margin in reversed(margins) for size in margin], mode), tuple(0 for _ in margins)


def _margins(module: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> list[tuple[int, int]]:
    """How much is added before and after each axis."""
    if module.padding == "valid":
        return [(0, 0) for _ in module.kernel_size]
    if module.padding == "same":
        reach = [apart * (width - 1) for apart, width in zip(module.dilation, module.kernel_size, strict=True)]
        return [(size // 2, size - size // 2) for size in reach]
    assert isinstance(module.padding, tuple)
    return [(size, size) for size in module.padding]
