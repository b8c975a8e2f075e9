"""What the interpreter runs a GPU's compiler takes too: nothing is run, no device is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from fisheropt.kernels import KERNELS

ROOT = Path(__file__).parent.parent.parent
HELD = 227 * 1024  # bytes of shared memory a block of an H100 or H200 may ask for
MULTIPLY = {"outer_project", "outer_square_sum", "rank_one_project"}
pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed: it is of Linux on x86-64")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("compiled")
    command = [sys.executable, "-m", "tests.kernels.compiled", str(folder / "found.json")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    environment |= {"TRITON_CACHE_DIR": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("name", [*KERNELS, "outer_square_sum in bfloat16"])
def test_compiles_for_hopper(compiled: dict[str, list[dict[str, Any]]], name: str) -> None:
    assert compiled[name], "no launch"
    for launch in compiled[name]:
        assert launch["code"] > 0
        assert launch["shared"] <= HELD
        assert not launch["local"], "an array indexed at run time"
        assert launch["products"] == (name.split()[0] in MULTIPLY)
