"""A study as a run: from its settings to the findings in result.json and one SVG a picture."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from recipes.assemble import seed
from recipes.drawing import standalone, svg
from recipes.files import write_whole
from recipes.progress import telling
from recipes.studies.base import Picture, Study

FIGURES = "figures"


def conduct(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """Run the study of `cfg.study`, and return what result.json says of it."""
    seed(cfg.seed)
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    study: Study = instantiate(cfg.study)
    began = time.perf_counter()
    with telling() as tell:
        findings = study.run(tell)
    judged = [row.holds for row in findings.rows]
    return {
        "seconds": time.perf_counter() - began,
        "held": judged.count(True),
        "missed": judged.count(False),
        "findings": {
            "title": study.title,
            "question": study.question,
            "reference": study.reference,
            "rows": [row.as_dict() for row in findings.rows],
            "pictures": _drawn(findings.pictures, folder),
        },
    }


def _drawn(pictures: Iterable[Picture], folder: Path) -> list[dict[str, str]]:
    """Draw every picture into a file of its own, and say where."""
    (folder / FIGURES).mkdir(exist_ok=True)
    drawn = []
    for number, picture in enumerate(pictures, start=1):
        file = f"{FIGURES}/{number}.svg"
        element = svg(picture.draw, width=picture.width, height=picture.height, rows=picture.rows)
        write_whole(folder / file, standalone(element, picture.width, picture.height))
        drawn.append({"title": picture.title, "words": picture.words, "file": file})
    return drawn


def sentence(result: Mapping[str, Any]) -> str:
    """The outcome in a line: how many numbers are as expected, and which are not."""
    held, missed = result["held"], result["missed"]
    words = f"{held} of {held + missed} numbers as expected"
    if missed:
        words += "; not: " + ", ".join(row["what"] for row in result["findings"]["rows"] if row["holds"] is False)
    return words


def accepted(row: Mapping[str, Any]) -> str:
    """The accepted interval of a row, in a few signs."""
    low, high = row["low"], row["high"]
    if low is None and high is None:
        return ""
    if low is None:
        return f"≤ {high:.4g}"
    if high is None:
        return f"≥ {low:.4g}"
    return f"{low:.4g} to {high:.4g}"
