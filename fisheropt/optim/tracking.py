"""Directions that follow the training: which are watched, which are scouted, and when they change places.

A group watches k orthonormal directions V and scouts a few more, all in one statistic. At a refresh the eigenvectors of what
was measured in the span S of both since the last refresh (Rayleigh-Ritz) are the candidates for V:

1. the displacement θ - θ₀, along which training has moved and where alone an anchor can pull;
2. the weakest directions of S beside it that carry information at all;
3. the strongest, for the scale that Λ* has.

V changes if it turned by more than 20 degrees. New scouts are the present displacement, one step of block power F V on the
strongest, and random directions. All of V was measured as a scout before, so its running information, which is that since the
last refresh, is carried over exactly; what was measured before that is lost.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fisheropt.directions import DenseDirections, Directions
from fisheropt.optim import renewal, running, subspace
from fisheropt.optim.group import Group
from fisheropt.optim.reading import Reading
from fisheropt.statistics.response import Response
from fisheropt.taps import Tap
from fisheropt.taps.expected import interval
from fisheropt.theory.levels import gaussian_level

State = MutableMapping[Tensor, dict[str, Any]]

WATCHED = 6
SCOUTS = 3
SIZE = WATCHED + SCOUTS
TURNED = 20.0  # degrees
_INTERVAL = 200
_FIRST = 20
_COST = 10.0  # steps of SGD that a reading takes longer, where no shapes are known: 784-512-512-10, batches of 256
_SAMPLES = 4  # a direction, before its place in the order can be told


def fresh(zero: Tensor) -> Group:
    """The state before any reading.

    Args:
        zero: [m, m] for the m watched and scouted directions.
    """
    group: Group = {"refreshed": 0.0, "refreshes": 0.0, "turned": 0.0, "order_sine": 1.0}
    for key in ("scouted", "scouted_noise"):
        running.start(group, key, zero)
    return group


def is_tracked(tap: Tap) -> bool:
    """Whether a tap's directions are those of this module."""
    return isinstance(tap.statistic, Response)


def is_due(group: Group) -> bool:
    """Whether to measure: on steps 0, 1, 2, 4, 8, ..., then as often as the cost of measuring stays within `overhead`."""
    steps, apart = int(group["steps"]), spacing(group)
    return steps % apart == 0 if steps >= apart else steps & (steps - 1) == 0


def spacing(group: Group) -> int:
    """How many steps apart readings are in the end."""
    return interval(group["extra"] if group["extra"] > 0 else _COST, group["overhead"])


def aim(group: Group, tap: Tap, state: State) -> None:
    """Aim at the directions in the state, before the first step at random ones, the same on every rank.

    Args:
        group: of the tap.
        tap: of tracked directions.
        state: of the parameters; from the first step on it has their directions and their start.
    """
    if not group["steps"]:
        drawn = subspace.fresh(tap.parameters, SIZE, 0, None)
        tap.aim({name: DenseDirections(part) for name, part in drawn.items()})
        return
    keep(tap, state)
    held = {name: state[p]["basis"] for name, p in tap.parameters.items()}
    if any(_basis(tap, name) is not part for name, part in held.items()):  # a checkpoint has brought others
        tap.aim({name: DenseDirections(part) for name, part in held.items()})


def keep(tap: Tap, state: State) -> None:
    """Put the directions and the start into the parameters' state, where checkpoints find them, if they are not there."""
    for name, p in tap.parameters.items():
        if "basis" not in state[p]:
            state[p]["basis"], state[p]["origin"] = _basis(tap, name), p.detach().clone()


def anchor_here(tap: Tap, state: State) -> None:
    """Let the start of tracked directions be where the parameters are."""
    if not is_tracked(tap):
        return
    keep(tap, state)
    for p in tap.parameters.values():
        state[p]["origin"].copy_(p.detach())


def vectors(tap: Tap) -> dict[int, Tensor]:
    """All m directions by the parameter's identity, in its dtype."""
    return {id(p): _basis(tap, name).to(p) for name, p in tap.parameters.items()}


def watched(tap: Tap) -> dict[str, Directions]:
    """The directions that are acted on: all of a tap's but for scouts."""
    if not is_tracked(tap):
        return tap.directions
    return {name: DenseDirections(_basis(tap, name)[:WATCHED]) for name in tap.directions}


