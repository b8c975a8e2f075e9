"""What a study is: a question, numbers beside the expected ones, and pictures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, final

Tell = Callable[[float, str], None]
"""Takes the share done, in [0, 1], and a few words about what is being done."""


class StudyError(ValueError):
    """A setting that a study cannot have; the message says what was given and what to write instead."""


@final
@dataclass(frozen=True)
class Finding:
    """A number seen beside the one expected.

    Args:
        what: is measured.
        seen: the number, or words where no number tells it.
        error: standard error of `seen`, where chance has a part in it.
        expected: by theory or by an earlier measurement.
        low: end of the accepted interval; None for none.
        high: the other end.
        remark: what a reader must know to judge the row.
    """

    what: str
    seen: float | str
    error: float | None = None
    expected: float | str | None = None
    low: float | None = None
    high: float | None = None
    remark: str = ""

    @property
    def holds(self) -> bool | None:
        """Whether the number lies in the accepted interval; None where nothing is required of it."""
        if self.low is None and self.high is None:
            return None
        if isinstance(self.seen, str) or self.seen != self.seen:
            return False
        return (self.low is None or self.low <= self.seen) and (self.high is None or self.seen <= self.high)

    @staticmethod
    def near(
        what: str,
        seen: float,
        expected: float,
        *,
        relative: float = 0.0,
        absolute: float = 0.0,
        error: float | None = None,
        remark: str = "",
    ) -> Finding:
        """Accepted within `relative`·|expected| + `absolute` of the expected number."""
        width = relative * abs(expected) + absolute
        return Finding(what, float(seen), error, float(expected), expected - width, expected + width, remark)

    @staticmethod
    def between(
        what: str,
        seen: float,
        low: float | None,
        high: float | None,
        *,
        expected: float | str | None = None,
        error: float | None = None,
        remark: str = "",
    ) -> Finding:
        """Accepted from `low` to `high`; None leaves that side open."""
        return Finding(what, float(seen), error, expected, low, high, remark)

    @staticmethod
    def told(
        what: str,
        seen: float | str,
        *,
        expected: float | str | None = None,
        error: float | None = None,
        remark: str = "",
    ) -> Finding:
        """Reported, with nothing required of it."""
        return Finding(what, seen if isinstance(seen, str) else float(seen), error, expected, remark=remark)

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self) | {"holds": self.holds}


@final
@dataclass(frozen=True)
class Picture:
    """A figure of a study.

    Args:
        title: of the figure.
        words: one sentence, what to see in it.
        draw: gets the axes, a list of them for several rows, as in `recipes.drawing.svg`.
        width: inches.
        height: inches.
        rows: axes above each other with a common x axis.
    """

    title: str
    words: str
    draw: Callable[[Any], None]
    width: float = 5.4
    height: float = 3.0
    rows: int = 1


@final
@dataclass(frozen=True)
class Findings:
    """What a study found."""

    rows: tuple[Finding, ...]
    pictures: tuple[Picture, ...] = ()


class Study(ABC):
    """An experiment whose keyword arguments are the keys of its yaml; the same seed gives the same findings."""

    title: ClassVar[str]
    """Of its page."""
    question: ClassVar[str]
    """What is asked and how, in two or three sentences."""
    reference: ClassVar[str]
    """The source and the number it has there."""

    @abstractmethod
    def run(self, tell: Tell) -> Findings:
        """Do the experiment, and tell how far it is."""
