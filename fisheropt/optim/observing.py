"""An optimizer that watches its gradients: the taps of its groups, and when they are on."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, cast

from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from fisheropt.likelihoods import Likelihood, of_loss
from fisheropt.optim import expectation
from fisheropt.optim.group import UNKNOWN, Group, check, device_of, named, start_noise, with_names
from fisheropt.statistics import JointStatistic, Trace
from fisheropt.statistics.layerwise import Layerwise
from fisheropt.statistics.response import Response
from fisheropt.taps import MicrobatchTap, SampleTap, Tap
from fisheropt.taps.expected import FIRST, MOST, interval
from fisheropt.taps.shards import cut

Parameters = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]


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
    _cubed: ClassVar[float] = 4.0
    """Operations by which a matrix of readings is taken in, for each entry of its cube: a factor and an inverse."""

    def __init__(
        self, params_or_model: Parameters | nn.Module, defaults: Group, likelihood: Likelihood | str | None
    ) -> None:
        check(defaults)
        self._model = params_or_model if isinstance(params_or_model, nn.Module) else None
        self._likelihood = of_loss(likelihood)
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
        if cut(parameters.values()) and isinstance(statistic, Response | Layerwise):
            raise TypeError(
                f"{type(self).__name__} cannot yet measure parameters sharded by fully_shard with tracked directions "
                f"(structure='lowrank', directions='tracked') or parameter by parameter (structure='kronecker', "
                f"'diagonal'): these need whole matrices on each rank. Write directions='auto'; put at most 4,096 "
                f"parameters into a group of their own, structure='full', and metric=None for the others; or train with "
                f"DistributedDataParallel"
            )
        inside = set() if self._model is None else {id(p) for p in self._model.parameters()}
        if self._model is None or not any(id(p) in inside for p in parameters.values()):
            return MicrobatchTap(parameters, statistic)
        return SampleTap(self._model, statistic, parameters, self._likelihood)

    def _tap_of(self, group: Group) -> Tap:
        """The tap of a measured group."""
        for tap, held in zip(self._taps, self.param_groups, strict=True):
            if held is group and tap is not None:
                return tap
        raise LookupError("the group has no tap")

    def _arm(self, tap: Tap, group: Group) -> None:
        """Switch the tap on if the step that comes next is measured."""
        if group["measured"] and isinstance(tap, SampleTap) and _another(group):
            group["extra"], group["extra_count"] = expectation.extra(tap, self._cubed), group["count"]
        tap.enable(self._due(group))
        if isinstance(tap, SampleTap):
            tap.channel.seed = int(group["steps"]) << 16

    def _due(self, group: Group) -> bool:
        """Whether the step that comes next is measured; with every="auto" the first ten, then each as `overhead` allows."""
        steps = int(group["steps"])
        return (group["every"] == "auto" and steps < FIRST) or steps % self._interval(group) == 0

    def _interval(self, group: Group) -> int:
        """How many steps apart the group is measured, in the end; never more than a hundred, whatever it costs."""
        if group["every"] != "auto":
            return int(group["every"])
        return min(MOST, interval(max(0.0, group["extra"]), group["overhead"]))

    def _overhead(self, group: Group) -> float:
        """What measuring is expected to add to a step on average, after the first ten; nan where it is not known."""
        return group["extra"] / self._interval(group) if group["extra"] > 0 else float("nan")

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


def _another(group: Group) -> bool:
    """Whether the cost of measuring is not known of batches about as large as the last one measured."""
    known, count = float(group["extra_count"]), float(group["count"])
    return group["extra"] == UNKNOWN or not known / 2 < count < 2 * known
