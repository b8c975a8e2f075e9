"""What every run leaves behind: config.yaml, metrics.jsonl (a line an interval) and result.json."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recipes.files import plain, read_json, write_json

METRICS = "metrics.jsonl"
RESULT = "result.json"

KEYS = (
    "status",
    "error",
    "optimizer",
    "problem",
    "experiment",
    "data",
    "seed",
    "epochs",
    "processes",
    "steps",
    "samples",
    "seconds",
    "train_loss",
    "train_samples",
    "optimum",
    "suboptimality",
    "relative_suboptimality",
    "test_loss",
    "test_samples",
    "accuracy",
    "information_min",
    "report",
    "noise",
    "held",
    "missed",
    "findings",
    "overrides",
    "versions",
)


class BusyError(RuntimeError):
    """A run that another process is training at this moment."""


@contextmanager
def claim(folder: Path) -> Iterator[None]:
    """Keep other processes from writing to the run in `folder`; the system lifts the claim when this one dies."""
    descriptor = os.open(folder / ".claim", os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise BusyError(
            f"{folder}: another process is training this run; wait for it to end, or stop it, and then write "
            f"resume={folder}."
        ) from error
    finally:
        os.close(descriptor)


class Metrics:
    """The file metrics.jsonl, appended to a line at a time and cut where a resumed run goes on.

    Args:
        folder: directory of the run.
        keep: bytes to keep of an earlier session; what it wrote after its checkpoint will be written again.
    """

    def __init__(self, folder: Path, keep: int = 0) -> None:
        self._descriptor = os.open(folder / METRICS, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        if self._size() < keep:
            raise ValueError(
                f"{folder / METRICS} has {self._size()} bytes, but the checkpoint was written after {keep}: "
                "lines were removed from it. Put the file back, or start a new run."
            )
        os.ftruncate(self._descriptor, keep)

    def append(self, line: Mapping[str, Any]) -> None:
        """Add a line; NaN and infinity become null."""
        os.write(self._descriptor, json.dumps(plain(line), allow_nan=False).encode() + b"\n")

    def sync(self) -> int:
        """Bring all lines to the disk and return their length in bytes, for the checkpoint."""
        os.fsync(self._descriptor)
        return self._size()

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _size(self) -> int:
        return os.fstat(self._descriptor).st_size


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """All whole lines of metrics.jsonl, oldest first; a run killed while writing leaves half a line."""
    path = folder / METRICS
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1]]


def write_result(folder: Path, result: Mapping[str, Any]) -> None:
    """Replace result.json; what is not known is null."""
    write_json(folder / RESULT, {key: result.get(key) for key in KEYS})


def read_result(folder: Path) -> dict[str, Any] | None:
    """The run's result.json, or None where there is none yet."""
    path = folder / RESULT
    return read_json(path) if path.exists() else None
