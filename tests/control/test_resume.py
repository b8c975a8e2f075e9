"""A run whose batch size changes all the time, killed anywhere and gone on with, is the run that was never killed."""

import copy
import os
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.control.resumable import SAMPLES, Run, Way

ROOT = Path(__file__).parents[2]
WAYS = [
    Way(workers=0, device=None),
    Way(workers=0, device=8),
    Way(workers=2, device=None),
    Way(workers=2, device=8),
    Way(controller="noise_scale", workers=0, device=8),
]


def _assert_same(found: dict[str, Any], expected: dict[str, Any], unmeasured: int = 0) -> None:
    assert found["batches"] == expected["batches"]
    assert found["sampler"] == expected["sampler"]
    for name, value in expected["model"].items():
        assert torch.equal(found["model"][name], value), name
    for place, held in expected["optimizer"]["state"].items():
        assert torch.equal(found["optimizer"]["state"][place]["momentum_buffer"], held["momentum_buffer"])
    said = [state["optimizer"]["param_groups"][0] for state in (found, expected)]
    for key in ("controller_state", "proposed_batch_size", "steps"):
        assert said[0][key] == said[1][key], key
    assert said[0]["measured"] == said[1]["measured"] - unmeasured
    assert unmeasured or torch.equal(said[0]["covariance"], said[1]["covariance"])


@pytest.mark.parametrize("way", WAYS, ids=lambda way: f"{way.controller}-workers{way.workers}-device{way.device}")
def test_a_run_gone_on_with_by_fresh_objects_is_the_unbroken_one(way: Way) -> None:
    expected = Run(way).finish()
    sizes = [len(batch) for batch in expected["batches"]]
    changes = sum(one != other for one, other in pairwise(sizes))
    assert sum(sizes) == way.epochs * SAMPLES
    for start in range(way.epochs):
        epoch = [i for batch in expected["batches"] for i in batch][start * SAMPLES : (start + 1) * SAMPLES]
        assert sorted(epoch) == list(range(SAMPLES))
    assert changes >= (20 if way.controller == "zigzag" else 1), sizes
    run, breaks = Run(way), 0
    while True:
        for part in run.train():
            if part == 7 + breaks % 5:
                break
        else:
            break
        state, breaks = copy.deepcopy(run.state()), breaks + 1
        run = Run(way)
        run.load(state)
    assert breaks >= 3
    _assert_same(run.state(), expected)


@pytest.mark.parametrize("load", [False, True])
def test_a_loop_left_between_parts_counts_none_of_them_twice(load: bool) -> None:
    """Loaded or not; a batch of which some samples were read twice is not measured."""
    way = Way(dropout=0.0)
    expected, run, lost = Run(way).finish(), Run(way), 0
    for breaks in range(3):
        for part in run.train():
            if part == 11 + breaks:
                break
        lost += not run.sampler.commit(0).last
        if load:
            run.load(copy.deepcopy(run.state()))
    assert lost
    _assert_same(run.finish(), expected, unmeasured=0 if load else lost)


def test_a_process_killed_between_parts_is_gone_on_with_by_another(tmp_path: Path) -> None:
    way, path = Way(workers=2), tmp_path / "state"
    command = [sys.executable, "-m", "tests.control.resumable", way.controller, "2", str(way.device), str(path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) == 11:
                process.kill()
                break
        assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    expected, run = Run(way).finish(), Run(way)
    run.load(torch.load(path))
    assert 0 < len(run.batches) < len(expected["batches"])
    _assert_same(run.finish(), expected)
