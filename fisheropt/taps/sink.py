"""The autograd functions by which a statistic becomes the gradient of a leaf.

`Sink` is the identity on a layer's output with more inputs, the sinks; its backward returns for them sums over samples.
`Fold` makes, from a leaf of shape [k+1, k+1], the sink [n, k] that all layers of a group share. Autograd sums the layers'
contributions zₙ to it before `Fold` squares them, so tied weights and modules called twice have their cross terms.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Layer(Protocol):
    """What a sink asks of the hook that placed it."""

    in_place: bool

    def contributions(self, saved: tuple[Tensor, ...], context: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The sinks' gradients, given what the layer saved and the gradient of its output."""
        ...


class Sink(torch.autograd.Function):
    """The identity on `output`; of the tensors the first `sinks` are the layer's, the others what its rule saved."""

    @staticmethod
    def forward(ctx: Any, layer: Layer, context: Any, sinks: int, output: Tensor, *tensors: Tensor) -> Tensor:
        ctx.layer, ctx.context = layer, context
        ctx.save_for_backward(*tensors[sinks:])
        if layer.in_place and not torch.compiler.is_compiling():
            ctx.mark_dirty(output)  # a view would break in-place activations that follow; a copy costs memory
            return output
        return output.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        contributions = ctx.layer.contributions(saved, ctx.context, grads[0])
        return None, None, None, grads[0], *contributions, *(None for _ in saved)


class Folded(Protocol):
    """What wants the complete coordinates beside their products."""

    def fold(self, z: Tensor) -> None:
        """Take in the coordinates [n, k] of all samples of a backward."""
        ...


class Fold(torch.autograd.Function):
    """A zero sink [n, k] whose gradient Z reaches the leaf as [Z 1]ᵀ[Z 1] = [[Σzzᵀ, Σz], [Σzᵀ, n]]."""

    @staticmethod
    def forward(ctx: Any, leaf: Tensor, samples: int, folded: Folded | None) -> Tensor:
        ctx.dtype, ctx.folded = leaf.dtype, folded
        return leaf.new_zeros(samples, leaf.shape[0] - 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        wide = grads[0].to(ctx.dtype)
        if ctx.folded is not None:
            ctx.folded.fold(wide)
        z = torch.cat([wide, wide.new_ones(wide.shape[0], 1)], 1)
        return z.T @ z, None, None


class Differentiated(Protocol):
    """What wants to know that the loss of a forward is differentiated."""

    def differentiate(self) -> None:
        """Count a backward."""
        ...


class Once(torch.autograd.Function):
    """The identity on the leaf of a layer's count, which no backward reaches that only looks at gradients."""

    @staticmethod
    def forward(ctx: Any, leaf: Tensor, passage: Differentiated) -> Tensor:
        ctx.passage = passage
        return leaf.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        ctx.passage.differentiate()
        return grads[0], None


class Closed(torch.autograd.Function):
    """The identity on an output whose gradient nothing could see."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, message: str) -> Tensor:
        ctx.message = message
        return output.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        raise RuntimeError(ctx.message)
