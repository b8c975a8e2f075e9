"""The optimizers under fully_shard step as one process does on the whole batch, and refuse by name what they cannot."""

import re
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import fisheropt
from fisheropt.optim.finite import Undo
from fisheropt.optim.metrics.flat import laid, parted
from fisheropt.taps.shards import dot, here, laid_out, part_of, run_of
from tests.ranked import assert_ranks_agree, verdicts, whole

CHECKS = {}
SETTINGS = {
    "floor auto": (fisheropt.FisherFloorSGD, {"floor": 2.0}),
    "floor momentum": (fisheropt.FisherFloorSGD, {"floor": 2.0, "momentum": 0.9, "weight_decay": 0.1}),
    "floor layers": (fisheropt.FisherFloorSGD, {"floor": 2.0, "directions": "per_layer"}),
    "floor named": (fisheropt.FisherFloorSGD, {"floor": 2.0, "directions": ["2"]}),
    "floor contrast": (
        fisheropt.FisherFloorSGD,
        {"floor": 2.0, "directions": [fisheropt.Contrast("2", [1.0, -1.0, 0.0])]},
    ),
    "floor metric": (fisheropt.FisherFloorSGD, {"mode": "metric", "likelihood": "bernoulli", "floor": 0.05}),
    "floor sampled": (fisheropt.FisherFloorSGD, {"mode": "metric", "floor": 0.05}),
    "godambe": (fisheropt.GodambeSGD, {"weight_decay": 0.1}),
    "godambe model": (fisheropt.GodambeSGD, {"likelihood": "bernoulli", "momentum": 0.5}),
    "godambe both": (fisheropt.GodambeSGD, {"likelihood": "bernoulli", "metric": "godambe"}),
    "godambe running": (fisheropt.GodambeSGD, {"gain": "running", "likelihood": "bernoulli", "weight_decay": 0.01}),
    "batch": (fisheropt.AdaptiveBatchSGD, {"weight_decay": 0.1}),
    "batch horizon": (fisheropt.AdaptiveBatchSGD, {"controller": "go_h", "budget": 1000, "weight_decay": 0.1}),
    "batch metric": (fisheropt.AdaptiveBatchSGD, {"metric": "fisher", "weight_decay": 0.1}),
    "batch drift": (fisheropt.AdaptiveBatchSGD, {"controller": "sasa", "weight_decay": 0.1}),
}


def check(function):
    CHECKS[function.__name__] = function
    return function


def network(width=4, outputs=3):
    """With one output for a likelihood, whose cotangents are then the same however the batch is divided."""
    generator = torch.Generator().manual_seed(2)
    last = [nn.LayerNorm(outputs)] if outputs > 1 else []
    model = nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, outputs), *last).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.5)
    return model


def sharded(model):
    for module in model:
        if list(module.parameters()):
            fully_shard(module)
    return fully_shard(model)


def samples(step, count=12):
    generator = torch.Generator().manual_seed(100 + step)
    return torch.randn(count, 5, generator=generator).double(), torch.randint(0, 3, (count,), generator=generator)


def loss(output, y):
    if output.shape[1] > 1:
        return nn.functional.cross_entropy(output, y)
    return nn.functional.binary_cross_entropy_with_logits(output[:, 0], (y > 0).double())


def fit(optimizer, model, part, steps=range(5)):
    for step in steps:
        x, y = (t[part] for t in samples(step))
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()
    return [whole(p).detach() for p in model.parameters()]


def mine(rank):
    return slice(6 * rank, 6 * rank + 6)


def numbers(optimizer):
    """What the groups have learnt, without tensors that hold a history of hashes."""
    return {
        key: value
        for key, value in optimizer.param_groups[0].items()
        if isinstance(value, float | torch.Tensor) and not isinstance(value, bool)
    }


