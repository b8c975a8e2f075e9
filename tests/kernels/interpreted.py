"""Every case in Triton's interpreter, in a process of its own: the interpreter is chosen before Triton is imported."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"

import torch

from fisheropt.kernels import KERNELS, kernel
from tests.kernels.sheet import Case, answers, cases, check, definition, poisoned


def verdict(case: Case) -> str:
    """What is wrong with the Triton form; nothing where it is as defined."""
    found = KERNELS[case.kernel]
    try:
        with poisoned():
            given = answers(found, found.op, case.arguments())
        check(given, definition(case))
    except Exception as error:  # judged by the test of this case
        return f"{type(error).__name__}: {error}"
    return ""


def checked(name: str) -> str:
    """What torch says of the op with the Triton form in it."""
    try:
        torch.library.opcheck(KERNELS[name].op, Case(name, "odd").arguments())
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


if __name__ == "__main__":
    assert kernel.INTERPRETED and kernel.AVAILABLE
    torch.set_num_threads(1)
    verdicts = {str(case): verdict(case) for case in cases()} | {name: checked(name) for name in KERNELS}
    Path(sys.argv[1]).write_text(json.dumps(verdicts))
