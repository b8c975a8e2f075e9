"""A batch larger than the devices comes in parts: the same batches, whatever is set, broken off or resumed between them."""

import json
from collections import Counter
from collections.abc import Iterator
from itertools import cycle

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch.utils.data import DataLoader, TensorDataset

from fisheropt.control.parts import Part, divided
from fisheropt.control.sampler import AdaptiveBatchSampler
from tests.control.resumable import Run, Way

quick = settings(max_examples=150, deadline=None, derandomize=True)
sizes_strategy = st.lists(st.integers(1, 60), min_size=1, max_size=8)
Batch = list[list[int]]


def _ranks(length: int, replicas: int, size: int, device: int | None) -> list[AdaptiveBatchSampler]:
    return [
        AdaptiveBatchSampler(
            range(length), min(size, length), device_batch_size=device, num_replicas=replicas, rank=rank, seed=3
        )
        for rank in range(replicas)
    ]


def _train(sampler: AdaptiveBatchSampler, sizes: Iterator[int], running: Iterator[list[int]]) -> Iterator[Batch]:
    """Commits each part; the parts of each batch that comes whole. A size is set after every part, as a loop may."""
    gathered: Batch = []
    for part in running:
        said = sampler.commit()
        gathered = [] if said.first else gathered
        gathered.append(part)
        sampler.batch_size = min(next(sizes), sampler.max_batch_size)
        if said.last:
            yield gathered


def _flat(batches: list[Batch]) -> list[int]:
    return [index for batch in batches for part in batch for index in part]


@quick
@given(whole=st.integers(1, 500), replicas=st.integers(1, 7), device=st.one_of(st.none(), st.integers(1, 40)))
def test_a_batch_is_the_sum_of_the_fewest_parts_that_fit(whole: int, replicas: int, device: int | None) -> None:
    whole = max(whole, replicas)
    device = max(device, 2) if device is not None and replicas > 1 else device
    parts = divided(whole, replicas, device)
    samples = [part.samples for part in parts]
    assert sum(samples) == whole and {part.whole for part in parts} == {whole}
    assert [part.last for part in parts] == [False] * (len(parts) - 1) + [True]
    assert [part.first for part in parts] == [True] + [False] * (len(parts) - 1)
    assert min(samples) >= replicas and max(samples) - min(samples) <= replicas
    assert all(size % replicas == 0 for size in samples[:-1])
    if device is None:
        assert len(parts) == 1
        return
    assert max(samples) <= device * replicas
    assert (len(parts) - 1) * device * replicas < whole


@quick
@given(
    replicas=st.integers(1, 5),
    extra=st.integers(0, 150),
    device=st.integers(2, 20),
    sizes=sizes_strategy,
)
def test_ranks_see_the_batches_of_a_larger_device_in_parts(
    replicas: int, extra: int, device: int, sizes: list[int]
) -> None:
    length = replicas + extra
    small, large = (
        [list(_train(sampler, cycle(sizes), iter(sampler))) for sampler in _ranks(length, replicas, sizes[0], held)]
        for held in (device, None)
    )
    assert sorted(index for batches in small for index in _flat(batches)) == list(range(length))
    for batches in zip(*small, strict=True):
        assert len({len(batch) for batch in batches}) == 1
        for shares in zip(*batches, strict=True):
            counts = [len(share) for share in shares]
            assert min(counts) >= 1 and max(counts) <= device and max(counts) - min(counts) <= 1
    if len(set(sizes)) == 1:  # else the sizes, one for every part here, fall on other batches there
        assert [[sum(batch, []) for batch in batches] for batches in small] == [
            [sum(batch, []) for batch in batches] for batches in large
        ]


