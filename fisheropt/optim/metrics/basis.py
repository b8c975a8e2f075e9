"""What a metric keeps in the parameters' state, through checkpoints."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fisheropt.optim.metrics.structure import State

KEY = "basis"
KEYS = (KEY, "moments", "noise", "left_factor", "left_basis", "right_factor", "right_basis", "direction")


def dtype(parameter: Tensor) -> torch.dtype:
    """At least float32: in less, a basis is not orthonormal enough for P to stay positive."""
    return torch.promote_types(parameter.dtype, torch.float32)


def blank(parameter: Tensor, count: int) -> Tensor:
    """A basis before any reading."""
    return parameter.detach().new_zeros((count, *parameter.shape), dtype=dtype(parameter))


def restore(state: State, groups: list[dict[str, Any]], saved: dict[str, Any]) -> None:
    """Put back what torch has cast to the parameters' dtype when it loaded a state.

    Args:
        state: of the optimizer, as torch has loaded it.
        groups: of the optimizer.
        saved: the dictionary that was loaded.
    """
    ids = [index for group in saved["param_groups"] for index in group["params"]]
    for index, p in zip(ids, (p for group in groups for p in group["params"]), strict=True):
        for key, held in saved["state"].get(index, {}).items():
            if key in KEYS:
                state[p][key] = held.detach().to(p.device, dtype(p), copy=True)
