"""What the forms, rules and optimizers make of the ops is what they make without them, as on a GPU but on this machine."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fisheropt
from fisheropt import kernels
from fisheropt.directions import DenseDirections, RankOneDirections
from fisheropt.persample import Outer
from fisheropt.rules import find

CALLERS = {
    "fisheropt.persample.outer": ("outer_project", "outer_square_sum"),
    "fisheropt.directions.rank_one": ("rank_one_project",),
    "fisheropt.rules.normalisation": ("norm_samples",),
    "fisheropt.optim.fused": ("sgd_update",),
}


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the ops that are called, by callers that take this for a GPU."""
    names: list[str] = []

    def noted(name: str):
        def call(*arguments):
            names.append(name)
            return getattr(kernels, name)(*arguments)

        return call

    for path, ops in CALLERS.items():
        module = importlib.import_module(path)
        monkeypatch.setattr(module, "on_cuda", lambda *tensors: True)
        for name in ops:
            monkeypatch.setattr(module, name, noted(name))
    return names


def formed(n: int = 6, t: int = 12, o: int = 4, i: int = 3) -> Outer:
    g, a = torch.randn(n, t, o, dtype=torch.float64), torch.randn(n, t, i, dtype=torch.float64)
    return Outer(g, a, way="formed")


def contractions(form: Outer) -> Iterator[Tensor]:
    basis = torch.randn(5, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    dense = DenseDirections(basis)
    yield from (form.square_sum(), form.squared_norms(), form.project(dense))
    for pair in (form.squares_and_sum(), form.trace_and_sum(), form.project_and_sum(dense)):
        yield from pair
    rank_one = RankOneDirections(basis[:, :, 0], basis[:, 0])
    yield rank_one.of_outer(form.g, form.a)


def test_forms_contract_alike(called: list[str]) -> None:
    form = formed()
    found = list(contractions(form))
    assert called == ["outer_square_sum"] * 2 + ["outer_project"] + ["outer_square_sum"] * 2 + [
        "outer_project",
        "rank_one_project",
    ]
    h = form.materialise()
    basis = torch.randn(5, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    along = torch.einsum("noi,koi->nk", h, basis)
    squares, norms, total = h.square().sum(0), h.square().sum((1, 2)), h.sum(0)
    rank_one = torch.einsum("noi,ko,ki->nk", h, basis[:, :, 0], basis[:, 0])
    wanted = [squares, norms, along, squares, total, norms.sum(), total, along, total, rank_one]
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("shape", [(6,), (5, 6)])
@pytest.mark.parametrize("layer", [nn.LayerNorm, nn.RMSNorm])
def test_norms_have_the_same_samples(called: list[str], layer: type[nn.Module], shape: tuple[int, ...]) -> None:
    module = layer(shape, eps=1e-5).double()
    names = tuple(name for name, _ in module.named_parameters())
    for between in ((), (3,), (3, 2)):
        x, g = (torch.randn(4, *between, *shape, dtype=torch.float64) for _ in range(2))
        found = find(module).forms(module, names, (x,), None, g)
        assert called.pop() == "norm_samples"
        for n in range(4):
            wanted = torch.autograd.grad(module(x[n : n + 1]), list(module.parameters()), g[n : n + 1])
            torch.testing.assert_close([found[name].materialise()[n] for name in names], list(wanted))


def test_a_norm_without_eps_is_left_to_torch(called: list[str]) -> None:
    module = nn.RMSNorm(6)
    find(module).forms(module, ("weight",), (torch.randn(4, 6),), None, torch.randn(4, 6))
    assert called == []


def trained(optimizer: type[torch.optim.Optimizer], **options: object) -> list[Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 3)).double()
    opt = optimizer(model, lr=0.1, momentum=0.9, every=1, **options)
    for _ in range(4):
        x, y = torch.randn(32, 8, dtype=torch.float64), torch.randint(0, 3, (32,))
        opt.zero_grad()
        F.cross_entropy(model(x), y).backward()
        opt.step()
    return [p.detach() for p in model.parameters()]


@pytest.mark.parametrize("options", [{}, {"nesterov": True, "weight_decay": 0.01}, {"maximize": True}])
def test_steps_are_alike(request: pytest.FixtureRequest, options: dict[str, object]) -> None:
    plain = trained(fisheropt.GodambeSGD, **options)
    called = request.getfixturevalue("called")
    torch.testing.assert_close(trained(fisheropt.GodambeSGD, **options), plain)
    assert called.count("sgd_update") == 3, "the first step begins the momentum"
    assert "norm_samples" in called


def test_a_step_that_is_torchs_stays_torchs(called: list[str]) -> None:
    """With its feature off an optimizer is torch.optim.SGD bit for bit, on a GPU too."""
    trained(fisheropt.FisherFloorSGD)
    trained(fisheropt.GodambeSGD, foreach=False)
    assert "sgd_update" not in called
