"""Ranks divide an epoch among them, in batches of one size, and another number of ranks can go on with it."""

import json
from datetime import timedelta
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings

from fisheropt.control.sampler import AdaptiveBatchSampler
from tests.control.resumable import SAMPLES, Run, Way

WORLD = 2
STEADY = Way(controller="fixed", device=4, epochs=1, dropout=0.0)
CHANGING = Way(controller="zigzag", device=5, epochs=1, dropout=0.0)
quick = settings(max_examples=100, deadline=None, derandomize=True)


def _stopped(run: Run, parts: int) -> dict[str, Any]:
    for part in run.train():
        if part == parts:
            break
    return run.state()


def _work(rank: int, port: int, folder: Path) -> None:
    """One rank: to the middle of a batch of a steady run, from there on with what one process saved, and a changing one."""
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=60))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD, timeout=timedelta(seconds=60))
    stopped, gone_on = _stopped(Run(STEADY), 11), Run(STEADY)
    gone_on.load(torch.load(folder / "alone") | {"batches": []})
    torch.save([stopped, gone_on.finish(), Run(CHANGING).finish()], folder / f"rank{rank}")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Any]]]:
    """What two processes saved, and before them one."""
    folder = tmp_path_factory.mktemp("worlds")
    torch.save(_stopped(Run(STEADY), 13), folder / "alone")
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    torch.multiprocessing.spawn(_work, args=(store.port, folder), nprocs=WORLD)
    return [torch.load(folder / f"rank{rank}") for rank in range(WORLD)]


def _indices(states: list[dict[str, Any]]) -> list[int]:
    return sorted(index for state in states for batch in state["batches"] for index in batch)


def _assert_near(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, value in expected["model"].items():
        torch.testing.assert_close(found["model"][name], value, rtol=1e-5, atol=1e-6)


def test_two_ranks_divide_an_epoch_in_batches_of_one_size(ranks: list[list[dict[str, Any]]]) -> None:
    states = [saved[2] for saved in ranks]
    assert _indices(states) == list(range(SAMPLES))
    sizes = [[len(batch) for batch in state["batches"]] for state in states]
    assert sizes[0][:-1] == sizes[1][:-1] and len(sizes[0]) == len(sizes[1])
    assert sum(one != other for one, other in pairwise(sizes[0])) >= 10
    assert states[0]["sampler"] == states[1]["sampler"]
    for name, value in states[0]["model"].items():
        assert torch.equal(states[1]["model"][name], value)


def test_a_state_of_two_ranks_is_gone_on_with_by_one(ranks: list[list[dict[str, Any]]]) -> None:
    states = [saved[0] for saved in ranks]
    assert states[0]["sampler"]["samples_seen"] == 5 * 12  # parts 8 + 4, and the eleventh is given up
    run, expected = Run(STEADY), Run(STEADY).finish()
    run.load(states[0] | {"batches": []})
    finished = run.finish()
    assert _indices([*states, finished]) == list(range(SAMPLES))
    assert [len(batch) for batch in finished["batches"]] == [12] * 25
    _assert_near(finished, expected)


def test_a_state_of_one_rank_is_gone_on_with_by_two(ranks: list[list[dict[str, Any]]]) -> None:
    alone, expected = _stopped(Run(STEADY), 13), Run(STEADY).finish()
    assert alone["sampler"]["samples_seen"] == 4 * 12  # parts 4 + 4 + 4
    assert _indices([alone, *(saved[1] for saved in ranks)]) == list(range(SAMPLES))
    for saved in ranks:
        _assert_near(saved[1], expected)


@quick
@given(
    length=st.integers(6, 120),
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=6),
    worlds=st.sampled_from([(2, 1), (1, 2), (2, 3), (3, 2), (4, 6)]),
    devices=st.tuples(st.integers(2, 9), st.one_of(st.none(), st.integers(2, 9))),
    stop=st.integers(0, 25),
    ahead=st.integers(0, 4),
)
def test_another_number_of_ranks_trains_on_the_rest_of_the_epoch(
    length: int,
    sizes: list[int],
    worlds: tuple[int, int],
    devices: tuple[int, int | None],
    stop: int,
    ahead: int,
) -> None:
    def world(place: int) -> list[AdaptiveBatchSampler]:
        return [
            AdaptiveBatchSampler(
                range(length), 1, device_batch_size=devices[place], num_replicas=worlds[place], rank=rank
            )
            for rank in range(worlds[place])
        ]

    before, done = world(0), []
    for sampler in before:
        running, fetched, batch, wanted = iter(sampler), [], [], cycle(sizes)
        for _ in range(stop):
            sampler.batch_size = min(next(wanted), length)
            while len(fetched) <= ahead and (part := next(running, None)) is not None:
                fetched.append(part)
            if not fetched:
                break
            batch += fetched.pop(0)
            if sampler.commit().last:
                done, batch = done + batch, []
    states = [json.loads(json.dumps(sampler.state_dict())) for sampler in before]
    assert all(state == states[0] for state in states) and states[0]["samples_seen"] == len(done)
    if len(done) == length:
        return
    after = world(1)
    for sampler in after:
        sampler.load_state_dict(states[0])
    shares = [list(sampler) for sampler in after]
    assert len({len(parts) for parts in shares}) == 1 and all(part for parts in shares for part in parts)
    rest = [index for parts in shares for part in parts for index in part]
    again = list(range(length)) if length - len(done) < worlds[1] else []
    assert sorted(done + rest) == sorted([*range(length), *again])


def test_more_ranks_than_samples_or_other_data_are_refused() -> None:
    state = AdaptiveBatchSampler(range(5), 5, num_replicas=2, rank=0).state_dict()
    with pytest.raises(ValueError, match="a sample for every rank"):
        AdaptiveBatchSampler(range(5), 5, num_replicas=6, rank=0)
    with pytest.raises(ValueError, match="it was saved over 5 samples"):
        AdaptiveBatchSampler(range(6), 5, num_replicas=6, rank=0).load_state_dict(state)