def steps_alike(name, rank, width=4):
    cls, settings = SETTINGS[name]
    outputs = 1 if "likelihood" in settings else 3
    one, many = network(width, outputs), sharded(network(width, outputs))
    settings = {"lr": 0.05, "every": 1} | settings
    first, second = cls(one, **settings), cls(many, **settings)
    torch.testing.assert_close(fit(second, many, mine(rank)), fit(first, one, slice(None)), rtol=1e-7, atol=1e-9)
    for p in many.parameters():
        assert_ranks_agree(whole(p).detach())
    measured, expected = numbers(second), numbers(first)
    ignored = {"ranks", "rank_samples", "rank_size", "extra", "axes"}
    ignored |= {key for key in measured if key.startswith(("between", "within"))}
    assert measured["measured"] == 5
    for key in measured.keys() - ignored:
        torch.testing.assert_close(measured[key], expected[key], rtol=1e-6, atol=1e-9, msg=lambda m, k=key: f"{k}: {m}")
    assert str(second.report())


for _name in SETTINGS:
    CHECKS[_name] = partial(steps_alike, _name)
CHECKS["floor random signs"] = partial(steps_alike, "floor auto", width=40)


@check
def feature_off_is_sgd_bit_for_bit(rank):
    settings = {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}
    ways = [
        (fisheropt.FisherFloorSGD, {"floor": 0}),
        (fisheropt.GodambeSGD, {"metric": None}),
        (fisheropt.AdaptiveBatchSGD, {"controller": None}),
    ]
    plain = sharded(network())
    expected = fit(torch.optim.SGD(plain.parameters(), **settings), plain, mine(rank))
    for cls, off in ways:
        model = sharded(network())
        for p, q in zip(fit(cls(model, **settings, **off), model, mine(rank)), expected, strict=True):
            assert torch.equal(p, q)


@check
def a_gradient_that_is_not_finite_on_one_rank_stops_all(rank):
    model = sharded(network())
    optimizer = fisheropt.GodambeSGD(model, lr=0.1, metric=None)
    before = [whole(p).detach().clone() for p in model.parameters()]
    x, y = (t[mine(rank)] for t in samples(0))
    nn.functional.cross_entropy(model(x), y).backward()
    grad = model[0].weight.grad.to_local()
    if rank == 1:
        grad[0, 0] = float("inf")
    optimizer.step()
    assert optimizer.param_groups[0]["skipped"] == 1
    for p, q in zip(model.parameters(), before, strict=True):
        assert torch.equal(whole(p), q)


@check
def steps_are_undone_on_parts(rank):
    model = sharded(network())
    p = model[0].weight
    before = whole(p).detach().clone()
    for flag in (True, False):
        undo = Undo([p])
        with torch.no_grad():
            p.add_(1)
        undo.unless({p.device: torch.tensor(flag)})
    assert torch.equal(whole(p), before + 1)


@check
def parts_add_up(rank):
    mesh = init_device_mesh("cpu", (2,))
    for shape in ((5, 3), (1, 4), (4,), (2, 3, 2)):
        for dim in range(len(shape)):
            full, other = torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
            a, b = (distribute_tensor(t, mesh, [Shard(dim)]) for t in (full, other))
            total = laid_out(a).clone()
            dist.all_reduce(total)
            assert torch.equal(total, full)
            assert torch.equal(whole(part_of(full.flatten(), a)), full)
            torch.testing.assert_close(dot([a], [b]), (full * other).sum())
            torch.testing.assert_close(laid([a], [a], [b], full), other.flatten())
            assert torch.equal(whole(parted(full.flatten(), [a], [a], [b])[0]), full)
            flat = torch.zeros_like(full).flatten()
            (run,), start = run_of(a)
            flat[start : start + run.numel()] = run.flatten()
            dist.all_reduce(flat)
            assert torch.equal(flat, full.flatten())


