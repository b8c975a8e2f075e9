"""fully_shard: every statistic is the oracle's over the samples of all ranks, and no number is one rank's part."""

import tempfile
from functools import partial

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode

import fisheropt
from fisheropt.directions import RankOneDirections
from tests.cases import CASES, Case, batch, classification
from tests.oracle import flattened
from tests.ranked import CLOSE, contributions, scatter, share, verdicts, whole

CHECKS = {}


def check(function):
    CHECKS[function.__name__] = function
    return function


def sharded(case, layers=True, **policy):
    """Each module with parameters of its own by itself, and the rest; 3, 5 or 1 rows over two ranks are uneven or empty."""
    if layers:
        for module in list(case.model.modules())[1:]:
            if list(module.parameters(recurse=False)):
                fully_shard(module, **policy)
    fully_shard(case.model, **policy)
    return case


def blocks():
    """Two of the same class, each sharded by itself."""
    model = nn.Sequential(
        nn.Sequential(nn.Linear(4, 5), nn.Tanh()), nn.Sequential(nn.Linear(5, 3), nn.LayerNorm(3)), nn.ReLU()
    ).double()
    return Case(model, batch(4, classes=3), classification)


def twin(name):
    torch.manual_seed(3)
    return (CASES | {"blocks": blocks})[name]()


def directions(model):
    """Four of rank one in matrices; other parameters have none."""
    generator = torch.Generator().manual_seed(5)
    shapes = {name: p.shape for name, p in model.named_parameters() if p.requires_grad and p.ndim == 2}
    return {
        name: (torch.randn(4, o, generator=generator).double(), torch.randn(4, i, generator=generator).double())
        for name, (o, i) in shapes.items()
    }


def compare(tap, statistic, case, h):
    """With the oracle's samples of all ranks."""
    if isinstance(statistic, fisheropt.FullCovariance):
        torch.testing.assert_close(tap.covariance().value, scatter(flattened(h)), **CLOSE)
        return
    if isinstance(statistic, fisheropt.Projection):
        z = sum(torch.einsum("noi,ko,ki->nk", h[n], d.left, d.right) for n, d in statistic.along.items())
        torch.testing.assert_close(tap.covariance().value, scatter(z), **CLOSE)
        return
    for name, p in tap.parameters.items():
        variances, found = scatter(h[name].flatten(1)).diagonal(), tap.covariance(p)
        assert found.dof == len(h[name]) - 1
        assert not isinstance(found.trace(), DTensor)
        torch.testing.assert_close(found.trace(), variances.sum(), **CLOSE)
        if isinstance(statistic, fisheropt.SecondMoment):
            assert found.value.placements == p.placements
            torch.testing.assert_close(whole(found.diagonal()), variances.reshape(p.shape), **CLOSE)


def statistics(model):
    along = {name: RankOneDirections(*pair) for name, pair in directions(model).items()}
    return [
        fisheropt.Trace(),
        fisheropt.SecondMoment(),
        fisheropt.FullCovariance(),
        *([fisheropt.Projection(along)] if along else []),
    ]


def grid(name, rank, layers, reshard):
    h = contributions(twin(name))
    for statistic in statistics(twin(name).model):
        case = sharded(twin(name), layers, reshard_after_forward=reshard)
        with fisheropt.observe(case.model, statistic) as tap:
            share(case, rank).loss().backward()
            gradients = {n: whole(p.grad) for n, p in case.model.named_parameters() if p.grad is not None}
            for n, gradient in gradients.items():
                torch.testing.assert_close(gradient, h[n].sum(0), **CLOSE)
            compare(tap, statistic, case, h)


def measured(rank, name, case, statistic, run=None):
    """A reading of a case whose model is sharded already, with the oracle's samples of all ranks."""
    with fisheropt.observe(case.model, statistic) as tap:
        (run or (lambda part: part.loss().backward()))(share(case, rank))
        compare(tap, statistic, case, contributions(twin(name)))


@check
def microbatches_without_synchronisation(rank):
    """Of three backwards only the last reduces gradients; statistics are reduced by each, and add up."""

    def run(part):
        for places in torch.arange(part.samples).tensor_split(3):
            start, stop = int(places[0]), int(places[-1]) + 1
            part.model.set_requires_gradient_sync(stop == part.samples)
            piece = part.slice(start, stop)
            (piece.losses(piece.model, *piece.batch).sum() / part.samples).backward()

    for statistic in statistics(twin("mlp").model):
        measured(rank, "mlp", sharded(twin("mlp")), statistic, run)


@check
def bf16_with_reduction_in_float32(rank):
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for statistic in (fisheropt.FullCovariance(), fisheropt.SecondMoment()):
        h, case = contributions(twin("mlp")), twin("mlp")
        case.model.float()
        case = sharded(case, mp_policy=policy)
        case.batch = (case.batch[0].float(), case.batch[1])
        with fisheropt.observe(case.model, statistic) as tap:
            share(case, rank).loss().backward()
            if isinstance(statistic, fisheropt.FullCovariance):
                pairs = [(tap.covariance().value, scatter(flattened(h)))]
            else:
                pairs = [
                    (whole(tap.covariance(p).value).flatten(), scatter(h[n].flatten(1)).diagonal())
                    for n, p in tap.parameters.items()
                ]
            for seen, truth in pairs:
                assert seen.dtype in (torch.float32, torch.float64)
                assert (seen - truth).norm() <= 0.03 * truth.norm()


