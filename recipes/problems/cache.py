"""Optima on disk: solved once for given data and objective, and again if the file is missing or damaged."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import final


@final
class OptimumCache:
    """A folder of JSON files `NAME-HASH.json`, or nothing if no folder is given."""

    def __init__(self, directory: str | None) -> None:
        """Keep optima in `directory`, made when the first is written; None keeps none."""
        self._directory = None if directory is None else Path(directory)

    def fetch(self, name: str, fingerprint: str, solve: Callable[[], float | None]) -> float | None:
        """The stored optimum of that fingerprint, or the one that `solve` finds, which is then stored."""
        if self._directory is None:
            return solve()
        path = self._directory / f"{name.replace(os.sep, '_')}-{fingerprint[:16]}.json"
        known = _read(path, fingerprint)
        if known is not None:
            return known
        optimum = solve()
        if optimum is not None:
            _write(path, {"name": name, "fingerprint": fingerprint, "optimum": optimum})
        return optimum


def _read(path: Path, fingerprint: str) -> float | None:
    """The file's optimum, if the file is whole and of that fingerprint."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict) or content.get("fingerprint") != fingerprint:
        return None
    optimum = content.get("optimum")
    return optimum if isinstance(optimum, float) and math.isfinite(optimum) else None


def _write(path: Path, content: dict[str, str | float]) -> None:
    """Whole or not at all, as the jobs of a sweep share the folder; failure only warns."""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(content))
        os.replace(partial, path)
    except OSError as error:
        warnings.warn(
            f"the optimum is not kept, as {path} cannot be written ({error}): set problem.cache_dir",
            stacklevel=2,
        )
