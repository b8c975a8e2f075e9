"""A joint statistic in eager mode: coordinates are summed over layers before they are multiplied."""

from __future__ import annotations

from collections.abc import Collection
from typing import final

import torch
from torch import Tensor

from fisheropt.persample import PerSample
from fisheropt.taps.channel import JOINT, Channel, Passage
from fisheropt.taps.forward import Forward
from fisheropt.taps.scores import Waiting
from fisheropt.taps.sink import augmented


@final
class Together(Forward):
    """The coordinates Z [n, k] of one forward's samples, which reach the leaf as [Z 1]ᵀ[Z 1].

    Args:
        channel: of the tap.
        samples: in the forward.
    """

    def __init__(self, channel: Channel, samples: int) -> None:
        super().__init__()
        self.channel, self.samples, self.passage = channel, samples, Passage(channel)
        self._z: Tensor | None = None
        self._waiting = Waiting()

    def expect(self, name: str) -> None:
        pass

    def begin(self) -> None:
        self._z = None
        if not self.channel.measuring:
            self.passage.differentiate()

    def take(self, forms: dict[str, PerSample], lent: Collection[str]) -> dict[str, Tensor]:
        found = (self.share(name, form, name in lent) for name, form in forms.items())
        return {name: total for name, total in zip(forms, found, strict=True) if total is not None}

    def share(self, name: str, form: PerSample, lent: bool) -> Tensor | None:
        """Add one parameter's share of the coordinates; Σₙ hₙ where it is asked for."""
        if self.channel.scores is not None:
            self._waiting.keep(name, form)
        lent, along = lent and not self.channel.measuring, self.channel.directions.get(name)
        total: Tensor | None = None
        if along is None:
            return form.sum() if lent else None
        if lent:
            z, total = form.project_and_sum(along)
        else:
            z = form.project(along)
        self._z = z.to(self.channel.leaves[JOINT].dtype, copy=True) if self._z is None else self._z.add_(z)
        return total

    def receive(self, z: Tensor) -> None:
        """Add the share of compiled layers."""
        self.arrive()
        z = z.to(self.channel.leaves[JOINT].dtype)
        self._z = z if self._z is None else self._z + z

    def close(self) -> Tensor:
        leaf, scores = self.channel.leaves[JOINT], self.channel.scores
        z = leaf.new_zeros(self.samples, leaf.shape[0] - 1) if self._z is None else self._z
        self._z = None
        if scores is not None:
            with torch.autocast(z.device.type, enabled=False):
                scores.add(self._waiting.take(), z, self.channel.respond)
        return augmented(z)
