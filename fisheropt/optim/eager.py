"""Methods of a step that a compiled step calls, and does not take in."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

_P = ParamSpec("_P")
_R = TypeVar("_R")


def eager(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """`torch.compiler.disable`, whose switch costs as much as several operations, only where something is compiled."""
    apart = torch.compiler.disable(function, recursive=True)

    @wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        return (apart if torch.compiler.is_compiling() else function)(*args, **kwargs)

    return call
