"""Checkpoints that a SIGKILL cannot spoil: written aside, renamed, the last two kept, verified before use.

A checkpoint is one torch file of plain values and tensors: `torch.load(path, weights_only=True)` reads it,
and the state dict of the model is under `"model"`.
"""

from __future__ import annotations

import io
import random
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from recipes.files import write_whole

KEPT = 2


class CheckpointError(RuntimeError):
    """A checkpoint that does not belong to the run, or none that can be read."""


def save(folder: Path, step: int, state: Mapping[str, Any]) -> Path:
    """Write the state of step `step` and remove all but the newest two."""
    folder.mkdir(exist_ok=True)
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    path = folder / f"step-{step:010d}.pt"
    write_whole(path, buffer.getvalue())
    for old in _newest_first(folder)[KEPT:]:
        old.unlink()
    return path


def load(folder: Path, identity: Mapping[str, Any]) -> tuple[dict[str, Any] | None, list[str]]:
    """The newest readable checkpoint, or None where there is none yet, and a note for each one passed over.

    Args:
        folder: where `save` wrote.
        identity: what the run is; a checkpoint of another run is an error that names the difference.
    """
    notes: list[str] = []
    paths = _newest_first(folder)
    for path in paths:
        state = _read(path)
        if state is not None:
            _same_run(path, state["identity"], identity)
            return state, notes
        notes.append(f"{path.name} is damaged; falling back to the one before")
    if paths:
        raise CheckpointError(
            f"{folder}: none of its {len(paths)} checkpoints can be read. Start a new run, or remove this "
            "folder to start the run again from its beginning."
        )
    return None, notes


def identity(problem: str, optimizer: object, model: nn.Module, samples: int) -> dict[str, Any]:
    """What has to agree between a checkpoint and the run that loads it."""
    kind = type(optimizer)
    return {
        "problem": problem,
        "optimizer": f"{kind.__module__}.{kind.__qualname__}",
        "samples": samples,
        "model": {name: list(value.shape) for name, value in model.state_dict().items()},
    }


def random_states() -> dict[str, Any]:
    """State of every global generator, in types that a weights-only load accepts."""
    _, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": random.getstate(),
        "numpy": [
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(gauss),
        ],
    }


def restore_random_states(states: Mapping[str, Any]) -> None:
    """Undo every draw made since `random_states`."""
    torch.set_rng_state(states["torch"])
    if states["cuda"]:
        torch.cuda.set_rng_state_all(states["cuda"])
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.pt"), reverse=True)


def _read(path: Path) -> dict[str, Any] | None:
    """The state, or None where the file is damaged; torch does not verify the checksums in its files."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                return None
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError):
        return None
    return state


def _same_run(path: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    for key in ("problem", "optimizer", "samples"):
        if found[key] != expected[key]:
            raise CheckpointError(
                f"{path} was written with {key} {found[key]}, but this run has {key} {expected[key]}. Resume "
                "it with the configuration it was started with, or start a new run."
            )
    differing = _differing_tensors(found["model"], expected["model"])
    if differing:
        raise CheckpointError(
            f"{path} holds another model: {differing}. Resume it with the configuration it was started with, "
            "or start a new run."
        )


def _differing_tensors(found: Mapping[str, list[int]], expected: Mapping[str, list[int]]) -> str:
    names = [name for name in {**expected, **found} if found.get(name) != expected.get(name)]
    lines = [f"{name} is {found.get(name, 'absent')} there and {expected.get(name, 'absent')} here" for name in names]
    return "; ".join(lines[:3]) + (f"; and {len(lines) - 3} more" if len(lines) > 3 else "")
