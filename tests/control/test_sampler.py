"""AdaptiveBatchSampler: every index once an epoch, whatever the sizes, ranks, workers and resumptions."""

import json
import pickle
from collections.abc import Iterator
from itertools import cycle, islice

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
)

from fisheropt.control.sampler import AdaptiveBatchSampler

Batches = list[list[int]]

sizes_strategy = st.lists(st.integers(1, 40), min_size=1, max_size=8)
quick = settings(max_examples=120, deadline=None, derandomize=True)


def _drain(sampler: AdaptiveBatchSampler, sizes: list[int], length: int, count: int | None = None) -> Batches:
    """At most `count` batches of one iteration, whose sizes run through `sizes`."""
    batches: Batches = []
    running = iter(sampler)
    for size in islice(cycle(sizes), count):
        sampler.batch_size = min(size, length)
        batch = next(running, None)
        if batch is None:
            break
        batches.append(batch)
    return batches


def _flat(batches: Batches) -> list[int]:
    return [index for batch in batches for index in batch]


def _ranks(length: int, replicas: int, size: int = 5, **options: int) -> list[AdaptiveBatchSampler]:
    return [
        AdaptiveBatchSampler(range(length), min(size, length), num_replicas=replicas, rank=rank, **options)
        for rank in range(replicas)
    ]


@quick
@given(length=st.integers(1, 120), sizes=sizes_strategy, epochs=st.integers(1, 3))
def test_every_index_once_an_epoch_whatever_the_sizes(length: int, sizes: list[int], epochs: int) -> None:
    sampler = AdaptiveBatchSampler(range(length), min(sizes[0], length))
    for epoch in range(epochs):
        assert sampler.epoch == epoch
        batches = _drain(sampler, sizes, length)
        assert sorted(_flat(batches)) == list(range(length))
        assert sampler.samples_seen == (epoch + 1) * length
        wanted = [min(size, length) for size in islice(cycle(sizes), len(batches) - 1)]
        assert [len(batch) for batch in batches[:-1]] == wanted


@quick
@given(replicas=st.integers(1, 6), extra=st.integers(0, 90), sizes=sizes_strategy)
def test_ranks_are_disjoint_even_and_equally_long(replicas: int, extra: int, sizes: list[int]) -> None:
    length = replicas + extra
    per_rank = [_drain(sampler, sizes, length) for sampler in _ranks(length, replicas, size=sizes[0])]
    assert len({len(batches) for batches in per_rank}) == 1
    assert sorted(index for batches in per_rank for index in _flat(batches)) == list(range(length))
    totals = []
    for shares in zip(*per_rank, strict=True):
        counts = [len(share) for share in shares]
        assert min(counts) >= 1 and max(counts) - min(counts) <= 1
        totals.append(sum(counts))
    wanted = [max(min(size, length), replicas) for size in islice(cycle(sizes), len(totals))]
    assert totals[:-1] == wanted[:-1]
    assert totals[-1] < wanted[-1] + replicas


@quick
@given(
    length=st.integers(6, 90),
    sizes=sizes_strategy,
    before=st.integers(1, 6),
    after=st.integers(1, 6),
    stop=st.integers(0, 30),
    indexed=st.booleans(),
)
def test_a_run_resumes_where_it_was_on_any_number_of_ranks(
    length: int, sizes: list[int], before: int, after: int, stop: int, indexed: bool
) -> None:
    def make(replicas: int, rank: int) -> AdaptiveBatchSampler:
        drawn = SubsetRandomSampler(range(length), torch.Generator().manual_seed(3))
        source = drawn if indexed else range(length)
        return AdaptiveBatchSampler(source, min(sizes[0], length), num_replicas=replicas, rank=rank, seed=7)

    whole = _flat(_drain(make(1, 0), sizes, length))
    old = [make(before, rank) for rank in range(before)]
    first = [_drain(sampler, sizes, length, stop) for sampler in old]
    states = [json.loads(json.dumps(sampler.state_dict())) for sampler in old]
    assert all(state == states[0] for state in states)
    seen = sum(len(batch) for batches in first for batch in batches)
    assert states[0]["samples_seen"] == seen
    assert sorted(_flat([_flat(batches) for batches in first])) == sorted(whole[:seen])
    if seen == length:
        return
    new = [make(after, rank) for rank in range(after)]
    for sampler in new:
        sampler.load_state_dict(states[0])
        assert sampler.batch_size == max(old[0].batch_size, after)
    rest = [_drain(sampler, sizes, length) for sampler in new]
    union = [index for batches in rest for index in _flat(batches)]
    if length - seen >= after:
        assert sorted(union) == sorted(whole[seen:])
    else:
        assert len(union) == 2 * length - seen
        assert sorted(union) == sorted(whole[seen:] + list(range(length)))


