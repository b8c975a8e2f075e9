"""What every kernel is asked for: sizes, dtypes and layouts, and when an answer is the definition's."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import fisheropt.kernels
from fisheropt.kernels import KERNELS, Kernel, Sizes

FOLDERS = sorted(m.name for m in pkgutil.iter_modules(fisheropt.kernels.__path__) if m.ispkg)
for folder in FOLDERS:
    importlib.import_module(f"fisheropt.kernels.{folder}.contract")

SIZES = {
    "odd": Sizes(3, 5, 7, 9, 2),
    "tiles": Sizes(2, 33, 70, 20, 17),
    "wide": Sizes(5, 1, 6, 130, 1),
    "exact": Sizes(4, 16, 16, 16, 16),
    "one": Sizes(1, 1, 1, 1, 0),
    "directionless": Sizes(2, 3, 5, 4, 0),
    "empty batch": Sizes(0, 3, 4, 5, 2),
    "no positions": Sizes(2, 0, 3, 4, 1),
    "no outputs": Sizes(2, 3, 0, 4, 2),
}
DTYPES: dict[str, tuple[torch.dtype, ...]] = {
    "float32": (torch.float32,),
    "bfloat16": (torch.bfloat16,),
    "float16": (torch.float16,),
    "mixed": (torch.bfloat16, torch.float32, torch.float16),
}
BEYOND = 4096  # numbers on either side, that a load without its mask brings in


def surrounded(x: Tensor) -> Tensor:
    """The same, with nan in the memory before and after."""
    memory = x.new_full((x.numel() + 2 * BEYOND,), torch.nan)
    return memory[BEYOND : BEYOND + x.numel()].view(x.shape).copy_(x)


def turned(x: Tensor) -> Tensor:
    """The same, with the last axis outermost in memory."""
    axes = list(reversed(range(x.ndim)))
    return surrounded(x.permute(axes)).permute(axes)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": surrounded,
    "turned": turned,
    "sliced": lambda x: torch.stack([x, torch.full_like(x, torch.nan)], -1)[..., 0],
    "expanded": lambda x: x[:1].expand_as(x) if len(x) else x,
}
VARIOUS = ("turned", "plain", "sliced", "plain")
ROUNDING = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


@dataclass(frozen=True)
class Case:
    """One call of one kernel."""

    kernel: str
    sizes: str
    dtype: str = "float32"
    layout: str = "plain"

    def __str__(self) -> str:
        return f"{self.kernel}, {self.sizes}, {self.dtype}, {self.layout}"

    def arguments(self, device: str = "cpu") -> tuple[Any, ...]:
        """Numbers that do not depend on the device."""
        generator, dtypes = torch.Generator().manual_seed(7), cycle(DTYPES[self.dtype])
        layouts = cycle(VARIOUS if self.layout == "various" else (self.layout,))
        free = iter(torch.ones(1 << 14, device=device).split(64))

        def tensor(*shape: int) -> Tensor:
            x = torch.randn(*shape, generator=generator).to(device=device, dtype=next(dtypes))
            if self.layout == "adjacent":  # an overrun meets the next tensor
                return next(free)[: x.numel()].view(shape).copy_(x)
            return LAYOUTS[next(layouts)](x)

        return KERNELS[self.kernel].example(SIZES[self.sizes], tensor)


def cases() -> Iterator[Case]:
    """Every kernel at every size, in every dtype and every layout."""
    for name, kernel in KERNELS.items():
        yield from (Case(name, sizes) for sizes in SIZES)
        yield from (Case(name, sizes, dtype) for sizes in ("odd", "tiles") for dtype in DTYPES if dtype != "float32")
        layouts = [layout for layout in LAYOUTS if layout != "plain" and not (kernel.mutates and layout == "expanded")]
        yield from (Case(name, sizes, layout=layout) for sizes in ("odd", "wide") for layout in [*layouts, "various"])
        if kernel.mutates:
            yield Case(name, "odd", layout="adjacent")


def widened(argument: Any) -> Any:
    """A copy in float64."""
    if isinstance(argument, list):
        return [widened(x) for x in argument]
    return argument.double().clone() if isinstance(argument, Tensor) else argument


def answers(kernel: Kernel, function: Callable[..., Any], arguments: tuple[Any, ...]) -> list[Tensor]:
    """All that a call returns or writes to."""
    returned = function(*arguments)
    given = [returned] if isinstance(returned, Tensor) else list(returned or ())
    return given + [x for place in kernel.mutates for x in arguments[place]]


def definition(case: Case) -> list[Tensor]:
    """What the reference makes of the same numbers in float64."""
    kernel = KERNELS[case.kernel]
    return answers(kernel, kernel.reference, widened(list(case.arguments())))


def check(found: list[Tensor], wanted: list[Tensor]) -> None:
    """Equal to the rounding of the dtype that the answer has, measured by the largest number of the answer."""
    assert len(found) == len(wanted)
    for x, y in zip(found, wanted, strict=True):
        assert x.shape == y.shape
        size = float(y.abs().max()) if y.numel() else 0.0
        close = ROUNDING[x.dtype]
        torch.testing.assert_close(x.double().cpu(), y, rtol=close, atol=close * max(size, 1e-3))


def poisoned() -> Any:
    """Makes what `torch.empty` gives nan, so that a number nobody wrote is seen."""
    empty = torch.empty

    def filled(*shape: Any, **options: Any) -> Tensor:
        x = empty(*shape, **options)
        return x.fill_(torch.nan) if x.is_floating_point() else x

    return patch("torch.empty", filled)
