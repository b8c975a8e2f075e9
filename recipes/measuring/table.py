"""The cost table in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from recipes.measuring.conduct import ABSENT, NOTHING
from recipes.measuring.models import Subject
from recipes.measuring.row import EACH, MEASURED, ORDINARY
from recipes.measuring.schedule import FIRST, HORIZON
from recipes.measuring.targets import MEMORY, TIME, Target

Record = Mapping[str, Any]
TITLES = {
    "statistics": "Statistics of every step, over a forward and backward",
    "peers": "What one would take else, over a forward and backward",
}
PASSED, MISSED = "✓", "**✗**"


def table(
    records: Sequence[Record],
    subjects: Sequence[Subject],
    targets: Sequence[Target],
    about: str,
    more: Sequence[str] = (),
) -> str:
    """Targets, statistics, optimizers, peers; then what the rows' notes say and where it was measured.

    Args:
        records: of all models.
        subjects: the models, in the order of the columns.
        targets: of this device.
        about: the machine and the command.
        more: sections of their own, before the notes.
    """
    found = {(record["row"], record["model"]): record for record in records}
    notes: list[str] = []
    parts = [*([_plain(records, subjects)] if records else []), *_aims(found, targets)]
    for part, title in TITLES.items():
        names = list(dict.fromkeys(record["row"] for record in records if record["part"] == part))
        if names:
            parts += [f"### {title}", _columns(names, subjects, found, targets, notes)]
        if part == "statistics":
            parts += _steps(records, targets, notes)
    listed = "\n".join(f"{number}. {note}" for number, note in enumerate(notes, start=1))
    return "\n\n".join([*parts, *more, *([listed] if listed else []), f"*{about}.*"]) + "\n"


def seen(record: Record, quantity: str) -> tuple[float, str] | None:
    """The number that a target is held against, and how it is shown; None where nothing was measured."""
    if "calls" not in record:
        return None
    if quantity == MEMORY:
        value = max(record["memory"].values())
        return value, ratio(value)
    interval = record["amortised"] if "amortised" in record else record["calls"][EACH]["ratio"]
    return interval["median"], spread(interval)


def ratio(value: float) -> str:
    """Two decimals, and none above 100."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def spread(interval: Mapping[str, float]) -> str:
    """A median with its interval."""
    return f"{ratio(interval['median'])} ({ratio(interval['low'])}–{ratio(interval['high'])})"


def size(count: float) -> str:
    """Bytes in MiB."""
    return f"{count / 2**20:.3g} MiB"


def _plain(records: Sequence[Record], subjects: Sequence[Subject]) -> str:
    """What 1 is."""
    lines = []
    for subject in subjects:
        own = [record for record in records if record["model"] == subject.key and "calls" in record]
        passes = [record for record in own if record["part"] != "optimizers"]
        for record, name in ((passes[:1], "forward and backward"), (_whole(own), "step of SGD")):
            for first in record:
                call = next(iter(first["calls"].values()))
                cost, bytes_ = call["plain"]["median"], first["bytes"]["plain"]
                lines.append(f"| {subject.words} | {name} | {cost:.3g} ms | {size(bytes_)} |")
    head = ["| model | 1 is a | time | newly allocated at its peak |", "|---|---|---|---|"]
    return "\n".join([*head, *lines])


def _whole(records: Sequence[Record]) -> Sequence[Record]:
    return [record for record in records if record["part"] == "optimizers"][:1]


def _aims(found: Mapping[tuple[str, str], Record], targets: Sequence[Target]) -> list[str]:
    """Every target that something was measured for, met or missed by how much."""
    lines, met = [], []
    for target in targets:
        record = found.get((target.row, target.subject))
        number = None if record is None else seen(record, target.quantity)
        if record is None:
            continue
        shown, verdict = ("–", record.get("why", "")) if number is None else (number[1], target.verdict(number[0]))
        met.append(verdict == "met")
        marked = verdict if verdict == "met" else f"**{verdict}**"
        aim = f"≤ {target.most:.2f}"
        lines.append(
            f"| {target.row} | {target.subject} | {target.quantity} | {shown} | {aim} | {marked} | {target.known} |"
        )
    if not lines:
        return []
    head = [
        "| row | model | | seen | target | | best known before |",
        "|---|---|---|---|---|---|---|",
    ]
    return ["### Targets", f"**{sum(met)} of {len(met)} met.**", "\n".join([*head, *lines])]


def _columns(
    names: Sequence[str],
    subjects: Sequence[Subject],
    found: Mapping[tuple[str, str], Record],
    targets: Sequence[Target],
    notes: list[str],
) -> str:
    """A line for each row, time and memory of each model in columns."""
    lines = [
        "| | " + " | ".join(f"{subject.key}: time | memory" for subject in subjects) + " |",
        "|---|" + "---|---|" * len(subjects),
    ]
    for name in names:
        cells = []
        for subject in subjects:
            record = found.get((name, subject.key))
            aims = [t for t in targets if (t.row, t.subject) == (name, subject.key)]
            cells += ["–", ""] if record is None else _cells(record, aims, notes)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cells(record: Record, aims: Sequence[Target], notes: list[str]) -> list[str]:
    if "calls" not in record:
        return [_absent(record, notes), ""]
    cells = []
    for quantity in (TIME, MEMORY):
        number = seen(record, quantity)
        assert number is not None
        aim = next((t for t in aims if t.quantity == quantity), None)
        cells.append(number[1] + ("" if aim is None else _marked(number[0], aim)))
    cells[0] += _noted(record["remark"], notes)
    return cells


def _marked(value: float, aim: Target) -> str:
    return f" {PASSED if value <= aim.most else MISSED} {aim.most:.2f}"


def _absent(record: Record, notes: list[str]) -> str:
    """Not installed, nothing to measure, or refused with a note that has the reason."""
    if record["why"] in (ABSENT, NOTHING):
        return str(record["why"])
    return "refused" + _noted(record["why"].removeprefix("refused: "), notes)


def _noted(words: str, notes: list[str]) -> str:
    if not words:
        return ""
    if words not in notes:
        notes.append(words)
    return f" [{notes.index(words) + 1}]"


def _steps(records: Sequence[Record], targets: Sequence[Target], notes: list[str]) -> list[str]:
    """A line for each optimizer on each model."""
    rows = [record for record in records if record["part"] == "optimizers"]
    if not rows:
        return []
    head = [
        f"| model | optimizer | ordinary step | measured step | measured of {HORIZON} | amortised | first {FIRST} steps "
        "| memory | kept |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines = [_step(record, [t for t in targets if t.row == record["row"]], notes) for record in rows]
    return ["### Whole steps of optimizers, over a step of SGD", "\n".join([*head, *lines])]


def _step(record: Record, targets: Sequence[Target], notes: list[str]) -> str:
    start = f"| {record['model']} | {record['row']} | "
    if "calls" not in record:
        return start + _absent(record, notes) + " | | | | | | |"
    calls, aims = record["calls"], [t for t in targets if t.subject == record["model"]]
    cells = _cells(record, aims, notes)
    ordinary = spread(calls.get(ORDINARY, calls.get(EACH))["ratio"])
    measured = spread(calls[MEASURED]["ratio"]) if MEASURED in calls else "–"
    often = f"{record['share'] * HORIZON:.0f}" if MEASURED in calls else "–"
    first = spread(record["first"]) if "first" in record else "–"
    return start + " | ".join([ordinary, measured, often, cells[0], first, cells[1], size(record["kept"])]) + " |"
