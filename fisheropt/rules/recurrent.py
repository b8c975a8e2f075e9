"""nn.RNN, nn.GRU and nn.LSTM, whose kernels show nothing of what happens between two steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, cast, final

import torch
from torch import Tensor, nn
from torch.func import vjp
from torch.nn import functional as F

from fisheropt.persample import Dense, Outer, PerSample
from fisheropt.rules.registry import Rule, rule


class _Run(NamedTuple):
    """What one layer in one direction met, in its own order of steps."""

    inputs: Tensor
    """xₜ, [n, t, i]."""
    states: Tensor
    """hₜ₋₁, [n, t, o]."""
    resets: tuple[Tensor, ...]
    """Of a GRU, what its new gate multiplies its share of the state by, [n, t, o]."""


class _Weights(NamedTuple):
    inputs: Tensor
    states: Tensor
    input_bias: Tensor | None
    state_bias: Tensor | None


@final
@rule(nn.RNN)
@rule(nn.GRU)
@rule(nn.LSTM)
class Recurrent(Rule):
    """Weights hₙ = Σₜ gₙₜ xₙₜᵀ and Σₜ gₙₜ hₙ,ₜ₋₁ᵀ, where g is the gradient of the gates before their nonlinearities.

    The gradients come from running the recurrence once more, a step at a time.
    """

    in_place: ClassVar[bool] = False

    def prepare(self, module: nn.Module) -> Rule:
        return self

    def refusal(self, module: nn.Module) -> str | None:
        """Options that are not served."""
        assert isinstance(module, nn.RNNBase)
        if not module.batch_first:
            return "its samples are on the second axis; build it with batch_first=True"
        if module.proj_size:
            return "projections of the state are not served; build it without proj_size, and put a nn.Linear behind it"
        return None

    def saved(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Tensor, ...], Any]:
        assert isinstance(module, nn.RNNBase)
        given = dict(zip(("input", "hx"), args, strict=False)) | kwargs
        x, start = given["input"], given.get("hx")
        kind = type(module).__name__
        if not isinstance(x, Tensor):
            raise TypeError(
                f"{kind} was called with a {type(x).__name__}, whose samples are on no axis of their own; write "
                f"{kind}(padded) with one tensor [samples, steps, features], and leave the padding out of the loss"
            )
        if x.ndim < 3:
            raise RuntimeError(
                f"{module} was called with an input of shape {tuple(x.shape)}, which has no axis of samples; write "
                f"model(x.unsqueeze(0)) for a batch of one"
            )
        if module.training and module.dropout > 0 and module.num_layers > 1:
            raise RuntimeError(
                f"{kind} has dropout={module.dropout}, whose mask a second run cannot repeat. Write module.dropout = 0.0, or "
                f"one {kind} a layer with nn.Dropout between; or call .eval() on it"
            )
        states = () if start is None else (start,) if isinstance(start, Tensor) else tuple(start)
        return (x, *states, *(getattr(module, name) for name in module._flat_weights_names)), len(states)

    def observed(self, output: Any) -> tuple[Tensor, tuple[Any, ...]]:
        """All steps and final states in one tensor of the samples, as a loss may use any of them."""
        steps, states = output
        return _together(steps, states if isinstance(states, tuple) else (states,)), (steps, states)

    def returned(self, module: nn.Module, seen: Tensor, others: tuple[Any, ...], close: Callable[[Any], Any]) -> Any:
        """The same taken apart again."""
        steps, states = others
        shapes = states if isinstance(states, tuple) else (states,)
        sizes = [steps[0].numel(), *(z[:, 0].numel() for z in shapes)]
        first, *parts = (part.clone() for part in seen.split(sizes, 1))  # views of several cannot be changed in place
        found = tuple(
            part.unflatten(1, (len(z), -1)).transpose(0, 1).contiguous() for part, z in zip(parts, shapes, strict=True)
        )
        return first.unflatten(1, steps.shape[1:]), found if isinstance(states, tuple) else found[0]

    def forms(
        self, module: nn.Module, names: tuple[str, ...], saved: tuple[Tensor, ...], context: Any, grad: Tensor
    ) -> dict[str, PerSample]:
        assert isinstance(module, nn.RNNBase)
        order = list(module._flat_weights_names)
        tensors = dict(zip(order, (w.detach() for w in saved[1 + context :]), strict=True))
        dtype = tensors[order[0]].dtype
        x, *start = (z.detach().to(dtype) for z in saved[: 1 + context])
        gates = tensors[order[0]].shape[0]
        suffixes = [name.removeprefix("weight_ih") for name in order if name.startswith("weight_ih")]
        offsets = [x.new_zeros(*x.shape[:2], gates) for _ in suffixes]

        def run(offsets: list[Tensor]) -> tuple[Tensor, list[_Run]]:
            return _unrolled(module, tensors, suffixes, x, start, offsets)

        _, pull, runs = cast(
            tuple[Any, Callable[[Tensor], tuple[list[Tensor]]], list[_Run]], vjp(run, offsets, has_aux=True)
        )
        (gradients,) = pull(grad.to(dtype))
        forms: dict[str, PerSample] = {}
        for suffix, g, met in zip(suffixes, gradients, runs, strict=True):
            of_states = _of_states(g, *met.resets)
            forms[f"weight_ih{suffix}"] = Outer(g, met.inputs)
            forms[f"weight_hh{suffix}"] = Outer(of_states, met.states)
            forms[f"bias_ih{suffix}"] = Dense(g.sum(1))
            forms[f"bias_hh{suffix}"] = Dense(of_states.sum(1))
        return {name: forms[name] for name in names}


def _together(steps: Tensor, states: tuple[Tensor, ...]) -> Tensor:
    """Steps [n, t, o] and states [layers, n, o] as [n, numbers of a sample]."""
    return torch.cat([steps.flatten(1), *(z.transpose(0, 1).flatten(1) for z in states)], 1)


def _of_states(g: Tensor, resets: Tensor | None = None) -> Tensor:
    """The gradient at the state's share of the gates, of which the new one of a GRU is multiplied by the reset gate."""
    if resets is None:
        return g
    size = resets.shape[2]
    return torch.cat([g[..., :-size], g[..., -size:] * resets], 2)


