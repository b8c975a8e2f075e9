"""The table of a fit, as a statistician expects it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_WIDTH = 11


def table(
    head: Sequence[str], found: Sequence[dict[str, Any]], remarks: Sequence[str], level: float, student: bool
) -> str:
    """Lines of the head, one line a coordinate, and the remarks.

    Args:
        head: lines above the table.
        found: name, coef, std_err, z, p_value, low and high of each coordinate.
        remarks: lines below the table.
        level: of the intervals.
        student: whether the ratios are Student's t, and not normal.
    """
    outside = (1 - level) / 2
    letter = "t" if student else "z"
    heads = ["coef", "std err", letter, f"P>|{letter}|", f"[{outside:.3g}", f"{1 - outside:.3g}]"]
    names = max(len(row["name"]) for row in found)
    rule = "-" * (names + len(heads) * _WIDTH)
    titles = " " * names + "".join(f"{word:>{_WIDTH}}" for word in heads)
    body = [f"{row['name']:<{names}}" + _numbers(row) for row in found]
    return "\n".join([*head, rule, titles, rule, *body, rule, *remarks])


def _numbers(row: dict[str, Any]) -> str:
    numbers = [f"{row['coef']:.4g}", f"{row['std_err']:.4g}", f"{row['z']:.3f}", f"{row['p_value']:.3f}"]
    numbers += [f"{row['low']:.4g}", f"{row['high']:.4g}"]
    return "".join(f"{number:>{_WIDTH}}" for number in numbers)
