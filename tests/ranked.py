"""Checks that run on two gloo ranks, and what they must find: the oracle's samples, weighted as ranks are averaged.

One spawn runs all checks of a file, each in a process group of its own; verdicts come back by the store. A rank that fails
leaves the other waiting until the group's time is up, and the next check starts afresh.
"""

from __future__ import annotations

import importlib
import os
import time
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from tests.cases import Case
from tests.oracle import per_sample_gradients

WORLD = 2
PATIENCE = timedelta(seconds=20)
CLOSE = {"rtol": 1e-9, "atol": 1e-12}

Check = Callable[[int], None]


def verdicts(request: pytest.FixtureRequest) -> dict[str, str]:
    """What each selected check of a file complains of on any rank; empty where it passes.

    Args:
        request: of a fixture, in a module with a table CHECKS by name, in whose tests `name` is a parameter.
    """
    chosen = [item.callspec.params["name"] for item in request.session.items if item.path == request.path]
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))
    torch.multiprocessing.spawn(_work, args=(store.port, request.module.__name__, chosen), nprocs=WORLD)
    found = {name: [store.get(f"{name}/{rank}").decode() for rank in range(WORLD)] for name in chosen}
    return {name: "\n".join(text for text in texts if text) for name, texts in found.items()}


def _work(rank: int, port: int, module: str, chosen: list[str]) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    checks: dict[str, Check] = importlib.import_module(module).CHECKS
    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=300))
    for name in chosen:
        group = dist.PrefixStore(name, store)
        dist.init_process_group("gloo", store=group, rank=rank, world_size=WORLD, timeout=PATIENCE)
        torch.manual_seed(0)
        began = time.perf_counter()
        found = _verdict(checks[name], rank)
        store.set(f"{name}/{rank}", found)
        if os.environ.get("RANKED_TIMES") and rank == 0:
            print(f"{name}: {time.perf_counter() - began:.2f} s", flush=True)
        dist.destroy_process_group()


def _verdict(check: Check, rank: int) -> str:
    try:
        check(rank)
    except BaseException:
        return f"rank {rank}: {traceback.format_exc()}"
    return ""


def share(case: Case, rank: int, sizes: tuple[int, ...] = (5, 4)) -> Case:
    """The samples of one rank."""
    start = sum(sizes[:rank])
    return case.slice(start, start + sizes[rank])


def contributions(case: Case, sizes: tuple[int, ...] = (5, 4)) -> dict[str, Tensor]:
    """hₙ of every sample of all ranks, where a rank's loss is the mean over its own: gₙ/(R n_r), [n, *parameter]."""
    weights = torch.cat([torch.full((size,), 1 / (len(sizes) * size), dtype=torch.float64) for size in sizes])
    found = per_sample_gradients(case)
    return {name: g * weights.reshape(-1, *(1 for _ in g.shape[1:])) for name, g in found.items()}


def scatter(h: Tensor) -> Tensor:
    """c/(c-1)·(Σ hₙhₙᵀ - Σhₙ Σhₙᵀ/c) of vectors, [n, d] to [d, d]."""
    count = len(h)
    return (h.T @ h - torch.outer(h.sum(0), h.sum(0)) / count) * (count / (count - 1))


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, on every rank."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def assert_ranks_agree(tensor: Tensor) -> None:
    """Bit for bit."""
    copies = [torch.empty_like(tensor) for _ in range(WORLD)]
    dist.all_gather(copies, tensor.contiguous())
    assert torch.equal(*copies), f"the ranks differ by {(copies[0] - copies[1]).abs().max()}"
