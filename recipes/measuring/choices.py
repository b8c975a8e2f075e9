"""How well the work model chooses, in Markdown: the chosen way of each contraction beside the fastest one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from recipes.measuring.contractions import TARGET

NAME = "contractions"
TITLE = "### Choices of the work model"


def choices(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many choices are within the target, and each that is not.

    Args:
        rows: of `contractions`.
    """
    regrets = [row["regret"] for row in rows]
    missed = [row for row in rows if row["regret"] > TARGET]
    counted = (
        f"**{len(rows) - len(missed)} of {len(rows)} choices take at most {TARGET} times the fastest measured way**; "
        f"median {median(regrets):.2f}, worst {max(regrets):.2f}."
    )
    if not missed:
        return "\n\n".join([TITLE, counted])
    lines = [
        "| form (samples, positions or channels, ...) | quantity | chosen | fastest | ratio |",
        "|---|---|---|---|---|",
    ]
    for row in sorted(missed, key=lambda row: -row["regret"]):
        fastest = min(row["seconds"], key=row["seconds"].__getitem__)
        lines.append(f"| {row['form']} | {row['quantity']} | {row['chosen']} | {fastest} | {row['regret']:.2f} |")
    return "\n\n".join([TITLE, counted, "\n".join(lines)])
