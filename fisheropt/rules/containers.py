"""Modules that hold parameters of another and are never called with samples: lists, dictionaries, parametrisations."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.utils.parametrize import is_parametrized


def held(module: nn.Module) -> Iterator[str]:
    """The names of the descendants that hold parameters which a module that is called multiplies by itself."""
    return iter(()) if _uncalled(module) else _under(module)


def _under(module: nn.Module) -> Iterator[str]:
    for name, child in module.named_children():
        if name == "parametrizations" and is_parametrized(module):
            yield name
            yield from (f"{name}.{path}" for path, _ in child.named_modules() if path)
        elif isinstance(child, (nn.ParameterList, nn.ParameterDict)):
            yield name
        elif _uncalled(child):
            yield from (f"{name}.{path}" for path in _under(child))


def _uncalled(module: nn.Module) -> bool:
    """Whether it is a list or dictionary of modules, which somebody else calls."""
    return isinstance(module, (nn.ModuleList, nn.ModuleDict)) and type(module).forward is nn.Module.forward
