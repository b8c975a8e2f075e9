"""nn.Linear: inputs [n, ..., i], one outer product a position."""

from __future__ import annotations

from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from fisheropt.persample import Dense, Outer, PerSample
from fisheropt.rules.registry import Rule, batched, needed, rule


@final
@rule(nn.Linear)
class Linear(Rule):
    """Weight hₙ = Σₜ gₙₜ aₙₜᵀ, bias hₙ = Σₜ gₙₜ; t runs over all axes between the first and the last."""

    in_place: ClassVar[bool] = True
    serves: ClassVar[frozenset[str] | None] = frozenset({"weight", "bias"})
    lends: ClassVar[frozenset[str]] = frozenset({"weight", "bias"})

    def prepare(self, module: nn.Module) -> Rule:
        return self

    def per_position(self, module: nn.Module) -> int | None:
        return 1

    def saved(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Tensor, ...], Any]:
        x = batched(module, args, kwargs, 2)
        return (x,) if needed(module) else (), None

    def forms(
        self, module: nn.Module, names: tuple[str, ...], saved: tuple[Tensor, ...], context: Any, grad: Tensor
    ) -> dict[str, PerSample]:
        samples = grad.shape[0]
        positions = grad.shape[1:-1].numel()  # named, as none is to be guessed of an empty batch
        g = grad.reshape(samples, positions, grad.shape[-1])
        forms: dict[str, PerSample] = {}
        if saved and "weight" in names:
            (a,) = saved
            forms["weight"] = Outer(g, a.reshape(samples, positions, a.shape[-1]))
        if "bias" in names:
            wide = torch.promote_types(g.dtype, torch.float32)
            forms["bias"] = Dense(g[:, 0].to(wide) if g.shape[1] == 1 else g.sum(1, dtype=wide))
        return forms
