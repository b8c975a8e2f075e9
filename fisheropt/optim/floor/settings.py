"""Which hyper-parameters of FisherFloorSGD make sense, by themselves and together."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from fisheropt.likelihoods import Likelihood, of_loss
from fisheropt.optim.floor import MODES
from fisheropt.optim.floor.exact import Exact
from fisheropt.optim.floor.penalty import automatic_weight
from fisheropt.optim.floor.sampled import Sampled
from fisheropt.optim.group import Group
from fisheropt.taps.shards import cut
from fisheropt.theory.penalty import resolve as resolve_psi

FISHERS = ("auto", "hutchinson", "exact", "sampled")


def off(group: Group) -> bool:
    """Whether there is nothing to measure for."""
    return group["mode"] != "monitor" and not group["floor"]


def is_exact(group: Group) -> bool:
    """Whether the information is computed by jvps, and not by a backward from random cotangents."""
    return group["fisher"] == "exact" or (group["fisher"] == "auto" and MODES[group["mode"]].exact and not off(group))


def check(group: Group) -> None:
    """Refuse numbers outside their range and unknown names."""
    floor, delta, smoothing = group["floor"], group["delta"], group["smoothing"]
    if floor is not None and floor != "auto" and (isinstance(floor, str) or not 0 <= floor < math.inf):
        raise ValueError(f"floor={floor!r} must be 'auto', None or a number >= 0, the least information τ")
    for name, known in (("mode", tuple(MODES)), ("fisher", FISHERS)):
        if group[name] not in known:
            raise ValueError(f"{name}={group[name]!r}: write one of {known}")
    resolve_psi(group["penalty"], "FisherFloorSGD(penalty=...)")
    if not 0 < delta < 1:
        raise ValueError(
            f"delta={delta!r} must lie between 0 and 1; it is the probability of a wrong claim, for instance .05"
        )
    if smoothing != "auto" and (isinstance(smoothing, str) or not 0 <= smoothing < 1):
        raise ValueError(f"smoothing={smoothing!r} must be 'auto' or a number in [0, 1)")
    if group["weight"] != "auto" and not _positive(group["weight"]):
        raise ValueError(
            f"weight={group['weight']!r} must be 'auto' or a number > 0, about twice the loss at the start"
        )
    if not _positive(group["max_norm"]):
        raise ValueError(f"max_norm={group['max_norm']!r} must be a number > 0, to which the gradient is clipped")
    if group["data_size"] is not None and not _positive(group["data_size"]):
        raise ValueError(f"data_size={group['data_size']!r} must be a number of samples: write data_size=len(dataset)")
    if group["mode"] == "backtrack" and group["differentiable"]:
        raise ValueError("mode='backtrack' cannot be differentiated through; leave out differentiable=True")


def _positive(value: Any) -> bool:
    return not isinstance(value, str) and 0 < value < math.inf


def drawn(likelihood: Likelihood | str | None, group: Group) -> Likelihood | None:
    """What the backward that measures the model Fisher starts from; None where there is none or jvps take its place."""
    head = None if is_exact(group) else of_loss(likelihood)
    return Sampled(head) if head is not None and group["fisher"] == "sampled" else head


def computable(group: Group, defaults: Group, model: nn.Module | None, parameters: dict[str, Tensor]) -> bool:
    """Whether a group's parameters are the model's; of others no information is computed, and they take plain steps.

    Raises:
        ValueError: where the optimizer was not built to compute it.
    """
    if not is_exact(defaults):
        raise ValueError(
            f"a group with mode={group['mode']!r} needs an optimizer that computes the information exactly: write "
            f"FisherFloorSGD(model, ..., likelihood=..., fisher='exact')"
        )
    known = set() if model is None else {id(p) for p in model.parameters()}
    return any(id(p) in known for p in parameters.values())


def exact(model: object, likelihood: Likelihood | str | None, group: Group) -> Exact | None:
    """Where the information is computed by jvps of the model, if it is.

    Raises:
        ValueError: where the mode, the flavour or held-out batches need a model or a likelihood that is not there.
    """
    if off(group):
        return None
    asked = [
        ("held_out=", group["held_out"] is not None),
        (f"mode={group['mode']!r}", MODES[group["mode"]].exact),
        (f"fisher={group['fisher']!r}", group["fisher"] != "auto"),
    ]
    wanting = [what for what, given in asked if given]
    if not wanting:
        return None
    head = of_loss(likelihood)
    if not isinstance(model, nn.Module) or head is None:
        raise ValueError(
            f"FisherFloorSGD({wanting[0]}) needs the information at points of its own choosing, from the model and its "
            f"likelihood: write FisherFloorSGD(model, {wanting[0]}, likelihood='categorical')"
        )
    asked_of_jvps = is_exact(group) or group["held_out"] is not None
    if cut(model.parameters()) and asked_of_jvps:
        raise TypeError(
            f"FisherFloorSGD({wanting[0]}) computes information by jvps of the model, and cannot where fully_shard has cut "
            f"its parameters; write mode='anchor' or mode='metric' with fisher='hutchinson', or train with "
            f"DistributedDataParallel"
        )
    if MODES[group["mode"]].exact and not is_exact(group):
        raise ValueError(
            f"mode={group['mode']!r} computes the information itself: leave out fisher={group['fisher']!r}"
        )
    if group["mode"] == "penalty" and group["weight"] == "auto":
        automatic_weight(head, torch.Size((1, 2)))  # refuses what it does not know
    return Exact(model, head) if asked_of_jvps else None
