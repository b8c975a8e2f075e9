"""Normalisation layers that keep samples apart: a scale and a shift of x̂, which is computed again."""

from __future__ import annotations

from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fisheropt.kernels import norm_samples, on_cuda
from fisheropt.persample import Dense, PerSample
from fisheropt.rules.registry import Rule, batched, needed, rule


@final
@rule(nn.LayerNorm)
@rule(nn.RMSNorm)
class FeatureNorm(Rule):
    """Weight hₙ = Σₜ gₙₜ x̂ₙₜ, bias hₙ = Σₜ gₙₜ; t runs over the axes between the first and the normalised ones."""

    in_place: ClassVar[bool] = True
    serves: ClassVar[frozenset[str] | None] = frozenset({"weight", "bias"})
    lends: ClassVar[frozenset[str]] = frozenset({"weight", "bias"})

    def prepare(self, module: nn.Module) -> Rule:
        return self

    def per_position(self, module: nn.Module) -> int | None:
        assert isinstance(module, (nn.LayerNorm, nn.RMSNorm))
        return len(module.normalized_shape)

    def saved(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Tensor, ...], Any]:
        assert isinstance(module, (nn.LayerNorm, nn.RMSNorm))
        x = batched(module, args, kwargs, 1 + len(module.normalized_shape))
        return (x,) if needed(module) else (), None

    def forms(
        self, module: nn.Module, names: tuple[str, ...], saved: tuple[Tensor, ...], context: Any, grad: Tensor
    ) -> dict[str, PerSample]:
        assert isinstance(module, (nn.LayerNorm, nn.RMSNorm))
        if saved and module.eps is not None and on_cuda(saved[0], grad):
            return _in_one_reading(module, names, saved[0], grad)
        between = tuple(range(1, grad.ndim - len(module.normalized_shape)))
        return _scale_and_shift(names, _features(module, saved[0]) if saved else None, grad, between)


@final
@rule(nn.GroupNorm)
@rule(nn.BatchNorm1d)
@rule(nn.BatchNorm2d)
@rule(nn.BatchNorm3d)
class ChannelNorm(Rule):
    """Weight hₙ = Σₜ gₙₜ x̂ₙₜ, bias hₙ = Σₜ gₙₜ; t runs over the axes after the channels.

    BatchNorm is served in eval mode, where x̂ is of running statistics; in train mode the tap refuses it.
    """

    in_place: ClassVar[bool] = True
    serves: ClassVar[frozenset[str] | None] = frozenset({"weight", "bias"})
    lends: ClassVar[frozenset[str]] = frozenset({"weight", "bias"})

    def prepare(self, module: nn.Module) -> Rule:
        return self

    def saved(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Tensor, ...], Any]:
        x = batched(module, args, kwargs, 2)
        if not needed(module):
            return (), None
        if isinstance(module, nn.GroupNorm):
            return (x,), None
        mean, variance = module.running_mean, module.running_var  # of this call: functional_call may have lent them
        assert isinstance(mean, Tensor) and isinstance(variance, Tensor)
        return (x, mean, variance), None

    def forms(
        self, module: nn.Module, names: tuple[str, ...], saved: tuple[Tensor, ...], context: Any, grad: Tensor
    ) -> dict[str, PerSample]:
        return _scale_and_shift(names, _channels(module, saved), grad, tuple(range(2, grad.ndim)))


def _in_one_reading(
    module: nn.LayerNorm | nn.RMSNorm, names: tuple[str, ...], x: Tensor, grad: Tensor
) -> dict[str, PerSample]:
    """Both from one reading of the input and its gradient, with no x̂ written out."""
    shape = torch.Size(module.normalized_shape)
    rows = (len(x), x.shape[1 : x.ndim - len(shape)].numel(), shape.numel())
    assert module.eps is not None
    scale, shift = norm_samples(x.reshape(rows), grad.reshape(rows), module.eps, isinstance(module, nn.LayerNorm))
    found = {"weight": scale, "bias": shift}
    return {name: Dense(found[name].reshape(-1, *shape)) for name in names}


def _features(module: nn.LayerNorm | nn.RMSNorm, x: Tensor) -> Tensor:
    if isinstance(module, nn.LayerNorm):
        return F.layer_norm(x, list(module.normalized_shape), eps=module.eps)
    return F.rms_norm(x, list(module.normalized_shape), eps=module.eps)


def _channels(module: nn.Module, saved: tuple[Tensor, ...]) -> Tensor | None:
    if not saved:
        return None
    if isinstance(module, nn.GroupNorm):
        return F.group_norm(saved[0], module.num_groups, eps=module.eps)
    assert isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d))
    x, mean, variance = saved
    return F.batch_norm(x, mean, variance, eps=module.eps)


def _scale_and_shift(
    names: tuple[str, ...], normalised: Tensor | None, grad: Tensor, positions: tuple[int, ...]
) -> dict[str, PerSample]:
    wide = torch.promote_types(grad.dtype, torch.float32)
    forms: dict[str, PerSample] = {}
    if normalised is not None and "weight" in names:
        h = grad.to(wide) * normalised.to(wide)
        forms["weight"] = Dense(h.sum(positions) if positions else h)
    if "bias" in names:
        forms["bias"] = Dense(grad.sum(positions, dtype=wide) if positions else grad)
    return forms
