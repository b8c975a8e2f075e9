"""The shortest way to the samples' gradients in a model that is one linear layer: its inputs, weighted.

    hₙ = gₙ ⊗ xₙ,    jₙ = uₙ ⊗ xₙ

g is the gradient of the output and u the likelihood's cotangent, which needs no backward where the layer's output is the
model's. A hook on the output's gradient keeps g; one on the weight's, which only a backward reaches that adds to `p.grad`,
forms the rows. All else, a compiled model, inputs of more axes, weights of functional_call, goes the way of other models.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast, final

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fisheropt.likelihoods import Likelihood
from fisheropt.rules.linear import Linear
from fisheropt.statistics import FullCovariance, Statistic
from fisheropt.taps.channel import Channel, Passage
from fisheropt.taps.hooks import PLACED, LayerHook
from fisheropt.taps.root import RootEntry, RootExit
from fisheropt.taps.routes import Route


class Rows(NamedTuple):
    """The gradients of the samples of some backwards.

    Args:
        scores: hₙ, [n, d].
        information: jₙ, [n, d]; None without a likelihood.
    """

    scores: Tensor
    information: Tensor | None

    def plus(self, other: Rows) -> Rows:
        """The samples of both."""
        known = self.information is not None and other.information is not None
        joined = torch.cat([self.information, other.information]) if known else None  # type: ignore[list-item]
        return Rows(torch.cat([self.scores, other.scores]), joined)


def augmented(rows: Tensor) -> Tensor:
    """[[Σhhᵀ, Σh], [Σhᵀ, n]] of rows h."""
    wide = torch.cat([rows, rows.new_ones(len(rows), 1)], 1)
    return wide.T @ wide


@final
class Direct:
    """What the backwards of a linear model have left, and the hook on its weight that asks for it.

    Args:
        channel: of the tap.
        route: to the model itself.
        dtype: of the rows.
    """

    def __init__(self, channel: Channel, route: Route, dtype: torch.dtype) -> None:
        self.channel, self.dtype = channel, dtype
        self.weight, self.bias = cast(nn.Linear, route.module).weight, "bias" in route.names
        self._handle: Any = None
        self.clear()

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"rows": None, "passing": [], "_handle": None}

    def attach(self) -> None:
        """Place the hook on the weight."""
        self._handle = self.weight.register_post_accumulate_grad_hook(self)

    def remove(self) -> None:
        """Take it off again."""
        if self._handle is not None:
            self._handle.remove()
        self._handle = None

    def clear(self) -> None:
        """Forget what backward has left."""
        self.rows: Rows | None = None
        self.passing: list[Passing] = []

    def __call__(self, weight: Tensor) -> None:
        """Take in the forwards that the running backward came by."""
        task = torch._C._current_graph_task_id()
        passed, self.passing = [p for p in self.passing if p.task == task], []
        for p in passed:
            p.passage.differentiate()
            found = self._of(p)
            self.rows = found if self.rows is None else self.rows.plus(found)

    def _of(self, passed: Passing) -> Rows:
        x, cotangent, narrow = passed.inputs, passed.cotangent, passed.grad.shape[1] == 1
        if self.bias and narrow:
            x = torch.cat([x, x.new_ones(len(x), 1)], 1)
        x = x.to(self.dtype)
        return Rows(self._rows(x, passed.grad), None if cotangent is None else self._rows(x, cotangent))

    def _rows(self, x: Tensor, grad: Tensor) -> Tensor:
        """The gradients of all samples in the order of the parameters, [n, d]."""
        if grad.shape[1] == 1:
            return x * grad
        wide = grad.to(self.dtype)
        h = (wide[:, :, None] * x[:, None]).flatten(1)
        return torch.cat([h, wide], 1) if self.bias else h


@final
class Passing:
    """The hook on the gradient of one forward's output.

    Args:
        direct: that is told.
        inputs: of the layer, [n, i].
        cotangent: of the likelihood, [n, o].
    """

    def __init__(self, direct: Direct, inputs: Tensor, cotangent: Tensor | None) -> None:
        self.direct, self.inputs, self.cotangent = direct, inputs, cotangent
        self.passage = Passage(direct.channel)
        self.task = -1

    def __call__(self, grads: tuple[Tensor | None, ...]) -> None:
        if grads[0] is not None:
            self.grad, self.task = grads[0].detach(), torch._C._current_graph_task_id()
            self.direct.passing.append(self)


@final
class DirectHook:
    """The one forward hook of a linear model, in place of those of its layer and its root.

    Args:
        direct: to which the samples go.
        route: to the model itself.
        statistic: of the tap.
        likelihood: of the output.
    """

    def __init__(self, direct: Direct, route: Route, statistic: Statistic, likelihood: Likelihood | None) -> None:
        self.direct, self.channel, self.likelihood = direct, direct.channel, likelihood
        self.entry, self.exit = RootEntry(self.channel, route.module, statistic), RootExit(self.channel, likelihood)
        self.layer = LayerHook(self.channel, route, statistic)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        channel = self.channel
        if not channel.observing():
            return None
        if torch.compiler.is_compiling() or not self._short(module, args, kwargs, output):
            self.entry(module, args, kwargs)
            seen = self.layer(module, args, kwargs, output)
            self.exit(module, args, kwargs, output if seen is None else seen)
            return seen
        channel.parallel, cotangent = False, None
        if self.likelihood is not None:
            cotangent = self.likelihood.cotangent(output.detach(), channel.seed)
            channel.seed += 1
        # of the node, so that it comes after the hooks on the output, whenever they are placed
        output.grad_fn.register_prehook(Passing(self.direct, args[0].detach(), cotangent))
        return None

    def _short(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> bool:
        """Whether this call is x ↦ Wx + b of rows, by the tapped parameters and in this process alone."""
        direct, own = self.direct, module._parameters
        bias = own.get("bias")
        return (
            own.get("weight") is direct.weight
            and direct.weight.requires_grad
            and (not direct.bias or (bias is not None and bias.requires_grad))
            and len(args) == 1
            and not kwargs
            and type(args[0]) is Tensor
            and args[0].ndim == 2
            and output.requires_grad
            and not self.channel.watching
            and DistributedDataParallel._active_ddp_module is None
        )


def serves(routes: list[Route], parameters: dict[str, Tensor], statistic: Statistic) -> bool:
    """Whether all that is tapped is the weight, and maybe the bias, of a model that is one linear layer.

    Args:
        routes: of the tap.
        parameters: tapped, in the order of their coordinates.
        statistic: of the tap.
    """
    if not isinstance(statistic, FullCovariance) or [route.path for route in routes] != [""]:
        return False
    (route,) = routes
    others = [hook for hook in route.module._forward_hooks.values() if not isinstance(hook, (*PLACED, DirectHook))]
    if others:  # which may change the output that the likelihood is of
        return False
    wanted = [route.names[name] for name in ("weight", "bias") if name in route.names]
    plain = type(route.module) is nn.Linear and isinstance(route.rule, Linear)  # another, where forward was replaced
    return plain and "weight" in route.names and list(parameters) == wanted
