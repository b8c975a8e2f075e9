"""What k directions in the space of one parameter offer, whatever holds them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar, Protocol

from torch import Tensor


class Implicit(Protocol):
    """Per-sample gradients that are contracted without being formed, or formed a few samples at a time."""

    def along_dense(self, basis: Tensor) -> Tensor:
        """⟨hₙ, v_k⟩ for v [k, *parameter]: [n, k]."""
        ...

    def project(self, directions: Directions) -> Tensor:
        """⟨hₙ, v_k⟩ by the cheapest way: [n, k]."""
        ...

    def along_rank_one(self, left: Tensor, right: Tensor) -> Tensor:
        """⟨hₙ, p_k q_kᵀ⟩ for p [k, o] and q [k, i]: [n, k]."""
        ...

    def tiles(self) -> Iterator[Tensor]:
        """All hₙ, some samples at a time."""
        ...


class Directions(ABC):
    """k vectors in the space of one parameter."""

    kind: ClassVar[str] = ""
    """By what name forms know the ways to contract with them; none where they leave no choice."""

    @property
    @abstractmethod
    def count(self) -> int:
        """The number of directions k."""

    @abstractmethod
    def of_outer(self, g: Tensor, a: Tensor) -> Tensor:
        """⟨Σₜ gₙₜ aₙₜᵀ, v_k⟩ for g [n, t, o] and a [n, t, i]: [n, k]."""

    @abstractmethod
    def of_dense(self, h: Tensor) -> Tensor:
        """⟨hₙ, v_k⟩ for h [n, *parameter]: [n, k]."""

    @abstractmethod
    def of_implicit(self, form: Implicit) -> Tensor:
        """⟨hₙ, v_k⟩ for gradients that are not formed at once: [n, k]."""

    @abstractmethod
    def combine(self, coefficients: Tensor) -> Tensor:
        """Σ_k c_k v_k for coefficients [k], with as many entries as the parameter, to be reshaped like it."""
