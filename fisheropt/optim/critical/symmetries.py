"""Directions in which a network's output cannot change by the way it is built, as candidates to be measured.

Whether a candidate is null for this model, these activations and this loss is not read from the code: its information is
measured at every reading, and one that carries any is no candidate any more.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

Vectors = dict[str, Tensor]
"""Directions by parameter, [m, *parameter]."""


@dataclass(frozen=True)
class Symmetry(ABC):
    """A family of candidates.

    Args:
        words: what they are, for the report.
    """

    words: str

    @abstractmethod
    def vectors(self, parameters: Mapping[str, Tensor]) -> Vectors:
        """The candidates at the present parameters."""


@final
@dataclass(frozen=True)
class OutputShift(Symmetry):
    """The same added to every output of a layer: null below a softmax, or below a normalisation that subtracts the mean.

    Args:
        weight: name of the weight [o, *p], or "".
        bias: name of the bias [o], or "".
    """

    weight: str
    bias: str

    def vectors(self, parameters: Mapping[str, Tensor]) -> Vectors:
        features = parameters[self.weight][0].numel() if self.weight else 0
        count = features + bool(self.bias)
        found: Vectors = {}
        if self.weight:
            w = parameters[self.weight]
            unit = torch.eye(count, features, dtype=torch.float64, device=w.device)
            found[self.weight] = unit[:, None].expand(-1, w.shape[0], -1).reshape(count, *w.shape)
        if self.bias:
            b = parameters[self.bias]
            last = torch.eye(count, dtype=torch.float64, device=b.device)[:, -1:]
            found[self.bias] = last.expand(-1, len(b))
        return found


@final
@dataclass(frozen=True)
class UnitRescaling(Symmetry):
    """A unit's incoming weights grow as its outgoing ones shrink: null where the activation is positively homogeneous.

    Args:
        incoming: names of parameters with the unit on their first axis.
        outgoing: name of the weight with the unit on its second axis.
    """

    incoming: tuple[str, ...]
    outgoing: str

    def vectors(self, parameters: Mapping[str, Tensor]) -> Vectors:
        out = parameters[self.outgoing].detach().double()
        eye = torch.eye(out.shape[1], dtype=torch.float64, device=out.device)
        found = {self.outgoing: -torch.einsum("uj,oj...->uoj...", eye, out)}
        for name in self.incoming:
            found[name] = torch.einsum("uj,j...->uj...", eye, parameters[name].detach().double())
        return found


@final
@dataclass(frozen=True)
class LayerScale(Symmetry):
    """All of a layer's parameters grow together: null before a normalisation, up to its epsilon.

    Args:
        names: of the layer's parameters.
    """

    names: tuple[str, ...]

    def vectors(self, parameters: Mapping[str, Tensor]) -> Vectors:
        return {name: parameters[name].detach().double().unsqueeze(0) for name in self.names}


def symmetries(model: nn.Module, parameters: Mapping[str, Tensor]) -> tuple[Symmetry, ...]:
    """The candidates among the named parameters.

    Args:
        model: whose modules are taken in the order in which they were registered.
        parameters: that are watched, by name.
    """
    name_of = {id(p): name for name, p in parameters.items()}
    layers = []
    for path, module in model.named_modules():
        own = {n: name_of[id(p)] for n, p in module.named_parameters(recurse=False) if id(p) in name_of}
        if own:
            layers.append((path or type(module).__name__, own))
    found: list[Symmetry] = []
    for place, (path, own) in enumerate(layers):
        last = place == len(layers) - 1
        found += _of_layer(path, own, parameters, last)
        if not last:
            found += _of_pair(path, own, *layers[place + 1], parameters)
    return tuple(found)


def _of_layer(path: str, own: Mapping[str, str], parameters: Mapping[str, Tensor], last: bool) -> list[Symmetry]:
    weight, bias = own.get("weight", ""), own.get("bias", "")
    words = "the shift of all logits" if last else f"the shift of all outputs of {path}"
    found: list[Symmetry] = []
    if (weight and parameters[weight].ndim > 1) or (bias and not weight):
        found.append(OutputShift(words, weight, bias))
    if weight and parameters[weight].ndim > 1:
        found.append(LayerScale(f"the scale of {path}, which a normalisation undoes", tuple(own.values())))
    return found


def _of_pair(
    path: str, own: Mapping[str, str], after: str, others: Mapping[str, str], parameters: Mapping[str, Tensor]
) -> list[Symmetry]:
    outgoing = others.get("weight", "")
    if not outgoing or parameters[outgoing].ndim < 2 or "weight" not in own:
        return []
    units = parameters[outgoing].shape[1]
    if any(parameters[name].ndim == 0 or parameters[name].shape[0] != units for name in own.values()):
        return []
    return [UnitRescaling(f"the rescaling of a unit between {path} and {after}", tuple(own.values()), outgoing)]
