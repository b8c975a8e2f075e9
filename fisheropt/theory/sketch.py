"""CountSketch: a few hundred numbers whose inner products estimate those of vectors of millions.

Legend: P numbers in the vector, m in the sketch; the vector is cut in rows of m, and each row is hashed to a sign and to
one of J = 2m bins, which has a rotation and a sign for each of its columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

_ROTATED = 2  # bins that share a rotation; 4 would leave parallel rows 5/4 of the variance, with a fold twice as long
_CHUNK = 1 << 20  # numbers treated at a time: so few that their copy stays in the cache
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # this and the factors are those of SplitMix64
_FACTORS = (0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64))


@final
@dataclass(frozen=True)
class CountSketch:
    """A random linear map S of P numbers to m with E<Sx, Sy> = <x, y>, after Charikar, Chen and Farach-Colton.

        (Sx)_c = sum of s_i x_i over the numbers i with bucket c,
        Var<Sx, Sy> = (|x|^2 |y|^2 + <x, y>^2 - 2 sum_i x_i^2 y_i^2)/m, about.

    Signs and buckets are a hash of the seed and of the place i in the vector: the same on each rank and device, after a
    resume, and however the vector is divided among tensors. No random generator is touched.

    A row of m consecutive numbers is hashed as a whole, which makes it as cheap as two passes over the vector (ours).
    Numbers of one row never share a bucket; two rows share their column signs in 1 of 2m cases, so that a vector all of
    whose rows are parallel has up to 3/2 of that variance. No other structure does: neither columns nor blocks that recur.
    16 bytes a row of m are cached, 1/16 byte a number at m = 256. Sums have a fixed order: the result is reproducible.

    Args:
        width: m.
        seed: of the hash.
        dtype: of the sums and of the sketch.

    Raises:
        ValueError: for m < 1.

    Reference: charikar2004finding
    """

    width: int = 256
    seed: int = 0
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"CountSketch(width={self.width}): a sketch has one number at least; write CountSketch()")

    @torch.no_grad()
    def __call__(self, tensors: Sequence[Tensor], offset: int = 0) -> Tensor:
        """S x [m], on the device of the tensors.

        It is linear: the sketches of disjoint slices, each at its own offset, add up to the sketch of the whole. A rank
        that holds a shard of each parameter adds the sketches of its shards, and one all-reduce of m numbers is left.

        Args:
            tensors: whose numbers, in this order and row-major each, are the vector or a slice of it; on one device.
            offset: place of the slice's first number in the vector.
        """
        if not any(t.numel() for t in tensors):
            return torch.zeros(self.width, dtype=self.dtype, device=tensors[0].device if tensors else None)
        bins = None
        for first, rows in self._rows(tensors, offset):
            order, starts, signs = _plan(self.width, self.seed, first, len(rows), self.dtype, rows.device)
            part = F.embedding_bag(order, rows, starts, mode="sum", per_sample_weights=signs)
            bins = part if bins is None else bins.add_(part)
        assert bins is not None
        return _fold(bins.mul_(_signs(self.width, self.seed, self.dtype, bins.device)), self.width)

    def _rows(self, tensors: Sequence[Tensor], offset: int) -> Iterator[tuple[int, Tensor]]:
        """The vector in rows [n, m] of its chunks, each with the number of its first row."""
        chunk = max(_CHUNK // self.width, 1) * self.width
        blank = offset % self.width
        first, place = (offset - blank) // self.width, blank
        pieces = [torch.zeros(blank, dtype=self.dtype, device=tensors[0].device)] if blank else []
        for tensor in tensors:
            flat = tensor.detach().reshape(-1)
            while len(flat):
                taken = flat[: chunk - place]
                pieces.append(taken.to(self.dtype))
                place, flat = place + len(taken), flat[len(taken) :]
                if place == chunk:
                    yield first, _join(pieces).view(-1, self.width)
                    first, place, pieces = first + chunk // self.width, 0, []
        if place:
            pieces.append(pieces[0].new_zeros(-place % self.width))
            yield first, _join(pieces).view(-1, self.width)


def _join(pieces: list[Tensor]) -> Tensor:
    pieces = [piece for piece in pieces if len(piece)]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _fold(bins: Tensor, width: int) -> Tensor:
    """Rotate bin j by j to the right and add all up: a sum over the diagonals of each square of m bins."""
    square = bins.view(-1, width, width).sum(0)
    twice = torch.cat([square, square], 1)
    return twice.as_strided((width, width), (2 * width - 1, 1), width).sum(0)


@lru_cache(maxsize=2048)
def _plan(
    width: int, seed: int, first: int, count: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows first .. first + count - 1 in order of their bins, where each bin starts, and their signs in that order."""
    bins = width * _ROTATED
    hashed = _hash(torch.arange(first, first + count), 2 * seed)
    place = (hashed >> 1).bitwise_and(_mask(1)) % bins
    order = torch.argsort(place, stable=True)
    starts = torch.searchsorted(place[order], torch.arange(bins))
    return order.to(device), starts.to(device), _sign(hashed[order], dtype).to(device)


@lru_cache(maxsize=16)
def _signs(width: int, seed: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Of each column of each bin, [2m, m]."""
    bins = width * _ROTATED
    return _sign(_hash(torch.arange(bins * width), 2 * seed + 1), dtype).view(bins, width).to(device)


def _sign(hashed: Tensor, dtype: torch.dtype) -> Tensor:
    return 1 - 2 * hashed.bitwise_and(1).to(dtype)


def _hash(index: Tensor, stream: int) -> Tensor:
    """64 well mixed bits of an index: the finaliser of SplitMix64 in wrapping integers, on any device the same."""
    start = _mixed(torch.tensor([stream]) * _GOLDEN)
    return _mixed(_mixed(index * _GOLDEN + start) + start)


def _mixed(z: Tensor) -> Tensor:
    z = (z ^ (z >> 30).bitwise_and(_mask(30))) * _FACTORS[0]
    z = (z ^ (z >> 27).bitwise_and(_mask(27))) * _FACTORS[1]
    return z ^ (z >> 31).bitwise_and(_mask(31))


def _mask(shifted: int) -> int:
    """The bits that a logical shift to the right leaves, as integers of torch have a sign."""
    return (1 << (64 - shifted)) - 1
