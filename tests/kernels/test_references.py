"""The references against formulas in float64, and the ops around them: enrolled folder by folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fisheropt.kernels import KERNELS, accumulator, on_cuda, served
from tests.kernels.sheet import FOLDERS, LAYOUTS, SIZES, Case, answers, cases, check, definition, poisoned, widened

ROOT = Path(__file__).parent.parent.parent


def formula_outer_project(g: Tensor, a: Tensor, basis: Tensor) -> list[Tensor]:
    return [torch.einsum("nto,nti->oi", g, a), torch.einsum("nto,nti,koi->nk", g, a, basis)]


def formula_outer_square_sum(g: Tensor, a: Tensor) -> list[Tensor]:
    h = torch.einsum("nto,nti->noi", g, a)
    return [h.sum(0), torch.einsum("noi,noi->oi", h, h), torch.einsum("noi,noi->n", h, h)]


def formula_rank_one_project(g: Tensor, a: Tensor, left: Tensor, right: Tensor) -> list[Tensor]:
    return [torch.einsum("nto,nti,ko,ki->nk", g, a, left, right)]


def normed(x: Tensor, scale: Tensor, shift: Tensor, eps: float, centred: bool) -> Tensor:
    """By torch's own layers, one scale and shift a sample."""
    size = [x.shape[-1]]
    hat = (
        torch.nn.functional.layer_norm(x, size, eps=eps) if centred else torch.nn.functional.rms_norm(x, size, eps=eps)
    )
    return hat * scale[:, None] + shift[:, None]


def formula_norm_backward(
    x: Tensor, g: Tensor, weight: Tensor | None, scales: Tensor, shifts: Tensor, eps: float, centred: bool
) -> list[Tensor]:
    """By autograd."""
    x = x.detach().requires_grad_()
    ones = x.new_ones(x.shape[0], x.shape[2])
    scale = (ones if weight is None else ones * weight).detach().requires_grad_()
    shift = torch.zeros_like(ones).requires_grad_()
    pulled, w, b = torch.autograd.grad(normed(x, scale, shift, eps, centred), (x, scale, shift), g)
    return [pulled, w.sum(0), b.sum(0), w.square().sum(1), b.square().sum(1), w @ scales.T, b @ shifts.T]


def formula_norm_samples(x: Tensor, g: Tensor, eps: float, centred: bool) -> list[Tensor]:
    scale = x.new_ones(x.shape[0], x.shape[2]).requires_grad_()
    shift = torch.zeros_like(scale).requires_grad_()
    return list(torch.autograd.grad(normed(x, scale, shift, eps, centred), (scale, shift), g))


def formula_sgd_update(
    parameters: list[Tensor], directions: list[Tensor], buffers: list[Tensor], lr: float, momentum: float,
    dampening: float, weight_decay: float, nesterov: bool, maximize: bool,
) -> list[Tensor]:  # fmt: skip
    """By torch.optim.SGD itself."""
    copies = [torch.nn.Parameter(p.clone()) for p in parameters]
    for copy, d in zip(copies, directions, strict=True):
        copy.grad = d.clone()
    options: dict[str, Any] = {"nesterov": nesterov, "maximize": maximize, "weight_decay": weight_decay}
    theirs = torch.optim.SGD(copies, lr=lr, momentum=momentum, dampening=dampening, foreach=True, **options)
    for copy, b in zip(copies, buffers, strict=False):
        theirs.state[copy]["momentum_buffer"] = b.clone()
    theirs.step()
    held = [theirs.state[copy]["momentum_buffer"] for copy in copies] if momentum else []
    return [*(copy.detach() for copy in copies), *held]


def test_every_folder_has_its_kernel() -> None:
    assert sorted(KERNELS) == FOLDERS
    for name in FOLDERS:
        folder = ROOT / "fisheropt" / "kernels" / name
        assert {path.name for path in folder.glob("*.py")} >= {"contract.py", "reference.py", "triton.py"}
        assert f"formula_{name}" in globals(), "a formula to check the reference by"


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("name", KERNELS)
def test_reference_is_the_formula(name: str, sizes: str) -> None:
    kernel = KERNELS[name]
    arguments = widened(list(Case(name, sizes).arguments()))
    wanted = globals()[f"formula_{name}"](*widened(arguments))
    check(answers(kernel, kernel.reference, arguments), wanted)


