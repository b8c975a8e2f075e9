"""Faults of construction, keywords, state, hooks and compilation, each a small change to `SoundSGD`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from tests.optim.contract.faults import caught_by
from tests.optim.contract.sound import Group, SoundSGD


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


@caught_by("sched.lr_tensor")
class CopiesATensorLr(SoundSGD):
    def __init__(self, params: Any, lr: float | Tensor = 1e-3, **keywords: Any) -> None:
        super().__init__(params, lr.clone() if isinstance(lr, Tensor) else lr, **keywords)


@caught_by("sched.all")
class ChangesLr(SoundSGD):
    def update(self, group: Group) -> None:
        super().update(group)
        group["lr"] = group["lr"] * 0.99


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


@caught_by("state.mismatch")
class LoadsAnything(SoundSGD):
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=False):
            group["lr"] = saved["lr"]
