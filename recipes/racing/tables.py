"""The race in Markdown: where ours stand, and the whole table of every case."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from recipes.pages import number
from recipes.racing.entrants import Entrant
from recipes.racing.track import Measure, Track
from recipes.racing.verdicts import Row, Spread, Standing, spread, standing

MARKS = {"win": "**win**", "tie": "tie", "loss": "**loss**", "neither": "neither came"}


def rows_of(track: Track, cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each cell of one case, with its values over seeds by measure; infinity for not reached."""
    outcomes = {cell["entrant"]: cell["outcomes"] for cell in cells}
    track.complete(outcomes, [cell["entrant"] for cell in cells if cell["kind"] == "peer"])
    rows = []
    for cell in cells:
        values, source = {}, ""
        for measure in track.measures:
            source = measure.key if measure.tuned else source
            given = cell["outcomes"][source]
            values[measure.key] = [math.inf if o.get(measure.key) is None else float(o[measure.key]) for o in given]
        rows.append(cell | {"values": values})
    return rows


def standings(tracks: Sequence[tuple[Track, dict[str, list[dict[str, Any]]]]]) -> str:
    """Ours beside the best of the others, win, tie or loss, and the targets; counted first."""
    head = "| | measure | | ours | best of torch's and the libraries' | ratio | limit | target |"
    lines, verdicts, met = [head, "|---|---|---|---|---|---|---|---|"], Counter[str](), Counter[bool]()
    for track, cases in tracks:
        for case, rows in cases.items():
            ours = next((row for row in rows if row["entrant"] == track.champion), None)
            for measure in track.measures if ours is not None else ():
                found = standing(rows, ours, measure, case)
                verdicts[found.verdict] += found.best is not None
                met.update(held for _, _, held in found.targets)
                lines.append(_standing(track, case, found))
    return "\n".join([_counted(verdicts, met), "", *lines]) + "\n"


def table(track: Track, case: str, rows: Sequence[Row], absent: Mapping[str, str], about: str) -> str:
    """Every entrant of a case, the best first; ours in bold, limits in italics."""
    measures = track.measures
    lines = [
        f"### {case}",
        "",
        about,
        "",
        "| | rate | " + " | ".join(measure.words for measure in measures) + " |",
        "|---|---|" + "---|" * len(measures),
    ]
    order = sorted(rows, key=lambda row: [spread(row["values"][m.key]).median for m in measures])
    lines += [_line(row, measures) for row in order]
    lines += [f"| {name} | {why} |" + " |" * len(measures) for name, why in absent.items()]
    return "\n".join(lines) + "\n"


def absent(rows: Sequence[Row], field: Sequence[Entrant]) -> dict[str, str]:
    """Entrants without a row, and why."""
    there = {row["entrant"] for row in rows}
    return {e.name: "not run" if e.installed else "not installed" for e in field if e.name not in there}


def shown(found: Spread) -> str:
    """Median and interval; a dash where it was not reached, and how many seeds did reach it where not all did."""
    if not found.reached:
        return "not reached"
    ends = f"{_short(found.low)} to {_short(found.high)}"
    partly = f", {found.reached} of {found.seeds}" if found.reached < found.seeds else ""
    return f"{_short(found.median)} ({ends}{partly})"


def _short(value: float) -> str:
    return "∞" if math.isinf(value) else number(value, 3)


def _line(row: Row, measures: Sequence[Measure]) -> str:
    style = {"ours": "**", "limit": "*"}.get(row["kind"], "")
    cells = [shown(spread(row["values"][measure.key])) for measure in measures]
    return f"| {style}{row['entrant']}{style} | {_rates(row)} | " + " | ".join(cells) + " |"


def _rates(row: Row) -> str:
    """The tuned rates, with a dagger at an end of the grid; "–" for what has none."""
    if row["kind"] == "limit":
        return "–"
    words = [f"{number(rate, 2)}{'†' if row['edge'][key] else ''}" for key, rate in row["rates"].items()]
    return ", ".join(dict.fromkeys(words))


def _standing(track: Track, case: str, found: Standing) -> str:
    against = "–" if found.ratio is None else shown(found.ratio)
    best = "–" if found.best is None else f"{found.best[0]}: {shown(found.best[1])}"
    limit = "" if found.limit is None else f"{found.limit[0]}: {_short(found.limit[1].median)}"
    asked = [f"{words}: {_short(seen)}, {'met' if met else '**missed**'}" for words, seen, met in found.targets]
    ours = [f"{track.name}: {case}", found.measure.words, MARKS[found.verdict], shown(found.ours[1])]
    return "| " + " | ".join([*ours, best, against, limit, "; ".join(asked)]) + " |"


def _counted(verdicts: Counter[str], met: Counter[bool]) -> str:
    total = sum(verdicts.values())
    won, tied, lost, none = (verdicts[key] for key in ("win", "tie", "loss", "neither"))
    neither = f", {none} where neither came" if none else ""
    targets = f"{met[True]} of {sum(met.values())} targets met"
    return f"**{won} wins, {tied} ties, {lost} losses{neither}** of {total} comparisons; {targets}."
