"""By which rule each parameter's per-sample gradients are seen, or why they cannot be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import final

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fisheropt.rules.registry import Rule, adopts, find, owned, refusal


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
    _check_initialised(model)
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
        own = {n: name_of[id(p)] for n, p in owned(module, children) if id(p) in name_of}
        if not own:
            continue
        seen.update(own.values())
        reason = _refusal(model, path)
        reasons = {name: reason or _COMPLEX for name in own.values() if reason or parameters[name].is_complex()}
        missing += [f"{name}: {why}" for name, why in reasons.items() if parameters[name].requires_grad]
        if reason is None:
            found.append(Route(path, module, find(module), own))
    missing += [f"{n}: not a parameter of {type(model).__name__}" for n in parameters if n not in seen]
    if missing:
        raise ValueError(_no_route(missing))
    return found


def tied(found: Iterable[Route]) -> frozenset[str]:
    """The parameters that several modules share."""
    names = [name for route in found for name in set(route.names.values())]
    return frozenset(name for name in names if names.count(name) > 1)


def check_tokens(found: Iterable[Route]) -> None:
    """Refuse layers that mix the positions of a sample, where positions are to be the observations."""
    mixing = [
        f"{name} ({type(r.module).__name__})"
        for r in found
        if r.rule.per_position(r.module) is None
        for name in r.names.values()
    ]
    if mixing:
        raise ValueError(
            f"observe(..., sample='token'): the layers of these parameters mix positions, or their rule does not show them: "
            f"{', '.join(mixing)}. Leave sample='sequence'; or observe(..., parameters=[...], sample='token') those of "
            f"nn.Linear, nn.Embedding, nn.LayerNorm and nn.RMSNorm alone"
        )


_COMPLEX = "per-sample statistics are of real numbers, and it is complex; give torch.view_as_real(p)"


def _check_initialised(model: nn.Module) -> None:
    """Refuse lazy modules before their first call, whose parameters have no shape and are replaced by it."""
    lazy = [name for name, p in model.named_parameters() if is_lazy(p)]
    if lazy:
        raise ValueError(
            f"{', '.join(lazy)}: not initialised, as these modules are lazy and were never called. Run one batch first, "
            f"with torch.no_grad(): model(x), and build the optimizer or tap after it"
        )


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
