"""What seeing the noise costs: python recipes/measure.py

Every statistic in every step, and whole steps of every optimizer, as ratios to a plain forward and backward, or a plain step
of SGD, in the same process: time and peak memory, with targets beside them, and the peers that are installed in the same run.
Each call is timed right after a plain one, on a CPU by the time of the process, so that a busy machine falls on both alike;
the median over rounds has a 95 % interval. Leaves result_*.json and table_*.md in a folder; with --docs the documentation's
table as well.
"""

from __future__ import annotations

import argparse
import difflib
import itertools
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from recipes.files import write_json, write_whole
from recipes.measuring.choices import NAME, choices
from recipes.measuring.conduct import Record, measure
from recipes.measuring.contractions import contractions
from recipes.measuring.machine import machine, versions
from recipes.measuring.models import QUICK, SUBJECTS, Subject
from recipes.measuring.optimizers import optimizers
from recipes.measuring.peers import peers
from recipes.measuring.row import Row
from recipes.measuring.statistics import statistics
from recipes.measuring.table import table
from recipes.measuring.targets import targets
from recipes.measuring.turns import LEAST, Tell, within
from recipes.progress import telling

DOCS = Path(__file__).resolve().parents[1] / "docs" / "benchmarks"
ROUNDS, QUICK_ROUNDS = 25, 2


def all_rows() -> list[Row]:
    """In the order of the table."""
    return [*statistics(), *optimizers(), *peers()]


def measured(
    subjects: Sequence[Subject], rows: Sequence[Row], rounds: int, device: torch.device
) -> Iterator[list[Record]]:
    """The records of all models so far, after each model."""
    found: list[Record] = []
    with telling() as tell:
        for index, subject in enumerate(subjects):
            part = within(tell, index / len(subjects), (index + 1) / len(subjects))
            found += measure(subject, rows, rounds, device, _naming(subject.key, part))
            yield found


def _naming(key: str, tell: Tell) -> Tell:
    return lambda done, words: tell(done, f"{key}: {words}")


def chosen_subjects(names: str | None, device: torch.device, quick: bool) -> list[Subject]:
    """Those named; else all, on a CPU without the large ones."""
    known = QUICK if quick else SUBJECTS
    if names is None:
        return [subject for subject in known.values() if device.type == "cuda" or not subject.large]
    return [known[_checked(name, list(known), "--models")] for name in names.split(",")]


def chosen_rows(names: str | None) -> list[Row]:
    """Those named, by a part of the table, a name, or words in a name."""
    rows = all_rows()
    if names is None:
        return rows
    found: set[str] = set()
    for name in (name for name in names.split(",") if name != NAME):
        named = {row.name for row in rows if name in (row.part, row.name)}
        named = named or {row.name for row in rows if name.lower() in row.name.lower()}
        found |= named or {_checked(name, [row.name for row in rows], "--rows")}
    return [row for row in rows if row.name in found]


def _checked(name: str, known: Sequence[str], option: str) -> str:
    if name not in known:
        near = difflib.get_close_matches(name, known, 1, 0.0)[0]
        raise SystemExit(f"measure.py: {option} {name}: there is {', '.join(known)}; write {option} {near!r}")
    return name


def devices(given: str) -> list[torch.device]:
    """ "auto" is the CPU, and a GPU where there is one."""
    if given != "auto":
        return [torch.device(given)]
    return [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]


def report(device: torch.device, given: argparse.Namespace) -> Path:
    """Measure on one device and write what was seen; returns the table's path."""
    rows = chosen_rows(given.rows)
    subjects = chosen_subjects(given.models, device, given.quick) if rows else []
    rounds = given.rounds or (QUICK_ROUNDS if given.quick else ROUNDS)
    load = f"load {os.getloadavg()[0]:.1f} when it began" if hasattr(os, "getloadavg") else ""
    command = f"`python recipes/measure.py{_command(given)}`"
    turns = f"{rounds} rounds, of calls that take long {LEAST} at least"
    about = "; ".join([machine(device, given.threads), versions(), turns, load, command])
    aims = [] if given.quick else targets(device.type)
    given.folder.mkdir(parents=True, exist_ok=True)
    text, path = "", given.folder / f"table_{device.type}.md"
    choosing = contractions(rounds) if chooses(given, device) else []
    more = [choices(choosing)] if choosing else []
    for records in itertools.chain([[]], measured(subjects, rows, rounds, device)):  # what is done is written at once
        text = table(records, subjects, aims, about, more)
        write_json(given.folder / f"result_{device.type}.json", {"about": about, "records": records, NAME: choosing})
        write_whole(path, text)
    print(text)
    if given.docs:
        write_whole(DOCS / f"cost_{device.type}.md", text)
    return path


def chooses(given: argparse.Namespace, device: torch.device) -> bool:
    """Whether the choices of the work model are measured: with the whole table of a CPU, or if asked for."""
    words = (given.rows or "").split(",")
    return NAME in words or (given.rows is None and device.type == "cpu" and not given.quick)


def _command(given: argparse.Namespace) -> str:
    """What of the command line the numbers depend on."""
    words = [f" --{key} {vars(given)[key]}" for key in ("models", "rows", "rounds") if vars(given)[key]]
    return "".join(words) + (" --quick" if given.quick else "")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--models", help=f"some of {','.join(SUBJECTS)}; on a CPU all but the last if left out")
    made.add_argument("--rows", help="parts (statistics,optimizers,peers,contractions) or words in the names of rows")
    made.add_argument("--rounds", type=int, help=f"turns of each row; {ROUNDS} if left out")
    made.add_argument("--threads", type=int, default=1, help="of torch on the CPU; 1 if left out")
    made.add_argument("--device", default="auto", help="cpu, cuda, or auto: the CPU and, where there is one, the GPU")
    made.add_argument("--folder", type=Path, default=Path("logs/measure"), help="for table_*.md and result_*.json")
    made.add_argument("--quick", action="store_true", help="small models and few rounds, to see that every row runs")
    made.add_argument("--docs", action="store_true", help="write docs/benchmarks/cost_cpu.md or cost_cuda.md as well")
    return made


def main() -> None:
    """Measure what the command line asks for, print the table, and say where it is."""
    given = parser().parse_args()
    if given.docs and (given.quick or given.models or given.rows):
        raise SystemExit("measure.py: --docs writes the whole table; leave out --quick, --models and --rows")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(given.threads)
    for device in devices(given.device):
        print(f"table: {report(device, given)}")


if __name__ == "__main__":
    main()