def _basis(tap: Tap, name: str) -> Tensor:
    found = tap.directions[name]
    assert isinstance(found, DenseDirections)
    return found.basis


def follow(group: Group, tap: Tap, state: State, reading: Reading, current: Tensor) -> tuple[Tensor, bool]:
    """Take in a reading of all m directions, and change them if it is time to and they have turned.

    Args:
        group: with its running means.
        tap: of the group.
        state: of the parameters.
        reading: with its `projected` and `scored`.
        current: the information in the m directions, [m, m].

    Returns:
        The information in the k directions watched from now on, [k, k]; and whether they changed: the running means are
        then those of the new ones, this reading included.
    """
    running.add(group, "scouted", current, reading.count, 1.0)
    noise = None if reading.projected is None else reading.projected.covariance
    if noise is not None:
        running.add(group, "scouted_noise", noise, reading.count - 1, 1.0)
    rotation = _refresh(group, tap, state, reading) if due(group) else None
    if rotation is None:
        return current[:WATCHED, :WATCHED], False
    return rotation.T @ current @ rotation, True


def _refresh(group: Group, tap: Tap, state: State, reading: Reading) -> Tensor | None:
    """Look for better directions, and aim at them and at new scouts; the rotation W [m, k] if those watched changed."""
    held = {name: _basis(tap, name) for name in tap.directions}
    moved = {name: (p.detach() - state[p]["origin"]).to(held[name].dtype) for name, p in tap.parameters.items()}
    one = {name: d.unsqueeze(0) for name, d in moved.items()}
    length = float(subspace.gram(one, one).sqrt())
    error = gaussian_level(
        float(torch.linalg.eigvalsh(group["scouted"])[-1]), SIZE, group["scouted_weight"], group["delta"]
    )
    found = renewal.order(group["scouted"], subspace.gram(held, one)[:, 0], length, WATCHED, error.value)
    group["refreshed"], group["turned"], group["order_sine"] = float(group["steps"]), found.turned, found.sine
    changes = found.turned > TURNED
    if not changes:
        found = replace(found, rotation=torch.eye(SIZE, WATCHED).to(found.rotation))
    responses = None if reading.scored is None else reading.scored.responses
    renewed = renewal.directions(held, found, moved, responses, round(float(group["steps"])))
    for name, p in tap.parameters.items():
        state[p]["basis"] = renewed[name]
    tap.aim({name: DenseDirections(part) for name, part in renewed.items()})
    if changes:
        group["refreshes"] += 1.0
        carry(group, found.rotation)
        start = {name: state[p]["origin"].unsqueeze(0) for name, p in tap.parameters.items()}
        group["anchor"] = subspace.gram(renewed, start)[:WATCHED, 0]
    restart(group)
    return found.rotation if changes else None


def details(group: Group) -> dict[str, Any]:
    """What the report says of it."""
    return {
        "refreshes": int(group["refreshes"]),
        "refreshed_at_step": int(group["refreshed"]),
        "turned_degrees": group["turned"],
        "order_sine": group["order_sine"],
        "scouts": len(group["scouted"]) - len(group["information"]),
    }


def due(group: Group) -> bool:
    """Whether to look for better directions: 20, 40, 80, 160 and then 200 steps after the last look, given samples."""
    since = float(group["steps"]) - group["refreshed"]
    known = group["scouted_weight"] >= _SAMPLES * len(group["scouted"])
    return known and since >= min(_INTERVAL, max(_FIRST, float(group["steps"]) / 2))


def carry(group: Group, rotation: Tensor) -> None:
    """Let the running means in the directions watched be those of the new ones since the last refresh.

    Args:
        group: with its running means.
        rotation: W, [m, k].
    """
    for key, source in (("information", "scouted"), ("covariance", "scouted_noise")):
        group[key] = rotation.T @ group[source] @ rotation
        for weight in ("weight", "weight_squared"):
            group[f"{key}_{weight}"] = group[f"{source}_{weight}"]


def restart(group: Group) -> None:
    """Begin the means in S anew, as scouts have changed."""
    for key in ("scouted", "scouted_noise"):
        group[key] = torch.zeros_like(group[key])
        group[f"{key}_weight"] = group[f"{key}_weight_squared"] = 0.0
