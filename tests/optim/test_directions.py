"""Which directions FisherFloorSGD watches: names, contrasts, layers, null ones left out, tracked ones that change."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fisheropt
from fisheropt import Contrast
from fisheropt.optim import critical
from fisheropt.optim.critical import null_space
from fisheropt.persample import Dense
from tests.cases import Case, batch, classification
from tests.oracle import flattened, per_sample_gradients


def net(hidden=6, activation=nn.ReLU, dtype=torch.float64):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, hidden), activation(), nn.Linear(hidden, 3)).to(dtype)


def watched(optimizer):
    """An orthonormal basis of what a group watches, laid over all parameters: [P, k]."""
    tap = optimizer._taps[0]
    parts = []
    for name, p in tap.parameters.items():
        if name in tap.directions:
            eye = torch.eye(p.numel(), dtype=torch.float64).reshape(p.numel(), *p.shape)
            parts.append(Dense(eye).project(tap.directions[name]).double())
        else:
            parts.append(torch.zeros(p.numel(), next(iter(tap.directions.values())).count, dtype=torch.float64))
    return torch.cat(parts)


def same_span(left, right):
    return torch.allclose(left @ torch.linalg.pinv(left), right @ torch.linalg.pinv(right), atol=1e-9)


def step(optimizer, model, count=64, seed=0, inputs=4, classes=3):
    generator = torch.Generator().manual_seed(seed)
    dtype = next(model.parameters()).dtype
    x = torch.randn(count, inputs, generator=generator, dtype=dtype)
    y = torch.randint(0, classes, (count,), generator=generator)
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()


def unit(size, start, stop):
    return torch.eye(size, dtype=torch.float64)[:, start:stop]


@pytest.mark.parametrize(
    ("names", "start", "stop"),
    [("2", 30, 51), (["2.weight"], 30, 48), (["0.bias", "2.bias"], None, None), ("2.bias", 48, 51)],
)
def test_names_watch_the_whole_space_of_what_they_name(names, start, stop):
    optimizer = fisheropt.FisherFloorSGD(net(), lr=0.1, mode="monitor", directions=names)
    expected = unit(51, start, stop) if start is not None else torch.cat([unit(51, 24, 30), unit(51, 48, 51)], 1)
    assert same_span(watched(optimizer), expected)


def test_the_information_of_a_named_module_is_the_oracles():
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    case = Case(model, batch(4, classes=3), classification)
    optimizer = fisheropt.FisherFloorSGD(model, lr=1e-30, mode="monitor", directions="0", every=1)
    scores = flattened(per_sample_gradients(case))[:, :25]
    case.loss().backward()
    optimizer.step()
    torch.testing.assert_close(optimizer.param_groups[0]["information"], scores.T @ scores / case.samples)


def test_a_contrast_is_a_difference_of_outputs():
    """The derivative of Σ c_a z_a at x̄ is the direction that Contrast(..., along=x̄) names."""
    model, mean = nn.Linear(4, 3).double(), torch.randn(4, dtype=torch.float64)
    c = torch.tensor([1.0, -2.0, 1.0], dtype=torch.float64)
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(model(mean) @ c, tuple(model.parameters()))])
    chosen = nn.Sequential(model)
    optimizer = fisheropt.FisherFloorSGD(chosen, lr=0.1, mode="monitor", directions=Contrast("0", c, along=mean))
    assert same_span(watched(optimizer), gradient[:, None])


def test_all_features_of_a_contrast_and_only_the_span_of_several():
    pairs = [[1.0, -1.0, 0.0], [0.0, 1.0, -1.0], [1.0, 0.0, -1.0]]
    optimizer = fisheropt.FisherFloorSGD(net(), lr=0.1, mode="monitor", directions=Contrast("2", pairs))
    assert optimizer.param_groups[0]["information"].shape == (2 * 7, 2 * 7)
    shift = torch.zeros(51, dtype=torch.float64)
    shift[48:] = 1
    assert watched(optimizer).T.matmul(shift).abs().max() < 1e-12, "no contrast has a part in the shift of all logits"
    both = ["2.bias", Contrast("2.weight", [1.0, -1.0, 0.0], along=torch.ones(6))]
    optimizer = fisheropt.FisherFloorSGD(net(), lr=0.1, mode="monitor", directions=both)
    assert len(optimizer.param_groups[0]["information"]) == 4


BAD = {
    "names neither": {"directions": "head"},
    "more than the 256": {"directions": "big"},
    "sum to zero": {"directions": lambda: Contrast("small", [1.0, 1.0])},
    "2 coefficients": {"directions": lambda: Contrast("big", [1.0, -1.0])},
    "along= has 3 entries": {"directions": lambda: Contrast("small", [1.0, -1.0], along=[1.0, 2.0, 3.0])},
    "one weight": {"directions": lambda: Contrast("small.bias", [1.0, -1.0], along=[1.0])},
    "name feature directions": {"directions": lambda: Contrast("big", torch.eye(30) - 1 / 30)},
    "write 'auto'": {"directions": [1, 2]},
    "3 tensors for 4": {"directions": [torch.zeros(1, 2)] * 3},
}


@pytest.mark.parametrize("words", BAD)
def test_what_cannot_be_watched_is_refused_with_the_line_to_write(words):
    chosen = BAD[words]["directions"]
    model = nn.ModuleDict({"big": nn.Linear(20, 30), "small": nn.Linear(30, 2)})
    with pytest.raises(ValueError, match=words):
        fisheropt.FisherFloorSGD(model, lr=0.1, directions=chosen() if callable(chosen) else chosen)


def test_a_name_of_one_group_leaves_the_other_alone():
    model = net()
    first = {name: p for name, p in model.named_parameters() if name.startswith("0.")}
    with pytest.raises(ValueError, match="names neither"):
        critical.statistic("2", first)
    assert critical.statistic("2", first, critical.elsewhere(model, first)) is None
    assert critical.statistic("0", first, critical.elsewhere(model, first)) is not None


def test_layers_have_a_block_each_and_nothing_between_them():
    model = net(hidden=8)
    optimizer = fisheropt.FisherFloorSGD(model, lr=0.1, directions="per_layer", every=1, likelihood="categorical")
    for seed in range(4):
        step(optimizer, model, seed=seed)
    group = optimizer.param_groups[0]
    (report,) = optimizer.report().as_dict()["groups"]
    assert [layer["layer"] for layer in report["layers"]] == ["0", "2"]
    assert [layer["directions"] for layer in report["layers"]] == [4, 4]
    assert group["information"][:4, 4:].abs().max() == 0 and group["covariance"][:4, 4:].abs().max() > 0
    for layer, place in zip(report["layers"], (slice(0, 4), slice(4, 8)), strict=True):
        values = torch.linalg.eigvalsh(group["information"][place, place])
        assert layer["smallest"] == pytest.approx(float(values[0])) and layer["largest"] == pytest.approx(
            float(values[-1])
        )


SYMMETRIC = {
    "softmax": (lambda: nn.Sequential(nn.Linear(4, 3)), {"the shift of all logits": 5}),
    "relu": (net, {"the shift of all logits": 7, "the rescaling of a unit between 0 and 2": 6}),
    "tanh": (lambda: net(activation=nn.Tanh), {"the shift of all logits": 7}),
    "norm": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 3)),
        {"the shift of all outputs of 0": 5, "the shift of all logits": 6},
    ),
}


@pytest.mark.parametrize(("likelihood", "dtype"), [(None, torch.float64), ("categorical", torch.float32)])
@pytest.mark.parametrize("name", SYMMETRIC)
def test_symmetries_are_found_counted_named_and_left_out(name, likelihood, dtype):
    make, expected = SYMMETRIC[name]
    torch.manual_seed(0)
    model = make().to(dtype)
    optimizer = fisheropt.FisherFloorSGD(model, lr=1e-3, every=1, likelihood=likelihood)
    for seed in range(4):
        step(optimizer, model, count=150, seed=seed)
    (report,) = optimizer.report().as_dict()["groups"]
    total = sum(p.numel() for p in model.parameters())
    found = {words: number for words, number in report["null_kinds"].items() if "normalisation undoes" not in words}
    assert found == expected
    assert report["directions"] == total - report["null_left_out"]
    assert report["eigenvalues"][0] > 0 and report["floor"] > 0 and report["certified"]
    assert any("left out" in line for line in optimizer.report().advice)


def test_a_dead_unit_is_left_out_and_its_weights_are_those_that_are_null():
    model = net()
    with torch.no_grad():
        model[0].bias[2] = -100.0
    optimizer = fisheropt.FisherFloorSGD(model, lr=1e-3, every=1)
    for seed in range(4):
        step(optimizer, model, count=150, seed=seed)
    null = optimizer.param_groups[0]["null"].diagonal()
    dead = [*range(8, 12), 26, 32, 38, 44]  # its row of the first weight, its bias, its column of the second
    assert (null[dead] > 1 - 1e-9).all()
    kinds = optimizer.report().as_dict()["groups"][0]["null_kinds"]
    assert sum(kinds.values()) == 8 + 5 + 6, "the unit's eight, five other rescalings, six shifts beside its own"


def test_a_null_direction_moves_neither_the_threshold_nor_the_floor():
    """Λ*, k and τ are those of the model whose shift was taken out by hand: its last class is the reference."""
    torch.manual_seed(0)
    free = nn.Linear(4, 3).double()
    basis = torch.linalg.qr(torch.eye(3, dtype=torch.float64) - 1 / 3).Q[:, :2]
    directions = {
        "weight": torch.einsum("cm,fj->mfcj", basis, torch.eye(4, dtype=torch.float64)).reshape(8, 3, 4),
        "bias": torch.zeros(8, 3, dtype=torch.float64),
    }
    directions = {
        "weight": torch.cat([directions["weight"], torch.zeros(2, 3, 4, dtype=torch.float64)]),
        "bias": torch.cat([directions["bias"], basis.T]),
    }
    reports = []
    for chosen in ("auto", directions):
        model = copy.deepcopy(free)
        optimizer = fisheropt.FisherFloorSGD(model, lr=0.1, every=1, directions=chosen, smoothing=0.9)
        for seed in range(6):
            step(optimizer, model, seed=seed)
        reports.append(optimizer.report().as_dict()["groups"][0])
    whole, reduced = reports
    assert whole["null_left_out"] == 5 and reduced["null_left_out"] == 0
    for key in ("directions", "lambda_star", "eigenvalues", "required_samples", "held"):
        assert whole[key] == pytest.approx(reduced[key], rel=1e-6), key


def test_information_that_is_lost_is_no_symmetry():
    """Of a direction that carried information once the loss is reported; it is never taken for a null one."""
    group = null_space.fresh(torch.zeros(2, 2, dtype=torch.float64), 0)
    for smallest in (1e-3, 1e-13, 1e-16, 1e-20):
        null_space.learn(group, torch.diag(torch.tensor([1.0, smallest], dtype=torch.float64)), 100)
    assert not group["null"].any()
    born = null_space.fresh(torch.zeros(2, 2, dtype=torch.float64), 0)
    for smallest in (1e-13, 1e-14):
        null_space.learn(born, torch.diag(torch.tensor([1.0, smallest], dtype=torch.float64)), 100)
    assert round(float(born["null"].trace())) == 1
    null_space.learn(born, torch.eye(2, dtype=torch.float64), 100)
    assert not born["null"].any(), "a unit that comes to life is watched again"


def test_a_rank_by_counting_is_no_symmetry():
    model = net(hidden=5, activation=nn.Tanh)
    optimizer = fisheropt.FisherFloorSGD(model, lr=0.1, every=1, mode="monitor")
    for seed in range(3):
        step(optimizer, model, count=8, seed=seed)
    kinds = optimizer.report().as_dict()["groups"][0]["null_kinds"]
    assert kinds == {"the shift of all logits": 6}


def test_a_null_direction_that_is_not_left_out_is_seen():
    """Deliberate fault."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(null_space, "others", lambda group: torch.eye(len(group["null"])).to(group["null"]))
        with pytest.raises(AssertionError):
            test_a_null_direction_moves_neither_the_threshold_nor_the_floor()
