"""What is kept of a group's directions beside their information: null ones, layers, and what ranks differ in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fisheropt.optim import heterogeneity, running, tracking
from fisheropt.optim.critical import null_space
from fisheropt.optim.critical.layers import Block, block_diagonal, blocks_of
from fisheropt.optim.critical.named import WHOLE_SPACE
from fisheropt.optim.critical.symmetries import Symmetry, symmetries
from fisheropt.optim.floor.exact import Exact
from fisheropt.optim.floor.watch import Watch
from fisheropt.optim.group import Group
from fisheropt.optim.reading import Reading
from fisheropt.optim.tracking import State
from fisheropt.taps import SampleTap, Tap
from fisheropt.theory.levels import gaussian_level
from fisheropt.theory.status import classify

_NAMELESS = "in which no sample had any (a dead unit, or a feature that is always zero)"


def fresh(tap: Tap | None, zero: Tensor) -> Group:
    """The state before any reading.

    Args:
        tap: of the group; None where nothing is watched.
        zero: [k, k].
    """
    found = () if tap is None else _symmetries(tap)
    rows = null_space.coordinates(found, _values(tap), tap.directions) if tap is not None and found else None
    group = null_space.fresh(zero, 0 if rows is None else len(rows)) | heterogeneity.fresh(zero)
    if tap is None or not tracking.is_tracked(tap):
        return group
    return group | tracking.fresh(zero.new_zeros(tracking.SIZE, tracking.SIZE))


def information(group: Group, tap: Tap, reading: Reading, exact: Exact | None) -> Tensor:
    """A step's own Γ in the orthonormal directions, [k, k]; where they are tracked, in those that are scouted too, [m, m].

    Args:
        group: with its frame.
        tap: of the group.
        reading: of the step.
        exact: where it is computed by jvps and not read; None where it is read.
    """
    tracked = tracking.is_tracked(tap)
    if exact is not None and isinstance(tap, SampleTap):
        if tracked:
            return exact.information(tracking.vectors(tap)).detach()
        return Watch(tap, group["frame"], exact).information()
    whole = reading if reading.projected is None else reading.projected
    current = whole.second if whole.information is None else whole.information
    return current if tracked else group["frame"] @ current @ group["frame"]


def learn(group: Group, tap: Tap, state: State, reading: Reading, current: Tensor, decay: float) -> Tensor:
    """Take in a reading, with the running information, and return this step's own in the directions that are watched.

    Args:
        group: with the state of `fresh`.
        tap: of the group.
        state: of the parameters.
        reading: of the step.
        current: the information in the orthonormal directions, those that are scouted included, [m, m].
        decay: of the running information.
    """
    carried = False
    if tracking.is_tracked(tap):
        current, carried = tracking.follow(group, tap, state, reading, current)
    if carried:
        restart(group)
    else:
        heterogeneity.learn(group, reading, decay)
    found = _symmetries(tap)
    rows = null_space.coordinates(found, _values(tap), tap.directions) if found else None
    null_space.learn(group, current, reading.count, None if rows is None else rows @ group["frame"])
    current = block_diagonal(current, _blocks(group, tap))
    if not carried:
        running.add(group, "information", current, reading.count, decay)
    return current


def restart(group: Group) -> None:
    """Forget what was found in directions that have changed, but for the information itself."""
    zero = torch.zeros_like(group["null"])
    group |= null_space.fresh(zero, len(group["refuted"]))
    for key in ("between", "within", "held_information"):
        group[key] = zero.clone()
        group[f"{key}_weight"] = group[f"{key}_weight_squared"] = 0.0
    group["ranks"] = 0.0


def details(group: Group, tap: Tap, count: float) -> dict[str, Any]:
    """What the report says of it.

    Args:
        group: with its running information.
        tap: of the group.
        count: effective samples.
    """
    kinds = null_space.names(group, *_seen(tap), tap.directions)
    return (
        {"null_left_out": sum(kinds.values()), "null_kinds": kinds}
        | layers(group, tap, count)
        | heterogeneity.details(group)
        | (tracking.details(group) if tracking.is_tracked(tap) else {})
    )


def advice(group: Group, numbers: dict[str, Any]) -> tuple[str, ...]:
    """Sentences about null directions, layers and ranks.

    Args:
        group: of the report.
        numbers: of `details`.
    """
    found = []
    if numbers["null_left_out"]:
        found.append(_left_out(numbers["null_kinds"], len(group["information"])))
    below = [layer["layer"] for layer in numbers.get("layers", ()) if layer["status"] == "BELOW"]
    if below:
        found.append(
            f"In {len(below)} of {len(numbers['layers'])} layers the weakest direction lies below its fluctuation: "
            f"{', '.join(below[:8])}{', ...' if len(below) > 8 else ''}."
        )
    return (*found, *heterogeneity.advice(group))


def layers(group: Group, tap: Tap, count: float) -> dict[str, Any]:
    """Each layer's own smallest and largest information against its own Λ*, at δ over the number of layers."""
    blocks = _blocks(group, tap)
    if len(blocks) == 1 and not blocks[0].layer:
        return {}
    return {"layers": [_layer(group, block, count, len(blocks)) for block in blocks]}


def _layer(group: Group, block: Block, count: float, layers: int) -> dict[str, Any]:
    here = group["information"][block.start : block.stop, block.start : block.stop]
    values = torch.linalg.eigvalsh(here).clamp_min(0)
    star = gaussian_level(float(values[-1]), len(values), count, group["delta"] / layers).value
    return {
        "layer": block.layer,
        "directions": len(values),
        "smallest": float(values[0]),
        "smallest_se": float(values[0]) * (2 / count) ** 0.5,
        "largest": float(values[-1]),
        "lambda_star": star,
        "status": classify(float(values[0]), star).value,
    }


def _left_out(kinds: dict[str, int], size: int) -> str:
    named = [f"{number} {'is' if number == 1 else 'are'} {words or _NAMELESS}" for words, number in kinds.items()]
    total = sum(kinds.values())
    verb = "carries" if total == 1 else "carry"
    return (
        f"{total} of {size} directions {verb} no information whatever the data, and {'is' if total == 1 else 'are'} left "
        f"out: {'; '.join(named)}. Λ*, the floor and the count of directions refer to the others."
    )


def _blocks(group: Group, tap: Tap) -> tuple[Block, ...]:
    return blocks_of(tap.statistic, len(group["information"]))


def _values(tap: Tap) -> dict[str, Tensor]:
    """The parameters in full, gathered where they are cut among ranks; they are few where there are symmetries."""
    return tap.shards.gathered(tap.parameters) if isinstance(tap, SampleTap) else tap.parameters


def _seen(tap: Tap) -> tuple[tuple[Symmetry, ...], dict[str, Tensor]]:
    """The candidates with the parameters as last gathered, as a report is made by one rank alone; none before."""
    if not isinstance(tap, SampleTap) or not tap.shards.parameters:
        return _symmetries(tap), tap.parameters
    return (_symmetries(tap), tap.shards.last) if tap.shards.last else ((), {})


def _symmetries(tap: Tap) -> tuple[Symmetry, ...]:
    """Candidates, where the directions are few enough parameters' whole space to hold them."""
    if tracking.is_tracked(tap):
        return ()
    watched = {name: p for name, p in tap.parameters.items() if name in tap.directions}
    if not isinstance(tap, SampleTap) or sum(p.numel() for p in watched.values()) > WHOLE_SPACE:
        return ()
    return symmetries(tap.model, watched)
