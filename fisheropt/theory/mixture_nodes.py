"""Gaussian mixtures seen through their summary statistics, and quadrature nodes for expectations over them.

Index legend: a, c classes (C of them); b mixture components (k); i nodes; q = C + k; r = C - 1.

Data: component b ~ Cat(p), Y = mu_b + snr^(-1/2) Z. With G = (x, mu)^T (x, mu), R = G^(1/2) and g ~ N(0,
I_q), v_b = R e_(C+b) + snr^(-1/2) g are the coordinates of Y in the span of (x, mu), and the logits are <R
e_a, v_b> + bias_a. Softmax sees g only through r = C - 1 of its directions, T; nodes are placed there and the
rest is integrated exactly: E[v v^T | T^T g] = anchor anchor^T + (I - T T^T)/snr.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fisheropt.theory.quadrature import Rule

_ROUND_OFF = 1e-9


@dataclass(frozen=True)
class Mixture:
    """A validated setting: Gram matrix [q, q], proportions [k], SNR, component classes [k], bias [C]."""

    gram: Tensor
    proportions: Tensor
    snr: float
    class_of: Tensor
    bias: Tensor

    @property
    def classes(self) -> int:
        """C, the number of columns of x."""
        return len(self.bias)

    def root(self) -> Tensor:
        """R = G^(1/2), symmetric; eigenvalues below zero by round-off are clipped, as G is often singular."""
        values, vectors = torch.linalg.eigh(self.gram)
        root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
        return root

    def spread(self) -> float:
        """Largest standard deviation of a contrast of the logits within a component."""
        basis = gauge_basis(self.classes)
        head = basis.T @ self.gram[: self.classes, : self.classes] @ basis
        return math.sqrt(max(0.0, float(torch.linalg.eigvalsh(head)[-1])) / self.snr)


@dataclass(frozen=True)
class Nodes:
    """Nodes of E over (b, g).

    Attributes:
        weights: [N], summing to one.
        targets: [N], class c(b) of the label.
        logits: [N, C].
        anchors: [N, q], E[v | node].
        covariance: [q, q], Cov[v | node], the same for all nodes.
    """

    weights: Tensor
    targets: Tensor
    logits: Tensor
    anchors: Tensor
    covariance: Tensor

    @property
    def probabilities(self) -> Tensor:
        """Softmax of the logits, [N, C]."""
        return self.logits.softmax(1)

    @property
    def residuals(self) -> Tensor:
        """Probabilities minus one-hot labels, [N, C]; the label's entry is a sum, as 1 - pi would cancel."""
        index = self.targets[:, None]
        others = self.probabilities.scatter(1, index, 0.0)
        return others.scatter(1, index, -others.sum(1, keepdim=True))

    def truncated(self, sizes: Tensor, samples: int) -> "Nodes":
        """The nodes without the upper tail of `sizes` [N] of mass 1/samples, which n samples seldom see."""
        order = sizes.argsort(descending=True)
        beyond = (self.weights[order].cumsum(0) - 1 / samples).clamp(min=0)
        weights = torch.minimum(self.weights[order], beyond)
        kept, weights = order[weights > 0], weights[weights > 0]
        return Nodes(
            weights / weights.sum(),
            self.targets[kept],
            self.logits[kept],
            self.anchors[kept],
            self.covariance,
        )


def gauge_basis(classes: int) -> Tensor:
    """Orthonormal basis U [C, C - 1] of the complement of (1, ..., 1), which softmax does not see."""
    centring = torch.eye(classes, dtype=torch.float64) - 1 / classes
    basis: Tensor = torch.linalg.eigh(centring)[1][:, 1:]
    return basis


def mixture_nodes(mixture: Mixture, rule: Rule) -> Nodes:
    """Nodes of the mixture from a rule for N(0, I_r), r = C - 1.

    Args:
        mixture: The setting.
        rule: Points [n, C - 1] and weights, from :func:`fisheropt.theory.quadrature.gaussian_rule`.
    """
    classes, count = mixture.classes, len(rule.weights)
    root = mixture.root()
    seen = torch.linalg.svd(root[:, :classes] @ gauge_basis(classes), full_matrices=False)[0]
    shifts = rule.points @ seen.T / mixture.snr**0.5
    anchors = (root[:, classes:].T[:, None, :] + shifts).reshape(-1, len(root))
    return Nodes(
        weights=(mixture.proportions[:, None] * rule.weights).reshape(-1),
        targets=mixture.class_of.repeat_interleave(count),
        logits=anchors @ root[:, :classes] + mixture.bias,
        anchors=anchors,
        covariance=(torch.eye(len(root), dtype=torch.float64) - seen @ seen.T) / mixture.snr,
    )


