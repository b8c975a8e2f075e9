"""The Triton forms are their references, on a device."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from fisheropt.kernels import KERNELS, served
from tests.kernels.sheet import Case, answers, cases, check, definition, poisoned

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or find_spec("triton") is None, reason="no CUDA device with Triton is here"
)


@pytest.mark.parametrize("case", list(cases()), ids=str)
def test_triton_is_the_reference(case: Case) -> None:
    kernel = KERNELS[case.kernel]
    with poisoned():
        found = answers(kernel, kernel.op, case.arguments("cuda"))
    check(found, definition(case))


@pytest.mark.parametrize("name", KERNELS)
def test_op_is_sound(name: str) -> None:
    arguments = Case(name, "odd").arguments("cuda")
    first = arguments[0]
    assert served(*(first if isinstance(first, list) else [first]))
    torch.library.opcheck(KERNELS[name].op, arguments)


@pytest.mark.parametrize("name", KERNELS)
def test_same_numbers_twice(name: str) -> None:
    kernel = KERNELS[name]
    first, second = (answers(kernel, kernel.op, Case(name, "tiles").arguments("cuda")) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
