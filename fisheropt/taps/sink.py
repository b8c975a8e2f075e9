"""The autograd functions by which a statistic becomes the gradient of a leaf.

A compiled graph keeps no Python objects. There `Sink` is the identity on a layer's output with more inputs, the sinks; its
backward returns for them sums over samples. `Fold` makes, from a leaf of shape [k+1, k+1], the sink [n, k] that all layers of
a group share. Autograd sums the layers' contributions zₙ to it before `Fold` squares them, so tied weights and modules
called twice have their cross terms.

In eager mode the layers' backwards leave what they have with one object, which is cheaper: `Seen` is the identity on the
output, and `Gate` a zero that all layers of a forward take, so that its backward comes when theirs are done.
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


class Called(Protocol):
    """What the identity on an output asks when its backward runs."""

    in_place: bool

    def backward(self, saved: tuple[Tensor, ...], grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of the input, beside that which comes through the layer, and of the weights that were lent."""
        ...


class Seen(torch.autograd.Function):
    """The identity on `output`; of the other tensors the first is the gate, the second the input, then weights."""

    @staticmethod
    def forward(ctx: Any, call: Called, saved: tuple[Tensor, ...], output: Tensor, *tensors: Tensor | None) -> Tensor:
        ctx.call, ctx.others = call, len(tensors) - 1
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*saved)
        # neither a copy, which costs memory, nor a view, which would break in-place activations that follow; modified in
        # place a view, as of three axes, would have its gradient copied three times
        return output.detach() if call.in_place else output.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if grads[0] is None:
            return None, None, None, None, *(None for _ in range(ctx.others))
        return None, None, grads[0], None, *ctx.call.backward(ctx.saved_tensors, grads[0])


class Closing(Protocol):
    """What waits for all layers of a forward."""

    def close(self) -> Tensor | None:
        """The gradient of the leaf."""
        ...


class Gate(torch.autograd.Function):
    """A zero whose backward comes after those of all that took it."""

    @staticmethod
    def forward(ctx: Any, leaf: Tensor, closing: Closing) -> Tensor:
        ctx.closing = closing
        ctx.set_materialize_grads(False)
        return leaf.new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None]:
        return ctx.closing.close(), None


class Receiving(Protocol):
    """What collects the coordinates of a forward's samples."""

    def receive(self, z: Tensor) -> None:
        """Take in those of layers that cannot leave them themselves."""
        ...


class Carry(torch.autograd.Function):
    """A zero sink [n, k] for compiled layers of an eager model, whose gradient joins the coordinates of the others.

    It takes the gate, which therefore closes after it: squared apart, the cross terms between layers would be lost.
    """

    @staticmethod
    def forward(ctx: Any, gate: Tensor, receiving: Receiving, samples: int, count: int) -> Tensor:
        ctx.receiving = receiving
        ctx.set_materialize_grads(False)
        return gate.new_zeros(samples, count)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[None, None, None, None]:
        if grads[0] is not None:
            ctx.receiving.receive(grads[0])
        return None, None, None, None


class Fold(torch.autograd.Function):
    """A zero sink [n, k] whose gradient Z reaches the leaf as [Z 1]ᵀ[Z 1] = [[Σzzᵀ, Σz], [Σzᵀ, n]]."""

    @staticmethod
    def forward(ctx: Any, leaf: Tensor, samples: int) -> Tensor:
        ctx.dtype = leaf.dtype
        return leaf.new_zeros(samples, leaf.shape[0] - 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return augmented(grads[0].to(ctx.dtype)), None


def augmented(z: Tensor) -> Tensor:
    """[Z 1]ᵀ[Z 1]."""
    z = torch.cat([z, z.new_ones(z.shape[0], 1)], 1)
    return z.T @ z


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
