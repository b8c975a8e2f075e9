"""Tables that are looked up: nn.Embedding and nn.EmbeddingBag."""

from __future__ import annotations

from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from fisheropt.persample import PerSample, Rows
from fisheropt.rules.registry import Rule, batched, rule

_FREQUENCY = "scale_grad_by_freq divides by counts over the batch, which couples its samples; build it without"
_SPARSE = "its gradient is sparse; build it with sparse=False"


@final
@rule(nn.Embedding)
class Embedding(Rule):
    """Row indexₙₜ of hₙ receives gₙₜ, for inputs of any rank; the row of `padding_idx` receives nothing."""

    in_place: ClassVar[bool] = True
    serves: ClassVar[frozenset[str] | None] = frozenset({"weight"})
    lends: ClassVar[frozenset[str]] = frozenset({"weight"})

    def prepare(self, module: nn.Module) -> Rule:
        return self

    def refusal(self, module: nn.Module) -> str | None:
        """Options under which the samples' gradients do not add up to the weight's."""
        if module.scale_grad_by_freq:
            return _FREQUENCY
        return _SPARSE if module.sparse else None

    def per_position(self, module: nn.Module) -> int | None:
        return 1

    def saved(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Tensor, ...], Any]:
        return (batched(module, args, kwargs, 1),), None

    def forms(
        self, module: nn.Module, names: tuple[str, ...], saved: tuple[Tensor, ...], context: Any, grad: Tensor
    ) -> dict[str, PerSample]:
        assert isinstance(module, nn.Embedding)
        index = saved[0].reshape(grad.shape[0], -1)
        g = grad.reshape(*index.shape, -1)
        if module.padding_idx is not None:
            g = g * (index != module.padding_idx)[:, :, None]
        return {"weight": Rows(g, index, module.num_embeddings)}


@final
@rule(nn.EmbeddingBag)
class EmbeddingBag(Rule):
    """Row indexₙₜ of hₙ receives wₙₜ gₙ, where w is 1 in a sum, one over the bag's size in a mean, or given."""

    in_place: ClassVar[bool] = True
    serves: ClassVar[frozenset[str] | None] = frozenset({"weight"})

    def prepare(self, module: nn.Module) -> Rule:
        return self

    def refusal(self, module: nn.Module) -> str | None:
        """Options under which the samples' gradients do not add up to the weight's, or do not follow from the bags."""
        if module.mode == "max":
            return "a maximum over the bag is not served; build it with mode='sum' or mode='mean'"
        if module.scale_grad_by_freq:
            return _FREQUENCY
        return _SPARSE if module.sparse else None

    def saved(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Tensor, ...], Any]:
        given = dict(zip(("input", "offsets", "per_sample_weights"), args, strict=False)) | kwargs
        if given.get("offsets") is not None:
            raise TypeError(
                f"{module} was called with offsets, so that bags are no axis of its input; pad the bags to one length and "
                f"write {type(module).__name__}(..., padding_idx=...) with an input [samples, bag]"
            )
        weights = given.get("per_sample_weights")
        return (given["input"],) if weights is None else (given["input"], weights), None

    def forms(
        self, module: nn.Module, names: tuple[str, ...], saved: tuple[Tensor, ...], context: Any, grad: Tensor
    ) -> dict[str, PerSample]:
        assert isinstance(module, nn.EmbeddingBag)
        index = saved[0]
        counted = torch.ones_like(index, dtype=grad.dtype)
        if module.padding_idx is not None:
            counted = (index != module.padding_idx).to(grad.dtype)
        if module.mode == "mean":
            counted = counted / counted.sum(1, keepdim=True).clamp_min(1)
        if len(saved) > 1:
            counted = counted * saved[1].to(grad.dtype)
        return {"weight": Rows(grad[:, None] * counted[:, :, None], index, module.num_embeddings)}
