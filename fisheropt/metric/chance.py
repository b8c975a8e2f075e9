"""The random numbers of one update, from generators of their own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import final

import torch
from torch import Tensor

_SPREAD = 0x9E3779B97F4A7C15


class Probe(ABC):
    """A law of independent ξ with E ξ = 0 and E ξ² = 1.

    Attributes:
        kurtosis: κ = E ξ⁴.
    """

    kurtosis: float

    @abstractmethod
    def draw(self, like: Tensor, generator: torch.Generator) -> Tensor:
        """ξ, shaped like the tensor."""


@final
class Rademacher(Probe):
    """Signs, of the smallest fourth moment there is."""

    kurtosis = 1.0

    def draw(self, like: Tensor, generator: torch.Generator) -> Tensor:
        signs = torch.randint(0, 2, like.shape, generator=generator, device=like.device, dtype=like.dtype)
        return signs * 2 - 1


@final
class Gaussian(Probe):
    """Normal numbers."""

    kurtosis = 3.0

    def draw(self, like: Tensor, generator: torch.Generator) -> Tensor:
        return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)


PROBES: dict[str, Probe] = {"gaussian": Gaussian(), "rademacher": Rademacher()}


@final
class Chance:
    """Draws of one update; the same seed and the same number of updates before it give the same ones.

    Args:
        seed: of the metric.
        update: how many came before.
        probe: the law of ξ.
        device: of the logits.
    """

    def __init__(self, seed: int, update: int, probe: Probe, device: torch.device) -> None:
        mixed = (seed * _SPREAD + update) % 2**63
        self.labels = torch.Generator().manual_seed(mixed)
        self._signs = torch.Generator(device).manual_seed(mixed)
        self._probe = probe

    def signs(self, like: Tensor) -> Tensor:
        """ξ, shaped like the tensor."""
        return self._probe.draw(like, self._signs)
