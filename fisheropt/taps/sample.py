"""Per-sample statistics of a module, read from its ordinary backward."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from typing import Any, cast, final

import torch
from torch import Tensor, nn

from fisheropt.directions import Directions
from fisheropt.likelihoods import Likelihood
from fisheropt.persample import Dense
from fisheropt.statistics import JointStatistic, Moments, Statistic
from fisheropt.taps.base import Tap, Unit, joint_moments, of_parameter
from fisheropt.taps.channel import JOINT, Channel, Information
from fisheropt.taps.collecting import collector
from fisheropt.taps.hooks import PLACED, LayerHook, RootEntry, RootExit
from fisheropt.taps.layers import Layers
from fisheropt.taps.lend import Lend, TakeBack
from fisheropt.taps.routes import Route, routes
from fisheropt.taps.scores import Scores


@final
class SampleTap(Tap):
    """Sinks on every module that uses the tapped parameters.

    Args:
        model: whose ordinary forward and backward are observed.
        statistic: what to collect.
        parameters: which, by name; all trainable ones if left out.
        likelihood: of the model's output; with it a joint statistic also measures the model Fisher.

    Raises:
        ValueError: for a trainable parameter without a route.
    """

    unit: Unit = "sample"

    def __init__(
        self,
        model: nn.Module,
        statistic: Statistic,
        parameters: dict[str, Tensor] | None = None,
        likelihood: Likelihood | None = None,
    ) -> None:
        self.statistic = statistic
        self.parameters = _trainable(model) if parameters is None else parameters
        self.routes = routes(model, self.parameters)
        self.directions = statistic.directions(self.parameters) if isinstance(statistic, JointStatistic) else {}
        self.model, self.likelihood = model, likelihood
        counts = {r.path: torch.zeros((), device=self._device(), requires_grad=True) for r in self.routes}
        scores = collector(statistic, self.directions)
        self.channel = Channel(self._leaves(), self._sums(), counts, self.directions, scores)
        self.channel.respond = likelihood is None
        self.channel.tied = _tied(self.routes)
        self.channel.sizes = {name: torch.zeros((), device=p.device, requires_grad=True) for name, p in self._apart()}
        self.attach()

    def attach(self) -> None:
        self.model.register_forward_pre_hook(RootEntry(self.channel, self.model), with_kwargs=True)
        for route in self.routes:
            hook = LayerHook(self.channel, route, self.statistic)
            route.module.register_forward_hook(hook, with_kwargs=True)
            if not hook.joint and route.rule.lends:
                route.module.register_forward_pre_hook(Lend(hook, self.channel), with_kwargs=True)
                route.module.register_forward_hook(TakeBack(hook, self.channel), with_kwargs=True, always_call=True)
        self.model.register_forward_hook(RootExit(self.channel, self.likelihood), with_kwargs=True)

    def remove(self) -> None:
        for module in {id(m): m for m in (self.model, *(route.module for route in self.routes))}.values():
            flags = (module._forward_hooks_with_kwargs, module._forward_hooks_always_called)
            _unhook(module._forward_hooks, flags, self.channel)
            _unhook(module._forward_pre_hooks, (module._forward_pre_hooks_with_kwargs,), self.channel)

    def _device(self) -> torch.device:
        return next(iter(self.parameters.values())).device

    def _leaves(self) -> dict[str, Tensor]:
        """The leaves whose gradients are the readings."""
        statistic = self.statistic
        if not isinstance(statistic, JointStatistic):
            return {
                name: torch.zeros(
                    of_parameter(statistic).size(p), dtype=statistic.accumulator(p), device=p.device, requires_grad=True
                )
                for name, p in self.parameters.items()
            }
        size = statistic.rank(self.parameters) + 1
        dtype = statistic.dtype or torch.float64  # the mean is subtracted from sums of squares
        return {JOINT: torch.zeros(size, size, dtype=dtype, device=self._device(), requires_grad=True)}

    def _sums(self) -> dict[str, Tensor]:
        """The leaves whose gradients are Σₙ hₙ, for the centring of a statistic that cannot be had from its own sums."""
        return {
            name: torch.zeros(p.shape, dtype=self.statistic.accumulator(p), device=p.device, requires_grad=True)
            for name, p in self._apart()
        }

    def _apart(self) -> Iterable[tuple[str, Tensor]]:
        """The parameters that are measured each by itself."""
        return () if isinstance(self.statistic, JointStatistic) else self.parameters.items()

    def aim(self, directions: dict[str, Directions]) -> None:
        self.directions.update(directions)

    def augmented(self) -> Tensor | None:
        return self.channel.leaves[JOINT].grad

    def scores(self) -> Scores | None:
        return self.channel.scores if isinstance(self.channel.scores, Scores) else None

    def layers(self) -> Layers | None:
        return self.channel.scores if isinstance(self.channel.scores, Layers) else None

    def counts(self) -> dict[str, int]:
        """How many samples each module has seen since the last `clear`; reads values back to the host."""
        if self.channel.compiled:
            raise RuntimeError(_COMPILED)
        seen = {path: leaf.grad for path, leaf in self.channel.counts.items()}
        return {path: 0 if count is None else int(count) for path, count in seen.items()}

    def sums(self, name: str | None) -> Moments:
        if name is None:
            reading = self.augmented()
            self.check(self.counts(), 0 if reading is None else 1)
            return joint_moments(cast(Tensor, reading))
        return self.all_sums()[name]

    def all_sums(self) -> dict[str, Moments]:
        """The raw sums of every parameter, where the statistic is of each by itself."""
        sizes = [leaf.grad for leaf in self.channel.sizes.values()]
        samples = max((int(size) for size in sizes if size is not None), default=0)
        self.check(self.counts(), samples)
        return {name: self._moments(name, samples) for name in self.parameters}

    def _moments(self, name: str, count: int) -> Moments:
        second, total = self.channel.leaves[name].grad, self.channel.sums[name].grad
        if second is None or total is None:
            second = torch.zeros_like(self.channel.leaves[name], requires_grad=False)
            total = torch.zeros_like(self.channel.sums[name], requires_grad=False)
        squared = of_parameter(self.statistic).of(Dense(total.unsqueeze(0)))
        return Moments(second, squared, count, self.statistic.shape)

    def information(self) -> Information | None:
        """[[ΣJᵀuuᵀJ, ·], [·, c]] over the forwards that backward went through since the last `clear`.

        A forward without a backward, for validation or a batch that was thrown away, does not count.
        """
        return reduce(Information.plus, self.channel.information) if self.channel.information else None

    def check(self, counts: dict[str, int], samples: int) -> None:
        """Refuse a reading that misses samples or modules."""
        if samples == 0:
            raise RuntimeError(
                "no sample was seen since the last clear. Call the model itself, model(x), between building the optimizer "
                "or tap and backward(); a compiled model must be compiled, or called for the first time, after that. Write "
                "loss.backward() without inputs=..., which leaves the sinks out"
            )
        for route in self.routes:
            used = any(self.parameters[n].grad is not None for n in route.names.values())
            if counts[route.path] == 0 and used:
                raise RuntimeError(
                    f"{route.path or 'the model'} ({type(route.module).__name__}) was never called, yet its parameters "
                    f"{list(route.names.values())} received gradients: their samples cannot be seen. Call the module; "
                    f"or give checkpoint(..., use_reentrant=False); or write a rule for the module that uses them, "
                    f"@fisheropt.rule(...)"
                )

    def clear(self) -> None:
        self.channel.drop_gradients()

    def drop_gradients(self) -> None:
        self.channel.drop_gradients()

    def enable(self, on: bool = True) -> None:
        self.channel.on = on

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"on": self.channel.on}

    def __setstate__(self, state: dict[str, Any]) -> None:
        on = state.pop("on")
        vars(self).update(state)
        self.channel.on = on


_COMPILED = (
    "the response of tracked directions (structure='lowrank', directions='tracked') and the moments of each layer "
    "(structure='kronecker', 'diagonal') keep tensors from layer to layer, which a compiled model cannot. Train the model "
    "without torch.compile; or write directions='auto', or freeze all but at most 4,096 parameters and write "
    "structure='full'"
)


def _unhook(hooks: dict[int, Any], flags: tuple[dict[int, bool], ...], channel: Channel) -> None:
    """Remove this tap's hooks, found by their channel, also from a copy of the module that they were placed on."""
    for key in [key for key, hook in hooks.items() if isinstance(hook, PLACED) and hook.channel is channel]:
        del hooks[key]
        for flag in flags:
            flag.pop(key, None)


def _trainable(model: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _tied(found: list[Route]) -> frozenset[str]:
    """The parameters that several modules share."""
    names = [name for route in found for name in set(route.names.values())]
    return frozenset(name for name in names if names.count(name) > 1)
