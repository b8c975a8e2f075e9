"""What one step's scores say of a matrix M, G or H: how it answers tracked directions, and how its bulk is spread.

Along directions D = [V W], V tracked and W fresh random ones, all orthonormal, a step gives M D exactly. The rest of M is
known by its trace, by the sizes ‖sₙ‖² of the scores beside V, and by how alike two of them are,

    1/d_eff = E[(sₙᵀsₘ)²]/E[‖sₙ‖²‖sₘ‖²],    n ≠ m,

the inverse of the number of directions that an isotropic bulk as coherent as this one has. W estimates it without a pair
being formed, as E[wᵀsₙ wᵀsₘ sₙᵀsₘ] = (sₙᵀsₘ)²/dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from fisheropt.optim.subspace import combined, gram
from fisheropt.taps.reduce import reduce_sum
from fisheropt.taps.scores import Scores

_PER_OCTAVE = 4
SIZES = 512
"""The number of sizes ‖s‖² that are told apart, in geometric steps of 2^(1/4) around 1."""


@final
@dataclass(frozen=True)
class Sample:
    """How the scores of a step are scaled and centred.

    Args:
        count: the number of samples c, on all ranks.
        unit: what makes a sample's contribution h to the gradient its score s.
        tracked: how many of the directions are V; the others are W.
        dimension: the number of all parameters.
        centred: whether M is the covariance of the scores or their second moment.
        parallel: whether several ranks hold samples of one step.
    """

    count: int
    unit: float
    tracked: int
    dimension: int
    centred: bool
    parallel: bool

    @property
    def factor(self) -> float:
        """What the sum of squares is multiplied by: 1/(c-1) if centred, else 1/c."""
        return 1 / (self.count - 1) if self.centred else 1 / self.count

    def total(self, values: Tensor) -> Tensor:
        """The sum over ranks."""
        return reduce_sum(values) if self.parallel else values


@final
@dataclass(frozen=True)
class Scored:
    """M along k directions D, in units of one sample's score.

    Args:
        rows: vectors of which M D is a combination, [k+1, *parameter].
        mixing: the combination, [k+1, k].
        trace: tr M.
        sizes: how many scores have each size ‖s‖² beside V, and the sum of these: [2, 512].
        coherence: numerator and denominator of 1/d_eff beside V, [2], over E[‖s‖²]². The first is unbiased, so that it may
            be negative; both are 0 without fresh directions.
    """

    rows: dict[str, Tensor]
    mixing: Tensor
    trace: float
    sizes: Tensor
    coherence: Tensor

    @property
    def responses(self) -> dict[str, Tensor]:
        """M D in each parameter, [k, *parameter]."""
        return combined(self.rows, self.mixing)


def squared_mean(scores: Scores, sample: Sample) -> Tensor:
    """‖s̄‖² of the step's mean score over all parameters, a 0-dim tensor."""
    sums = [sample.total(rows[-1]).double().square().sum() for rows in scores.responses.values()]
    return torch.stack(sums).sum() * (sample.unit / sample.count) ** 2


def mean_square(scores: Scores, sample: Sample) -> Tensor:
    """(1/c) Σ‖sₙ‖², a 0-dim tensor."""
    return sample.total(torch.cat(scores.squared_norms).double().sum()) * (sample.unit**2 / sample.count)


def scored(scores: Scores, sample: Sample) -> Scored:
    """M D, tr M and the spread of the bulk, from what the backwards of a step have left.

    Args:
        scores: of this rank, with responses.
        sample: how they are scaled and centred.
    """
    z = torch.cat(scores.coordinates).double() * sample.unit
    k = z.shape[1]
    middle = sample.total(z.sum(0)) / sample.count if sample.centred else torch.zeros_like(z[0])
    rows = {name: sample.total(held) for name, held in scores.responses.items()}
    mixing = torch.cat([torch.eye(k).to(z) * sample.unit**2, -sample.unit * middle[None]])  # Σ(s - s̄)(s - s̄)ᵀD
    ends = {name: part[sample.tracked :] for name, part in rows.items()}
    square = gram(ends, ends).to(z)
    squared = float(square[-1, -1]) * (sample.unit / sample.count) ** 2 if sample.centred else 0.0
    trace = (float(mean_square(scores, sample)) - squared) * sample.count * sample.factor
    norms = torch.cat(scores.squared_norms).double() * sample.unit**2
    signal = squared - trace / sample.count - float(middle[: sample.tracked].square().sum()) if sample.centred else 0.0
    answered = square.diagonal()[:-1] * sample.unit**4
    sizes, coherence = _bulk(sample, z, norms, answered, max(0.0, signal))
    return Scored(rows, mixing * sample.factor, trace, sizes, coherence)


def _bulk(sample: Sample, z: Tensor, squared_norms: Tensor, answered: Tensor, signal: float) -> tuple[Tensor, Tensor]:
    """The sizes of the scores beside V, and their coherence, less what a common mean adds to it.

    Args:
        sample: how they are scaled.
        z: coordinates, [n, k].
        squared_norms: of the scores, [n].
        answered: ‖Σₙ sₙzₙₖ‖² of the fresh directions, [k - r].
        signal: the squared norm of the scores' expectation beside V.
    """
    r = sample.tracked
    beside = (squared_norms - z[:, :r].square().sum(1)).clamp_min(0)
    sums = [
        histogram(beside, torch.ones_like(beside)).flatten(),
        z[:, r:].square().T @ beside,
        (z[:, :r].T @ z[:, r:]).flatten(),
        beside.square().sum()[None],
    ]
    fresh = z.shape[1] - r
    sizes, own, along, square = sample.total(torch.cat(sums)).split([2 * SIZES, fresh, r * fresh, 1])
    sizes = sizes.reshape(2, SIZES)
    total = sizes[1].sum().square()
    if not fresh or not total > 0:
        return sizes, torch.zeros_like(sizes[:, 0])
    pairs = (answered - along.reshape(r, fresh).square().sum(0) - own).mean() * (sample.dimension - r)
    common = signal**2 * sample.count * (sample.count - 1)
    return sizes, torch.stack([pairs - common, total - square[0]]) / total


def histogram(values: Tensor, counts: Tensor) -> Tensor:
    """How many non-negative values are of each size, and their sum: [2, 512].

    A value is shared between its two neighbours on the scale of sizes, so that nothing jumps where it moves.

    Args:
        values: [n].
        counts: how often each occurs, [n].
    """
    sizes = values.log2().nan_to_num()  # a size that is no number is for the reading to find
    place = (sizes * _PER_OCTAVE + SIZES // 2).clamp(0, SIZES - 1.001)
    cell, share = place.long(), place.frac()
    empty, (lower, upper) = values.new_zeros(SIZES), (counts * (1 - share), counts * share)
    held = empty.index_add(0, cell, lower).index_add(0, cell + 1, upper)
    sums = empty.index_add(0, cell, lower * values).index_add(0, cell + 1, upper * values)
    return torch.stack([held, sums])


def shrunk(sizes: Tensor, octaves: int) -> Tensor:
    """The same with all sizes 2^octaves times smaller; the smallest gather in the first cell.

    Args:
        sizes: a histogram.
        octaves: a whole number, so that no cell is split.
    """
    cells = octaves * _PER_OCTAVE
    moved = torch.cat([sizes[:, cells:], sizes.new_zeros(2, cells)], 1)
    moved[:, 0] += sizes[:, :cells].sum(1)
    return moved * sizes.new_tensor([[1.0], [2.0**-octaves]])
