"""The forwards whose gradients a step is taken with, so that information can be computed on the same samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn


@final
@dataclass(frozen=True, eq=False)
class Forward:
    """What a model was called with.

    Args:
        args: by place.
        kwargs: by name.
        shape: of the output [n, ...].
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shape: torch.Size

    @property
    def samples(self) -> int:
        """Their number n."""
        return self.shape[0] if self.shape else 1

    def call(self, model: nn.Module) -> tuple[nn.Module, str, Any]:
        """The module, the prefix of its names and the inputs by which the products repeat this forward."""
        if self.args and self.kwargs:
            return _Both(model), "model.", (self.args, self.kwargs)
        return model, "", self.kwargs or self.args


@final
class _Both(nn.Module):
    """A model that is called with arguments by place and by name, as a model of two arguments."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = model.training

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The model's own output."""
        return self.model(*args, **kwargs)


@final
class Forwards:
    """A forward hook of the whole model that keeps what it was called with, where a backward followed.

    A forward without a backward, for validation or a batch that was thrown away, is not kept.
    """

    def __init__(self) -> None:
        self.on = True
        self.seen: list[Forward] = []

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not self.on or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return
        if torch._C._are_functorch_transforms_active() or not isinstance(output, Tensor) or not output.requires_grad:
            return
        forward = Forward(args, kwargs, output.shape)
        output.register_hook(lambda _: self._keep(forward))

    def _keep(self, forward: Forward) -> None:
        if self.on and not any(held is forward for held in self.seen):
            self.seen.append(forward)

    def clear(self) -> None:
        """Let go of what was kept."""
        self.seen = []

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"seen": []}
