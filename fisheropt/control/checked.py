"""What an AdaptiveBatchSampler is given, checked: its arguments and a saved state."""

import operator

import torch
import torch.distributed


def whole_number(name: str, value: int) -> int:
    """`value` as an int."""
    if not isinstance(value, bool):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise TypeError(f"AdaptiveBatchSampler: {name} = {value!r} is no int; write {name}=<a whole number>.")


def saved_number(state: dict[str, int | list[int]], key: str) -> int:
    """What `state` has under `key`."""
    value = state.get(key)
    if not isinstance(value, int):
        raise ValueError(
            f"AdaptiveBatchSampler.load_state_dict(state): no whole number under {key!r}; "
            "give what state_dict() of an AdaptiveBatchSampler returned."
        )
    return value


def saved_numbers(state: dict[str, int | list[int]], key: str) -> list[int]:
    """The sizes that `state` has under `key`; none in a state of before there were any."""
    value = state.get(key, [])
    if not isinstance(value, list) or not all(isinstance(size, int) and size > 0 for size in value):
        raise ValueError(
            f"AdaptiveBatchSampler.load_state_dict(state): no list of batch sizes under {key!r}; "
            "give what state_dict() of an AdaptiveBatchSampler returned."
        )
    return list(value)


def device_bound(device_batch_size: int | None, replicas: int) -> int | None:
    """`device_batch_size` if every batch can be divided so."""
    if device_batch_size is None:
        return None
    least = 1 if replicas == 1 else 2
    if whole_number("device_batch_size", device_batch_size) < least:
        raise ValueError(
            f"AdaptiveBatchSampler(..., device_batch_size={device_batch_size}) on {replicas} ranks: a device has to "
            f"hold {least} at least, as parts of one sample a rank do not divide every batch; "
            f"write device_batch_size={least}."
        )
    return device_batch_size


def place(num_replicas: int | None, rank: int | None) -> tuple[int, int]:
    """Number of ranks and this one's number."""
    if num_replicas is None and rank is None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_world_size(), torch.distributed.get_rank()
        return 1, 0
    if num_replicas is None or rank is None:
        raise ValueError(
            f"AdaptiveBatchSampler(..., num_replicas={num_replicas}, rank={rank}): give both, or neither to "
            "take them from torch.distributed."
        )
    if not 0 <= whole_number("rank", rank) < whole_number("num_replicas", num_replicas):
        raise ValueError(
            f"AdaptiveBatchSampler(..., num_replicas={num_replicas}, rank={rank}): rank runs from 0 to "
            "num_replicas - 1."
        )
    return num_replicas, rank


def bounds(smallest: int, largest: int | None, length: int, replicas: int) -> tuple[int, int]:
    """Smallest and largest batch."""
    low = max(whole_number("min_batch_size", smallest), replicas)
    high = length if largest is None else min(whole_number("max_batch_size", largest), length)
    if smallest < 1 or low > high:
        raise ValueError(
            f"AdaptiveBatchSampler(..., min_batch_size={smallest}, max_batch_size={largest}): no size is "
            f"allowed for {length} samples on {replicas} ranks; needed is 1 <= min_batch_size <= "
            "max_batch_size and a sample for every rank."
        )
    return low, high