@check
def replicas_count_once(rank):
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicate", "shard"))
    one, many = network(), network()
    for module in (many[0], many[2], many[3], many):
        fully_shard(module, mesh=mesh)
    ways = {"lr": 0.05, "every": 1, "weight_decay": 0.1}
    for cls in (fisheropt.AdaptiveBatchSGD, fisheropt.FisherFloorSGD, fisheropt.GodambeSGD):
        expected = fit(cls(one, **ways), one, slice(None))
        torch.testing.assert_close(fit(cls(many, **ways), many, mine(rank)), expected, rtol=1e-7, atol=1e-9)
    p = many[0].weight
    assert p.placements[0] == Replicate()
    assert here(p).numel() == (p.numel() if rank == 0 else 0)


@check
def what_is_not_served_is_refused_by_name(rank):
    model = sharded(network(20))
    model.eval()
    for cls, settings, words in (
        (fisheropt.GodambeSGD, {"structure": "lowrank"}, "structure='full'"),
        (fisheropt.GodambeSGD, {"structure": "kronecker"}, "structure='full'"),
        (fisheropt.GodambeSGD, {"structure": "diagonal"}, "structure='full'"),
        (fisheropt.FisherFloorSGD, {"directions": "tracked"}, "directions='auto'"),
        (fisheropt.FisherFloorSGD, {"mode": "penalty", "likelihood": "bernoulli"}, "mode='anchor'"),
        (fisheropt.FisherFloorSGD, {"fisher": "exact", "likelihood": "bernoulli"}, "fisher='hutchinson'"),
    ):
        with pytest.raises(TypeError, match=re.escape(words)):
            cls(model, lr=0.1, **settings)
    fisheropt.FisherFloorSGD(model, lr=0.1, fisher="hutchinson", likelihood="bernoulli")  # as these words say
    mesh = init_device_mesh("cpu", (2,))
    parallel = network()
    parallel[0].weight = nn.Parameter(distribute_tensor(parallel[0].weight.detach(), mesh))
    with pytest.raises(TypeError, match="'0.weight' is distributed without it"):
        fisheropt.observe(parallel, fisheropt.Trace())
    half = network()
    fully_shard(half[0])
    with pytest.raises(TypeError, match="'2.weight' is not sharded"):
        fisheropt.observe(half, fisheropt.Trace())
    late = network()
    tap = fisheropt.observe(late, fisheropt.Trace())
    fully_shard(late)
    x, y = samples(0)
    nn.functional.cross_entropy(late(x), y).backward()
    with pytest.raises(RuntimeError, match="after fully_shard"):
        tap.covariance(tap.parameters["0.weight"])


@check
def microbatches_are_those_of_the_step(rank):
    """Given parameters, the observation is the gradient that all ranks share."""
    one, many = network(), sharded(network())
    for cls, settings in (
        (fisheropt.GodambeSGD, {"metric": "fisher", "damping": 0.5}),
        (fisheropt.AdaptiveBatchSGD, {}),
        (fisheropt.FisherFloorSGD, {"floor": 2.0}),
    ):
        settings = {"lr": 0.05, "every": 1} | settings
        first, second = cls(one.parameters(), **settings), cls(many.parameters(), **settings)
        torch.testing.assert_close(fit(second, many, mine(rank)), fit(first, one, slice(None)), rtol=1e-7, atol=1e-9)
        assert second.param_groups[0]["count"] == 1


@check
def the_sandwich_is_that_of_one_process(rank):
    one, many = network(outputs=1), sharded(network(outputs=1))
    settings = {"lr": 0.5, "every": 1, "likelihood": "bernoulli", "damping": 0.1}
    first, second = fisheropt.GodambeSGD(one, **settings), fisheropt.GodambeSGD(many, **settings)
    fit(first, one, slice(None)), fit(second, many, mine(rank))
    torch.testing.assert_close(second.noise().value, first.noise().value, rtol=1e-6, atol=1e-9)
    assert second.noise().dof == first.noise().dof
    a, b = second.sandwich(samples=10_000), first.sandwich(samples=10_000)
    torch.testing.assert_close(a.covariance, b.covariance, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(a.estimate, b.estimate)


@pytest.fixture(scope="module")
def found(request):
    return verdicts(request)


@pytest.mark.parametrize("name", CHECKS)
def test_two_ranks(name, found):
    assert not found[name], found[name]
