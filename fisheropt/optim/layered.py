"""What one step says of M and G parameter by parameter, in units of one sample's score, with M's Kronecker factors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from fisheropt.optim.scored import Sample
from fisheropt.statistics.kronecker import as_matrix, turned
from fisheropt.statistics.layerwise import Eigenbasis
from fisheropt.taps.layers import Layers


@final
@dataclass(frozen=True)
class Layered:
    """By parameter; second moments in the basis that the tap was aimed at, [o, i].

    Args:
        gradient: the mean score s̄, shaped like the parameter.
        second: the mean of s² in each coordinate of the basis.
        noise: its variance, diag UᵀGU; None for one sample.
        information: diag UᵀHU; None without a likelihood.
        lefts: partial traces of M, [o, o]: of H given a likelihood, else of G; only where a basis asks for them.
        rights: the same of all other axes, [i, i].
    """

    gradient: dict[str, Tensor]
    second: dict[str, Tensor]
    noise: dict[str, Tensor] | None
    information: dict[str, Tensor] | None
    lefts: dict[str, Tensor]
    rights: dict[str, Tensor]

    @property
    def squared(self) -> Tensor:
        """‖s̄‖² over all parameters, a 0-dim tensor."""
        return _total({name: s.double().square() for name, s in self.gradient.items()})

    @property
    def mean_square(self) -> Tensor:
        """The mean of ‖s‖², as rotations leave it."""
        return _total(self.second)

    @property
    def information_trace(self) -> Tensor | None:
        """The trace of H over all parameters."""
        return None if self.information is None else _total(self.information)


def layered(layers: Layers, sample: Sample, information: Layers | None) -> Layered:
    """The means and variances in what the backwards of a step have left.

    Args:
        layers: of the loss, with every parameter.
        sample: how they are scaled.
        information: of the likelihood's backward, whose scores need no scale.
    """
    c, unit = sample.count, sample.unit
    own = {name: sample.total(value) * (unit / c) for name, value in layers.sums.items()}
    second = {name: sample.total(value) * (unit**2 / c) for name, value in layers.moments.items()}
    noise = None
    if c > 1:
        means = {name: _in_basis(layers, name, mean) for name, mean in own.items()}
        noise = {name: (second[name] - means[name].square()).clamp_min(0) * (c / (c - 1)) for name in second}
    if information is None:
        lefts = {name: _centred(sample, value, own[name], 0) for name, value in layers.lefts.items()}
        rights = {name: _centred(sample, value, own[name], 1) for name, value in layers.rights.items()}
        return Layered(own, second, noise, None, lefts, rights)
    moments, lefts, rights = ({n: sample.total(x) / c for n, x in part.items()} for part in _parts(information))
    return Layered(own, second, noise, moments, lefts, rights)


def _parts(layers: Layers) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    return layers.moments, layers.lefts, layers.rights


def _in_basis(layers: Layers, name: str, mean: Tensor) -> Tensor:
    basis = layers.bases[name]
    assert isinstance(basis, Eigenbasis)
    return turned(as_matrix(mean), basis.left, basis.right)


def _centred(sample: Sample, factor: Tensor, mean: Tensor, axis: int) -> Tensor:
    """The partial trace of the covariance; of one sample, of its square."""
    c, own = sample.count, as_matrix(mean)
    raw = sample.total(factor) * (sample.unit**2 / c)
    if c == 1:
        return raw
    return (raw - (own @ own.T if axis == 0 else own.T @ own)) * (c / (c - 1))


def _total(values: dict[str, Tensor]) -> Tensor:
    return torch.stack([value.double().sum() for value in values.values()]).sum()
