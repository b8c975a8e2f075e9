"""Faults seen in real optimizers, each a small change to `SoundSGD`, with the requirements that have to fail
on it.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from tests.optim.contract.sound import Group, SoundSGD

MUTANTS: dict[type[SoundSGD], list[str]] = {}
"""Each mutant and the requirements that must catch it."""

Mutant = type[SoundSGD]


def caught_by(*requirements: str) -> Callable[[Mutant], Mutant]:
    """Enter a mutant."""

    def enter(cls: Mutant) -> Mutant:
        MUTANTS[cls] = list(requirements)
        return cls

    return enter


@caught_by("state.round_trip", "state.pickle", "state.deepcopy")
class CountsBesideTheState(SoundSGD):
    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self.count = 0

    def update(self, group: Group) -> None:
        self.count += 1
        super().update(group)

    def shift(self, parameter: Tensor, direction: Tensor, lr: float | Tensor) -> None:
        super().shift(parameter, direction, lr / (1 + self.count))


@caught_by("state.keys")
class KeepsAStringKeyInState(SoundSGD):
    def update(self, group: Group) -> None:
        self.state["count"] = {"steps": 1}
        super().update(group)


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


@caught_by("sched.lr_tensor")
class CopiesATensorLr(SoundSGD):
    def __init__(self, params: Any, lr: float | Tensor = 1e-3, **keywords: Any) -> None:
        super().__init__(params, lr.clone() if isinstance(lr, Tensor) else lr, **keywords)


@caught_by("sched.all")
class ChangesLr(SoundSGD):
    def update(self, group: Group) -> None:
        super().update(group)
        group["lr"] = group["lr"] * 0.99


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
        return [
            gradient * self.state[parameter]["ratio"]
            for parameter, gradient in zip(params, grads, strict=True)
        ]


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


@caught_by("flag.maximize")
class MaximizesAfterMomentum(SoundSGD):
    def gradients(self, group: Group, params: list[Tensor]) -> list[Tensor]:
        return super().gradients({**group, "maximize": False}, params)

    def move(self, group: Group, params: list[Tensor], directions: list[Tensor]) -> None:
        super().move(group, params, [-d if group["maximize"] else d for d in directions])


@caught_by("flag.foreach")
class UsesAnotherFormulaInForeach(SoundSGD):
    def momenta(self, group: Group, params: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
        return super().momenta({**group, "momentum": 0.0} if group["foreach"] else group, params, grads)


@caught_by("flag.differentiable")
class DetachesTheGraph(SoundSGD):
    def gradient(self, parameter: Tensor) -> Tensor:
        return super().gradient(parameter).detach()


@caught_by("flag.differentiable_lr")
class TurnsLrIntoAFloat(SoundSGD):
    def move(self, group: Group, params: list[Tensor], directions: list[Tensor]) -> None:
        super().move({**group, "lr": float(group["lr"])}, params, directions)


@caught_by("state.fp32_stats")
class CastsStatisticsAtLoad(SoundSGD):
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        Optimizer.load_state_dict(self, state_dict)


@caught_by("state.older")
class SetsNoDefaultsAtLoad(SoundSGD):
    def __setstate__(self, state: dict[str, Any]) -> None:
        Optimizer.__setstate__(self, state)


@caught_by("state.weights_only", "state.keys")
class KeepsAnObjectInState(SoundSGD):
    def prepare(self, parameter: Tensor) -> None:
        super().prepare(parameter)
        self.state[parameter]["schedule"] = functools.partial(max, 0)


@caught_by("state.dcp", "state.round_trip")
class ForgetsTheBufferAtLoad(SoundSGD):
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        for state in self.state.values():
            state.pop("momentum_buffer", None)


@caught_by("hook.order", "hook.profiler")
class ReplacesStepOnTheInstance(SoundSGD):
    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self.step = functools.partial(_bare_step, self.param_groups, self.update)


def _bare_step(groups: list[Group], update: Callable[[Group], None], closure: Any = None) -> None:
    with torch.no_grad():
        for group in groups:
            update(group)


@caught_by("hook.released")
class RefersToItself(SoundSGD):
    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self.callbacks = [self.update]


@caught_by("amp.scaler")
class ClaimsToUnscale(SoundSGD):
    _step_supports_amp_scaling = True


@caught_by("compile.stable")
class CountsInAPythonNumber(SoundSGD):
    def prepare(self, parameter: Tensor) -> None:
        super().prepare(parameter)
        state = self.state[parameter]
        state["decay"] = state.get("decay", 1.0) * 0.9

    def gradient(self, parameter: Tensor) -> Tensor:
        return super().gradient(parameter) * self.state[parameter]["decay"]


@caught_by("compile.matches")
class DiffersWhenCompiling(SoundSGD):
    def gradient(self, parameter: Tensor) -> Tensor:
        return super().gradient(parameter) * (2 if torch.compiler.is_compiling() else 1)


@caught_by("compile.matches")
class CountsInInitGroup(SoundSGD):
    def update(self, group: Group) -> None:
        self._init_group(group)
        super().update(group)

    def _init_group(self, group: Group) -> None:
        for parameter in group["params"]:
            self.state[parameter]["seen"] = self.state[parameter].get("seen", 0) + 1


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


@caught_by("make.unknown_keyword")
class SwallowsKeywords(SoundSGD):
    def __init__(self, params: Any, lr: float = 1e-3, momentum: float = 0.0, **ignored: Any) -> None:
        super().__init__(params, lr, momentum=momentum)


@caught_by("make.bad_lr")
class TakesAnyLr(SoundSGD):
    def __init__(self, params: Any, lr: float = 1e-3, momentum: float = 0.0) -> None:
        super().__init__(params, 0.0, momentum=momentum)
        for group in self.param_groups:
            group["lr"] = lr


@caught_by("make.lr_second")
class PutsMomentumSecond(SoundSGD):
    def __init__(self, params: Any, momentum: float = 0.0, lr: float = 1e-3) -> None:
        super().__init__(params, lr, momentum=momentum)


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


@caught_by("state.mismatch")
class LoadsAnything(SoundSGD):
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=False):
            group["lr"] = saved["lr"]


@caught_by("step.zero_grad")
class ZeroesInPlaceAlways(SoundSGD):
    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none=False)


@caught_by("step.freeze")
class RefusesFrozenParameters(SoundSGD):
    def update(self, group: Group) -> None:
        assert all(parameter.grad is not None for parameter in group["params"])
        super().update(group)
