"""report.html of a study: the question, the pictures, and the numbers beside the expected ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipes.document import shown
from recipes.drawing import embedded
from recipes.pages import duration, render
from recipes.schema import SETTINGS
from recipes.studies.conduct import accepted, sentence

_MARKS = {True: "holds", False: "missed", None: ""}


def write(folder: Path, page: Path, result: Mapping[str, Any]) -> Path:
    """Write the page of the study in `folder` from its result and its pictures."""
    findings = result["findings"]
    values = {
        "result": result,
        "findings": findings,
        "sentence": sentence(result),
        "time": duration(result["seconds"]),
        "pictures": [
            (picture["title"], picture["words"], embedded((folder / picture["file"]).read_text()))
            for picture in findings["pictures"]
        ],
        "rows": [_row(row) for row in findings["rows"]],
        "config": (folder / SETTINGS).read_text(),
        "command": " ".join(["python recipes/train.py", *result["overrides"]]),
    }
    return render("study.html", page, values)


def _row(row: Mapping[str, Any]) -> tuple[str, ...]:
    seen, expected = shown(row["seen"], row["error"]), shown(row["expected"])
    return row["what"], seen, expected, accepted(row), _MARKS[row["holds"]], row["remark"]
