"""Files that are whole or absent: what a run writes survives SIGKILL and power loss at any moment."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def write_whole(path: Path, content: bytes | str) -> None:
    """Write aside, flush to the disk, rename: a reader sees the old file or the new one, each whole."""
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    _sync_folder(path.parent)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write strict JSON: numbers that are not finite become null."""
    write_whole(path, json.dumps(plain(value), indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The mapping that `write_json` wrote."""
    value: dict[str, Any] = json.loads(path.read_text())
    return value


def plain(value: Any) -> Any:
    """The value in JSON's types, with null for what is not a finite number."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    return value


def _sync_folder(folder: Path) -> None:
    """The rename itself is on the disk only when its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
