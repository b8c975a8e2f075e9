"""Tensors of an optimizer's state that `fully_shard` has cut, in a form that any number of processes can go on with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

CUT, TENSOR = "cut along", "whole tensor"


def joined(state: Any) -> Any:
    """The state with whole tensors, and how they were cut; all processes have to ask at once."""
    return _mapped(state, lambda value: isinstance(value, DTensor), _joined)


def cut(state: Any, mesh: DeviceMesh) -> Any:
    """Undo `joined`, on the processes that there are now."""
    return _mapped(state, lambda value: isinstance(value, dict) and CUT in value, lambda value: _cut(value, mesh))


def _mapped(value: Any, chosen: Callable[[Any], bool], change: Callable[[Any], Any]) -> Any:
    """The nested value with what is chosen changed."""
    if chosen(value):
        return change(value)
    if isinstance(value, dict):
        return {key: _mapped(item, chosen, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_mapped(item, chosen, change) for item in value)
    return value


def _joined(tensor: DTensor) -> dict[str, Any]:
    (place,) = tensor.placements
    return {CUT: place.dim if isinstance(place, Shard) else None, TENSOR: tensor.full_tensor().cpu()}


def _cut(saved: dict[str, Any], mesh: DeviceMesh) -> DTensor:
    place = Replicate() if saved[CUT] is None else Shard(saved[CUT])
    return distribute_tensor(saved[TENSOR].to(mesh.device_type), mesh, [place])
