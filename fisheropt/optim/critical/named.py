"""The whole space of parameters that are given by name, or by the name of their module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from fisheropt.directions import Coordinates, Directions
from fisheropt.statistics import Projection

WHOLE_SPACE = 256
"""Up to so many parameters a space is watched whole."""


def members(name: str, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters of that name, or of the module of that name.

    Raises:
        ValueError: if there are none, listing what could be written.
    """
    found = {n: p for n, p in parameters.items() if n == name or n.startswith(f"{name}.")}
    if not found:
        modules = sorted({n.rpartition(".")[0] for n in parameters} - {""})
        raise ValueError(
            f"directions={name!r} names neither a trainable parameter nor a module; write 'auto', 'per_layer', 'tracked', "
            f"one of the parameters {list(parameters)}, or one of the modules {modules}"
        )
    return found


def whole(names: Sequence[str], parameters: Mapping[str, Tensor]) -> Projection:
    """All directions in the named parameters.

    Raises:
        ValueError: for unknown names, or more than 256 parameters.
    """
    chosen: dict[str, Tensor] = {}
    for name in names:
        chosen |= members(name, parameters)
    size = sum(p.numel() for p in chosen.values())
    if size > WHOLE_SPACE:
        counts = ", ".join(f"{name} {p.numel()}" for name, p in chosen.items())
        raise ValueError(
            f"directions={list(names)!r} names {size} scalar parameters ({counts}), more than the {WHOLE_SPACE} whose whole "
            f"space can be watched; name smaller ones, give tensors [k, *parameter], or write "
            f"fisheropt.Contrast({list(names)[0]!r}, coefficients, along=features)"
        )
    along: dict[str, Directions] = {}
    start = 0
    for name, p in chosen.items():
        along[name] = Coordinates(start, p.shape, size)
        start += p.numel()
    return Projection(along)
