"""A parameter group: its hyper-parameters, its names, and the noise that is kept in it.

Counters and running means live in the group, and not in attributes, because pickle, deepcopy, DCP and FSDP2 keep nothing
else.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fisheropt.optim import running
from fisheropt.statistics import JointStatistic
from fisheropt.statistics.layerwise import Layerwise
from fisheropt.statistics.response import Response
from fisheropt.taps import Tap

Group = dict[str, Any]

UNKNOWN = -1.0
"""What measuring is expected to add, in plain steps, before a reading; 0 where the shapes do not tell."""
_COUNTERS = ("steps", "samples", "measured", "unseen", "outside", "skipped", "count", "signal")


def number(value: float | Tensor) -> float:
    """A hyper-parameter as a number, also where it is a tensor that is learnt."""
    return float(value.detach()) if isinstance(value, Tensor) else float(value)


def check(group: Group) -> None:
    """Refuse hyper-parameters outside their range."""
    lr = group["lr"]
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError(f"lr must be a number or a tensor of one element, found one of shape {tuple(lr.shape)}")
    for key in ("lr", "momentum", "weight_decay"):
        if number(group[key]) < 0:
            raise ValueError(f"{key}={group[key]} is negative; write a number >= 0")
    if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
        raise ValueError("nesterov=True needs momentum > 0 and dampening=0")
    if group["foreach"] and group["differentiable"]:
        raise RuntimeError("foreach=True and differentiable=True exclude each other; leave one out")
    every = group["every"]
    if every != "auto" and (isinstance(every, str) or every < 1 or every != int(every)):
        raise ValueError(f"every={every!r} must be 'auto' or a whole number of steps >= 1")
    if not group["overhead"] > 0:
        raise ValueError(f"overhead={group['overhead']} must be positive, the share of a step that measuring may cost")


def with_names(group: Group, model: nn.Module, index: int) -> Group:
    """The group with the model's names of its parameters, which torch wants for every group or for none."""
    if not isinstance(group, dict) or "params" not in group:
        return group
    given = group["params"]
    parameters = [given] if isinstance(given, Tensor) else list(given)
    names = {id(p): name for name, p in model.named_parameters()}
    named = [
        p if isinstance(p, tuple) else (names.get(id(p), f"group {index}.{i}"), p) for i, p in enumerate(parameters)
    ]
    return group | {"params": named}


def named(group: Group) -> dict[str, Tensor]:
    """The group's parameters by name, or by their place where torch was given none."""
    names = group.get("param_names") or [f"parameter {i}" for i in range(len(group["params"]))]
    return dict(zip(names, group["params"], strict=True))


def device_of(tap: Tap) -> torch.device:
    """Where the tapped parameters are."""
    return next(iter(tap.parameters.values())).device


def noise_shape(tap: Tap) -> torch.Size:
    """The shape of the covariance that a tap measures."""
    statistic = tap.statistic
    traced = isinstance(statistic, Layerwise) or (isinstance(statistic, Response) and statistic.traces)
    if traced or not isinstance(statistic, JointStatistic):
        return torch.Size(())
    rank = statistic.tracked if isinstance(statistic, Response) else statistic.rank(tap.parameters)
    return torch.Size((rank, rank))


def start_noise(group: Group, tap: Tap | None) -> None:
    """Give the group its counters and its running means, where it lacks them.

    Raises:
        ValueError: for a state of another number of directions.
    """
    for key in _COUNTERS:
        group.setdefault(key, 0.0)
    group.setdefault("extra", UNKNOWN)
    group.setdefault("extra_count", 0.0)
    if tap is None:
        return
    shape = noise_shape(tap)
    for key in ("covariance", "information"):
        running.start(group, key, torch.zeros(shape, dtype=torch.float64, device=device_of(tap)))
        if group[key].shape != shape:
            raise ValueError(
                f"the state holds noise {_described(group[key].shape)}, this optimizer measures it {_described(shape)}; "
                f"build it with the structure= or directions= and the model of the checkpoint"
            )


def _described(shape: torch.Size) -> str:
    return f"in {shape[0]} directions" if shape else "as a trace over all parameters"
