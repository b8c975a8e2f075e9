"""Checks that run on two ranks: one spawn for all, a process group of its own for each, verdicts by store.

A rank that fails leaves the other waiting in a collective until the group's time is up; the next starts afresh.
"""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
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


def whole(step: int) -> list[Batch]:
    """The whole batch in one process and one backward: the one observation of a step that the ranks share."""
    return [tuple(torch.cat(parts) for parts in zip(*batches(step, count=4), strict=True))]


def first(step: int) -> list[Batch]:
    """Of each rank its first microbatch, in one backward."""
    return [tuple(torch.cat(parts) for parts in zip(*list(batches(step, count=4))[:WORLD], strict=True))]


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


def alone(candidate: Candidate, work: Callable[[int], list[Batch]], steps: int, **extra: Any) -> list[Tensor]:
    """What the same training comes to in one process, where no process group is up."""
    assert not dist.is_initialized()
    model = network()
    fit(candidate.build(model, **extra), model, work, range(steps))
    return values(model.parameters())


def assert_ranks_agree(tensors: list[Tensor]) -> None:
    """Bit-identical on both ranks."""
    for tensor in tensors:
        copies = [torch.empty_like(tensor) for _ in range(WORLD)]
        dist.all_gather(copies, tensor.contiguous())
        assert torch.equal(*copies), f"the ranks differ by {(copies[0] - copies[1]).abs().max()}"


def ddp(candidate: Candidate, rank: int) -> list[Tensor]:
    """Given the model inside DDP, accumulating over two microbatches."""
    inner = network()
    wrapped = DistributedDataParallel(inner)
    fit(candidate.build(inner), wrapped, lambda step: share(step, rank), range(12))
    assert_ranks_agree(values(inner.parameters()))
    return values(inner.parameters())


def ddp_single(candidate: Candidate, rank: int) -> list[Tensor]:
    """One backward a step and rank."""
    inner = network()
    wrapped = DistributedDataParallel(inner)
    fit(candidate.build(inner), wrapped, lambda step: share(step, rank)[:1], range(12))
    assert_ranks_agree(values(inner.parameters()))
    return values(inner.parameters())


def ddp_wrapper(candidate: Candidate, rank: int) -> list[Tensor]:
    """Given the DDP module itself."""
    wrapped = DistributedDataParallel(network())
    fit(candidate.build(wrapped), wrapped, lambda step: share(step, rank), range(12))
    assert_ranks_agree(values(wrapped.parameters()))
    return values(wrapped.parameters())


def ddp_absent(candidate: Candidate, rank: int) -> list[Tensor]:
    """A process group is up, but each rank trains a model of its own, one of them for longer."""
    model, other = network(), network()
    fit(candidate.build(model), model, whole, range(4))
    fit(candidate.build(other), other, whole, range(2 * rank))
    return values(model.parameters())


def ddp_hook(candidate: Candidate, rank: int) -> list[Tensor]:
    """With a gradient-compression communication hook."""
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook

    inner = network()
    wrapped = DistributedDataParallel(inner)
    wrapped.register_comm_hook(None, fp16_compress_hook)
    fit(candidate.build(inner), wrapped, lambda step: share(step, rank), range(4))
    assert_ranks_agree(values(inner.parameters()))
    return values(inner.parameters())


def zero(candidate: Candidate, rank: int) -> list[Tensor]:
    """Built by ZeroRedundancyOptimizer over DDP gradients; its state consolidates."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    inner = network()
    wrapped = DistributedDataParallel(inner)
    sharded = ZeroRedundancyOptimizer(inner.parameters(), optimizer_class=candidate.cls, lr=0.1, **candidate.keywords)
    fit(sharded, wrapped, lambda step: share(step, rank), range(4))
    assert_ranks_agree(values(inner.parameters()))
    sharded.consolidate_state_dict(to=0)
    if rank == 0:
        assert set(sharded.state_dict()["state"]) == set(range(len(group_parameters(sharded))))
    return values(inner.parameters())


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


def fsdp2(candidate: Candidate, rank: int, foreach: bool = False) -> list[Tensor]:
    """Sharded parameters stepped by the loop."""
    model = sharded_network()
    fit(candidate.build(model, foreach=foreach), model, lambda step: share(step, rank), range(4))
    return gathered(model)


def fsdp2_foreach(candidate: Candidate, rank: int) -> list[Tensor]:
    """Sharded parameters stepped by foreach."""
    return fsdp2(candidate, rank, foreach=True)


def fsdp2_state(candidate: Candidate, rank: int) -> list[Tensor]:
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
    return gathered(model)


@dataclass(frozen=True)
class Check:
    """What two ranks run, and what one process runs instead: its batches, its steps, and how near they must come.

    Samples do not care how a batch is cut. Given parameters, an observation on several ranks is the gradient of a step.
    """

    run: Callable[[Candidate, int], list[Tensor]]
    batches: Callable[[int], list[Batch]]
    steps: int
    tolerance: float = 1e-4


CHECKS = {
    "ddp": Check(ddp, whole, 12),
    "ddp_single": Check(ddp_single, first, 12),
    "ddp_wrapper": Check(ddp_wrapper, whole, 12),
    "ddp_absent": Check(ddp_absent, whole, 4),
    "ddp_hook": Check(ddp_hook, whole, 4, tolerance=2e-2),
    "zero": Check(zero, whole, 4),
    "fsdp2": Check(fsdp2, whole, 4),
    "fsdp2_foreach": Check(fsdp2_foreach, whole, 4),
    "fsdp2_state": Check(fsdp2_state, whole, 6),
}


def work(rank: int, port: int, jobs: list[tuple[str, Candidate]]) -> None:
    """Run every job on this rank and leave its verdict ("" or a traceback) in the store."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=300))
    for index, (name, candidate) in enumerate(jobs):
        expected = alone(candidate, CHECKS[name].batches, CHECKS[name].steps)
        group = dist.PrefixStore(f"job{index}", store)
        dist.init_process_group("gloo", store=group, rank=rank, world_size=WORLD, timeout=PATIENCE)
        store.set(f"verdict/{index}/{rank}", verdict(CHECKS[name], candidate, rank, expected))
        dist.destroy_process_group()


def verdict(check: Check, candidate: Candidate, rank: int, expected: list[Tensor]) -> str:
    """What went wrong, if anything."""
    try:
        assert_equal(check.run(candidate, rank), expected, rtol=check.tolerance, atol=check.tolerance)
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
