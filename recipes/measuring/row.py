"""A row of the table: what is measured, and how it is made."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, final

import torch

from recipes.measuring.models import Subject
from recipes.measuring.trainee import Trainee

Part = Literal["statistics", "optimizers", "peers"]
Call = Callable[[], object]
EACH, ORDINARY, MEASURED = "each", "ordinary", "measured"


@final
class NothingThere(Exception):
    """The model has nothing that the row is about."""


@final
@dataclass(frozen=True)
class Prepared:
    """A row on one model, ready to be called.

    Args:
        calls: by kind: "each", where all calls are alike; "ordinary" and "measured" steps of an optimizer that measures now
            and then.
        whole_steps: whether a call is compared with a whole step of SGD; else with a forward and backward.
        share: of the steps that are measured on the optimizer's own schedule.
        fresh: makes an optimizer that has not stepped yet, on its own schedule, for its first ten steps.
        settle: builds the observer or optimizer on a model that is there, and calls it; what is returned keeps it alive.
        remark: what a reader must know of the row, asked for after the first call.
    """

    calls: Mapping[str, Call]
    whole_steps: bool = False
    share: float = 0.0
    fresh: Callable[[], Call] | None = None
    settle: Callable[[Trainee], object] | None = None
    remark: str | Callable[[], str] = ""


@final
@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        name: of the line.
        part: of the table.
        prepare: makes it for a model on a device; raises what the package raises where it refuses the model.
        package: that must be importable.
    """

    name: str
    part: Part
    prepare: Callable[[Subject, torch.device], Prepared]
    package: str = "fisheropt"

    @property
    def own(self) -> bool:
        """Whether it is ours, and not a peer's or torch's."""
        return self.package == "fisheropt"

    @property
    def installed(self) -> bool:
        """Whether its package can be imported."""
        return importlib.util.find_spec(self.package) is not None
