"""From labels as written to classes 0..C-1, where there is only one way to do it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np

from recipes.problems.errors import DataError
from recipes.problems.readers import Array

MAX_CLASSES = 1000


@final
@dataclass(frozen=True)
class Classes:
    """The distinct labels of a data set, in the order of the classes that they become.

    Attributes:
        values: sorted labels, numbers or strings; class c is `values[c]`.
    """

    values: Array

    def __len__(self) -> int:
        return len(self.values)

    def encode(self, labels: Array, where: str) -> Array:
        """The class of every label; a label that was not among `values` is an error."""
        given = _numeric(labels)
        unknown = sorted(set(given.tolist()) - set(self.values.tolist()))
        if unknown:
            raise DataError(
                f"{where}: labels {_listed(unknown)} are not among the training set's "
                f"{_listed(self.values.tolist())}.\n"
                "Use the test file that belongs to this training file, or write problem.test_fraction=0.2."
            )
        return np.searchsorted(self.values, given)


def find_classes(labels: Array, where: str) -> Classes:
    """Two labels of any kind, strings, or the integers from 0 or 1 upwards; anything else is an error."""
    values = np.unique(_numeric(labels))
    found = _listed(values.tolist())
    if len(values) < 2:
        raise DataError(f"{where}: all {len(labels)} labels are {found}; classification needs two classes.")
    if len(values) > MAX_CLASSES:
        raise DataError(f"{where}: {len(values)} distinct labels ({found}): is label= the right column?")
    if len(values) > 2 and values.dtype.kind == "f" and not _counts_up(values):
        raise DataError(
            f"{where}: labels {found} are neither two values nor the integers 0..C-1 or 1..C.\n"
            "Number the classes from 0 without gaps; for a CSV file, is label= the right column?"
        )
    return Classes(values)


def _counts_up(values: Array) -> bool:
    return bool(values[0] in (0, 1) and np.array_equal(values, values[0] + np.arange(len(values))))


def _numeric(labels: Array) -> Array:
    """Labels as numbers, if all of them are; otherwise as strings."""
    try:
        numbers = labels.astype(np.float64)
    except ValueError:
        return labels
    if not np.isfinite(numbers).all():
        raise DataError(f"label {np.flatnonzero(~np.isfinite(numbers))[0] + 1} of {len(labels)} is NaN or infinite.")
    return numbers


def _listed(values: list[float] | list[str]) -> str:
    shown = ", ".join(f"{value:g}" if isinstance(value, float) else repr(value) for value in values[:10])
    return shown + (", ..." if len(values) > 10 else "")
