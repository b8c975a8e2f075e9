"""Checks that run on two ranks: one spawn for all, a process group of its own for each, verdicts by store.

A rank that fails leaves the other waiting in a collective until the group's time is up; the next check starts
afresh.
"""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from tests.optim.candidates import Candidate
from tests.optim.contract.problems import (
    assert_equal,
    assert_finite,
    batches,
    group_parameters,
    network,
    values,
)

WORLD = 2
PATIENCE = timedelta(seconds=20)
Batch = tuple[Tensor, Tensor]


def share(step: int, rank: int) -> list[Batch]:
    """The two microbatches of this rank."""
    return list(batches(step, count=4))[rank::WORLD]


def apart(step: int) -> list[Batch]:
    """The whole batch in one process, a microbatch of a rank at a time (what DDP sees)."""
    return list(batches(step, count=4))


def joined(step: int) -> list[Batch]:
    """The whole batch in one process, a global microbatch at a time (what FSDP2 sees)."""
    one, two, three, four = batches(step, count=4)
    return [
        tuple(torch.cat(pair) for pair in zip(*both, strict=True)) for both in ((one, two), (three, four))
    ]


def accumulate(model: nn.Module, work: list[Batch]) -> None:
    """Accumulate the mean loss; DDP synchronises in the last backward only."""
    for place, (inputs, target) in enumerate(work):
        quiet = isinstance(model, DistributedDataParallel) and place < len(work) - 1
        with model.no_sync() if quiet else nullcontext():
            (nn.functional.mse_loss(model(inputs), target) / len(work)).backward()


def fit(optimizer: Optimizer, model: nn.Module, work: Callable[[int], list[Batch]], steps: range) -> None:
    """Train on what `work` gives for each step."""
    for step in steps:
        optimizer.zero_grad()
        accumulate(model, work(step))
        optimizer.step()


def reference(
    candidate: Candidate, work: Callable[[int], list[Batch]], steps: int, **extra: Any
) -> nn.Module:
    """The same training in one process."""
    model = network()
    fit(candidate.build(model, **extra), model, work, range(steps))
    return model


def assert_ranks_agree(tensors: list[Tensor]) -> None:
    """Bit-identical on both ranks."""
    for tensor in tensors:
        copies = [torch.empty_like(tensor) for _ in range(WORLD)]
        dist.all_gather(copies, tensor.contiguous())
        assert torch.equal(*copies), f"the ranks differ by {(copies[0] - copies[1]).abs().max()}"


def ddp(candidate: Candidate, rank: int) -> None:
    """Given the model inside DDP, with accumulation and without."""
    for work in (share, lambda step, rank: share(step, rank)[:1]):
        inner = network()
        wrapped = DistributedDataParallel(inner)
        fit(candidate.build(inner), wrapped, lambda step, work=work: work(step, rank), range(4))
        assert_ranks_agree(values(inner.parameters()))
        alone = apart if work is share else lambda step: apart(step)[:WORLD]
        expected = reference(candidate, alone, 4)
        assert_equal(values(inner.parameters()), values(expected.parameters()), rtol=1e-4, atol=1e-4)


def ddp_wrapper(candidate: Candidate, rank: int) -> None:
    """Given the DDP module itself."""
    wrapped = DistributedDataParallel(network())
    fit(candidate.build(wrapped), wrapped, lambda step: share(step, rank), range(4))
    assert_ranks_agree(values(wrapped.parameters()))
    expected = reference(candidate, apart, 4)
    assert_equal(values(wrapped.parameters()), values(expected.parameters()), rtol=1e-4, atol=1e-4)


def ddp_hook(candidate: Candidate, rank: int) -> None:
    """With a gradient-compression communication hook."""
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook

    inner = network()
    wrapped = DistributedDataParallel(inner)
    wrapped.register_comm_hook(None, fp16_compress_hook)
    fit(candidate.build(inner), wrapped, lambda step: share(step, rank), range(4))
    assert_ranks_agree(values(inner.parameters()))
    assert_finite(values(inner.parameters()))
    assert not torch.equal(next(inner.parameters()), next(network().parameters()))


