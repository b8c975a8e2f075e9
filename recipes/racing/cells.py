"""What is done so far: a file for each entrant on each case, so that an interrupted race goes on where it was."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from recipes.files import plain, read_json, write_json


@final
class Cells:
    """The folder `cells` of a race."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "cells"
        self._folder.mkdir(parents=True, exist_ok=True)

    def find(self, track: str, case: str, entrant: str, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """The cell, if it was made with these settings."""
        path = self._path(track, case, entrant)
        cell = read_json(path) if path.exists() else None
        return cell if cell is not None and cell["settings"] == plain(settings) else None

    def put(self, cell: Mapping[str, Any]) -> None:
        """Keep a cell that is done."""
        write_json(self._path(cell["track"], cell["case"], cell["entrant"]), cell)

    def all(self) -> list[dict[str, Any]]:
        """Every cell that there is."""
        return [read_json(path) for path in sorted(self._folder.glob("*.json"))]

    def _path(self, *parts: str) -> Path:
        return self._folder / (
            "--".join(re.sub(r"[^a-z0-9_]+", "-", part.lower()).strip("-") for part in parts) + ".json"
        )
