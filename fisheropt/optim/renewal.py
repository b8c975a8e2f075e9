"""Which directions of a span to watch, by Rayleigh-Ritz, and which new ones to scout."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from fisheropt.optim import subspace
from fisheropt.theory.angles import davis_kahan_sine

_STRONG = 2
_NULL = 1e-10  # of the largest
_MOVED = 1e-3  # of the displacement's length that must lie in S for its share there to be a direction of it


@final
@dataclass(frozen=True)
class Order:
    """The directions to watch from now on, as coefficients in the m old ones.

    Args:
        rotation: W, orthonormal columns, [m, k].
        strongest: coefficients of the strongest eigenvectors of S, [m, s].
        turned: the largest angle between the old and the new span, in degrees.
        sine: bound on that between the weakest eigenvectors found and those of the true matrix in S; 1 says nothing.
    """

    rotation: Tensor
    strongest: Tensor
    turned: float
    sine: float


def order(scouted: Tensor, displacement: Tensor, length: float, watched: int, error: float) -> Order:
    """Rayleigh-Ritz in S.

    Args:
        scouted: the information in the m directions, [m, m].
        displacement: coordinates of θ - θ₀, [m].
        length: ‖θ - θ₀‖.
        watched: k.
        error: Λ* of the information, for the Davis-Kahan bound.

    Reference: daviskahan1970
    """
    size = len(scouted)
    inside = displacement.norm()
    moved = float(inside) > _MOVED * length > 0
    first = (displacement / inside)[:, None] if moved else scouted.new_zeros(size, 0)
    beside = torch.linalg.qr(torch.cat([first, torch.eye(size).to(scouted)], 1)).Q[:, first.shape[1] : size]
    values, vectors = torch.linalg.eigh(beside.T @ scouted @ beside)
    vectors = beside @ vectors
    informed = values > _NULL * values[-1]
    weak = watched - first.shape[1] - _STRONG
    below, strong = torch.arange(len(values)).to(values.device).split([len(values) - _STRONG, _STRONG])
    places = torch.cat([below[informed[below]], below[~informed[below]].flip(0)])[:weak]
    rotation = torch.cat([first, vectors[:, places], vectors[:, strong]], 1)
    cosine = float(torch.linalg.svdvals(rotation[:watched])[-1])
    carrying = values[informed]
    sine = davis_kahan_sine(carrying, weak, error) if weak < len(carrying) else 1.0
    return Order(rotation, vectors[:, strong], math.degrees(math.acos(min(1.0, cosine))), sine)


def directions(
    held: subspace.Parts,
    chosen: Order,
    displacement: Mapping[str, Tensor],
    responses: subspace.Parts | None,
    seed: int,
) -> dict[str, Tensor]:
    """The m directions from now on: those chosen, then scouts orthogonal to them and to each other.

    Args:
        held: the m old directions, orthonormal.
        chosen: those to watch, in them.
        displacement: θ - θ₀, by parameter.
        responses: F times the old directions; None where it is not known.
        seed: of the random scouts.
    """
    kept = subspace.combined(held, chosen.rotation)
    scouts = {name: d.unsqueeze(0).to(kept[name]) for name, d in displacement.items()}
    if responses is not None:
        powered = subspace.combined(responses, chosen.strongest)
        scouts = {name: torch.cat([s, powered[name].to(s)]) for name, s in scouts.items()}
    count = next(iter(held.values())).shape[0] - chosen.rotation.shape[1]
    drawn = subspace.fresh(displacement, count, seed, kept)
    return _completed(kept, {name: torch.cat([s, drawn[name].to(s)]) for name, s in scouts.items()}, count)


def _completed(kept: subspace.Parts, scouts: subspace.Parts, count: int) -> dict[str, Tensor]:
    """The kept directions and the first `count` scouts that add anything to them, one by one."""
    total = dict(kept)
    wanted = next(iter(kept.values())).shape[0] + count
    for place in range(next(iter(scouts.values())).shape[0]):
        one = {name: s[place : place + 1] for name, s in scouts.items()}
        length = subspace.gram(one, one).sqrt()
        for _ in range(2):
            inside = subspace.combined(total, subspace.gram(total, one))
            one = {name: part - inside[name] for name, part in one.items()}
        left = subspace.gram(one, one).sqrt()
        if float(left) > 1e-3 * float(length):
            total = {name: torch.cat([held, one[name] / left.to(one[name])]) for name, held in total.items()}
        if next(iter(total.values())).shape[0] == wanted:
            break
    return {name: part.contiguous() for name, part in total.items()}
