"""What second moments of each parameter need of a backward: forms that wait until those of all calls are there."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from fisheropt.directions import Directions
from fisheropt.persample import PerSample
from fisheropt.statistics.kronecker import as_matrix, partial_traces, second_moment_in, sides
from fisheropt.statistics.layerwise import Eigenbasis
from fisheropt.taps.collector import Collector


@final
class Layers(Collector):
    """Second moments of each parameter; one that no backward came through has none.

    Args:
        bases: of the parameters, as the tap holds them.

    Attributes:
        sums: Σₙ hₙ by parameter.
        moments: Σₙ (UₗᵀhₙUᵣ)², [o, i].
        lefts: Σₙ hₙhₙᵀ where it is asked for.
        rights: Σₙ hₙᵀhₙ.
    """

    def __init__(self, bases: dict[str, Directions]) -> None:
        self.bases = bases
        self.sums: dict[str, Tensor] = {}
        self.moments: dict[str, Tensor] = {}
        self.lefts: dict[str, Tensor] = {}
        self.rights: dict[str, Tensor] = {}

    def blank(self) -> Layers:
        return Layers(self.bases)

    def add(self, forms: dict[str, PerSample], z: Tensor, respond: bool) -> None:
        for name, form in forms.items():
            basis = self.bases[name]
            assert isinstance(basis, Eigenbasis)
            left, right = partial_traces(form, respond and basis.left_factor, respond and basis.right_factor)
            _add(self.sums, name, form.sum())
            _add(self.moments, name, second_moment_in(form, basis.left, basis.right))
            _add(self.lefts, name, left)
            _add(self.rights, name, right)

    def over(self, parameters: dict[str, Tensor]) -> Layers:
        """The same with zeros for a parameter that no backward came through, so that ranks sum the same tensors."""
        total = self.merge(self.blank())
        for name, p in parameters.items():
            basis = self.bases[name]
            assert isinstance(basis, Eigenbasis)
            if name in total.sums:
                continue
            zero = p.detach().new_zeros(p.shape, dtype=torch.promote_types(p.dtype, torch.float32))
            outputs, inputs = sides(p.shape)
            _add(total.sums, name, zero)
            _add(total.moments, name, as_matrix(zero))
            _add(total.lefts, name, zero.new_zeros(outputs, outputs) if basis.left_factor else None)
            _add(total.rights, name, zero.new_zeros(inputs, inputs) if basis.right_factor else None)
        return total

    def merge(self, other: Layers) -> Layers:
        total = self.blank()
        for source in (self, other):
            for key in ("sums", "moments", "lefts", "rights"):
                for name, value in getattr(source, key).items():
                    _add(getattr(total, key), name, value)
        return total


def _add(held: dict[str, Tensor], name: str, value: Tensor | None) -> None:
    if value is not None:
        held[name] = held[name] + value if name in held else value
