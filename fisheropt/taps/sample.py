"""Per-sample statistics of a module, read from its ordinary backward."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from typing import Any, cast, final

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from fisheropt.directions import Directions
from fisheropt.likelihoods import Likelihood
from fisheropt.statistics import JointStatistic, Moments, Statistic
from fisheropt.taps.base import Tap, Unit, joint_moments, of_parameter
from fisheropt.taps.channel import JOINT, Channel, Information
from fisheropt.taps.collecting import collector
from fisheropt.taps.data import Data, Observation
from fisheropt.taps.direct import Direct, DirectHook, Rows, augmented, serves
from fisheropt.taps.grams import Grams
from fisheropt.taps.hooks import PLACED, LayerHook
from fisheropt.taps.layers import Layers
from fisheropt.taps.lend import Lend
from fisheropt.taps.pooled import Pool
from fisheropt.taps.reduce import ranks, reduce_augmented
from fisheropt.taps.root import RootEntry, RootExit
from fisheropt.taps.routes import Route, check_tokens, routes, tied
from fisheropt.taps.scores import Scores
from fisheropt.taps.shards import Shards

_COUNT = torch.float32  # of samples, whatever torch.set_default_dtype says


@final
class SampleTap(Tap):
    """Sinks on every module that uses the tapped parameters.

    Args:
        model: whose ordinary forward and backward are observed.
        statistic: what to collect.
        parameters: which, by name; all trainable ones if left out.
        likelihood: of the model's output; with it a joint statistic also measures the model Fisher.
        sample: what one observation is, "sequence" for an index of the first axis and "token" for one of the first two.

    Raises:
        ValueError: for a trainable parameter without a route, or of tokens one whose layer mixes them.
    """

    unit: Unit = "sample"

    def __init__(
        self,
        model: nn.Module,
        statistic: Statistic,
        parameters: dict[str, Tensor] | None = None,
        likelihood: Likelihood | None = None,
        sample: Observation = "sequence",
    ) -> None:
        self.statistic = statistic
        self.parameters = _trainable(model) if parameters is None else parameters
        self.shards = Shards(model, self.parameters)
        self.routes = routes(model, self.parameters)
        if sample == "token":
            check_tokens(self.routes)
        self.directions = statistic.directions(self.parameters) if isinstance(statistic, JointStatistic) else {}
        self.model, self.likelihood = model, likelihood
        counts = {r.path: torch.zeros(2, dtype=_COUNT, device=self._device(), requires_grad=True) for r in self.routes}
        scores = collector(statistic, self.directions)
        self.channel = Channel(self._leaves(), self._sums(), counts, self.directions, scores)
        self.channel.respond = likelihood is None
        self.channel.parallel = self.channel.sharded = bool(self.shards.parameters)
        self.channel.by_token = self.channel.watching = sample == "token"
        self.data = Data()
        self.channel.tied = tied(self.routes)
        own = {name: torch.zeros((), dtype=_COUNT, device=p.device, requires_grad=True) for name, p in self._apart()}
        self.channel.sizes = own
        short = serves(self.routes, self.parameters, statistic)
        self.direct = Direct(self.channel, self.routes[0], self.channel.leaves[JOINT].dtype) if short else None
        self.attach()

    def attach(self) -> None:
        if self.direct is not None:
            self.direct.attach()
            short = DirectHook(self.direct, self.routes[0], self.statistic, self.likelihood)
            self.model.register_forward_hook(short, prepend=True, with_kwargs=True)
            return
        self.model.register_forward_pre_hook(RootEntry(self.channel, self.model, self.statistic), with_kwargs=True)
        for route in self.routes:
            hook = LayerHook(self.channel, route, self.statistic)
            # first: before others change the output, and while fully_shard has the module's parameters whole
            lends = bool(route.rule.lends)
            route.module.register_forward_hook(hook, prepend=True, with_kwargs=True, always_call=lends)
            if lends:
                route.module.register_forward_pre_hook(Lend(hook, self.channel), with_kwargs=True)
        self.model.register_forward_hook(RootExit(self.channel, self.likelihood), with_kwargs=True, always_call=True)

    def remove(self) -> None:
        if self.direct is not None:
            self.direct.remove()
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
            return {name: self._leaf("second", name, of_parameter(statistic).size(p)) for name, p in self._apart()}
        size = statistic.rank(self.parameters) + 1
        dtype = statistic.dtype or torch.float64  # the mean is subtracted from sums of squares
        return {JOINT: torch.zeros(size, size, dtype=dtype, device=self._device(), requires_grad=True)}

    def _sums(self) -> dict[str, Tensor]:
        """The leaves whose gradients are Σₙ hₙ, for the centring of a statistic that cannot be had from its own sums."""
        return {name: self._leaf("sum", name, p.shape) for name, p in self._apart()}

    def _leaf(self, kind: str, name: str, size: torch.Size) -> Tensor:
        """Zeros; where the parameter is cut among ranks, of no memory, and its gradient is cut as well."""
        p = self.parameters[name]
        dtype = self.statistic.accumulator(p)
        if name in self.shards.parameters and size == p.shape:
            return self.shards.leaf(kind, name, dtype)
        return torch.zeros(size, dtype=dtype, device=p.device, requires_grad=True)

    def _apart(self) -> Iterable[tuple[str, Tensor]]:
        """The parameters that are measured each by itself."""
        return () if isinstance(self.statistic, JointStatistic) else self.parameters.items()

    def aim(self, directions: dict[str, Directions]) -> None:
        self.directions.update(directions)

    def augmented(self) -> Tensor | None:
        held, direct = self.channel.leaves[JOINT].grad, self.direct
        if direct is None or direct.rows is None:
            return held
        found = augmented(direct.rows.scores)
        return found if held is None else held + found

    def rows(self) -> Rows | None:
        """The samples of a linear model since the last `clear`; None where they were not seen one by one."""
        if self.direct is None or self.channel.parallel or self.channel.leaves[JOINT].grad is not None:
            return None
        return self.direct.rows

    def scores(self) -> Scores | None:
        return self.channel.scores if isinstance(self.channel.scores, Scores) else None

    def layers(self) -> Layers | None:
        return self.channel.scores if isinstance(self.channel.scores, Layers) else None

    def grams(self) -> Grams | None:
        return self.channel.scores if isinstance(self.channel.scores, Grams) else None

    def counts(self) -> dict[str, int]:
        """How many samples each module has seen since the last `clear`; reads values back to the host."""
        if self.channel.compiled:
            raise RuntimeError(_COMPILED)
        seen = {path: leaf.grad for path, leaf in self.channel.counts.items()}
        found = {path: 0 if count is None else int(count[0]) for path, count in seen.items()}
        if self.direct is not None and self.direct.rows is not None:
            found[""] += len(self.direct.rows.scores)
        return found

    def ignore(self, mask: Tensor) -> None:
        """Say before a forward which of its observations are no data: padding, or what the loss leaves out.

        They have a zero gradient, and count as data if nobody says so. Of a tap on tokens such a silence is an error.

        Args:
            mask: True for what is no data, [n], or [n, tokens] of a tap on tokens; one for each forward.
        """
        self.channel.watching = True
        self.data.ignore(mask)

    def sums(self, name: str | None) -> Moments:
        if name is None:
            return self._joint()
        return self._pool().everywhere([name])[name]

    def seen(self) -> int:
        reading = self.augmented()
        self.check(self.counts(), 0 if reading is None else 1)
        return self.data.count(round(float(cast(Tensor, reading)[-1, -1])), self.channel)

    def _joint(self) -> Moments:
        seen = self.seen()
        reading = cast(Tensor, self.augmented()).clone()
        reading[-1, -1] = seen
        return joint_moments(reduce_augmented(reading, self.divisor()) if self.channel.parallel else reading)

    def all_sums(self) -> dict[str, Moments]:
        """The raw sums of every parameter; under DistributedDataParallel over the samples of this rank alone."""
        pool, names = self._pool(), list(self.parameters)
        return pool.everywhere(names) if self.channel.sharded else pool.here(names)

    def _pool(self) -> Pool:
        sizes = [leaf.grad for leaf in self.channel.sizes.values()]
        samples = max((int(size) for size in sizes if size is not None), default=0)
        samples = max(samples, self.channel.passed)
        self.check(self.counts(), samples)
        divisor = self.divisor() if self.channel.parallel else None
        return Pool(of_parameter(self.statistic), self._left, self.data.count(samples, self.channel), divisor)

    def _left(self, name: str) -> tuple[Tensor, Tensor]:
        """Σₙ φ(hₙ) and Σₙ hₙ as backward has left them, zero where none came by."""
        second, total = self.channel.leaves[name], self.channel.sums[name]
        return self.shards.left("second", name, second), self.shards.left("sum", name, total)

    def divisor(self) -> float:
        """By what the sum of the ranks' gradients is divided to be that of the step; 1 on one rank by itself."""
        if self.channel.sharded:
            return self.shards.divisor()
        return float(ranks()) if self.channel.parallel else 1.0

    def information(self) -> Information | None:
        """[[ΣJᵀuuᵀJ, ·], [·, c]] over the forwards that backward went through since the last `clear`.

        A forward without a backward, for validation or a batch that was thrown away, does not count.
        """
        found = list(self.channel.information)
        rows = None if self.direct is None else self.direct.rows
        if rows is not None and rows.information is not None:
            found.append(Information(augmented(rows.information), None))
        return reduce(Information.plus, found) if found else None

    def check(self, counts: dict[str, int], samples: int) -> None:
        """Refuse a reading that misses samples or modules."""
        if samples == 0:
            raise RuntimeError(
                "no sample was seen since the last clear. Call the model itself, model(x), between building the optimizer "
                "or tap and backward(); a compiled model must be compiled, or called for the first time, after that. Write "
                "loss.backward() without inputs=..., which leaves the sinks out"
            )
        if not self.channel.sharded and any(_cut_later(route, self.parameters) for route in self.routes):
            raise RuntimeError(
                "the parameters were replaced after fully_shard was called on the tapped model, and those that are tapped "
                "are trained no more; write fully_shard(model) before the optimizer or tap is built"
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
        self.drop_gradients()

    def drop_gradients(self) -> None:
        self.channel.drop_gradients()
        self.shards.clear()
        self.data.clear()
        if self.direct is not None:
            self.direct.clear()

    def enable(self, on: bool = True) -> None:
        self.channel.on = on

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"on": self.channel.on}

    def __setstate__(self, state: dict[str, Any]) -> None:
        on = state.pop("on")
        vars(self).update(state)
        self.channel.on = on


_COMPILED = (
    "the response of tracked directions (structure='lowrank', directions='tracked'), the moments of each layer "
    "(structure='kronecker', 'diagonal') and Gram() keep tensors from layer to layer, which a compiled model cannot. Train "
    "the model without torch.compile; or write directions='auto', or freeze all but at most 4,096 parameters and write "
    "structure='full'; in place of Gram(), Projection(...) of directions found without torch.compile"
)


def _unhook(hooks: dict[int, Any], flags: tuple[dict[int, bool], ...], channel: Channel) -> None:
    """Remove this tap's hooks, found by their channel, also from a copy of the module that they were placed on."""
    placed = (*PLACED, DirectHook)
    for key in [key for key, hook in hooks.items() if isinstance(hook, placed) and hook.channel is channel]:
        del hooks[key]
        for flag in flags:
            flag.pop(key, None)


def _cut_later(route: Route, parameters: dict[str, Tensor]) -> bool:
    """Whether a module has DTensors in the place of tapped parameters."""
    own = dict(route.module.named_parameters())
    return any(isinstance(own.get(name), DTensor) and own[name] is not parameters[n] for name, n in route.names.items())


def _trainable(model: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
