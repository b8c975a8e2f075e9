"""DistributedDataParallel in all its settings: statistics are the oracle's over the samples of all ranks."""

from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel

import fisheropt
from tests.cases import CASES, Case, batch, classification
from tests.oracle import flattened
from tests.ranked import assert_ranks_agree, contributions, scatter, share, verdicts

CHECKS = {}
LARGE = {"rtol": 1e-9, "atol": 1e-12}
STATISTICS = (fisheropt.Trace(), fisheropt.SecondMoment(), fisheropt.FullCovariance(), fisheropt.Kronecker())


def check(function):
    CHECKS[function.__name__] = function
    return function


def twin(name="mlp"):
    torch.manual_seed(3)
    return CASES[name]()


def compare(tap, h):
    """A reading with the oracle's samples of all ranks."""
    statistic = tap.statistic
    if isinstance(statistic, fisheropt.FullCovariance):
        torch.testing.assert_close(tap.covariance().value, scatter(flattened(h)), **LARGE)
        return
    for name, p in tap.parameters.items():
        covariance, found = scatter(h[name].flatten(1)), tap.covariance(p)
        assert found.dof == len(h[name]) - 1
        if isinstance(statistic, fisheropt.Kronecker):
            left, right = statistic.factors(found, p)
            blocks = covariance.reshape(p.shape[0], -1, p.shape[0], p[0].numel())
            if p.ndim > 1:
                torch.testing.assert_close(left, torch.einsum("aibi->ab", blocks), **LARGE)
                torch.testing.assert_close(right, torch.einsum("aiaj->ij", blocks), **LARGE)
            continue
        truth = covariance.diagonal()
        value = truth.sum() if isinstance(statistic, fisheropt.Trace) else truth.reshape(p.shape)
        torch.testing.assert_close(found.value, value, **LARGE)


def measured(rank, wrap, name="mlp", sizes=(5, 4), run=None, statistics=STATISTICS, exact=True):
    """Each statistic of a model that `wrap` makes of a case's, tapped inside the wrapper."""
    h = contributions(twin(name), sizes)
    for statistic in statistics:
        case = twin(name)
        tap = fisheropt.observe(case.model, statistic)
        wrapped, mine = wrap(case.model), share(case, rank, sizes)
        for _ in range(2):  # static graphs are known from the second on
            tap.clear()
            case.model.zero_grad()
            (run or (lambda model, part: part.loss(model).backward()))(wrapped, mine)
        for n, p in tap.parameters.items():
            tolerance = LARGE if exact else {"rtol": 0.05, "atol": 0.05}
            torch.testing.assert_close(p.grad, h[n].sum(0), **tolerance)
        compare(tap, h)
        tap.remove()


def compiled(model, **settings):
    torch._dynamo.reset()
    return torch.compile(model, backend="aot_eager", **settings)


def hooked(hook, state=None):
    def wrap(model):
        wrapped = DistributedDataParallel(model)
        wrapped.register_comm_hook(state() if state else None, hook)
        return wrapped

    return wrap


def power():
    return powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=1, start_powerSGD_iter=2)


def accumulated(model, part):
    """In three backwards of which the last synchronises, each divided as a user would."""
    for start in range(0, part.samples, 2):
        stop = min(start + 2, part.samples)
        with nullcontext() if stop == part.samples else model.no_sync():
            piece = part.slice(start, stop)
            (piece.losses(model, *piece.batch).sum() / part.samples).backward()


for _name in ("mlp", "sequence", "custom", "normalised", "embedding", "tied", "called_twice", "frozen"):
    CHECKS[f"cases {_name}"] = partial(measured, wrap=DistributedDataParallel, name=_name, statistics=STATISTICS[:3])
CHECKS |= {
    "a rank with one sample": partial(measured, wrap=DistributedDataParallel, sizes=(8, 1)),
    "static graph": partial(measured, wrap=partial(DistributedDataParallel, static_graph=True)),
    "unused": partial(measured, wrap=partial(DistributedDataParallel, find_unused_parameters=True)),
    "views of buckets": partial(measured, wrap=partial(DistributedDataParallel, gradient_as_bucket_view=True)),
    "small buckets": partial(measured, wrap=partial(DistributedDataParallel, bucket_cap_mb=1e-5)),
    "no_sync": partial(measured, wrap=DistributedDataParallel, run=accumulated),
    "fp16 hook": partial(measured, wrap=hooked(fp16_compress_hook), exact=False),
    "PowerSGD": partial(measured, wrap=hooked(powerSGD_hook.powerSGD_hook, power), exact=False),
    "DDP(compile)": partial(
        measured,
        wrap=lambda model: DistributedDataParallel(compiled(model, fullgraph=True)),
        statistics=STATISTICS[1:2],
    ),
    "compile(DDP)": partial(
        measured,
        wrap=lambda model: compiled(DistributedDataParallel(model)),
        statistics=STATISTICS[1:3],
    ),
}


def regression_case():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    return Case(model, batch(4, classes=3, samples=24), classification)