@pytest.mark.parametrize("case", [case for case in cases() if case.sizes != "tiles"], ids=str)
def test_op_is_the_reference_on_cpu(case: Case) -> None:
    kernel = KERNELS[case.kernel]
    with poisoned():
        found = answers(kernel, kernel.op, case.arguments())
    if kernel.mutates and case.dtype != "float32":  # rounded after every operation, as torch's is
        assert all(x.isfinite().all() for x in found)
        return
    check(found, definition(case))


@pytest.mark.parametrize("name", KERNELS)
def test_autocast_does_not_reach_the_numbers(name: str) -> None:
    kernel, case = KERNELS[name], Case(name, "odd")
    with torch.autocast("cpu", torch.bfloat16):
        found = answers(kernel, kernel.op, case.arguments())
    check(found, definition(case))


@pytest.mark.parametrize("name", KERNELS)
def test_double_stays_double(name: str) -> None:
    kernel = KERNELS[name]
    arguments = widened(list(Case(name, "odd").arguments()))
    assert all(x.dtype is torch.float64 for x in answers(kernel, kernel.op, arguments))


@pytest.mark.parametrize("sizes", ["odd", "wide", "empty batch", "directionless"])
@pytest.mark.parametrize("name", KERNELS)
def test_opcheck(name: str, sizes: str) -> None:
    torch.library.opcheck(KERNELS[name].op, Case(name, sizes).arguments())


@pytest.mark.parametrize("name", KERNELS)
def test_opcheck_in_half_precision(name: str) -> None:
    torch.library.opcheck(KERNELS[name].op, Case(name, "odd", "mixed", "turned").arguments())


@pytest.mark.parametrize("name", KERNELS)
def test_nothing_but_what_is_said_is_written_to(name: str) -> None:
    kernel, arguments = KERNELS[name], Case(name, "odd").arguments()
    before = widened(list(arguments))
    answers(kernel, kernel.op, arguments)
    for place, (now, then) in enumerate(zip(arguments, before, strict=True)):
        if place in kernel.mutates:
            assert all(not torch.equal(x.double(), y) for x, y in zip(now, then, strict=True))
        elif isinstance(now, Tensor):
            assert torch.equal(now.double(), then)


def test_compiled_graph_keeps_the_op() -> None:
    """One opaque call, also inside the backward of an autograd function, is what a full graph takes."""
    arguments = Case("outer_square_sum", "odd").arguments()

    def through(g: Tensor, a: Tensor) -> Tensor:
        total, squares, lengths = KERNELS["outer_square_sum"].op(g, a)
        return total.sum() + squares.sum() + lengths.sum()

    compiled = torch.compile(through, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*arguments), through(*arguments))


def test_sgd_reference_is_torchs_bit_for_bit() -> None:
    kernel = KERNELS["sgd_update"]
    for sizes in SIZES:
        for layout in ("plain", "turned"):
            arguments = Case("sgd_update", sizes, layout=layout).arguments()
            copies = [[x.clone() for x in a] if isinstance(a, list) else a for a in arguments]
            wanted = formula_sgd_update(*copies)
            found = answers(kernel, kernel.reference, arguments)
            assert all(torch.equal(x, y) for x, y in zip(found, wanted, strict=True))


def test_on_cpu_torch_is_called_directly() -> None:
    x = torch.zeros(2)
    assert not on_cuda(x)
    assert not served(x)
    assert accumulator(x.half()) is torch.float32
    assert accumulator(x.half(), x.double()) is torch.float64


def test_a_variable_forces_the_references() -> None:
    code = "import os; from fisheropt.kernels import kernel as k; print(k.AVAILABLE, k.INTERPRETED)"
    forced = os.environ | {"FISHEROPT_KERNELS": "reference", "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=forced, capture_output=True, text=True, timeout=240
    )
    assert done.stdout.split() == ["False", "False"], done.stderr


def test_layouts_are_what_they_say() -> None:
    x = torch.arange(24.0).reshape(2, 3, 4)
    for name, layout in LAYOUTS.items():
        assert layout(x).shape == x.shape
        assert layout(x).is_contiguous() == (name == "plain")
