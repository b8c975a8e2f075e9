"""sweep.html, sweep.json and sweep.csv: all runs under a directory side by side, seeds taken together.

`python recipes/sweep.py <directory>` writes them anew; a multirun does so at its end, also when jobs failed.
"""

from __future__ import annotations

import atexit
import csv
import io
import logging
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from recipes import figures, report
from recipes.files import write_json, write_whole
from recipes.medians import Interval, median_interval
from recipes.pages import number, render
from recipes.record import RESULT, read_metrics, read_result

log = logging.getLogger(__name__)

PAGE, TABLE, DATA = "sweep.html", "sweep.csv", "sweep.json"
MEASURES = ("relative_suboptimality", "train_loss", "test_loss", "accuracy")
COLUMNS = (
    "run",
    "status",
    "optimizer",
    "problem",
    "setting",
    "seed",
    "steps",
    "samples",
    "seconds",
    "train_loss",
    "optimum",
    "suboptimality",
    "relative_suboptimality",
    "test_loss",
    "accuracy",
    "error",
)


@final
@dataclass(frozen=True)
class Setting:
    """Runs that differ by the seed alone.

    Attributes:
        problem: what was trained.
        name: optimizer and the overrides that tell this setting from the others.
        runs: their directories.
        failed: how many of them have no result.
        medians: of every measure, over the seeds that have it.
    """

    problem: str
    name: str
    runs: list[str]
    failed: int
    medians: dict[str, Interval | None]


@final
class SweepReport(Callback):
    """Writes the sweep's report at the end of a multirun.

    Hydra calls `on_multirun_end` only if every job succeeded. The report is wanted most when one did not, so
    it is also registered to be written when the interpreter exits.
    """

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Make sure that the report will be written."""
        atexit.register(finish, Path(config.hydra.sweep.dir))

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Write it now."""
        atexit.unregister(finish)
        finish(Path(config.hydra.sweep.dir))


def finish(folder: Path) -> None:
    """Write the report if the multirun left runs in `folder`, and say where."""
    if any(folder.glob(f"*/{RESULT}")):
        print(f"sweep: {write(folder)}")


def write(folder: Path) -> Path:
    """Aggregate every run under `folder` into sweep.json, sweep.csv and sweep.html."""
    rows = collect(folder)
    settings = group(rows)
    write_json(folder / DATA, {"runs": rows, "settings": [asdict(setting) for setting in settings]})
    write_whole(folder / TABLE, _csv(rows))
    values = {
        "name": folder.name,
        "rows": rows,
        "counts": {state: sum(row["status"] == state for row in rows) for state in ("finished", "failed", "running")},
        "problems": [
            _section(folder, problem, settings, rows) for problem in dict.fromkeys(s.problem for s in settings)
        ],
        "pages": {row["run"] for row in rows if (folder / row["run"] / report.PAGE).exists()},
        "number": number,
    }
    return render("sweep.html", folder / PAGE, values)


def collect(folder: Path) -> list[dict[str, Any]]:
    """A row for every run under `folder`, in the order of their directories' names."""
    found = sorted(folder.rglob(RESULT), key=lambda path: _natural(path.parent.relative_to(folder)))
    results = {path.parent: read_result(path.parent) or {} for path in found}
    if not results:
        raise FileNotFoundError(f"{folder} has no run under it (no {RESULT}); give the directory that a multirun made.")
    common = set.intersection(*(set(_own(result)) for result in results.values()))
    return [_row(folder, path, result, common) for path, result in results.items()]


def group(rows: Sequence[Mapping[str, Any]]) -> list[Setting]:
    """The settings, by problem, best median first and those without a result last."""
    members: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        members[row["problem"], row["setting"]].append(row)
    settings = [_setting(problem, name, runs) for (problem, name), runs in members.items()]
    order = list(dict.fromkeys(row["problem"] for row in rows))
    return sorted(settings, key=lambda setting: (order.index(setting.problem), *_rank(setting)))


def _setting(problem: str, name: str, runs: Sequence[Mapping[str, Any]]) -> Setting:
    finished = [row for row in runs if row["status"] == "finished"]
    values = {measure: [row[measure] for row in finished if row[measure] is not None] for measure in MEASURES}
    medians = {measure: median_interval(found) for measure, found in values.items()}
    return Setting(problem, name, [row["run"] for row in runs], len(runs) - len(finished), medians)


def _rank(setting: Setting) -> tuple[bool, float]:
    best = setting.medians[_measure([setting])]
    return best is None, 0.0 if best is None else best.median


def _measure(settings: Sequence[Setting]) -> str:
    """What the settings of one problem are compared by: the distance to the optimum where it is known."""
    known = any(setting.medians["relative_suboptimality"] is not None for setting in settings)
    return "relative_suboptimality" if known else "train_loss"


def _row(folder: Path, path: Path, result: Mapping[str, Any], common: set[str]) -> dict[str, Any]:
    told = [override for override in _own(result) if override not in common]
    data = [override for override in told if override.startswith("problem.")]
    other = [override for override in told if not override.startswith(("problem.", "problem=", "optimizer="))]
    values = {key: result.get(key) for key in COLUMNS}
    values["run"] = path.relative_to(folder).as_posix()
    values["problem"] = " ".join([str(result.get("problem")), *data])
    values["setting"] = " ".join([str(result.get("optimizer")), *other])
    return values


def _own(result: Mapping[str, Any]) -> list[str]:
    """The overrides that make a setting: all but the seed."""
    return [override for override in result.get("overrides") or [] if not override.startswith("seed=")]


def _section(
    folder: Path, problem: str, settings: Sequence[Setting], rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What the page says of one problem."""
    mine = [setting for setting in settings if setting.problem == problem]
    measure = _measure(mine)
    known = [(s.name, m.median, m.low, m.high) for s in mine if (m := s.medians[measure]) is not None]
    log = all(low > 0 for _, _, low, _ in known)
    key = f"train/{measure}" if measure == "relative_suboptimality" else "train/loss"
    done = {row["run"] for row in rows if row["status"] == "finished"}
    paths = {s.name: [figures.series(read_metrics(folder / run), key) for run in s.runs if run in done] for s in mine}
    paths = {name: seeds for name, seeds in paths.items() if seeds}
    return {
        "name": problem,
        "measure": "(f − f*)/f*" if measure == "relative_suboptimality" else "training loss",
        "settings": mine,
        "comparison": figures.comparison(known, log=log) if known else None,
        "curves": figures.curves(paths, log=measure == "relative_suboptimality") if paths else None,
    }


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _natural(path: Path) -> list[tuple[int, str]]:
    """Job 10 comes after job 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in path.parts]


if __name__ == "__main__":
    for argument in sys.argv[1:] or ["."]:
        print(f"sweep: {write(Path(argument))}")
