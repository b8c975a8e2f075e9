"""How far a run is: a bar on a terminal, plain lines elsewhere. To the run it is one more tracker."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

from omegaconf import DictConfig

from recipes.trackers import Line, Tracker

log = logging.getLogger(__name__)

LINES = 10


def progress() -> Tracker:
    """The right one for where standard output goes."""
    return Bar() if sys.stdout.isatty() else Lines()


@final
class Lines(Tracker):
    """About ten lines a run, of those that come with an evaluation."""

    def __init__(self) -> None:
        self._epochs = 1
        self._shown = -1

    def open(self, folder: Path, settings: DictConfig) -> None:
        """Note the run's length."""
        self._epochs = max(1, settings.epochs)

    def log(self, line: Line) -> None:
        """Print the line if a tenth of the run has passed since the last."""
        tenth = int(LINES * line["train/epoch"] / self._epochs)
        if "train/loss" in line and tenth > self._shown:
            self._shown = tenth
            log.info("epoch %5.1f/%d  %s", line["train/epoch"], self._epochs, glance(line))

    def close(self, folder: Path, result: Line) -> None:
        """Nothing to put away."""


@final
class Bar(Tracker):
    """A bar by epochs, with the latest evaluation beside it."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None

    def open(self, folder: Path, settings: DictConfig) -> None:
        """Draw the bar."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
        )
        self._bar = Progress(*columns)
        self._task = self._bar.add_task("", total=settings.epochs)
        self._bar.start()

    def log(self, line: Line) -> None:
        """Move the bar."""
        self._bar.update(self._task, completed=int(line["train/epoch"]))
        if "train/loss" in line:
            self._bar.update(self._task, description=glance(line))

    def close(self, folder: Path, result: Line) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.stop()


@contextmanager
def telling() -> Iterator[Callable[[float, str], None]]:
    """For work that is no training: takes the share done and a few words, and shows them where output goes."""
    if not sys.stdout.isatty():
        yield _Tenths()
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (BarColumn(bar_width=30), TaskProgressColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda done, words: bar.update(task, completed=done, description=words)


@final
class _Tenths:
    """A line for each tenth of the work."""

    def __init__(self) -> None:
        self._shown = -1

    def __call__(self, done: float, words: str) -> None:
        tenth = int(LINES * done)
        if tenth > self._shown:
            self._shown = tenth
            log.info("%3.0f %%  %s", 100 * done, words)


def glance(line: Line) -> str:
    """The numbers that matter at a glance."""
    parts = [f"step {line['train/step']:6d}", f"loss {line['train/loss']:.5g}"]
    if line["train/relative_suboptimality"] is not None:
        parts.append(f"(f-f*)/f* {line['train/relative_suboptimality']:.2e}")
    if line["test/accuracy"] is not None:
        parts.append(f"accuracy {line['test/accuracy']:.4f}")
    return "  ".join([*parts, f"lr {line['train/lr']:.3g}", f"batch {line['train/batch_size']}"])
