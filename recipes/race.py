"""Race optimizers, ours against their peers: python recipes/race.py tracks=[epochs] sets=[a9a] seeds=5 trials=9."""

from __future__ import annotations

import difflib
import logging
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from recipes.files import write_json, write_whole
from recipes.progress import telling
from recipes.racing import tables
from recipes.racing.cells import Cells
from recipes.racing.entrants import Entrant, entrants
from recipes.racing.epochs import Epochs
from recipes.racing.heats import heat
from recipes.racing.mixtures import Mixtures
from recipes.racing.networks import Networks
from recipes.racing.one_pass import OnePass
from recipes.racing.track import Track
from recipes.schema import ConfigError

log = logging.getLogger("recipes.race")

LIMITS = "limits"
PASSING = ("folder", "data_dir", "cache_dir", "entrants", "again", "docs")  # no numbers depend on them
DOCS = Path(__file__).resolve().parents[1] / "docs" / "benchmarks"
MAKE: dict[str, Callable[[DictConfig, DictConfig], Track]] = {
    "one_pass": lambda cfg, sizes: OnePass(**sizes),
    "epochs": lambda cfg, sizes: Epochs(**sizes, data_dir=cfg.data_dir, cache_dir=cfg.cache_dir),
    "mixtures": lambda cfg, sizes: Mixtures(**sizes, cache_dir=cfg.cache_dir),
    "networks": lambda cfg, sizes: Networks(**sizes, data_dir=cfg.data_dir),
}


def race(cfg: DictConfig, folder: Path, field: Sequence[Entrant]) -> Path:
    """Run what is not done yet, then write race.json, race.md and, if asked, the documentation's tables."""
    torch.set_num_threads(cfg.threads)
    tracks = chosen_tracks(cfg)
    runners = chosen(field, cfg.entrants)
    cells = Cells(folder)
    fresh = {entrant.name for entrant in chosen(field, cfg.again)} if cfg.again else set()
    work = list(lots(tracks, cfg.sets, runners))
    with telling() as tell:
        for index, (track, case, entrant) in enumerate(work):
            tell(index / len(work), f"{track.name} {case}: {'limits' if entrant is None else entrant.name}")
            run(cells, track, case, entrant, cfg, fresh)
    return write(folder, cells, tracks, field, cfg)


def lots(
    tracks: Sequence[Track], sets: Sequence[str] | None, runners: Sequence[Entrant]
) -> Iterator[tuple[Track, str, Entrant | None]]:
    """Every track, case and entrant that is installed; None stands for the limit rows."""
    known = [case for track in tracks for case in track.cases()]
    for name in sets or ():
        check(name, known, "sets")
    for track in tracks:
        for case in track.cases():
            if runners and (sets is None or case in sets):
                yield track, case, None
                yield from (
                    (track, case, entrant) for entrant in runners if entrant.installed and enters(entrant, track)
                )


def enters(entrant: Entrant, track: Track) -> bool:
    """Whether the track is one of the entrant's."""
    return not entrant.tracks or track.name in entrant.tracks


def run(cells: Cells, track: Track, case: str, entrant: Entrant | None, cfg: DictConfig, fresh: set[str]) -> None:
    """Make the cell, unless it was made with the same settings."""
    settings = conditions(track, entrant, cfg)
    name = LIMITS if entrant is None else entrant.name
    if name not in fresh and cells.find(track.name, case, name, settings) is not None:
        return
    if entrant is None:
        cell = limits(track, case, cfg.seeds)
    else:
        cell = heat(track, case, entrant, cfg.trials, cfg.tuning_seeds, cfg.seeds)
    cells.put(cell | {"settings": settings})


def conditions(track: Track, entrant: Entrant | None, cfg: DictConfig) -> dict[str, Any]:
    """What a cell depends on; made under others it is made again, and is in no table."""
    common = {**track.settings, "seeds": cfg.seeds}
    if entrant is None:
        return common
    trials = cfg.trials if entrant.tuned else 1
    return common | {"trials": trials, "tuning_seeds": cfg.tuning_seeds, "grid": [entrant.low, entrant.high]}


def limits(track: Track, case: str, seeds: int) -> dict[str, Any]:
    """The limit rows of a case over seeds."""
    runs = [track.limits(case, seed) for seed in range(seeds)]
    rows = {name: [found[name] for found in runs] for name in runs[0]}
    return {"track": track.name, "case": case, "entrant": LIMITS, "kind": LIMITS, "rows": rows}


