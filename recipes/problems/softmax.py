r"""The objective of ridge softmax regression in float64, on the sufficient statistic of the data.

Index legend: m distinct rows, d features (with a column of ones where there is an intercept), C classes, K
free rows of weights: K = 1 for two classes (the first logit is 0), K = C for more.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from recipes.problems.readers import Array


@final
@dataclass(frozen=True)
class Tally:
    """Distinct rows, and how often each class occurs with them: all that the objective knows of the data.

    Attributes:
        x: distinct rows, [m, d].
        counts: occurrences of each class, [m, C].
    """

    x: Tensor
    counts: Tensor

    def digest(self) -> str:
        """A hash of the content, equal for equal data."""
        content = hashlib.sha256(repr((self.x.shape, self.counts.shape)).encode())
        content.update(self.x.numpy().tobytes())
        content.update(self.counts.numpy().tobytes())
        return content.hexdigest()


def tally(x: Array, y: Array, classes: int, *, intercept: bool) -> Tally:
    """Count the classes y [n] of the distinct rows of x [n, d]."""
    x = np.ascontiguousarray(x)
    seen: dict[bytes, int] = {}
    group = np.fromiter((seen.setdefault(row.tobytes(), len(seen)) for row in x), np.int64, len(x))
    counts = np.zeros((len(seen), classes))
    np.add.at(counts, (group, y), 1.0)
    rows = x[np.unique(group, return_index=True)[1]].astype(np.float64)
    if intercept:
        rows = np.hstack([rows, np.ones((len(rows), 1))])
    return Tally(torch.from_numpy(rows), torch.from_numpy(counts))


@final
class SoftmaxObjective:
    r"""$f(w) = -\frac1n \sum_i \log p_{y_i}(w x_i) + \frac{\lambda}{2} \lVert w \rVert^2$, w of shape [K, d].

    The ridge leaves out the intercept, which is the last column of w where there is one.
    """

    def __init__(self, data: Tally, l2: float, *, intercept: bool) -> None:
        """`intercept` says that the last column of `data.x` is its column of ones."""
        self.data = data
        self.n = float(data.counts.sum())
        classes = data.counts.shape[1]
        self.free = 1 if classes == 2 else classes
        self.ridge = torch.full((data.x.shape[1],), l2, dtype=torch.float64)
        if intercept:
            self.ridge[-1] = 0.0

    def log_probabilities(self, w: Tensor) -> Tensor:
        """log p [m, C]."""
        logits = self.data.x @ w.T
        zeros = logits.new_zeros(len(logits), self.data.counts.shape[1] - self.free)
        return torch.log_softmax(torch.cat([zeros, logits], 1), 1)

    def log_loss(self, w: Tensor) -> float:
        """The mean log loss, without the ridge."""
        return float(-(self.data.counts * self.log_probabilities(w)).sum() / self.n)

    def accuracy(self, w: Tensor) -> float:
        """The share of rows whose most probable class is theirs."""
        likeliest = self.log_probabilities(w).argmax(1, keepdim=True)
        return float(self.data.counts.gather(1, likeliest).sum() / self.n)

    def separates(self, w: Tensor) -> bool:
        """Whether every row's own class has strictly the largest logit."""
        log_p = self.log_probabilities(w)
        present = self.data.counts > 0
        worst = log_p.masked_fill(~present, torch.inf).amin(1)
        return bool((worst > log_p.masked_fill(present, -torch.inf).amax(1)).all() and (present.sum(1) == 1).all())

    def value(self, w: Tensor) -> float:
        """f(w)."""
        return self.log_loss(w) + 0.5 * float((self.ridge * w.square()).sum())

    def gradient(self, w: Tensor) -> Tensor:
        """∇f(w), [K, d]."""
        residual = self._totals() * self.log_probabilities(w).exp() - self.data.counts
        return residual[:, -self.free :].T @ self.data.x / self.n + self.ridge * w

    def information(self, w: Tensor) -> Tensor:
        """The model Fisher of all n rows, [K d, K d]; the log loss's Hessian, as the link is canonical."""
        p = self.log_probabilities(w).exp()[:, -self.free :]
        share = self._totals() / self.n
        d = self.data.x.shape[1]
        blocks = torch.empty(self.free, d, self.free, d, dtype=torch.float64)
        for a in range(self.free):
            for b in range(a + 1):
                weight = share * (p[:, a : a + 1] * (float(a == b) - p[:, b : b + 1]))
                blocks[a, :, b] = blocks[b, :, a] = self.data.x.T @ (weight * self.data.x)
        return blocks.reshape(self.free * d, self.free * d)

    def hessian(self, w: Tensor) -> Tensor:
        """∇²f(w), [K d, K d], definite: 1 along the shifts common to all K > 1 classes that no ridge sees."""
        hessian = self.information(w) + torch.diag(self.ridge.repeat(self.free))
        if self.free > 1:
            shifts = torch.diag((self.ridge == 0).to(hessian)) / self.free
            hessian += shifts.repeat(self.free, self.free)
        return hessian

    def hessian_vector(self, w: Tensor, v: Tensor) -> Tensor:
        """∇²f(w) v for v of the shape [K, d], at the cost of a gradient."""
        p = self.log_probabilities(w).exp()[:, -self.free :]
        t = p * (self.data.x @ v.T)
        t = self._totals() * (t - p * t.sum(1, keepdim=True))
        return t.T @ self.data.x / self.n + self.ridge * v

    def hessian_diagonal(self, w: Tensor) -> Tensor:
        """The diagonal of ∇²f(w) in w's shape, [K, d]."""
        p = self.log_probabilities(w).exp()[:, -self.free :]
        return (self._totals() * p * (1.0 - p)).T @ self.data.x.square() / self.n + self.ridge

    def _totals(self) -> Tensor:
        return self.data.counts.sum(1, keepdim=True)
