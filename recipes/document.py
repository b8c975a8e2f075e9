"""Bring the findings of study runs into the documentation: python recipes/document.py <run directory> ...

Each run writes docs/experiments/results/<experiment>.md, a table, and docs/experiments/figures/<experiment>-<n>.svg, which
the pages of docs/experiments include. Run it after `python recipes/train.py experiment=<experiment>`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from recipes.files import write_whole
from recipes.pages import duration, number, with_error
from recipes.record import read_result
from recipes.studies.conduct import accepted, sentence

DOCS = Path(__file__).resolve().parents[1] / "docs" / "experiments"
MARKS = {True: "✓", False: "**✗**", None: ""}


def document(folder: Path, docs: Path = DOCS) -> Path:
    """Write the table and the figures of the run in `folder`; returns the table's path."""
    result = read_result(folder)
    if result is None or result["findings"] is None:
        raise FileNotFoundError(
            f"{folder} holds no finished study; run `python recipes/train.py experiment=<name>` and give the directory "
            "that it prints."
        )
    name = result["experiment"]
    for index, picture in enumerate(result["findings"]["pictures"], start=1):
        write_whole(docs / "figures" / f"{name}-{index}.svg", (folder / picture["file"]).read_text())
    path = docs / "results" / f"{name}.md"
    write_whole(path, table(result))
    return path


def table(result: Mapping[str, Any]) -> str:
    """The findings as Markdown: what, seen, expected, accepted; then the pictures."""
    name, findings = result["experiment"], result["findings"]
    lines = ["| what | seen | expected | accepted | | remark |", "|---|---|---|---|---|---|"]
    lines += [_line(row) for row in findings["rows"]]
    versions = ", ".join(f"{key} {value}" for key, value in result["versions"].items())
    lines += [
        "",
        f"*{sentence(result)}; {duration(result['seconds'])} on one core, seed {result['seed']}, {versions}.*",
    ]
    for index, picture in enumerate(findings["pictures"], start=1):
        lines += ["", f"**{picture['title']}.** {picture['words']}", ""]
        lines += [f"![{picture['title']}](../figures/{name}-{index}.svg)"]
    return "\n".join(lines) + "\n"


def _line(row: Mapping[str, Any]) -> str:
    cells = [row["what"], shown(row["seen"], row["error"]), shown(row["expected"]), accepted(row), MARKS[row["holds"]]]
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in [*cells, row["remark"]]) + " |"


def shown(value: float | str | None, error: float | None = None) -> str:
    """A cell: words as they are, numbers with their standard error."""
    if value is None:
        return ""
    return value if isinstance(value, str) else with_error(value, error) if error else number(value)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(document(Path(argument)))
