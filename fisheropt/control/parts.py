"""The parts of a batch that is larger than what the devices hold at once."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """What was trained on in one forward and backward of all ranks.

    The mean gradient of a batch is the sum over its parts of samples/whole times theirs.

    Args:
        samples: of all ranks in this part.
        whole: samples of the batch that it belongs to.
        last: whether the batch is complete with it.
        first: whether the batch begins with it, so that what was added up before it belongs to a batch left undone.
    """

    samples: int
    whole: int
    last: bool = True
    first: bool = True


def divided(whole: int, replicas: int, device_batch_size: int | None) -> list[Part]:
    """The fewest parts in which no rank holds more than `device_batch_size` samples, as equal as they can be.

    All are multiples of `replicas` but for the last, to which the rest goes: dealt out in turn, each rank gets the
    same samples in parts as it would at once. No rank goes without: u = whole // replicas samples a rank
    are at least the number of parts, if a device holds two.

    Args:
        whole: samples of the batch, at least one a rank.
        replicas: number of ranks.
        device_batch_size: largest number of samples of one rank in a part; None for no limit.
    """
    count = parts_of(whole, replicas, device_batch_size)
    each, larger = divmod(whole // replicas, count)
    sizes = [replicas * (each + (place < larger)) for place in range(count)]
    sizes[-1] += whole % replicas
    return [Part(size, whole, place == count - 1, place == 0) for place, size in enumerate(sizes)]


def parts_of(whole: int, replicas: int, device_batch_size: int | None) -> int:
    """The number of parts of a batch, with arguments as in `divided`."""
    return 1 if device_batch_size is None else -(-whole // (device_batch_size * replicas))
