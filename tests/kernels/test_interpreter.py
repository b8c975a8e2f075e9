"""The Triton forms are their references, in Triton's interpreter, which needs no device."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from fisheropt.kernels import KERNELS
from tests.kernels.sheet import Case, cases

ROOT = Path(__file__).parent.parent.parent
pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed: it is of Linux on x86-64")


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What is wrong with each case: all of them run in one process, whose environment asks for the interpreter."""
    path = tmp_path_factory.mktemp("interpreter") / "verdicts.json"
    command = [sys.executable, "-m", "tests.kernels.interpreted", str(path)]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("FISHEROPT_KERNELS", None)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text())


@pytest.mark.parametrize("case", list(cases()), ids=str)
def test_triton_is_the_reference(verdicts: dict[str, str], case: Case) -> None:
    assert verdicts[str(case)] == ""


@pytest.mark.parametrize("name", KERNELS)
def test_op_is_sound_with_triton_in_it(verdicts: dict[str, str], name: str) -> None:
    assert verdicts[name] == ""
