"""From cotangents at the logits to rows g = Jᵀu of the parameters, and what one update measures with them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias, final

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from fisheropt.metric.chance import Chance
from fisheropt.metric.inputs import Inputs
from fisheropt.metric.variants import Variant

Values: TypeAlias = dict[str, Tensor]

_LARGEST_CHUNK = 64
_NUMBERS = 2**24


@final
@dataclass(frozen=True)
class Measured:
    """What one update found, summed over its inputs.

    Attributes:
        diagonal: mean over draws of Σ_r g_r², by parameter.
        spread: variance of that mean, by parameter; empty for one draw.
        traces: tr of every draw and parameter, [M, L] float64 on the CPU.
        rows: g/√M of all draws [R, P] where they were kept.
        unreached: parameters that the logits do not depend on, whose Fisher information is 0.
    """

    diagonal: Values
    spread: Values
    traces: Tensor
    rows: Tensor | None
    unreached: tuple[str, ...]


@final
class Pullback:
    """J ᵀ of a model's parameters.

    Args:
        model: whose parameters are live.
        parameters: names or tensors; None takes all that require gradients.
        call: the user's call, for messages.
    """

    def __init__(self, model: nn.Module, parameters: Sequence[str | Tensor] | None, call: str) -> None:
        self._model, self._call = model, call
        known: Values = dict(model.named_parameters())
        self.names = _names(model, known, parameters, call)
        self.shapes = {name: known[name].shape for name in self.names}
        for name in self.names:
            if isinstance(known[name], DTensor):
                raise TypeError(f"{call}: {name!r} is sharded; gather the model first, with full_tensor()")

    def values(self) -> Values:
        """The live parameters by name."""
        return {name: self._model.get_parameter(name) for name in self.names}

    def measure(self, variant: Variant, inputs: Inputs, chance: Chance, *, keep: bool) -> Measured:
        """All draws of a variant.

        Raises:
            FloatingPointError: for gradients that are not finite.
        """
        mean: Values = {}
        squares: Values = {}
        traces, kept = [], []
        unreached: tuple[str, ...] = ()
        for count in range(1, variant.draws + 1):
            diagonal: Values = {}
            for rows, missing in self._rows(variant.cotangents(inputs, chance), inputs):
                unreached = missing
                _add(diagonal, {name: _squared(g) for name, g in rows.items()})
                if keep:
                    kept.append(torch.cat([g.flatten(1) for g in rows.values()], 1) / variant.draws**0.5)
            diagonal = diagonal or {name: torch.zeros_like(_wide(p.detach())) for name, p in self.values().items()}
            traces.append(torch.stack([d.sum().double() for d in diagonal.values()]))
            _welford(mean, squares, diagonal, count)
        found = torch.stack(traces).cpu()
        self._check(found)
        scale = max(1, variant.draws - 1) * variant.draws
        spread = {name: v / scale for name, v in squares.items()} if variant.draws > 1 else {}
        return Measured(mean, spread, found, torch.cat(kept) if kept else None, unreached)

    def _rows(self, cotangents: Iterable[Tensor], inputs: Inputs) -> Iterator[tuple[Values, tuple[str, ...]]]:
        """Rows [R, *parameter] by name and what was not reached, a few cotangents at a time."""
        values = self.values()
        chunk = max(1, min(_LARGEST_CHUNK, _NUMBERS // max(1, sum(p.numel() for p in values.values()))))
        stream = iter(cotangents)
        while batch := list(islice(stream, chunk)):
            u = torch.stack(batch) * inputs.roots[:, None]
            found = self._backward(inputs.attached, u.to(inputs.attached.dtype), list(values.values()))
            missing = tuple(name for name, g in zip(values, found, strict=True) if g is None)
            if len(missing) == len(values):
                raise RuntimeError(
                    f"{self._call}: the logits do not depend on any parameter of the model; give the logits of this "
                    f"model, not of a copy of it"
                )
            yield (
                {
                    name: _wide(p.detach()).new_zeros(len(u), *p.shape) if g is None else _wide(g)
                    for (name, p), g in zip(values.items(), found, strict=True)
                },
                missing,
            )

    def _backward(self, logits: Tensor, u: Tensor, parameters: list[Tensor]) -> Sequence[Tensor | None]:
        many = len(u) > 1
        try:
            found = torch.autograd.grad(
                logits,
                parameters,
                grad_outputs=u if many else u[0],
                retain_graph=True,
                allow_unused=True,
                is_grads_batched=many,
            )
        except RuntimeError as error:
            if "second time" in str(error):
                why = "a backward freed the graph of these logits; write metric.update(logits=z) before loss.backward()"
            elif "Cannot access data pointer" in str(error):
                why = "a compiled model cannot pull back several rows; give logits of the model before torch.compile"
            else:
                raise
            raise RuntimeError(f"{self._call}: {why}") from error
        return found if many else [g if g is None else g[None] for g in found]

    def _check(self, traces: Tensor) -> None:
        for name, trace in zip(self.names, traces.sum(0).tolist(), strict=True):
            if not abs(trace) < float("inf"):
                raise FloatingPointError(
                    f"{self._call}: the information of {name!r} is not finite; look for the overflow, or use model.float(); "
                    f"nothing of this update was kept"
                )


def _names(model: nn.Module, known: Values, parameters: Sequence[str | Tensor] | None, call: str) -> tuple[str, ...]:
    """Canonical names, each tensor once, in the order of the model."""
    aliases = dict(model.named_parameters(remove_duplicate=False))
    chosen = [p for p in known.values() if p.requires_grad] if parameters is None else []
    for given in parameters or ():
        tensor = aliases.get(given) if isinstance(given, str) else given
        if tensor is None or not any(tensor is p for p in known.values()) or not tensor.requires_grad:
            named = repr(given) if isinstance(given, str) else f"a tensor of shape {tuple(given.shape)}"
            trainable = sorted(name for name, p in known.items() if p.requires_grad)
            raise ValueError(f"{call}: the model has no trainable parameter {named}; write one of {trainable}")
        chosen.append(tensor)
    if not chosen:
        raise ValueError(f"{call}: the model has no trainable parameter; unfreeze some with requires_grad_()")
    return tuple(name for name, p in known.items() if any(p is wanted for wanted in chosen))


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _squared(rows: Tensor) -> Tensor:
    """Σ_r gᵣ²; a single row is not summed, which would copy it."""
    return rows[0].square() if len(rows) == 1 else rows.square().sum(0)


def _add(total: Values, part: Values) -> None:
    for name, value in part.items():
        total[name] = total[name] + value if name in total else value


def _welford(mean: Values, squares: Values, new: Values, count: int) -> None:
    """One more draw into the mean and the sum of squared deviations from it."""
    if count == 1:
        mean.update(new)
        return
    for name, value in new.items():
        step = value - mean[name]
        mean[name] = mean[name] + step / count
        square = step * (value - mean[name])
        squares[name] = squares[name] + square if name in squares else square
