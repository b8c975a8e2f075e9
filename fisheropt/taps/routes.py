"""By which rule each parameter's per-sample gradients are seen, or why they cannot be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import final

from torch import Tensor, nn

from fisheropt.rules.registry import Rule, adopts, find, refusal


@final
@dataclass(frozen=True)
class Route:
    """One module that uses some of the tapped parameters.

    Args:
        path: of the module in the model, "" for the model itself.
        module: the module.
        rule: of the module.
        names: the module's own name of each parameter and the model's name of it.
    """

    path: str
    module: nn.Module
    rule: Rule
    names: dict[str, str]


def routes(model: nn.Module, parameters: Mapping[str, Tensor]) -> list[Route]:
    """The routes of the named parameters through the modules of the model.

    Raises:
        ValueError: names every trainable parameter that has no route, with the line to write.
    """
    name_of = {id(p): name for name, p in parameters.items()}
    found: list[Route] = []
    missing: list[str] = []
    seen: set[str] = set()
    adopted: set[str] = set()
    for path, module in model.named_modules():
        if path in adopted:
            continue
        children = adopts(module)
        adopted.update(f"{path}.{child}".removeprefix(".") for child in children)
        own = {n: name_of[id(p)] for n, p in _own(module, children) if id(p) in name_of}
        if not own:
            continue
        seen.update(own.values())
        reason = _refusal(model, path)
        if reason is None:
            found.append(Route(path, module, find(module), own))
        else:
            missing += [f"{name}: {reason}" for name in own.values() if parameters[name].requires_grad]
    missing += [f"{n}: not a parameter of {type(model).__name__}" for n in parameters if n not in seen]
    if missing:
        raise ValueError(_no_route(missing))
    return found


def _own(module: nn.Module, children: tuple[str, ...]) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters that the module multiplies by itself, in its own names of them."""
    yield from module.named_parameters(recurse=False)
    for child in children:
        yield from module.get_submodule(child).named_parameters(prefix=child, recurse=False)


def _refusal(model: nn.Module, path: str) -> str | None:
    """Why a module cannot be served: for its own sake, or because an ancestor never calls it."""
    parts = path.split(".") if path else []
    for depth in range(len(parts) + 1):
        prefix = ".".join(parts[:depth])
        reason = refusal(model.get_submodule(prefix))
        if reason:
            return f"{type(model.get_submodule(prefix)).__name__} has no per-sample rule: {reason}"
    return None


def _no_route(missing: Iterable[str]) -> str:
    lines = "\n  ".join(missing)
    return (
        f"these trainable parameters have no route to per-sample gradients:\n  {lines}\n"
        f"Write one of: a rule, @fisheropt.rule(TheirModule); model.<parameter>.requires_grad_(False); or give the "
        f"optimizer parameters in place of the model, Opt(model.parameters(), lr=...), and run two or more backward() a "
        f"step, so that microbatches are the samples"
    )


def explain(model: nn.Module) -> str:
    """A table of every parameter of the model: its shape, the module that uses it and the rule that serves it.

    Args:
        model: as it would be given to an optimizer.

    Returns:
        One line a parameter.

    Raises:
        ValueError: names every trainable parameter that has no route.
    """
    parameters = dict(model.named_parameters())
    rows = [
        (name, str(tuple(parameters[name].shape)), type(route.module).__name__, type(route.rule).__name__)
        for route in routes(model, parameters)
        for name in route.names.values()
    ]
    rows = [("parameter", "shape", "module", "rule"), *rows]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
