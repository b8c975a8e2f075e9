"""What a track of the race is: its cases, and what one run of one entrant on one case measures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

from recipes.racing.entrants import Entrant

Outcome = dict[str, Any]
"""What a run measured: numbers by name, None where a target was not reached, and perhaps its curve."""


@final
@dataclass(frozen=True)
class Target:
    """What the design asks of ours.

    Args:
        bound: the largest number that meets it.
        of: "value" asks it of the number itself, "peer" of its ratio to the best peer's, any other name of its ratio to
            that limit row's.
        on: the cases that it is asked of; empty for all.
    """

    bound: float
    of: str = "value"
    on: tuple[str, ...] = ()


@final
@dataclass(frozen=True)
class Measure:
    """A number by which entrants are compared; the smaller the better.

    Args:
        key: in an `Outcome`.
        words: the head of its column.
        tuned: whether the learning rate is tuned for it; else the one tuned for the measure before it is taken.
        targets: of ours.
    """

    key: str
    words: str
    tuned: bool = False
    targets: tuple[Target, ...] = ()


class Track(ABC):
    """One kind of contest."""

    name: ClassVar[str]
    title: ClassVar[str]
    words: ClassVar[str]
    """What is done and measured, for the page."""
    champion: ClassVar[str] = "GodambeSGD"
    """Which of ours the standings are about: the one setting for all sets, where there is one."""

    @property
    @abstractmethod
    def measures(self) -> Sequence[Measure]:
        """What the table shows, the tuned ones among them."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """All that the numbers depend on, so that a cell made with others is made again."""

    @abstractmethod
    def cases(self) -> Sequence[str]:
        """Their names."""

    @abstractmethod
    def describe(self, case: str) -> str:
        """Data and model in a line."""

    @abstractmethod
    def run(self, case: str, entrant: Entrant, rate: float, seed: int, best: float | None = None) -> Outcome:
        """One run.

        With `best` it is a trial, which may end as soon as the tuned measure is known, or above `best`.
        """

    def limits(self, case: str, seed: int) -> dict[str, Outcome]:
        """Rows of what is no optimizer, by name."""
        return {}

    def complete(self, rows: dict[str, dict[str, list[Outcome]]], peers: Sequence[str]) -> None:
        """Fill in measures that depend on the peers' runs; `rows` has the outcomes by entrant and measure."""
        return None
