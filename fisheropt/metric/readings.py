"""What a metric tells: numbers with their errors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, final

from torch import Tensor


@final
@dataclass(frozen=True)
class Estimate:
    """A number with its standard error.

    Attributes:
        value: of the estimate.
        error: its standard error given the data; with `how` "bound" the largest that it can be.
        dof: degrees of freedom of a measured error, 0 else.
        how: "exact" for nothing random, "measured" over draws, "bound" where one draw was taken and theory bounds the
            error, "unknown" where it does not (error NaN).
    """

    value: float
    error: float
    dof: int
    how: Literal["exact", "measured", "bound", "unknown"]

    def __str__(self) -> str:
        if self.how == "exact":
            return f"{self.value:.4g}"
        return f"{self.value:.4g} {'+- at most' if self.how == 'bound' else '+-'} {self.error:.2g}"


@final
@dataclass(frozen=True)
class Interval:
    """Traces of a layer's lower bound, Fisher information and upper bound.

    Estimates by probes share their signs but are ordered in expectation only; with num_probes="all" they are exact.

    Attributes:
        lower: of rank k an input.
        fisher: F.
        upper: of the diagonal core.
    """

    lower: Estimate
    fisher: Estimate
    upper: Estimate

    def __str__(self) -> str:
        return f"{self.lower} <= {self.fisher} <= {self.upper}"


@final
@dataclass(frozen=True)
class Variation:
    """Coefficient of variation of the diagonal as it stands, over other probes for the same data.

    Attributes:
        bound: no entry's is larger, for updates of like information; 0 for nothing random, infinite for drawn labels.
        measured: of every entry by parameter, from the draws; empty for one draw an update. 0 where the diagonal is.
        dof: degrees of freedom of the measured ones.
        draws: effective number of draws, smaller than their count under an EMA.
        warning: what division by this diagonal would do, where there are few draws.
    """

    bound: float
    measured: dict[str, Tensor] = field(repr=False)
    dof: int
    draws: float
    warning: str
