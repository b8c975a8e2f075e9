"""Contrasts between the outputs of a layer: what one class has that another has not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from fisheropt.optim.critical.named import members

_SUM = 1e-6  # of the coefficients' sizes: rounding


@final
@dataclass(frozen=True, eq=False)
class Contrast:
    """Differences between outputs: all directions c ⊗ q of a weight [C, *p], and c of a bias [C].

    A contrast Σ_a c_a w_a, Σ_a c_a = 0, is what statisticians test of several groups, and what of a softmax layer the data
    can tell at all: a common shift of all classes changes no probability. With `along=x̄` the direction is that of
    the difference Σ_a c_a z_a of logits z = W x̄ + b at the input x̄.

    Args:
        layer: the name of a parameter, "head.weight", or of a module, "head", for its weight and bias together.
        coefficients: c, [C], or several contrasts [m, C]; only their span matters.
        along: q, one feature direction [*p], or several [r, *p]; None takes all of them, the unit vectors.

    Raises:
        ValueError: for coefficients that do not sum to zero.

    Reference: scheffe1959analysis
    """

    layer: str
    coefficients: Tensor | Sequence[float] | Sequence[Sequence[float]]
    along: Tensor | Sequence[float] | None = None

    def __post_init__(self) -> None:
        rows = self._rows()
        if bool((rows.sum(1).abs() > _SUM * rows.abs().sum(1)).any()) or not bool(rows.any(1).all()):
            raise ValueError(
                f"{self._call()}: the coefficients of a contrast sum to zero and are not all zero, found sums "
                f"{rows.sum(1).tolist()}; write c - c.mean(), as a shift of all outputs together is no difference"
            )

    def bases(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The directions by parameter, [k, *parameter], not yet orthonormal.

        Args:
            parameters: the group's trainable parameters, by name.

        Raises:
            ValueError: for coefficients or features of another size than the layer's.
        """
        touched = members(self.layer, parameters)
        rows = self._rows()
        for name, p in touched.items():
            if p.ndim == 0 or p.shape[0] != rows.shape[1]:
                raise ValueError(
                    f"{self._call()}: {rows.shape[1]} coefficients for {name} of shape {tuple(p.shape)}; give one for each "
                    f"entry of its first axis"
                )
        weights = [name for name, p in touched.items() if p.ndim > 1]
        if len(weights) > 1 or (self.along is not None and not weights):
            raise ValueError(
                f"{self._call()}: needs one weight and at most a bias, found {list(touched)}; name the parameter, "
                f"Contrast({(weights or list(touched))[0]!r}, ...)"
            )
        features = self._features(parameters[weights[0]]) if weights else None
        return {name: self._part(p, rows, features) for name, p in touched.items()}

    def _part(self, parameter: Tensor, rows: Tensor, features: Tensor | None) -> Tensor:
        """Of each pair (contrast, feature) the part in this parameter; the last feature is the bias's own, 1."""
        own = torch.ones(1, 1, dtype=torch.float64) if features is None else features[:, -1:]
        columns = own if parameter.ndim == 1 or features is None else features[:, :-1]
        return torch.einsum("mc,fp->mfcp", rows, columns).reshape(-1, *parameter.shape)

    def _features(self, weight: Tensor) -> Tensor:
        """Feature directions with the constant 1 as their last entry, [r, p + 1]; all unit vectors where none is given."""
        size = weight.shape[1:].numel()
        if self.along is None:
            return torch.eye(size + 1, dtype=torch.float64)
        given = torch.as_tensor(self.along).detach().to("cpu", torch.float64)
        if given.numel() == 0 or given.numel() % size:
            raise ValueError(
                f"{self._call()}: along= has {given.numel()} entries; a feature direction of a weight of shape "
                f"{tuple(weight.shape)} has {size}"
            )
        flat = given.reshape(-1, size)
        return torch.cat([flat, torch.ones(len(flat), 1, dtype=torch.float64)], 1)

    def _rows(self) -> Tensor:
        rows = torch.as_tensor(self.coefficients).detach().to("cpu", torch.float64)
        return rows.reshape(-1, rows.shape[-1]) if rows.ndim else rows.reshape(1, 1)

    def _call(self) -> str:
        return f"Contrast({self.layer!r}, {self._rows().tolist()})"
