"""Names of single coordinates: "weight[0, 3]" for an entry, "bias" for all of a parameter."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor


def labels(shapes: Mapping[str, torch.Size]) -> Iterator[str]:
    """One for each coordinate, in their order."""
    for name, shape in shapes.items():
        for place in itertools.product(*(range(size) for size in shape)):
            yield f"{name}[{', '.join(map(str, place))}]" if shape else name


def restriction(shapes: Mapping[str, torch.Size], wanted: Tensor | Sequence[str] | str, call: str) -> Tensor:
    """R [q, d] of a Wald test: rows of the matrix given, or one row for each coordinate named.

    Args:
        shapes: of the parameters by name.
        wanted: R itself, or names of parameters or of coordinates.
        call: the user's call, for messages.

    Raises:
        ValueError: for a matrix of another width or an unknown name.
    """
    size = sum(math.prod(shape) for shape in shapes.values())
    if isinstance(wanted, Tensor):
        rows = wanted.detach().double().reshape(-1, wanted.shape[-1] if wanted.ndim else 1)
        if rows.shape[1] != size or len(rows) == 0:
            raise ValueError(f"{call}: the restriction is {tuple(wanted.shape)}; write R [q, d] with d = {size}")
        return rows
    places = _places(shapes)
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    unknown = [name for name in names if name not in places]
    if unknown or not names:
        few = ", ".join(list(shapes)[:6])
        raise ValueError(
            f"{call}: no parameter {unknown}; write names of {few}, or of an entry, like {next(labels(shapes))!r}"
        )
    chosen = [place for name in names for place in places[name]]
    return torch.eye(size, dtype=torch.float64)[chosen]


def _places(shapes: Mapping[str, torch.Size]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {label: [place] for place, label in enumerate(labels(shapes))}
    start = 0
    for name, shape in shapes.items():
        stop = start + math.prod(shape)
        found[name] = list(range(start, stop))
        start = stop
    return found
