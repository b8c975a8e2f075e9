"""What a tap would do with a model, in words and numbers, before anything is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fisheropt.directions import DenseDirections, Directions, RankOneDirections
from fisheropt.statistics import JointStatistic, Projection, Statistic, Trace
from fisheropt.taps.expected import MOST, Contraction, Expected, expected, interval
from fisheropt.taps.root import coupled
from fisheropt.taps.routes import Route, routes
from fisheropt.taps.shapes import Call, call


@final
@dataclass(frozen=True)
class Row:
    """One parameter.

    Args:
        parameter: its name.
        shape: its own.
        module: the class that uses it.
        rule: that serves the module.
        form: in which its per-sample gradients come; "" where no forward has shown it.
        contractions: what is had of them, by which way, and what each way would take.
        held: bytes of the temporaries that are there at one time.
        share: what measuring it adds, in plain steps.
    """

    parameter: str
    shape: tuple[int, ...]
    module: str
    rule: str
    form: str = ""
    contractions: tuple[Contraction, ...] = ()
    held: float = 0.0
    share: float = 0.0

    def cells(self) -> tuple[str, ...]:
        """As one line of the table."""
        own = (self.parameter, str(self.shape), self.module, self.rule)
        if not self.form:
            return own
        return (*own, self.form, "; ".join(map(_why, self.contractions)), _bytes(self.held), f"{self.share:.2%}")


@final
@dataclass(frozen=True)
class Explanation:
    """What `explain` returns: print it, or take `.as_dict()`. Numbers of cost are there if inputs were given.

    Args:
        rows: one a parameter.
        statistic: that would be measured; "" without inputs.
        share: what a measured step takes beside a plain one, in plain steps.
        every: how many steps apart every="auto" measures, after the first ten.
        overhead: what that is expected to add to a step on average.
    """

    rows: tuple[Row, ...]
    statistic: str = ""
    share: float = 0.0
    every: int = 0
    overhead: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """All of it as nested dictionaries, lists, numbers and strings, ready for JSON."""
        return asdict(self) | {"rows": [asdict(row) for row in self.rows]}

    def __str__(self) -> str:
        head: tuple[str, ...] = ("parameter", "shape", "module", "rule")
        if self.statistic:
            head = (*head, "form", "contraction, and what the others would take", "temporaries", "share of a step")
        cells = [row.cells() for row in self.rows]
        lines = [head, *((*row, *("-" for _ in head[len(row) :])) for row in cells)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
        table = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines]
        return "\n".join([*table, self._total()] if self.statistic else table)

    def _total(self) -> str:
        return (
            f"{self.statistic}: a measured step is expected to take {1 + self.share:.2f} times a plain one; every='auto' "
            f"measures the first ten steps and then every {self.every}, an expected overhead of {self.overhead:.1%}"
        )


def explain(
    model: nn.Module,
    *inputs: Any,
    statistic: Statistic | None = None,
    k: int | None = None,
    likelihood: bool = False,
    overhead: float = 0.05,
    contraction: Mapping[str, str] | None = None,
) -> Explanation:
    """How per-sample gradients of every parameter would be seen and, given a batch, what that is expected to cost.

    The batch runs through the model once, without gradients, for its shapes: buffers and random numbers are left as they
    are. Times are by the work model of `fisheropt.cost`, the same on every machine of a kind, and not measured.

    Args:
        model: as it would be given to an optimizer.
        inputs: an example batch, as the model is called with.
        statistic: that would be measured; `Trace()` if left out.
        k: in place of a statistic, so many rank-one directions.
        likelihood: whether the model Fisher is measured too, by the likelihood's own backward.
        overhead: the share of a step that measuring may cost.
        contraction: the way that is to be taken, by the parameter's name, as in `observe`.

    Returns:
        A table to print.

    Raises:
        ValueError: names every trainable parameter that has no route.
        RuntimeError: where a measured step would raise it for these inputs.
    """
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    found = routes(model, parameters)
    if not inputs:
        return Explanation(tuple(_row(route, own, parameters, None) for route in found for own in route.names))
    measured = {name: p for name, p in parameters.items() if p.requires_grad}
    if not measured:
        raise ValueError(
            f"explain({type(model).__name__}, ...): no parameter is trained; write model.requires_grad_(True), or "
            f"model.<parameter>.requires_grad_(True) for some"
        )
    trained = routes(model, measured)
    chosen = _statistic(statistic, k, measured)
    along = chosen.directions(measured) if isinstance(chosen, JointStatistic) else {}
    bill = expected(
        trained,
        _calls(model, trained, inputs),
        chosen,
        along,
        next(iter(parameters.values())).device.type,
        likelihood=likelihood,
        ways=contraction,
    )
    rows = tuple(_row(route, own, parameters, bill) for route in found for own in route.names)
    every = min(MOST, interval(bill.share, overhead))
    name = type(chosen).__name__ if k is None else f"{k} rank-one directions"
    return Explanation(rows, name, bill.share, every, bill.share / every)


def _statistic(given: Statistic | None, k: int | None, parameters: Mapping[str, Tensor]) -> Statistic:
    if given is not None and k is not None:
        raise ValueError("explain(statistic=..., k=...): k stands for a statistic of so many directions; leave one out")
    return (given or Trace()) if k is None else Projection({n: _rank_one(p, k) for n, p in parameters.items()})


def _rank_one(parameter: Tensor, k: int) -> Directions:
    """Directions that have shapes only."""
    shape = parameter.shape
    if len(shape) < 2:
        return DenseDirections(torch.empty(k, *shape, device="meta"))
    left, right = torch.empty(k, shape[0], device="meta"), torch.empty(k, shape[1:].numel(), device="meta")
    return RankOneDirections(left, right)


def _calls(model: nn.Module, found: list[Route], inputs: tuple[Any, ...]) -> tuple[Call, ...]:
    """The shapes of one forward that leaves nothing behind."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None):
            raise RuntimeError(coupled(module))
    calls: list[Call] = []
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with ExitStack() as stack:
        for route in found:
            handle = route.module.register_forward_hook(_recorder(route, calls), with_kwargs=True)
            stack.callback(handle.remove)
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.random.fork_rng(devices=list(devices)))
        stack.enter_context(torch.compiler.set_stance("force_eager"))  # hooks of a compiled model were fixed
        functional_call(model, buffers, inputs)
    return tuple(calls)


def _recorder(route: Route, calls: list[Call]) -> Callable[..., None]:
    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        seen, _ = route.rule.observed(output)
        if isinstance(seen, Tensor):
            calls.append(call(route.path, seen, *route.rule.saved(module, args, kwargs)))

    return record


def _row(route: Route, own: str, parameters: Mapping[str, Tensor], bill: Expected | None) -> Row:
    name = route.names[own]
    row = (name, tuple(parameters[name].shape), type(route.module).__name__, type(route.rule).__name__)
    if bill is None or name not in bill.lines:
        return Row(*row)
    line = bill.lines[name]
    return Row(*row, line.form, line.contractions, line.held, line.seconds / bill.step)


def _why(contraction: Contraction) -> str:
    """The way taken with its time, and those left."""
    times = contraction.seconds
    others = ", ".join(f"{name} {_time(t)}" for name, t in times.items() if name != contraction.way)
    taken = contraction.quantity if len(times) == 1 else f"{contraction.quantity} {contraction.way}"
    return f"{taken} {_time(times[contraction.way])}" + (f" ({others})" if others else "")


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:.0f} µs" if seconds < 1e-3 else f"{seconds * 1e3:.3g} ms"


def _bytes(count: float) -> str:
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"
