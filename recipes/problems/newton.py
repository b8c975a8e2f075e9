r"""Newton's method with a line search, in float64, for the smooth convex objectives of the recipes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from recipes.problems.softmax import SoftmaxObjective

DIRECT_LIMIT = 2000
STEPS = 200
CG_STEPS = 5000


@final
@dataclass(frozen=True)
class Minimum:
    """Where Newton's method stopped.

    Attributes:
        w: the point, [K, d].
        value: f(w).
        gradient_norm: the Euclidean norm of f's gradient there.
    """

    w: Tensor
    value: float
    gradient_norm: float


def minimise(objective: SoftmaxObjective, tolerance: float = 1e-11) -> Minimum:
    """Minimise from w = 0 until the gradient's norm is under `tolerance`, or rounding ends it."""
    w = torch.zeros(objective.free, objective.data.x.shape[1], dtype=torch.float64)
    best = Minimum(w, objective.value(w), float(objective.gradient(w).norm()))
    for _ in range(STEPS):
        if best.gradient_norm < tolerance:
            break
        found = _line_search(objective, best, _direction(objective, best.w))
        if found is None:
            break
        best = found
    return best


def _direction(objective: SoftmaxObjective, w: Tensor) -> Tensor:
    """-H⁻¹ ∇f: by Cholesky where H is small and positive, else by conjugate gradients."""
    gradient = objective.gradient(w)
    if w.numel() <= DIRECT_LIMIT:
        factor, failed = torch.linalg.cholesky_ex(objective.hessian(w))
        if not failed:
            return -torch.cholesky_solve(gradient.reshape(-1, 1), factor).reshape(w.shape)
    return _conjugate_gradients(objective, w, gradient)


def _conjugate_gradients(objective: SoftmaxObjective, w: Tensor, gradient: Tensor) -> Tensor:
    """Preconditioned by H's diagonal; solved the better the smaller ∇f is, for superlinear convergence."""
    diagonal = objective.hessian_diagonal(w).clamp_min(1e-12)
    step = torch.zeros_like(w)
    residual = -gradient
    direction = residual / diagonal
    squared = (residual * direction).sum()
    target = squared * torch.clamp(gradient.square().sum(), 1e-12, 1e-2)
    for _ in range(CG_STEPS):
        curved = objective.hessian_vector(w, direction)
        curvature = (direction * curved).sum()
        if squared <= target or curvature <= 0:
            break
        length = squared / curvature
        step = step + length * direction
        residual = residual - length * curved
        squared, before = (residual.square() / diagonal).sum(), squared
        direction = residual / diagonal + (squared / before) * direction
    return step


def _line_search(objective: SoftmaxObjective, at: Minimum, direction: Tensor) -> Minimum | None:
    """Halve the step until f falls enough, or ∇f does, where f no longer resolves the fall."""
    slope = float((objective.gradient(at.w) * direction).sum())
    resolution = 1e-14 * (1.0 + abs(at.value))
    length = 1.0
    while length > 1e-10:
        w = at.w + length * direction
        found = Minimum(w, objective.value(w), float(objective.gradient(w).norm()))
        if found.value <= at.value + 1e-4 * length * slope:
            return found
        if found.value <= at.value + resolution and found.gradient_norm < at.gradient_norm:
            return found
        length /= 2
    return None
