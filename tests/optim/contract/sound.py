"""A sound SGD with a statistic beside its momentum, which meets the contract and which the mutants change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

Group = dict[str, Any]
LATER = {"maximize": False, "foreach": None, "differentiable": False}
"""Keywords that the oldest checkpoints lack."""


class SoundSGD(Optimizer):
    """SGD with momentum that keeps a float32 mean of the squared gradient beside each parameter."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        *,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
    ) -> None:
        if isinstance(lr, Tensor) and lr.numel() != 1:
            raise ValueError("a Tensor lr must have one element")
        for name, value in (("lr", lr), ("momentum", momentum), ("weight_decay", weight_decay)):
            if value < 0:
                raise ValueError(f"{name}={value} is negative")
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, defaults | {"foreach": foreach, "differentiable": differentiable})

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in LATER.items():
                group.setdefault(name, value)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load, and keep the statistic in the float32 that it was saved in."""
        super().load_state_dict(state_dict)
        saved_ids = [index for group in state_dict["param_groups"] for index in group["params"]]
        own = [parameter for group in self.param_groups for parameter in group["params"]]
        for index, parameter in zip(saved_ids, own, strict=True):
            for name, value in state_dict["state"].get(index, {}).items():
                if name in ("step", "square"):
                    self.state[parameter][name] = torch.as_tensor(value, dtype=torch.float32).clone()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            for group in self.param_groups:
                self.update(group)
        return loss

    def update(self, group: Group) -> None:
        """Step one group."""
        params = [parameter for parameter in group["params"] if parameter.grad is not None]
        if not params:
            return
        for parameter in params:
            self.prepare(parameter)
        grads = self.gradients(group, params)
        buffers = self.momenta(group, params, grads)
        self.move(group, params, buffers)

    def prepare(self, parameter: Tensor) -> None:
        """Make the state of a parameter, and count."""
        state = self.state[parameter]
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["square"] = torch.zeros_like(parameter, dtype=torch.float32, requires_grad=False)
        state["step"] += 1

    def gradients(self, group: Group, params: list[Tensor]) -> list[Tensor]:
        """The descent gradients with weight decay, taken into the statistic."""
        grads = []
        for parameter in params:
            gradient = self.gradient(parameter)
            gradient = -gradient if group["maximize"] else gradient
            self.state[parameter]["square"].lerp_(gradient.detach().abs().square().float(), 0.1)
            decay = group["weight_decay"]
            grads.append(gradient.add(parameter, alpha=decay) if decay else gradient)
        return grads

    def gradient(self, parameter: Tensor) -> Tensor:
        """The gradient of one parameter."""
        if parameter.grad.is_sparse:
            raise RuntimeError("sparse gradients are not supported")
        return parameter.grad

    def momenta(self, group: Group, params: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
        """The momentum buffers after this step."""
        if not group["momentum"]:
            return grads
        for parameter, gradient in zip(params, grads, strict=True):
            state = self.state[parameter]
            if "momentum_buffer" in state:
                state["momentum_buffer"].mul_(group["momentum"]).add_(gradient)
            else:
                state["momentum_buffer"] = gradient.clone()
        return [self.state[parameter]["momentum_buffer"] for parameter in params]

    def move(self, group: Group, params: list[Tensor], directions: list[Tensor]) -> None:
        """Step against the directions."""
        if group["foreach"] and not isinstance(group["lr"], Tensor):
            torch._foreach_add_(params, directions, alpha=-group["lr"])
            return
        for parameter, direction in zip(params, directions, strict=True):
            self.shift(parameter, direction, group["lr"])

    def shift(self, parameter: Tensor, direction: Tensor, lr: float | Tensor) -> None:
        """Step one parameter."""
        if isinstance(lr, Tensor):
            parameter.add_((direction * -lr.to(direction.dtype)).reshape(parameter.shape))
        else:
            parameter.add_(direction, alpha=-lr)