def train(cls, settings, wrap, rank, sizes, given="inner"):
    """Four steps on six samples a step."""
    case = regression_case()
    wrapped = case.model if wrap is None else wrap(case.model)
    optimizer = cls(wrapped if given == "wrapper" else case.model, lr=0.05, every=1, **settings)
    for step in range(4):
        optimizer.zero_grad()
        whole = case.slice(6 * step, 6 * step + 6)
        (whole if wrap is None else share(whole, rank, sizes)).loss(wrapped).backward()
        optimizer.step()
    return optimizer, list(case.model.parameters())


SETTINGS = {
    "FisherFloorSGD": (fisheropt.FisherFloorSGD, {"floor": 2.0}),
    "GodambeSGD": (fisheropt.GodambeSGD, {"metric": "fisher", "damping": 0.5}),
    "kronecker": (fisheropt.GodambeSGD, {"structure": "kronecker"}),
    "likelihood": (fisheropt.GodambeSGD, {"likelihood": "categorical"}),
}


@check
def a_compiled_model_inside_is_known_to_be_one_of_several_ranks(rank):
    for name in ("FisherFloorSGD", "GodambeSGD"):
        for wrap in (
            lambda model: DistributedDataParallel(compiled(model)),
            lambda model: compiled(DistributedDataParallel(model)),
        ):
            cls, settings = SETTINGS[name]
            one, expected = train(cls, settings, None, rank, (3, 3))
            many, found = train(cls, settings, wrap, rank, (3, 3))
            torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)
            assert many.param_groups[0]["count"] == one.param_groups[0]["count"] == 6
            for p in found:
                assert_ranks_agree(p.detach())


@check
def a_model_compiled_alone_is_known_to_be_wrapped_later(rank):
    case = twin("mlp")
    with fisheropt.observe(case.model, fisheropt.FullCovariance()) as tap:
        inner = compiled(case.model)
        share(case, rank).loss(inner).backward()
        assert tap.covariance().dof == share(case, rank).samples - 1
        tap.clear()
        share(case, rank).loss(DistributedDataParallel(inner)).backward()
        compare(tap, contributions(case))
        tap.clear()
        share(case, rank).loss(inner).backward()
        assert tap.covariance().dof == share(case, rank).samples - 1


@check
def ranks_of_different_sizes_step_alike(rank):
    for sizes in ((4, 2), (5, 1)):
        for cls, settings in (*SETTINGS.values(), (fisheropt.AdaptiveBatchSGD, {})):
            optimizer, found = train(cls, settings, DistributedDataParallel, rank, sizes)
            for p in found:
                assert_ranks_agree(p.detach())
            group = optimizer.param_groups[0]
            assert group["count"] == 6 and group["measured"] == 4


@check
def the_trace_of_ranks_of_different_sizes(rank):
    """V is pooled over n_r - 1 degrees of freedom a rank, and the signal has its noise taken off."""
    sizes, case = (5, 1), regression_case().slice(0, 6)
    optimizer = fisheropt.AdaptiveBatchSGD(case.model, lr=0.0, every=1)
    share(case, rank, sizes).loss(DistributedDataParallel(case.model)).backward()
    optimizer.step()
    g = flattened({n: h * 2 for n, h in contributions(case, sizes).items()})
    parts = [own * n for own, n in zip(g.split(list(sizes)), sizes, strict=True)]
    pooled = sum((own - own.mean(0)).square().sum() for own in parts) / (6 - 2)
    signal = sum(own.mean(0).square().sum() - pooled / len(own) for own in parts) / 2
    group = optimizer.param_groups[0]
    torch.testing.assert_close(group["covariance"], pooled, **LARGE)
    assert abs(group["signal"] - float(signal.clamp_min(-float(pooled) / 6))) < 1e-9


@check
def compression_touches_the_gradient_alone(rank):
    plain, _ = train(*SETTINGS["FisherFloorSGD"], DistributedDataParallel, rank, (3, 3))
    case = regression_case()
    wrapped = hooked(powerSGD_hook.powerSGD_hook, power)(case.model)
    optimizer = fisheropt.FisherFloorSGD(case.model, lr=0.05, every=1, floor=2.0)
    share(case.slice(0, 6), rank, (3, 3)).loss(wrapped).backward()
    optimizer.step()
    one = regression_case()
    alone = fisheropt.FisherFloorSGD(one.model, lr=0.05, every=1, floor=2.0)
    one.slice(0, 6).loss().backward()
    alone.step()
    a, b = optimizer.param_groups[0], alone.param_groups[0]
    torch.testing.assert_close(a["covariance"], b["covariance"], **LARGE)
    torch.testing.assert_close(a["information"], b["information"], **LARGE)
    assert plain.param_groups[0]["measured"] == 4


@check
def join_is_refused_where_ranks_would_wait_for_each_other(rank):
    case = regression_case()
    wrapped = DistributedDataParallel(case.model)
    optimizer = fisheropt.FisherFloorSGD(case.model, lr=0.05, every=1, floor=2.0)
    with Join([wrapped]), pytest.raises(RuntimeError, match="join"):
        share(case, rank).loss(wrapped).backward()
        optimizer.step()


@pytest.fixture(scope="module")
def found(request):
    return verdicts(request)


@pytest.mark.parametrize("name", CHECKS)
def test_two_ranks(name, found):
    assert not found[name], found[name]