def _checked_gram(gram: Tensor, call: str) -> Tensor:
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1]:
        raise ValueError(
            f"{call}: `gram` must be a square matrix, got shape {tuple(gram.shape)}; "
            "write gram = s.T @ s with s = torch.cat((x, means), 1), columns in that order"
        )
    if not gram.isfinite().all():
        raise ValueError(f"{call}: `gram` has entries that are not finite")
    size = gram.abs().max().clamp(min=1e-300)
    if (gram - gram.T).abs().max() > _ROUND_OFF * size:
        raise ValueError(
            f"{call}: `gram` must be symmetric, found a difference of "
            f"{float((gram - gram.T).abs().max()):.3g}; write gram = (gram + gram.T) / 2"
        )
    smallest = float(torch.linalg.eigvalsh(gram)[0])
    if smallest < -_ROUND_OFF * float(size):
        raise ValueError(
            f"{call}: `gram` is not positive semi-definite (smallest eigenvalue {smallest:.3g}), so it is "
            "not the Gram matrix of any vectors; write gram = s.T @ s with s = torch.cat((x, means), 1)"
        )
    return gram


def _checked_proportions(proportions: Tensor, call: str) -> Tensor:
    if proportions.ndim != 1 or len(proportions) == 0 or not bool((proportions > 0).all()):
        raise ValueError(f"{call}: `proportions` must be a vector of positive numbers, got {proportions.tolist()}")
    if abs(float(proportions.sum()) - 1) > 1e-6:
        raise ValueError(
            f"{call}: `proportions` must sum to 1, got a sum of {float(proportions.sum()):.6g}; "
            "write proportions = proportions / proportions.sum()"
        )
    return proportions / proportions.sum()


def _checked_classes(class_of: Sequence[int] | Tensor | None, components: int, classes: int, call: str) -> Tensor:
    if class_of is None and classes != components:
        raise ValueError(
            f"{call}: `gram` of size {classes + components} with {components} proportions leaves {classes} "
            f"columns of x, and {components} components need a class each; pass class_of=[...]"
        )
    result = torch.arange(components) if class_of is None else torch.as_tensor(class_of, dtype=torch.long)
    if result.shape != (components,) or not bool(((result >= 0) & (result < classes)).all()):
        raise ValueError(
            f"{call}: `class_of` must hold {components} integers in 0..{classes - 1}, got {result.tolist()}"
        )
    return result


def _checked_bias(bias: Sequence[float] | Tensor | None, classes: int, call: str) -> Tensor:
    result = torch.zeros(classes, dtype=torch.float64) if bias is None else torch.as_tensor(bias, dtype=torch.float64)
    if result.shape != (classes,) or not result.isfinite().all():
        raise ValueError(f"{call}: `bias` must hold {classes} finite numbers, one a class, got {result.tolist()}")
    return result


def make_mixture(
    gram: Tensor,
    proportions: Sequence[float] | Tensor,
    snr: float,
    *,
    class_of: Sequence[int] | Tensor | None = None,
    bias: Sequence[float] | Tensor | None = None,
    call: str = "make_mixture",
) -> Mixture:
    """Checks the setting and converts it to float64 on the CPU; `call` is the function named in messages."""
    gram = _checked_gram(torch.as_tensor(gram).detach().to("cpu", torch.float64), call)
    weights = _checked_proportions(torch.as_tensor(proportions).detach().to("cpu", torch.float64), call)
    classes = len(gram) - len(weights)
    if classes < 2:
        raise ValueError(
            f"{call}: `gram` of size {len(gram)} with {len(weights)} proportions leaves {classes} columns of "
            "x; softmax needs at least 2, so gram must have size (classes + components)"
        )
    if not 0 < snr < float("inf"):
        raise ValueError(f"{call}: `snr` must be a positive number (1 / noise variance), got {snr}")
    mapping = _checked_classes(class_of, len(weights), classes, call)
    return Mixture(gram, weights, float(snr), mapping, _checked_bias(bias, classes, call))
