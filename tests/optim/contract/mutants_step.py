"""Faults of the step itself, each a small change to `SoundSGD`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.optim.contract.faults import caught_by
from tests.optim.contract.sound import Group, SoundSGD


@caught_by("step.global_state", "step.deterministic")
class DrawsFromTheGlobalGenerator(SoundSGD):
    def gradient(self, parameter: Tensor) -> Tensor:
        return super().gradient(parameter) * (1 + 0.01 * torch.randn(()))


@caught_by("step.no_sync")
class BranchesOnANorm(SoundSGD):
    def gradient(self, parameter: Tensor) -> Tensor:
        gradient = super().gradient(parameter)
        return gradient / 100 if gradient.norm().item() > 100 else gradient


@caught_by("step.in_place")
class ScalesTheGradientInPlace(SoundSGD):
    def gradient(self, parameter: Tensor) -> Tensor:
        return super().gradient(parameter).mul_(0.5)


@caught_by("step.in_place")
class RebindsTheData(SoundSGD):
    def shift(self, parameter: Tensor, direction: Tensor, lr: float | Tensor) -> None:
        parameter.data = parameter.data - lr * direction


@caught_by("step.half")
class PromotesToFloat32(SoundSGD):
    def shift(self, parameter: Tensor, direction: Tensor, lr: float | Tensor) -> None:
        parameter.data = parameter.data.float() - lr * direction.float()


@caught_by("group.lr", "group.lr_edit", "step.zero_lr")
class TakesLrFromDefaults(SoundSGD):
    def move(self, group: Group, params: list[Tensor], directions: list[Tensor]) -> None:
        super().move({**group, "lr": self.defaults["lr"]}, params, directions)


@caught_by("step.lr_tensor")
class ModifiesATensorLr(SoundSGD):
    def update(self, group: Group) -> None:
        super().update(group)
        if isinstance(group["lr"], Tensor):
            group["lr"].mul_(0.99)


@caught_by("step.zero_lr", "step.zero_grads")
class DividesZeroByZero(SoundSGD):
    def gradients(self, group: Group, params: list[Tensor]) -> list[Tensor]:
        grads = super().gradients(group, params)
        for parameter, gradient in zip(params, grads, strict=True):
            state = self.state[parameter]
            ratio = gradient.square().mean() / state["square"].mean()
            state["ratio"] = 0.9 * state.get("ratio", torch.ones(())) + 0.1 * ratio
        return [gradient * self.state[parameter]["ratio"] for parameter, gradient in zip(params, grads, strict=True)]


@caught_by("step.none_grad")
class MakesUpGradients(SoundSGD):
    def update(self, group: Group) -> None:
        for parameter in group["params"]:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        super().update(group)


@caught_by("step.none_grad")
class CoastsWithoutGradient(SoundSGD):
    def update(self, group: Group) -> None:
        super().update(group)
        for parameter in group["params"]:
            if parameter.grad is None and "momentum_buffer" in self.state[parameter]:
                self.shift(parameter, self.state[parameter]["momentum_buffer"], group["lr"])


@caught_by("step.closure")
class RunsTheClosureWithoutGradients(SoundSGD):
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        with torch.no_grad():
            loss = None if closure is None else closure()
        super().step()
        return loss


@caught_by("step.closure")
class RunsTheClosureTwice(SoundSGD):
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        if closure is not None:
            with torch.enable_grad():
                closure()
        return super().step(closure)


@caught_by("step.closure")
class LosesTheLoss(SoundSGD):
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        super().step(closure)


@caught_by("group.independent", "step.mixed_dtypes", "step.one_per_parameter")
class ScalesAllGroupsAlike(SoundSGD):
    def move(self, group: Group, params: list[Tensor], directions: list[Tensor]) -> None:
        present = [p.grad for each in self.param_groups for p in each["params"] if p.grad is not None]
        norm = torch.stack([gradient.float().norm() for gradient in present]).norm()
        super().move(group, params, [direction / (1 + norm).to(direction.dtype) for direction in directions])


@caught_by("step.quiet")
class Warns(SoundSGD):
    def update(self, group: Group) -> None:
        warnings.warn("a step is being taken", stacklevel=2)
        super().update(group)


@caught_by("step.quiet")
class Prints(SoundSGD):
    def update(self, group: Group) -> None:
        print("a step is being taken")
        super().update(group)


@caught_by("step.layouts")
class FlattensByView(SoundSGD):
    def shift(self, parameter: Tensor, direction: Tensor, lr: float | Tensor) -> None:
        parameter.view(-1).sub_(lr * direction.view(-1))


@caught_by("step.sizes")
class ReadsTheFirstElement(SoundSGD):
    def shift(self, parameter: Tensor, direction: Tensor, lr: float | Tensor) -> None:
        super().shift(parameter, direction, lr)
        parameter.view(-1)[0].add_(0.0)


@caught_by("group.add", "group.independent")
class StepsTheFirstGroupOnly(SoundSGD):
    def update(self, group: Group) -> None:
        if group is self.param_groups[0]:
            super().update(group)


@caught_by("step.descends")
class Ascends(SoundSGD):
    def gradient(self, parameter: Tensor) -> Tensor:
        return -super().gradient(parameter)


@caught_by("step.deterministic")
class CountsOnTheClass(SoundSGD):
    taken = 0

    def gradient(self, parameter: Tensor) -> Tensor:
        CountsOnTheClass.taken += 1
        return super().gradient(parameter) / CountsOnTheClass.taken


@caught_by("step.sparse")
class DropsSparseValues(SoundSGD):
    def gradient(self, parameter: Tensor) -> Tensor:
        gradient = parameter.grad
        if not gradient.is_sparse:
            return gradient
        dense = torch.zeros_like(parameter)
        dense[gradient._indices()[0]] = gradient._values()
        return dense


@caught_by("step.complex")
class TakesTheRealPart(SoundSGD):
    def gradient(self, parameter: Tensor) -> Tensor:
        gradient = super().gradient(parameter)
        return gradient.real.to(gradient.dtype) if gradient.is_complex() else gradient


@caught_by("group.weight_decay")
class DecaysAllGroupsAlike(SoundSGD):
    def gradients(self, group: Group, params: list[Tensor]) -> list[Tensor]:
        return super().gradients({**group, "weight_decay": self.param_groups[-1]["weight_decay"]}, params)


@caught_by("step.zero_grad")
class ZeroesInPlaceAlways(SoundSGD):
    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none=False)


@caught_by("step.freeze")
class RefusesFrozenParameters(SoundSGD):
    def update(self, group: Group) -> None:
        assert all(parameter.grad is not None for parameter in group["params"])
        super().update(group)