@quick
@given(
    length=st.integers(2, 90),
    sizes=sizes_strategy,
    epochs=st.integers(0, 2),
    stop=st.integers(0, 12),
    drawn=st.booleans(),
)
def test_resumption_repeats_the_uninterrupted_run_bit_for_bit(
    length: int, sizes: list[int], epochs: int, stop: int, drawn: bool
) -> None:
    generator = torch.Generator().manual_seed(5)
    source = RandomSampler(range(length), generator=generator) if drawn else range(length)
    sampler = AdaptiveBatchSampler(source, min(sizes[0], length))
    for _ in range(epochs):
        _drain(sampler, sizes, length)
    first = _drain(sampler, sizes, length, stop)
    saved, rng = sampler.state_dict(), generator.get_state()
    copy = pickle.loads(pickle.dumps(sampler))
    rest = _drain(sampler, sizes, length)
    assert len(_flat(first)) == length or sorted(_flat(first + rest)) == list(range(length))
    expected = rest + _drain(sampler, sizes, length)
    generator.set_state(rng)
    fresh = AdaptiveBatchSampler(source, 1, seed=99)
    fresh.load_state_dict(saved)
    assert _drain(fresh, sizes, length) + _drain(fresh, sizes, length) == expected
    assert _drain(copy, sizes, length) + _drain(copy, sizes, length) == expected


@quick
@given(extra=st.integers(0, 200), size=st.integers(1, 60), replicas=st.integers(1, 6), stop=st.integers(0, 9))
def test_length_is_the_number_of_batches_left(extra: int, size: int, replicas: int, stop: int) -> None:
    length = replicas + extra
    sampler = _ranks(length, replicas, size=size)[-1]
    _drain(sampler, [size], length, stop)
    announced = len(sampler)
    assert announced == len(list(sampler))


def test_orders_differ_by_epoch_and_seed_and_not_otherwise() -> None:
    first, again, other = (AdaptiveBatchSampler(range(50), 50, seed=seed) for seed in (0, 0, 1))
    orders = [_flat(list(sampler)) for sampler in (first, first, again, again, other, other)]
    assert orders[0] == orders[2] and orders[1] == orders[3]
    assert len({tuple(order) for order in orders}) == 4
    assert orders[0] != list(range(50))


def test_an_index_sampler_is_followed() -> None:
    sampler = AdaptiveBatchSampler(SequentialSampler(range(7)), 3)
    assert list(sampler) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(sampler) == [[0, 1, 2], [3, 4, 5], [6]]


def test_the_global_generator_is_left_alone() -> None:
    state = torch.random.get_rng_state()
    list(AdaptiveBatchSampler(range(9), 2))
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_that_fetches_ahead_resumes_after_the_committed_batch(workers: int) -> None:
    data = TensorDataset(torch.arange(97))
    sampler = AdaptiveBatchSampler(data, 5)
    sampler.commit(0)
    trained: Batches = []
    for (batch,) in DataLoader(data, batch_sampler=sampler, num_workers=workers):
        trained.append(batch.tolist())
        assert sampler.outstanding[0] == len(batch)
        sampler.commit()
        assert sampler.samples_seen == len(_flat(trained))
        if len(trained) == 4:
            sampler.batch_size = 11
        if len(trained) == 10:
            break
    assert (len(sampler.outstanding) > 0) == (workers > 0)
    assert [len(batch) for batch in trained[:4]] == [5] * 4
    assert [len(batch) for batch in trained[-2:]] == [11] * 2
    resumed = AdaptiveBatchSampler(data, 1)
    resumed.load_state_dict(sampler.state_dict())
    next(iter(resumed))
    assert resumed.samples_seen == len(_flat(trained))
    rest = [batch.tolist() for (batch,) in DataLoader(data, batch_sampler=resumed, num_workers=workers)]
    assert sorted(_flat(trained) + _flat(rest)) == list(range(97))
    assert rest == list(sampler)


