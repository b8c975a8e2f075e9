"""The table of faults: small changes to `SoundSGD`, and the requirements that must fail on them."""

from __future__ import annotations

from collections.abc import Callable

from tests.optim.contract.sound import SoundSGD

Mutant = type[SoundSGD]
MUTANTS: dict[Mutant, list[str]] = {}


def caught_by(*requirements: str) -> Callable[[Mutant], Mutant]:
    """Enter a mutant under the requirements that have to catch it."""

    def enter(cls: Mutant) -> Mutant:
        MUTANTS[cls] = list(requirements)
        return cls

    return enter
