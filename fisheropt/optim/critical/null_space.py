"""Directions without any information, found by measuring and left out of what is watched.

A direction v is null if vᵀΓv < 1e-10 of the largest information at every point measured so far, two at least. One that has
carried information once is none, so that information that is being lost is never mistaken for a symmetry.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fisheropt.directions import Directions
from fisheropt.optim.critical.symmetries import Symmetry
from fisheropt.optim.group import Group
from fisheropt.persample import Dense

_NULL = 1e-10  # of the trace
_SAMPLES = 4  # a direction, from which on a rank is not one of counting
_POINTS = 2
_INSIDE = 1 - 1e-6  # of a candidate's squared length that lies in the directions watched
_NAMED = 0.9  # of a squared length: parameters have moved since the reading


def fresh(zero: Tensor, candidates: int) -> Group:
    """The state before any reading.

    Args:
        zero: [k, k].
        candidates: their number m.
    """
    return {
        "null": zero,
        "kernel": zero,
        "seen": zero,
        "seen_samples": 0.0,
        "seen_points": 0.0,
        "refuted": zero.new_zeros(candidates),
    }


def learn(group: Group, current: Tensor, count: int, candidates: Tensor | None = None) -> None:
    """Take in a reading, and renew the projector onto the null directions, group["null"].

    Args:
        group: with the state of `fresh`.
        current: the reading's information Γ, [k, k].
        count: its samples.
        candidates: unit coordinates of symmetries at the present parameters, [m, k]; a row of zeros for one that does
            not lie in the directions watched.
    """
    if candidates is not None and len(candidates) != len(group["refuted"]):  # a state of an optimizer without the model
        group |= fresh(torch.zeros_like(group["null"]), len(candidates))
    trace = current.trace()
    if not float(trace) > 0:
        return
    relative = current / trace
    group["seen"] = group["seen"] + relative
    group["seen_samples"] += float(count)
    group["seen_points"] += 1.0
    _renew_kernel(group, relative)
    group["null"] = group["kernel"]
    if candidates is not None and len(candidates):
        quotients = torch.einsum("mk,kl,ml->m", candidates, relative, candidates)
        group["refuted"] = torch.maximum(group["refuted"], quotients)
        if group["seen_points"] >= _POINTS:
            group["null"] = _joined(group["kernel"], _projector(candidates[group["refuted"] < _NULL].T))


def _renew_kernel(group: Group, relative: Tensor) -> None:
    """The kernel can only shrink, so that it is computed once and again where a reading contradicts it."""
    size, points = len(relative), group["seen_points"]
    samples = group["seen_samples"]
    if points < _POINTS or samples < _SAMPLES * size:
        return
    first = points - 1 < _POINTS or samples * (points - 1) / points < _SAMPLES * size
    if not first and float((group["kernel"] * relative).sum()) < _NULL:
        return
    values, vectors = torch.linalg.eigh(group["seen"])
    kernel = vectors[:, values < _NULL * points]
    group["kernel"] = kernel @ kernel.T


def _joined(kernel: Tensor, present: Tensor) -> Tensor:
    """The projector onto both; what of the kernel is nearly a symmetry's direction at earlier parameters is not doubled."""
    outside = torch.eye(len(kernel)).to(kernel) - present
    values, vectors = torch.linalg.eigh(outside @ kernel @ outside)
    beside = vectors[:, values > 0.5]
    return present + beside @ beside.T


def _projector(columns: Tensor) -> Tensor:
    basis, lengths, _ = torch.linalg.svd(columns, full_matrices=False)
    basis = basis[:, lengths > 1e-6]
    return basis @ basis.T


def others(group: Group) -> Tensor:
    """An orthonormal basis of the directions that are not null, [k, k - m]."""
    null = group["null"]
    if not bool(null.any()):
        return torch.eye(len(null), dtype=null.dtype, device=null.device)
    values, vectors = torch.linalg.eigh(null)
    return vectors[:, values < 0.5]


def coordinates(
    found: tuple[Symmetry, ...], parameters: Mapping[str, Tensor], directions: Mapping[str, Directions]
) -> Tensor | None:
    """Unit coordinates of all candidates in the directions watched, [m, k]; None without candidates.

    Args:
        found: the symmetries.
        parameters: at their present values, by name.
        directions: the part of the directions in each parameter.
    """
    parts = [_coordinates(symmetry, parameters, directions) for symmetry in found]
    return torch.cat(parts) if parts else None


def _coordinates(symmetry: Symmetry, parameters: Mapping[str, Tensor], directions: Mapping[str, Directions]) -> Tensor:
    vectors = symmetry.vectors(parameters)
    squared = torch.stack([v.flatten(1).square().sum(1) for v in vectors.values()]).sum(0)
    shares = [Dense(v).project(directions[name]).double() for name, v in vectors.items() if name in directions]
    if not shares:
        k = next(iter(directions.values())).count
        return squared.new_zeros(len(squared), k)
    inside = torch.stack(shares).sum(0)
    kept = (inside.square().sum(1) >= _INSIDE * squared) & (squared > 0)
    return torch.where(kept[:, None], inside / squared.clamp_min(1e-300).sqrt()[:, None], torch.zeros_like(inside))


def names(
    group: Group, found: tuple[Symmetry, ...], parameters: Mapping[str, Tensor], directions: Mapping[str, Directions]
) -> dict[str, int]:
    """How many null directions are of which kind; the key "" has those that no symmetry explains.

    Args:
        group: with its projector.
        found: the symmetries.
        parameters: at their present values, by name.
        directions: the part of the directions in each parameter.
    """
    left: Tensor = group["null"]
    counted: dict[str, int] = {}
    for symmetry in found:
        rows = _coordinates(symmetry, parameters, directions)
        rows = rows[torch.einsum("mk,kl,ml->m", rows, group["null"], rows) > _NAMED]
        taken = _projector(left @ rows.T) if len(rows) else torch.zeros_like(left)
        number = round(float(taken.trace()))
        if number:
            counted[symmetry.words] = counted.get(symmetry.words, 0) + number
            left = _projector(left - taken)
    rest = round(float(left.trace()))
    return counted | ({"": rest} if rest else {})
