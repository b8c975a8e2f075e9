"""Checkpoints: whole or absent, verified, two of them kept, and never those of another run."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recipes import checkpoint
from recipes.files import plain, read_json, write_json, write_whole
from recipes.record import Metrics, read_metrics

IDENTITY: dict[str, Any] = {"problem": "p", "optimizer": "o", "samples": 3, "model": {"w": [2]}}


def state(step: int) -> dict[str, Any]:
    return {"identity": IDENTITY, "step": step, "w": torch.arange(1000.0) + step}


def saved(folder: Path, *steps: int) -> list[Path]:
    return [checkpoint.save(folder, step, state(step)) for step in steps]


def test_the_newest_of_two_is_loaded_and_older_ones_are_gone(tmp_path: Path) -> None:
    paths = saved(tmp_path, 9, 10, 100)
    loaded, notes = checkpoint.load(tmp_path, IDENTITY)
    assert loaded is not None
    assert loaded["step"] == 100
    assert torch.equal(loaded["w"], state(100)["w"])
    assert notes == []
    assert sorted(tmp_path.iterdir()) == sorted(paths[1:])


def test_without_a_checkpoint_there_is_none(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path / "absent", IDENTITY) == (None, [])


@given(position=st.floats(0, 1), mask=st.integers(1, 255))
def test_a_flipped_byte_anywhere_never_goes_unnoticed(position: float, mask: int) -> None:
    """Either the damaged file is passed over, or the byte was one that no value depends on."""
    with temporary() as folder:
        _, newest = saved(folder, 1, 2)
        data = bytearray(newest.read_bytes())
        data[int(position * (len(data) - 1))] ^= mask
        newest.write_bytes(bytes(data))
        loaded, notes = checkpoint.load(folder, IDENTITY)
        assert loaded is not None
        assert torch.equal(loaded["w"], state(1 if notes else 2)["w"])
        assert loaded["step"] == (1 if notes else 2)


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.999])
def test_a_cut_file_falls_back_to_the_one_before(tmp_path: Path, kept: float) -> None:
    _, newest = saved(tmp_path, 1, 2)
    size = newest.stat().st_size
    os.truncate(newest, int(kept * size) if isinstance(kept, float) else kept)
    loaded, notes = checkpoint.load(tmp_path, IDENTITY)
    assert loaded is not None
    assert loaded["step"] == 1
    assert notes == ["step-0000000002.pt is damaged; falling back to the one before"]


def test_two_damaged_files_are_an_error_and_not_a_fresh_start(tmp_path: Path) -> None:
    for path in saved(tmp_path, 1, 2):
        path.write_bytes(b"")
    with pytest.raises(checkpoint.CheckpointError, match="none of its 2 checkpoints can be read"):
        checkpoint.load(tmp_path, IDENTITY)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"problem": "q"}, "with problem p, but this run has problem q"),
        ({"optimizer": "x"}, "with optimizer o, but this run has optimizer x"),
        ({"samples": 4}, "with samples 3, but this run has samples 4"),
        ({"model": {"w": [5]}}, r"another model: w is \[2\] there and \[5\] here"),
        ({"model": {"w": [2], "b": [1]}}, r"another model: b is absent there and \[1\] here"),
        ({"model": {}}, r"another model: w is \[2\] there and absent here"),
    ],
)
def test_another_run_is_named(tmp_path: Path, other: dict[str, Any], message: str) -> None:
    saved(tmp_path, 1)
    with pytest.raises(checkpoint.CheckpointError, match=message):
        checkpoint.load(tmp_path, {**IDENTITY, **other})


def test_random_states_go_through_a_file_and_back(tmp_path: Path) -> None:
    random.gauss(0, 1), np.random.normal(), torch.rand(3)
    checkpoint.save(tmp_path, 1, {"identity": IDENTITY, "random": checkpoint.random_states()})
    first = [
        random.gauss(0, 1),
        random.random(),
        np.random.normal(),
        np.random.rand(),
        float(torch.randn(())),
    ]
    loaded, _ = checkpoint.load(tmp_path, IDENTITY)
    assert loaded is not None
    checkpoint.restore_random_states(loaded["random"])
    again = [
        random.gauss(0, 1),
        random.random(),
        np.random.normal(),
        np.random.rand(),
        float(torch.randn(())),
    ]
    assert again == first


@pytest.mark.parametrize("stage", ["fsync", "replace"])
def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    path = tmp_path / "file"
    write_whole(path, "old")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, stage, interrupt)
        write_whole(path, "new")
    assert path.read_text() == "old"


def test_the_content_is_on_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (calls.append("fsync"), fsync(descriptor)))
    monkeypatch.setattr(os, "replace", lambda old, new: (calls.append("replace"), replace(old, new)))
    write_whole(tmp_path / "file", "content")
    assert calls == ["fsync", "replace", "fsync"]


def test_json_is_strict(tmp_path: Path) -> None:
    value = {"a": float("nan"), "b": [1.5, float("inf"), {"c": (True, None, "x")}]}
    write_json(tmp_path / "file", value)
    assert read_json(tmp_path / "file") == {"a": None, "b": [1.5, None, {"c": [True, None, "x"]}]}
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json(tmp_path / "file", {"a": torch.ones(1)})
    assert plain(3) == 3


def test_metrics_are_cut_at_the_checkpoint_and_never_stretched(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path)
    metrics.append({"a": 1})
    kept = metrics.sync()
    metrics.append({"a": 2})
    metrics.close()
    again = Metrics(tmp_path, kept)
    again.append({"a": 3})
    again.close()
    assert read_metrics(tmp_path) == [{"a": 1}, {"a": 3}]
    with pytest.raises(ValueError, match="lines were removed from it"):
        Metrics(tmp_path, 1000)


def temporary() -> Any:
    import tempfile
    from contextlib import contextmanager

    @contextmanager
    def folder() -> Any:
        with tempfile.TemporaryDirectory() as name:
            yield Path(name)

    return folder()
