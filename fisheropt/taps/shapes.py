"""The shapes of a forward's calls, from which the forms of per-sample gradients follow without a backward."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fisheropt.persample import Dense, PerSample, joined
from fisheropt.rules.generic import Generic
from fisheropt.taps.routes import Route

Shape = tuple[torch.Size, torch.dtype]


class Call(NamedTuple):
    """One call of a tapped module.

    Args:
        path: of the module.
        output: shape and dtype of what it returned.
        saved: of the tensors that its rule saves.
        context: what else the rule needs of the call.
    """

    path: str
    output: Shape
    saved: tuple[Shape, ...]
    context: Any


def call(path: str, output: Tensor, saved: tuple[Tensor, ...], context: Any) -> Call:
    """The shapes of a call, holding none of its tensors."""
    return Call(path, (output.shape, output.dtype), tuple((x.shape, x.dtype) for x in saved), context)


def forms(routes: list[Route], calls: tuple[Call, ...], by_token: bool = False) -> dict[str, PerSample]:
    """The form of every parameter that was used, on the meta device: shapes and no numbers.

    Args:
        routes: of the parameters.
        calls: of one forward.
        by_token: whether an observation is a position of the second axis.
    """
    route = {found.path: found for found in routes}
    met: dict[str, list[PerSample]] = {}
    for one in calls:
        for own, form in _of_call(route[one.path], one, by_token).items():
            met.setdefault(route[one.path].names[own], []).append(form)
    return {name: joined(held) for name, held in met.items()}


def _of_call(route: Route, call: Call, by_token: bool) -> dict[str, PerSample]:
    grad, saved = _meta(call.output), tuple(_meta(shape) for shape in call.saved)
    if by_token:
        grad, saved = grad.flatten(0, 1), tuple(x.flatten(0, 1) for x in saved)
    parameters = {own: route.module.get_parameter(own) for own in route.names}
    trained = tuple(own for own, p in parameters.items() if p.requires_grad)
    if not trained:
        return {}
    if not isinstance(route.rule, Generic):  # which would run the module
        try:
            return route.rule.forms(route.module, trained, saved, call.context, grad)
        except (NotImplementedError, RuntimeError):  # a rule that looks at numbers
            pass
    return {own: Dense(grad.new_empty(len(grad), *parameters[own].shape)) for own in trained}


def _meta(shape: Shape) -> Tensor:
    return torch.empty(shape[0], dtype=shape[1], device="meta")