def write(folder: Path, cells: Cells, tracks: Sequence[Track], field: Sequence[Entrant], cfg: DictConfig) -> Path:
    """race.json and race.md of all that is in the folder, from earlier sessions too; only whole cases are judged."""
    sections, whole, waiting = {}, [], []
    for track in tracks:
        found = {case: gathered(cells, track, case, field, cfg) for case in track.cases()}
        rows = {case: tables.rows_of(track, made) for case, made in found.items() if made}
        absent = {case: tables.absent(rows[case], [e for e in field if enters(e, track)]) for case in rows}
        waiting += [f"{track.name}: {case}" for case in rows if "not run" in absent[case].values()]
        whole.append((track, {case: r for case, r in rows.items() if "not run" not in absent[case].values()}))
        parts = [tables.table(track, case, rows[case], absent[case], track.describe(case)) for case in rows]
        sections[track.name] = "\n".join([track.words, "", *parts])
    about = f"*{machine(cfg)}.*"
    unfinished = f"Not finished, and not counted: {', '.join(waiting)}.\n\n" if waiting else ""
    sections["standings"] = f"{tables.standings(whole)}\n{unfinished}{about}\n"
    write_json(folder / "race.json", {"about": about, "settings": OmegaConf.to_container(cfg), "cells": cells.all()})
    headed = [f"## {track.title}\n\n{sections[track.name]}" for track in tracks]
    write_whole(folder / "race.md", "\n".join([f"# Race\n\n{sections['standings']}", *headed]))
    if cfg.docs:
        DOCS.mkdir(exist_ok=True)
        for name, text in sections.items():
            write_whole(DOCS / f"{name}.md", text)
    return folder / "race.md"


def gathered(cells: Cells, track: Track, case: str, field: Sequence[Entrant], cfg: DictConfig) -> list[dict[str, Any]]:
    """The cells of a case, each limit row as a cell of its own."""
    made = (cells.find(track.name, case, entrant.name, conditions(track, entrant, cfg)) for entrant in field)
    found = [cell for cell in made if cell is not None]
    marks = cells.find(track.name, case, LIMITS, conditions(track, None, cfg)) if found else None
    keys = [measure.key for measure in track.measures if measure.tuned]
    for name, outcomes in (marks["rows"] if marks is not None else {}).items():
        found.append({"entrant": name, "kind": "limit", "outcomes": dict.fromkeys(keys, outcomes)})
    return found


def machine(cfg: DictConfig) -> str:
    """Where, when and by which command the numbers came about."""
    given = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    overrides = "".join(f" {word}" for word in given if word.split("=")[0] not in PASSING)
    cores = f"{platform.machine()}, {os.cpu_count()} cores, {cfg.threads} thread"
    return (
        f"{cores}; torch {torch.__version__}; {time.strftime('%Y-%m-%d')}; {cfg.seeds} seeds, {cfg.trials} trials; medians "
        f"with bootstrap intervals of 95 % over seeds; † the best rate is an end of its grid; "
        f"`python recipes/race.py{overrides}`"
    )


def chosen_tracks(cfg: DictConfig) -> list[Track]:
    """The tracks that the configuration names."""
    sizes = cfg.quick_sizes if cfg.quick else cfg.sizes
    for name in cfg.tracks:
        check(name, list(MAKE), "tracks")
    return [MAKE[name](cfg, sizes[name]) for name in cfg.tracks]


def chosen(field: Sequence[Entrant], names: Sequence[str] | str | None) -> list[Entrant]:
    """The entrants of these names, or with these parts of a name; "ours" and "peers" stand for many."""
    if names is None:
        return list(field)
    names = [names] if isinstance(names, str) else names
    found = {entrant.name for name in names for entrant in called(field, name)}
    return [entrant for entrant in field if entrant.name in found]


def called(field: Sequence[Entrant], name: str) -> list[Entrant]:
    """Those that a word of `entrants=` means."""
    if name in ("ours", "peers"):
        return [entrant for entrant in field if (entrant.kind == "ours") == (name == "ours")]
    whole = [entrant for entrant in field if entrant.name == name]
    found = whole or [entrant for entrant in field if name.lower() in entrant.name.lower()]
    if not found:
        check(name, [entrant.name for entrant in field], "entrants")
    return found


def check(name: str, known: Sequence[str], key: str) -> None:
    """Refuse a name that there is not, and say which it may have been."""
    if name not in known:
        near = difflib.get_close_matches(name, known, 1, 0.0)[0]
        raise ConfigError(f"{key}=[{name}]: there is {', '.join(known)}; write {key}=[{near}].")


def directory(given: str | None, new: str) -> str:
    """The directory of a race to go on with, or a new one."""
    return new if given is None else given


@hydra.main(version_base="1.3", config_path=str(Path(__file__).resolve().parents[1] / "conf"), config_name="race")
def main(cfg: DictConfig) -> None:
    """A race by Hydra."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    page = race(cfg, folder, entrants())
    log.info("report: %s", page)
    log.info("to go on, or to race again: folder=%s", folder)


if __name__ == "__main__":
    OmegaConf.register_new_resolver("race_dir", directory, replace=True)
    main()
