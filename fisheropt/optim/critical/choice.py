"""From what a user writes for `directions=` to the statistic that is collected."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

import torch
from torch import Tensor, nn

from fisheropt.directions import Directions
from fisheropt.optim.critical.contrast import Contrast
from fisheropt.optim.critical.given import given, span
from fisheropt.optim.critical.layers import per_layer
from fisheropt.optim.critical.named import WHOLE_SPACE, members, whole
from fisheropt.optim.critical.signs import random_signs
from fisheropt.optim.tracking import SIZE, WATCHED
from fisheropt.statistics import FullCovariance, JointStatistic, Projection
from fisheropt.statistics.response import Response

Part = str | Contrast
Chosen = Part | Mapping[str, Tensor] | Mapping[str, Directions] | Sequence[Tensor] | Sequence[Part]

_RANDOM = 16


def statistic(chosen: Chosen, parameters: dict[str, Tensor], others: Container[str] = ()) -> JointStatistic | None:
    """The joint statistic of the chosen directions.

    Args:
        chosen: "auto" for the whole space up to 256 parameters and for 16 random rank-one directions beyond; "per_layer"
            for four in each module; "tracked" for six that follow the training; names of parameters or modules for the
            whole of their space; `Contrast`s for differences between outputs; or per parameter a tensor [k, *parameter],
            by name or in the parameters' order, or by name `Directions` of any kind. Only the span of directions matters.
        parameters: the group's trainable parameters, by name.
        others: names of the model's other parameters and modules. What names only these watches nothing here.

    Returns:
        The statistic; None where nothing of this group is watched.

    Raises:
        ValueError: for directions of unknown parameters, of wrong shapes, linearly dependent ones, or too many.
    """
    if isinstance(chosen, str) and chosen == "auto":
        small = sum(p.numel() for p in parameters.values()) <= WHOLE_SPACE
        return FullCovariance() if small else Projection(random_signs(parameters, _RANDOM))
    if isinstance(chosen, str) and chosen == "per_layer":
        return per_layer(parameters)
    if isinstance(chosen, str) and chosen == "tracked":
        return _tracked(parameters)
    if isinstance(chosen, Mapping):
        here = {n: b for n, b in chosen.items() if n in parameters or n not in others}
        return _of_mapping(here, parameters) if here else None
    several = [chosen] if isinstance(chosen, str | Contrast) else list(chosen)
    tensors = [part for part in several if isinstance(part, Tensor)]
    if tensors and len(tensors) == len(several):
        return given(_in_order(tensors, parameters), parameters)
    parts = [part for part in several if isinstance(part, str | Contrast)]
    if len(parts) < len(several) or not parts:
        raise ValueError(
            f"directions={chosen!r}: write 'auto', 'per_layer', 'tracked', names, fisheropt.Contrast(...)s, or one tensor "
            f"[k, *parameter] for each parameter"
        )
    return _of_parts([part for part in parts if not _is_elsewhere(part, parameters, others)], parameters)


def elsewhere(model: nn.Module | None, parameters: Mapping[str, Tensor]) -> set[str]:
    """The names of a model's parameters beside these, and of the modules that hold them.

    Args:
        model: or None.
        parameters: of one group.
    """
    others = [] if model is None else [n.split(".") for n, _ in model.named_parameters() if n not in parameters]
    return {".".join(parts[:depth]) for parts in others for depth in range(1, len(parts) + 1)}


def _tracked(parameters: Mapping[str, Tensor]) -> JointStatistic:
    if sum(p.numel() for p in parameters.values()) <= SIZE:
        return FullCovariance()
    return Response(SIZE, WATCHED, traces=False, centred=False)


def _of_mapping(named: Mapping[str, Tensor | Directions], parameters: Mapping[str, Tensor]) -> Projection:
    typed = {name: part for name, part in named.items() if isinstance(part, Directions)}
    tensors = {name: part for name, part in named.items() if isinstance(part, Tensor)}
    if typed and tensors:
        found = " and ".join(f"{type(part).__name__} for {name!r}" for name, part in (tensors | typed).items())
        raise ValueError(f"directions= found {found}: write DenseDirections(tensor) for the tensors")
    return Projection(typed) if typed else given(tensors, parameters)


def _in_order(tensors: Sequence[Tensor], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if len(tensors) != len(parameters):
        raise ValueError(
            f"directions= holds {len(tensors)} tensors for {len(parameters)} trainable parameters; give one for each, in "
            f"the order {list(parameters)}, or a dictionary by name"
        )
    return dict(zip(parameters, tensors, strict=True))


def _is_elsewhere(part: Part, parameters: Mapping[str, Tensor], others: Container[str]) -> bool:
    name = part if isinstance(part, str) else part.layer
    return name in others and not any(n == name or n.startswith(f"{name}.") for n in parameters)


def _of_parts(parts: Sequence[Part], parameters: dict[str, Tensor]) -> JointStatistic | None:
    names = [part for part in parts if isinstance(part, str)]
    if len(names) == len(parts):
        return whole(names, parameters) if names else None
    bases = [_unit_vectors(part, parameters) if isinstance(part, str) else part.bases(parameters) for part in parts]
    count = sum(next(iter(basis.values())).shape[0] for basis in bases)
    if count > WHOLE_SPACE:
        raise ValueError(
            f"directions={list(parts)!r} are {count} directions, more than {WHOLE_SPACE}; name feature directions, "
            f"Contrast(layer, coefficients, along=features.mean(0))"
        )
    touched = {name: parameters[name] for name in parameters if any(name in basis for basis in bases)}
    stacked = {name: torch.cat([_part(basis, name, p) for basis in bases]) for name, p in touched.items()}
    return span(stacked, parameters)


def _part(basis: Mapping[str, Tensor], name: str, parameter: Tensor) -> Tensor:
    if name in basis:
        return basis[name]
    count = next(iter(basis.values())).shape[0]
    return torch.zeros(count, *parameter.shape, dtype=torch.float64)


def _unit_vectors(name: str, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    whole([name], parameters)
    found = members(name, parameters)
    sizes = [p.numel() for p in found.values()]
    parts = torch.eye(sum(sizes), dtype=torch.float64).split(sizes, 1)
    return {n: part.reshape(-1, *p.shape) for (n, p), part in zip(found.items(), parts, strict=True)}
