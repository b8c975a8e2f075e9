"""Checks of a study's settings; every message says what to write instead."""

from __future__ import annotations

from collections.abc import Sequence

from recipes.studies.base import StudyError


def require(holds: bool, given: str, cure: str) -> None:
    """Refuse a setting: what was given, and what to write instead."""
    if not holds:
        raise StudyError(f"{given}: write {cure}.")


def rising(values: Sequence[float], name: str, example: str) -> tuple[float, ...]:
    """The values as floats, at least two, positive and rising."""
    found = tuple(float(value) for value in values)
    good = len(found) > 1 and found[0] > 0 and all(a < b for a, b in zip(found, found[1:], strict=False))
    require(good, f"{name}={list(values)}", f"{name}=[{example}], at least two positive numbers that rise")
    return found
