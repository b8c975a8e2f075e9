"""Parameters by the modules that hold them."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor


@final
class Layers:
    """Names of parameters, and of the modules before their last dot.

    Args:
        parameters: names, in the order of the model.
    """

    def __init__(self, parameters: tuple[str, ...]) -> None:
        self.parameters = parameters
        self.names = tuple(dict.fromkeys(map(_layer, parameters)))

    def chosen(self, name: str | None) -> Tensor:
        """Which parameters a layer has, or the one of that name, as a mask [L]; None for all.

        Raises:
            ValueError: for an unknown name.
        """
        if name is not None and name not in self.names and name not in self.parameters:
            raise ValueError(f"metric: no layer or parameter {name!r}; write one of {[*self.names, *self.parameters]}")
        return torch.tensor([name is None or name in (path, _layer(path)) for path in self.parameters])


def _layer(parameter: str) -> str:
    return parameter.rpartition(".")[0]
