"""An optimizer that watches its gradients: the taps of its groups, and when they are on."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, cast

from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import Optimizer

from fisheropt.likelihoods import Likelihood, resolve
from fisheropt.optim.group import Group, check, device_of, named, start_noise, with_names
from fisheropt.statistics import JointStatistic, Trace
from fisheropt.taps import MicrobatchTap, SampleTap, Tap

Parameters = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]

_EVERY_STEP_UNTIL = 10
_INTERVAL = 10


class ObservingOptimizer(Optimizer, ABC):
    """One tap for each parameter group, built with it, copied with it, and removed from the model with the optimizer.

    Args:
        params_or_model: a module, whose samples are then seen one by one in its ordinary backward; or parameters, of
            which each backward is one observation.
        defaults: hyper-parameters of a group.
        likelihood: of the model's output, where the subclass uses the model Fisher.
    """

    _kept: ClassVar[tuple[str, ...]] = ()
    """Attributes of a subclass that must survive pickle and deepcopy."""

    def __init__(
        self, params_or_model: Parameters | nn.Module, defaults: Group, likelihood: Likelihood | str | None
    ) -> None:
        check(defaults)
        self._model = params_or_model if isinstance(params_or_model, nn.Module) else None
        self._likelihood = resolve(likelihood)
        if self._likelihood is not None and self._model is None:
            raise ValueError(
                f"{type(self).__name__}(parameters, likelihood={likelihood!r}) cannot see the model's output; "
                f"write {type(self).__name__}(model, likelihood={likelihood!r})"
            )
        self._taps: list[Tap | None] = []
        given = list(self._model.named_parameters()) if self._model is not None else params_or_model
        super().__init__(cast(Any, given), defaults)
        weakref.finalize(self, _remove, self._taps)

    @abstractmethod
    def _statistic(self, group: Group, parameters: dict[str, Tensor]) -> JointStatistic | Trace | None:
        """What to observe of a group; None where its feature is off."""

    @abstractmethod
    def _fresh(self, tap: Tap | None) -> Group:
        """The subclass's own state of a group before any reading; its structure never changes, as DCP asks."""

    def add_param_group(self, param_group: Group) -> None:
        """Add a parameter group, with its state and its tap; hyper-parameters left out take the defaults."""
        if self._model is not None:
            param_group = with_names(param_group, self._model, len(self.param_groups))
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        check(group)
        for parameter in group["params"]:
            if parameter.is_complex():
                raise ValueError(
                    f"{type(self).__name__} takes real parameters, found complex ones; give it torch.view_as_real(p)"
                )
        tap = self._tap(group)
        self._taps.append(tap)
        self._start(group, tap)

    def _start(self, group: Group, tap: Tap | None) -> None:
        start_noise(group, tap)
        for key, value in self._fresh(tap).items():
            group.setdefault(key, value)
        if tap is not None:  # a checkpoint may have been loaded onto another device
            for key in ("covariance", "information", *self._fresh(tap)):
                if isinstance(group[key], Tensor):
                    group[key] = group[key].to(device_of(tap))

    def _tap(self, group: Group) -> Tap | None:
        parameters = {name: p for name, p in named(group).items() if p.requires_grad and p.is_leaf}
        statistic = self._statistic(group, parameters) if parameters else None
        if statistic is None:
            return None
        if any(isinstance(p, DTensor) for p in parameters.values()):
            raise TypeError(
                f"{type(self).__name__} cannot yet measure parameters sharded by fully_shard; switch its feature off, or "
                f"train with DistributedDataParallel"
            )
        inside = set() if self._model is None else {id(p) for p in self._model.parameters()}
        if self._model is None or not any(id(p) in inside for p in parameters.values()):
            return MicrobatchTap(parameters, statistic)
        return SampleTap(self._model, statistic, parameters, self._likelihood)

    def _tap_of(self, group: Group) -> Tap:
        """The tap of a measured group."""
        return next(
            tap for tap, held in zip(self._taps, self.param_groups, strict=True) if held is group and tap is not None
        )

    def _arm(self, tap: Tap, group: Group) -> None:
        """Switch the tap on if the step that comes next is measured."""
        tap.enable(self._due(group))
        if isinstance(tap, SampleTap):
            tap.channel.seed = int(group["steps"]) << 16

    def _due(self, group: Group) -> bool:
        """Whether the step that comes next is measured: the first ten, then each tenth, unless `every` says otherwise."""
        steps, every = int(group["steps"]), group["every"]
        if every == "auto":
            return steps < _EVERY_STEP_UNTIL or steps % _INTERVAL == 0
        return steps % int(every) == 0

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients and the readings that their backward has left."""
        super().zero_grad(set_to_none)
        for tap in self._taps:
            if tap is not None:
                tap.drop_gradients()

    def __getstate__(self) -> dict[str, Any]:
        kept = ("_model", "_likelihood", "_taps", *self._kept)
        return super().__getstate__() | {name: vars(self)[name] for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        copied = "_taps" in state
        for group, tap in zip(self.param_groups, self._taps, strict=True):
            for key, value in self.defaults.items():
                group.setdefault(key, value)
            self._start(group, tap)
            if tap is not None:
                if copied:
                    tap.remove()
                    tap.attach()
                self._arm(tap, group)
        if copied:
            weakref.finalize(self, _remove, self._taps)


def _remove(taps: list[Tap | None]) -> None:
    for tap in taps:
        if tap is not None:
            tap.remove()