def zero(candidate: Candidate, rank: int) -> None:
    """Built by ZeroRedundancyOptimizer over DDP gradients; its state consolidates."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    inner = network()
    wrapped = DistributedDataParallel(inner)
    sharded = ZeroRedundancyOptimizer(
        inner.parameters(), optimizer_class=candidate.cls, lr=0.1, **candidate.keywords
    )
    fit(sharded, wrapped, lambda step: share(step, rank), range(4))
    assert_ranks_agree(values(inner.parameters()))
    expected = reference(candidate, apart, 4)
    assert_equal(values(inner.parameters()), values(expected.parameters()), rtol=1e-4, atol=1e-4)
    sharded.consolidate_state_dict(to=0)
    if rank == 0:
        assert set(sharded.state_dict()["state"]) == set(range(len(group_parameters(sharded))))


def sharded_network() -> nn.Module:
    """Layers of three and of one row over two ranks: an uneven shard and an empty one."""
    model = network()
    for layer in (model[0], model[2]):
        fully_shard(layer)
    fully_shard(model)
    return model


def gathered(model: nn.Module) -> list[Tensor]:
    """The parameters in full."""
    return [
        parameter.full_tensor().detach() if isinstance(parameter, DTensor) else parameter.detach()
        for parameter in model.parameters()
    ]


def fsdp2(candidate: Candidate, rank: int) -> None:
    """Sharded parameters stepped by the loop."""
    _assert_sharded_matches(candidate, rank, foreach=False)


def fsdp2_foreach(candidate: Candidate, rank: int) -> None:
    """Sharded parameters stepped by foreach."""
    _assert_sharded_matches(candidate, rank, foreach=True)


def _assert_sharded_matches(candidate: Candidate, rank: int, foreach: bool) -> None:
    model = sharded_network()
    fit(candidate.build(model, foreach=foreach), model, lambda step: share(step, rank), range(4))
    expected = reference(candidate, joined, 4, foreach=foreach)
    assert_equal(gathered(model), values(expected.parameters()), rtol=1e-4, atol=1e-4)


def fsdp2_state(candidate: Candidate, rank: int) -> None:
    """The full state out, into a fresh sharded optimizer, and training on alike."""
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_model_state_dict,
        get_optimizer_state_dict,
        set_model_state_dict,
        set_optimizer_state_dict,
    )

    options = StateDictOptions(full_state_dict=True)
    model, again = sharded_network(), sharded_network()
    optimizer = candidate.build(model)
    fit(optimizer, model, lambda step: share(step, rank), range(3))
    weights = deepcopy(get_model_state_dict(model, options=options))
    state = deepcopy(get_optimizer_state_dict(model, optimizer, options=options))
    fresh = candidate.build(again)
    set_model_state_dict(again, weights, options=options)
    set_optimizer_state_dict(again, fresh, state, options=options)
    fit(optimizer, model, lambda step: share(step, rank), range(3, 6))
    fit(fresh, again, lambda step: share(step, rank), range(3, 6))
    assert_equal(gathered(again), gathered(model))


CHECKS: dict[str, Callable[[Candidate, int], None]] = {
    check.__name__: check for check in (ddp, ddp_wrapper, ddp_hook, zero, fsdp2, fsdp2_foreach, fsdp2_state)
}


def work(rank: int, port: int, jobs: list[tuple[str, Candidate]]) -> None:
    """Run every job on this rank and leave its verdict ("" or a traceback) in the store."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=300))
    for index, (name, candidate) in enumerate(jobs):
        group = dist.PrefixStore(f"job{index}", store)
        dist.init_process_group("gloo", store=group, rank=rank, world_size=WORLD, timeout=PATIENCE)
        store.set(f"verdict/{index}/{rank}", verdict(CHECKS[name], candidate, rank))
        dist.destroy_process_group()


def verdict(check: Callable[[Candidate, int], None], candidate: Candidate, rank: int) -> str:
    """What went wrong, if anything."""
    try:
        check(candidate, rank)
    except Exception:
        return f"rank {rank}: {traceback.format_exc()}"
    return ""


def run(jobs: list[tuple[str, Candidate]]) -> list[str]:
    """Spawn the ranks once and give the verdict of each job."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=PATIENCE)
    torch.multiprocessing.spawn(work, args=(store.port, jobs), nprocs=WORLD)
    return ["\n".join(_verdicts(store, index)) for index in range(len(jobs))]


def _verdicts(store: dist.TCPStore, index: int) -> list[str]:
    found = [store.get(f"verdict/{index}/{rank}").decode() for rank in range(WORLD)]
    return [text for text in found if text]
