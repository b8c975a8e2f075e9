"""Directions given as tensors, made orthonormal."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fisheropt.directions import DenseDirections, Directions
from fisheropt.statistics import Projection

_DEPENDENT = 1e-6  # of the longest direction: what is left of one that the others span


def given(named: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> Projection:
    """The span of k directions, one tensor [k, *parameter] for each parameter that they touch.

    Raises:
        ValueError: for unknown parameters, wrong shapes, or directions that are linearly dependent.
    """
    for name, basis in named.items():
        if name not in parameters:
            raise ValueError(f"directions are given for {name!r}; the trainable parameters are {list(parameters)}")
        if basis.shape[1:] != parameters[name].shape:
            raise ValueError(
                f"directions[{name!r}] has shape {tuple(basis.shape)}; for k directions it must be "
                f"(k, *{tuple(parameters[name].shape)})"
            )
    if len({basis.shape[0] for basis in named.values()}) != 1:
        numbers = {name: basis.shape[0] for name, basis in named.items()}
        raise ValueError(f"directions= needs as many directions in every parameter that it names, found {numbers}")
    k = next(iter(named.values())).shape[0]
    spanned = span(named, parameters)
    found = 0 if spanned is None else next(iter(spanned.along.values())).count
    if spanned is None or found < k:
        raise ValueError(f"the {k} directions are linearly dependent; leave out those that the others span")
    return spanned


def span(named: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> Projection | None:
    """An orthonormal basis of what the directions span; None if that is nothing."""
    k = next(iter(named.values())).shape[0]
    flat = torch.cat([basis.detach().double().reshape(k, -1) for basis in named.values()], 1)
    _, lengths, rows = torch.linalg.svd(flat, full_matrices=False)
    rows = rows[lengths > _DEPENDENT * lengths[0]] if len(lengths) else rows
    if not len(rows):
        return None
    parts = rows.split([basis[0].numel() for basis in named.values()], 1)
    along: dict[str, Directions] = {
        name: DenseDirections(_like(part.reshape(-1, *parameters[name].shape), parameters[name]))
        for name, part in zip(named, parts, strict=True)
    }
    return Projection(along)


def _like(basis: Tensor, parameter: Tensor) -> Tensor:
    """In the dtype and on the device of a parameter, but whole on every rank."""
    return basis.to(parameter.device, parameter.dtype)
