"""Controllers by name: every Controller that a file of this folder defines, and a user's own once defined."""

import importlib
import pkgutil

import fisheropt.control
from fisheropt.control.base import Controller


def names() -> list[str]:
    """Names that `resolve` knows."""
    return sorted(_classes())


def resolve(controller: str | Controller) -> Controller:
    """The controller itself, or that of the name with its default hyper-parameters."""
    if isinstance(controller, Controller):
        return controller
    classes = _classes()
    if isinstance(controller, str) and controller in classes:
        return classes[controller]()
    raise ValueError(
        f"controller={controller!r}: known are {', '.join(map(repr, sorted(classes)))}; "
        "write one of these, or an instance such as fisheropt.control.NormTest(theta=0.9)."
    )


def _classes() -> dict[str, type[Controller]]:
    for module in pkgutil.iter_modules(fisheropt.control.__path__, "fisheropt.control."):
        importlib.import_module(module.name)
    return {cls.name: cls for cls in Controller.__subclasses__()}