def test_a_skipped_commit_does_not_repeat_a_batch_in_the_next_epoch() -> None:
    sampler = AdaptiveBatchSampler(range(10), 4)
    for step, _ in enumerate(sampler):
        if step != 1:
            sampler.commit()
    assert sampler.outstanding == (2,)
    assert sorted(_flat(list(sampler))) == list(range(10))
    assert sampler.epoch == 1


def test_uncommitted_batches_of_a_broken_iteration_come_again() -> None:
    sampler = AdaptiveBatchSampler(range(10), 4)
    sampler.commit(0)
    for _ in range(2):
        peeked = next(iter(sampler))
        assert next(iter(sampler)) == peeked
        assert sorted(_flat(list(sampler))) == list(range(10))


def test_counted_batches_of_a_broken_iteration_do_not() -> None:
    sampler = AdaptiveBatchSampler(range(10), 4)
    first = next(iter(sampler))
    assert sorted(first + _flat(list(sampler))) == list(range(10))


def test_sizes_are_clipped_and_checked() -> None:
    sampler = AdaptiveBatchSampler(range(100), 30, min_batch_size=8, max_batch_size=40)
    for size, got in ((1, 8), (100, 40), (17, 17)):
        sampler.batch_size = size
        assert sampler.batch_size == got
    for size in (0, -3, 101):
        with pytest.raises(ValueError, match=f"batch_size = {size}"):
            sampler.batch_size = size
    for wrong in (True, 8.0, "8"):
        with pytest.raises(TypeError, match="whole number"):
            sampler.batch_size = wrong  # type: ignore[assignment]
    assert sampler.batch_size == 17


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"min_batch_size": 9, "max_batch_size": 8}, "min_batch_size=9"),
        ({"min_batch_size": 0}, "min_batch_size=0"),
        ({"num_replicas": 2}, "give both"),
        ({"num_replicas": 2, "rank": 2}, "rank runs"),
        ({"num_replicas": 30, "rank": 0}, "30 ranks"),
    ],
)
def test_arguments_that_fit_nothing_are_refused(arguments: dict[str, int], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        AdaptiveBatchSampler(range(20), 4, **arguments)  # type: ignore[arg-type]


class _Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(9))

    def __len__(self) -> int:
        return 9


class _Liar(SequentialSampler):
    def __len__(self) -> int:
        return 3


def test_sources_that_would_give_wrong_epochs_are_refused() -> None:
    with pytest.raises(TypeError, match="stream"):
        AdaptiveBatchSampler(_Stream(), 4)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="DistributedSampler"):
        AdaptiveBatchSampler(DistributedSampler(range(9), num_replicas=2, rank=0), 4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="generator"):
        AdaptiveBatchSampler(RandomSampler(range(9)), 4, num_replicas=2, rank=0)
    with pytest.raises(ValueError, match="empty"):
        AdaptiveBatchSampler([], 4)
    with pytest.raises(ValueError, match="announced 3 indices and yielded 5"):
        list(AdaptiveBatchSampler(_Liar(range(5)), 2))


def test_misuse_is_an_error_and_not_a_wrong_number() -> None:
    sampler = AdaptiveBatchSampler(range(10), 4)
    with pytest.raises(ValueError, match=r"commit\(1\): 0 batches"):
        sampler.commit()
    running = iter(sampler)
    next(running)
    sampler.load_state_dict(sampler.state_dict())
    with pytest.raises(RuntimeError, match="taken over"):
        next(running)
    with pytest.raises(ValueError, match="10 samples"):
        AdaptiveBatchSampler(range(11), 4).load_state_dict(sampler.state_dict())
    with pytest.raises(ValueError, match="'length'"):
        sampler.load_state_dict({})
    with pytest.raises(ValueError, match="no whole order"):
        AdaptiveBatchSampler(SequentialSampler(range(10)), 4).load_state_dict(sampler.state_dict())
    with pytest.raises(ValueError, match="no seed"):
        sampler.load_state_dict(AdaptiveBatchSampler(SequentialSampler(range(10)), 4).state_dict())


def test_ranks_come_from_torch_distributed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    sampler = AdaptiveBatchSampler(SequentialSampler(range(9)), 6)
    assert sampler.num_replicas == 3
    assert list(sampler) == [[1, 4], [7]]
