"""Which tracked eigenvalues of a running mean carry signal, and what stands for all the others.

The bulk is that of `fisheropt.theory.score_bulk`: scores of the sizes that were seen beside the tracked directions, each
times what it counts for in the running mean, and d the inverse of their coherence. Tracked directions below the edge
belong to the bulk, so d counts them in. Its mean is taken over these d directions and not over all parameters: most
directions of a network have no curvature at all, a gradient has no part in them, and counting them would make the mean
too small by as much as there are.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fisheropt.optim.scored import SIZES, Scored, histogram, shrunk
from fisheropt.theory.score_bulk import ScoreBulk, score_bulk

_OCTAVES = 16


class Kept(NamedTuple):
    """The eigenpairs that the metric keeps.

    Attributes:
        rank: how many, from the largest.
        threshold: what an eigenvalue of the bulk exceeds with probability .01; 0 where no bulk was seen.
        bulk: μ, the mean of the eigenvalues that are not kept, over the directions that the bulk has.
        dimension: d of the bulk.
        overlaps: |r|² of each tracked eigenvector, 0 for one that is not kept, [r].
        shrunk: |r|² l + (1 - |r|²) μ, [r].
    """

    rank: int
    threshold: float
    bulk: float
    dimension: float
    overlaps: Tensor
    shrunk: Tensor


def fresh() -> dict[str, Any]:
    """The memory of a group before any reading: the running mean of `head`, and what `remember` needs."""
    zero = torch.zeros(3, dtype=torch.float64)
    return {"scores": zero, "sizes": torch.zeros(2, SIZES, dtype=torch.float64), "sizes_unit": 1.0}


def head(found: Scored) -> Tensor:
    """The trace of M and the two parts of the coherence, of which the group keeps a running mean: [3]."""
    return torch.cat([found.coherence.new_tensor([found.trace]), found.coherence])


def remember(group: dict[str, Any], found: Scored, weight: float) -> None:
    """Add a reading to the sizes ω‖s‖² of all scores so far, where ω is what each counts for in the running mean.

    They are kept over a unit that falls as the old ones are forgotten, so that none has to be moved.

    Args:
        group: with "sizes", [2, 512], and "sizes_unit".
        found: the reading.
        weight: its weight in the mean.
    """
    sizes, unit = (group["sizes"], group["sizes_unit"] * (1 - weight))
    if unit <= 0:
        sizes, unit = torch.zeros_like(sizes), 1.0
    counts, sums = found.sizes.to(sizes)
    scale = weight / float(counts.sum().clamp_min(1)) / unit
    sizes = sizes + histogram(torch.where(counts > 0, sums / counts * scale, 0.0), counts)
    if unit < 2.0**-_OCTAVES:
        sizes, unit = shrunk(sizes, _OCTAVES), unit * 2.0**_OCTAVES
    group["sizes"], group["sizes_unit"] = sizes, unit


def above(eigenvalues: Tensor, scores: Tensor, sizes: Tensor, count: float, dimension: int) -> Kept:
    """The eigenpairs above the edge of the bulk, each with its overlap.

    Args:
        eigenvalues: l, largest first, [r].
        scores: the running mean of `head`.
        sizes: as `remember` keeps them, times their unit.
        count: n, the effective number of samples.
        dimension: the number of all parameters.
    """
    values, size = eigenvalues.cpu(), spread(scores, count, dimension)
    tracked, kept, law = int((values > 0).sum()), 0, None
    for _ in range(tracked + 1):  # what is kept makes the bulk smaller, and only ever lowers its edge
        law = _law(sizes.cpu(), size, tracked - kept)
        more = int((values[:tracked] > (law.threshold() if law else 0.0)).sum())
        if more <= kept:
            break
        kept = more
    overlaps = torch.zeros_like(values)
    for i in range(kept):
        overlaps[i] = law.spike(float(values[i])).overlap if law else 1.0
    return _result(values, scores, kept, overlaps, law.threshold() if law else 0.0, size + tracked, dimension)


def first(eigenvalues: Tensor, scores: Tensor, count: float, dimension: int, rank: int) -> Kept:
    """The first `rank` eigenpairs as they are, with overlap 1.

    Args:
        eigenvalues: l, largest first, [r].
        scores: the running mean of `head`.
        count: n, the effective number of samples.
        dimension: the number of all parameters.
        rank: how many to keep, where as many are positive.
    """
    values, size = eigenvalues.cpu(), spread(scores, count, dimension)
    tracked = int((values > 0).sum())
    kept = min(rank, tracked)
    overlaps = (torch.arange(len(values)) < kept).to(values.dtype)
    return _result(values, scores, kept, overlaps, 0.0, size + tracked, dimension)


def spread(scores: Tensor, count: float, dimension: int) -> float:
    """1/coherence: how many directions the bulk has beside the tracked ones, at most n², as n samples tell no more apart.

    Args:
        scores: the running mean of `head`.
        count: n, the effective number of samples.
        dimension: the number of all parameters.
    """
    coherence = float(scores[1]) / float(scores[2]) if scores[2] > 0 else 0.0
    return 1 / min(1.0, max(coherence, 1 / dimension, 1 / max(count, 1.0) ** 2))


def _result(
    values: Tensor, scores: Tensor, kept: int, overlaps: Tensor, threshold: float, size: float, dimension: int
) -> Kept:
    """Of a bulk with `size` directions, those kept included."""
    trace = float(scores[0])
    left = max(1.0, min(size, dimension) - kept)
    bulk = max((trace - float(values[:kept].sum())) / left, torch.finfo(torch.float32).eps * trace)
    shrunk = overlaps * values + (1 - overlaps) * bulk
    return Kept(kept, threshold, bulk, left, overlaps.to(scores.device), shrunk.to(scores.device))


def _law(sizes: Tensor, size: float, beside: int) -> ScoreBulk | None:
    """The bulk of `size` directions with `beside` tracked ones counted in; None where nothing was seen beside them."""
    occupied = sizes[0] > 0
    counts, sums = sizes[:, occupied]
    if float(sums.sum()) <= 0:
        return None
    count = float(counts.sum())
    return score_bulk(sums / counts * (count * (size + beside) / size), count, size + beside, weights=counts)