def _unrolled(
    module: nn.RNNBase,
    tensors: dict[str, Tensor],
    suffixes: list[str],
    x: Tensor,
    start: list[Tensor],
    offsets: list[Tensor],
) -> tuple[Tensor, list[_Run]]:
    """All that the layer returns, and what each layer and direction met; the offsets are added to the gates."""
    ways, runs, finals = 2 if module.bidirectional else 1, [], []
    for first in range(0, len(suffixes), ways):
        outputs = []
        for place in range(first, first + ways):
            backwards, suffix = place > first, suffixes[place]
            weights = _Weights(
                tensors[f"weight_ih{suffix}"],
                tensors[f"weight_hh{suffix}"],
                tensors.get(f"bias_ih{suffix}"),
                tensors.get(f"bias_hh{suffix}"),
            )
            begin = [states[place] for states in start]
            output, final, met = _steps(module, weights, x.flip(1) if backwards else x, begin, offsets[place])
            outputs.append(output.flip(1) if backwards else output)
            finals.append(final)
            runs.append(met)
        x = torch.cat(outputs, 2)
    return _together(x, tuple(torch.stack(states) for states in zip(*finals, strict=True))), runs


def _steps(
    module: nn.RNNBase, weights: _Weights, x: Tensor, begin: list[Tensor], offset: Tensor
) -> tuple[Tensor, tuple[Tensor, ...], _Run]:
    """One layer in one direction: its output, its final states and what it met."""
    zero = x.new_zeros(x.shape[0], weights.states.shape[1])
    h, c = (*begin, zero, zero)[:2]
    from_inputs = F.linear(x, weights.inputs, weights.input_bias) + offset
    outputs, states, resets = [], [], []
    for gates in from_inputs.unbind(1):
        states.append(h)
        from_state = F.linear(h, weights.states, weights.state_bias)
        if isinstance(module, nn.LSTM):
            h, c = _lstm(gates + from_state, c)
        elif isinstance(module, nn.GRU):
            h, reset = _gru(gates, from_state, h)
            resets.append(reset)
        else:
            h = torch.relu(gates + from_state) if module.nonlinearity == "relu" else torch.tanh(gates + from_state)
        outputs.append(h)
    met = _Run(x, torch.stack(states, 1), (torch.stack(resets, 1),) if resets else ())
    return torch.stack(outputs, 1), (h, c) if isinstance(module, nn.LSTM) else (h,), met


def _lstm(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    admit, forget, new, show = gates.chunk(4, 1)
    c = torch.sigmoid(forget) * c + torch.sigmoid(admit) * torch.tanh(new)
    return torch.sigmoid(show) * torch.tanh(c), c


def _gru(gates: Tensor, from_state: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    (reset, keep, new), (state_reset, state_keep, state_new) = gates.chunk(3, 1), from_state.chunk(3, 1)
    reset, keep = torch.sigmoid(reset + state_reset), torch.sigmoid(keep + state_keep)
    return (1 - keep) * torch.tanh(new + reset * state_new) + keep * h, reset