@check
def blocks_compiled_before_and_after(rank):
    """`block.compile()` before fully_shard and after it."""
    for early, statistic in ((True, fisheropt.FullCovariance()), (False, fisheropt.SecondMoment())):
        torch._dynamo.reset()
        case = twin("blocks")
        for block in case.model[:2]:
            if early:
                block.compile(backend="aot_eager")
            fully_shard(block)
            if not early:
                block.compile(backend="aot_eager")
        fully_shard(case.model)
        measured(rank, "blocks", case, statistic)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


@check
def what_travels(rank):
    """A projection adds nothing to backward, and k² numbers to a reading; a trace one reduce-scatter a parameter."""
    kinds = torch.ops.c10d_functional
    counts = {}
    for statistic in (None, fisheropt.FullCovariance(), fisheropt.Trace(), fisheropt.SecondMoment()):
        case = share(sharded(twin("sequence")), rank)
        tap = None if statistic is None else fisheropt.observe(case.model, statistic)
        with CommDebugMode() as backward:
            case.loss().backward()
        with CommDebugMode() as reading:
            if tap is not None and not isinstance(statistic, fisheropt.SecondMoment):
                tap.all_sums() if isinstance(statistic, fisheropt.Trace) else tap.covariance()
        counts[type(statistic).__name__] = (backward.get_comm_counts(), reading.get_comm_counts())
        if tap is not None:
            tap.remove()
    plain = counts["NoneType"][0]
    parameters = len(list(twin("sequence").model.parameters()))
    assert counts["FullCovariance"][0] == plain
    for name, each in (("Trace", 1), ("SecondMoment", 2)):
        more = counts[name][0]
        added = {op: more[op] - plain[op] for op in more if more[op] != plain[op]}
        assert added == {kinds.reduce_scatter_tensor: each * parameters}, added
    for name in ("Trace", "FullCovariance"):
        assert sum(counts[name][1].values()) == 1, counts[name][1]


@check
def the_divisor_that_the_user_has_set(rank):
    case = sharded(twin("mlp"))
    with fisheropt.observe(case.model, fisheropt.FullCovariance()) as tap:
        assert tap.divisor() == 2
        case.model[0].set_gradient_divide_factor(1.0)
        with pytest.raises(RuntimeError, match="one factor for all"):
            tap.divisor()
        for module in case.model:
            if list(module.parameters()):
                module.set_gradient_divide_factor(1.0)
        assert tap.divisor() == 1


@check
def a_loss_scale_divides_out(rank):
    """GradScaler beside sharded gradients: the same numbers as without."""
    found = []
    for scale in (None, 1024.0):
        case = sharded(twin("mlp"))
        optimizer = fisheropt.AdaptiveBatchSGD(case.model, lr=0.1, every=1)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
        for _ in range(3):
            optimizer.zero_grad()
            scaler.scale(share(case, rank).loss()).backward()
            scaler.step(optimizer)
            scaler.update()
        found.append((optimizer.param_groups[0]["covariance"], [whole(p).detach() for p in case.model.parameters()]))
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-9)


@check
def checkpoints_of_sharded_state(rank):
    """torch.distributed.checkpoint out and into a fresh optimizer, which steps on alike."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    folder = [tempfile.mkdtemp() if rank == 0 else ""]
    torch.distributed.broadcast_object_list(folder)

    def built():
        case = sharded(twin("mlp"))
        return case, fisheropt.GodambeSGD(case.model, lr=0.1, every=1, momentum=0.9)

    def step(case, optimizer):
        optimizer.zero_grad()
        share(case, rank).loss().backward()
        optimizer.step()

    (case, optimizer), (other, fresh) = built(), built()
    for _ in range(3):
        step(case, optimizer)
    model_state, state = get_state_dict(case.model, optimizer)
    dcp.save({"model": model_state, "optimizer": state}, checkpoint_id=folder[0])
    model_state, state = get_state_dict(other.model, fresh)
    dcp.load({"model": model_state, "optimizer": state}, checkpoint_id=folder[0])
    set_state_dict(other.model, fresh, model_state_dict=model_state, optim_state_dict=state)
    for pair in ((case, optimizer), (other, fresh)):
        step(*pair)
    for p, q in zip(case.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(whole(p), whole(q))


for _name in CASES:
    CHECKS[f"whole {_name}"] = partial(grid, _name, layers=False, reshard=True)
for _name in ("mlp", "custom", "convolution", "normalised", "embedding", "frozen", "called_twice"):
    CHECKS[f"layers {_name}"] = partial(grid, _name, layers=True, reshard=True)
for _name in ("mlp", "custom"):
    CHECKS[f"kept {_name}"] = partial(grid, _name, layers=True, reshard=False)


@pytest.fixture(scope="module")
def found(request):
    return verdicts(request)


@pytest.mark.parametrize("name", CHECKS)
def test_two_ranks(name, found):
    assert not found[name], found[name]