@quick
@given(size=st.integers(2, 60), other=st.integers(1, 60), device=st.integers(1, 12), place=st.integers(0, 4))
def test_a_size_set_in_the_middle_of_a_batch_holds_from_the_next(
    size: int, other: int, device: int, place: int
) -> None:
    (sampler,) = _ranks(300, 1, size, device)
    running = iter(sampler)
    samples = []
    for count in range(-(-size // device)):
        assert len(next(running)) == sampler.outstanding[0]
        if count == place:
            sampler.batch_size = other
        part = sampler.commit()
        samples.append(part.samples)
        assert part.whole == size and part.last == (sum(samples) == size)
    assert sum(samples) == size
    next(running)
    assert sampler.commit().whole == (other if place < len(samples) else size)


@quick
@given(
    length=st.integers(8, 90),
    replicas=st.integers(1, 3),
    device=st.integers(2, 9),
    sizes=sizes_strategy,
    acts=st.lists(st.tuples(st.sampled_from(["break", "save"]), st.integers(0, 12), st.integers(0, 4)), max_size=4),
)
def test_whatever_breaks_between_parts_every_index_is_trained_on_once_an_epoch(
    length: int, replicas: int, device: int, sizes: list[int], acts: list[tuple[str, int, int]]
) -> None:
    """Loops break after `stop` parts with `ahead` more fetched; the ranks go on, or fresh ones from the saved state."""
    samplers, trained = _ranks(length, replicas, sizes[0], device), Counter[int]()
    gathered: list[list[int]] = [[] for _ in samplers]
    set_sizes = cycle(sizes)

    def part(fetched: list[list[list[int]]]) -> None:
        size = next(set_sizes)
        for sampler, held, share in zip(samplers, gathered, fetched, strict=True):
            said = sampler.commit()
            if said.first:
                held.clear()
            held += share.pop(0)
            if said.last:
                trained.update(held)
            sampler.batch_size = min(size, length)

    for act, stop, ahead in [*acts, ("end", length, 0)]:
        running = [iter(sampler) for sampler in samplers]
        fetched: list[list[list[int]]] = [[] for _ in running]
        for _ in range(stop):
            for one, share in zip(running, fetched, strict=True):
                while len(share) <= ahead and (new := next(one, None)) is not None:
                    share.append(new)
            if not all(fetched):
                break
            part(fetched)
        states = [json.loads(json.dumps(sampler.state_dict())) for sampler in samplers]
        assert all(state == states[0] for state in states)
        assert sum(trained.values()) == states[0]["samples_seen"] == samplers[0].samples_seen
        if samplers[0].samples_seen == length:
            break
        if act == "save":
            samplers = _ranks(length, replicas, 1, device)
            gathered = [[] for _ in samplers]
            for sampler in samplers:
                sampler.load_state_dict(states[0])
    assert trained == Counter(range(length))


@quick
@given(
    length=st.integers(4, 120),
    device=st.integers(1, 9),
    size=st.integers(1, 60),
    stop=st.integers(0, 20),
    commits=st.booleans(),
)
def test_a_state_of_a_batch_under_way_begins_it_anew(
    length: int, device: int, size: int, stop: int, commits: bool
) -> None:
    (sampler,) = _ranks(length, 1, size, device)
    running = iter(sampler)
    done, batch = 0, []
    for _ in range(stop):
        part = next(running, None)
        if part is None:
            break
        if commits:
            sampler.commit()
        batch += part
        if len(batch) == min(size, length - done):
            done, batch = done + len(batch), []
    assert sampler.samples_seen == sampler.state_dict()["samples_seen"] == done
    (fresh,) = _ranks(length, 1, 1, device)
    fresh.load_state_dict(sampler.state_dict())
    assert len(fresh) == len(sampler)
    rest = list(fresh)
    if done < length:
        assert sum(rest, [])[: len(batch)] == batch
        assert rest == list(sampler)


@quick
@given(extra=st.integers(0, 200), size=st.integers(1, 60), replicas=st.integers(1, 5), device=st.integers(2, 9))
def test_length_is_the_number_of_parts_left(extra: int, size: int, replicas: int, device: int) -> None:
    sampler = _ranks(replicas + extra, replicas, size, device)[-1]
    sampler.commit(0)
    running = iter(sampler)
    while True:
        announced = len(sampler)
        copy = _ranks(replicas + extra, replicas, size, device)[-1]
        copy.load_state_dict(sampler.state_dict())
        assert announced == len(copy) == len(list(copy))
        if next(running, None) is None:
            break
        if len(sampler.outstanding) == 3:
            sampler.commit()


def test_what_a_commit_says() -> None:
    (sampler,) = _ranks(10, 1, 7, 3)
    assert sampler.commit(0) == Part(0, 0) and sampler.committed == 0
    running = iter(sampler)
    for _ in range(4):
        next(running)
    assert sampler.outstanding == (3, 2, 2, 3)
    assert sampler.commit() == Part(3, 7, last=False, first=True)
    assert sampler.samples_seen == 0 and sampler.outstanding == (2, 2, 3)
    assert sampler.commit(2) == sampler.commit(0) == Part(2, 7, last=True, first=False)
    assert sampler.samples_seen == 7 and sampler.committed == 3
    assert sampler.commit() == Part(3, 3) and sampler.committed == 4
    sampler.load_state_dict(sampler.state_dict())
    assert sampler.committed == 4 and sampler.commit(0) == Part(0, 0)


def test_a_size_set_after_loading_holds_at_once() -> None:
    (sampler,) = _ranks(60, 1, 6, None)
    sampler.commit(0)
    running = iter(sampler)
    for _ in range(3):
        next(running)
    sampler.batch_size = 9
    (fresh,), (other,) = _ranks(60, 1, 1, None), _ranks(60, 1, 1, None)
    for one in (fresh, other):
        one.load_state_dict(sampler.state_dict())
    other.batch_size = 10
    assert [len(batch) for batch in fresh][:4] == [6, 6, 6, 9]
    assert [len(batch) for batch in other][:4] == [10] * 4


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_gives_parts(workers: int) -> None:
    data = TensorDataset(torch.arange(50))
    sampler = AdaptiveBatchSampler(data, 11, device_batch_size=4)
    sampler.commit(0)
    loader = DataLoader(data, batch_sampler=sampler, num_workers=workers)
    assert len(loader) == 3 * 4 + 2
    seen, wholes = [], []
    for (part,) in loader:
        said = sampler.commit()
        assert len(part) == said.samples <= 4
        seen += part.tolist()
        wholes += [said.whole] if said.last else []
    assert sorted(seen) == list(range(50)) and wholes == [11, 11, 11, 11, 6]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"device_batch_size": 0}, "write device_batch_size=1"),
        ({"device_batch_size": 1, "num_replicas": 2, "rank": 0}, "on 2 ranks.*write device_batch_size=2"),
    ],
)
def test_devices_that_cannot_hold_any_part_are_refused(arguments: dict[str, int], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        AdaptiveBatchSampler(range(20), 4, **arguments)
    with pytest.raises(TypeError, match="whole number"):
        AdaptiveBatchSampler(range(20), 4, device_batch_size=2.0)  # type: ignore[arg-type]


def test_a_state_that_is_none_is_refused() -> None:
    (sampler,) = _ranks(10, 1, 4, None)
    state = sampler.state_dict()
    with pytest.raises(ValueError, match="'planned'"):
        sampler.load_state_dict(state | {"planned": [0]})
    with pytest.raises(ValueError, match="'planned'"):
        sampler.load_state_dict(state | {"planned": 3})
    sampler.load_state_dict({key: value for key, value in state.items() if key != "planned"})
    assert len(sampler) == 3


def test_the_gradient_of_uneven_parts_is_that_of_the_batch() -> None:
    """13 = 5 + 4 + 4, and 9 = 5 + 4 at the end of an epoch."""
    whole, parts = (
        Run(Way(controller=None, device=device, epochs=1, dropout=0.0, size=13)).finish() for device in (None, 5)
    )
    assert parts["batches"] == whole["batches"] and len(whole["batches"]) == 28
    for name, value in whole["model"].items():
        torch.testing.assert_close(parts["model"][name], value, rtol=1e-5, atol=1e-6)
