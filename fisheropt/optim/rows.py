"""One step's measurement sample by sample, whose products go into running means without being formed by themselves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor

from fisheropt.taps.direct import Rows


class Product(NamedTuple):
    """The matrix f ZᵀZ.

    Args:
        rows: Z, [n, d].
        factor: f.
    """

    rows: Tensor
    factor: float

    def mixed(self, mean: Tensor, share: float) -> Tensor:
        """(1 - s) M + s f ZᵀZ for a mean M and the share s."""
        return torch.addmm(mean, self.rows.T, self.rows, beta=1 - share, alpha=share * self.factor)


@final
@dataclass(frozen=True)
class RowReading:
    """The per-sample gradients of a step.

    Args:
        count: the number of samples c.
        gradient: their mean, [d].
        covariance: unbiased; None where c < 2.
        information: the model Fisher information; None without a likelihood.
    """

    count: int
    gradient: Tensor
    covariance: Product | None
    information: Product | None

    @property
    def finite(self) -> bool:
        """Whether every number is finite; reads a value back to the host."""
        total = self.gradient.sum()
        return math.isfinite(float(total if self.information is None else total + self.information.rows.sum()))


def read_rows(rows: Rows, scale: float) -> RowReading:
    """What a linear model's tap has read since the last step.

    Args:
        rows: of the tap.
        scale: of the loss in backward; the likelihood's own cotangent has none.
    """
    scores, count = rows.scores, len(rows.scores)
    total, covariance = scores.sum(0), None
    if count > 1:
        centred = torch.sub(scores, total, alpha=1 / count)
        covariance = Product(centred, (count / scale) ** 2 / (count - 1))
    information = None if rows.information is None else Product(rows.information, 1 / count)
    return RowReading(count, total if scale == 1 else total / scale, covariance, information)
