"""Training dynamics of softmax regression on Gaussian mixtures: the ODE of the summary statistics.

One-pass SGD with step delta = c_delta/d and batch b, time t = delta * steps, d to infinity. With m_ab = x_a .
mu_b, Q_ac = x_a . x_c, r = softmax - onehot and ridge rho,

    dm_ab/dt = -E[r_a <mu_b, Y>] - rho m_ab
    dQ_ac/dt = -E[r_a <x_c, Y>] - E[r_c <x_a, Y>] - 2 rho Q_ac + (c_delta/(b lambda)) E[r_a r_c]

Only c_delta/b counts: the last term is the temperature delta/b times the noise mass d/lambda. The multi-class
equations were derived for this project in the setting of Ben Arous, Gheissari and Jagannath.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from fisheropt.theory.mixture_nodes import Mixture, make_mixture, mixture_nodes
from fisheropt.theory.quadrature import Rule, gaussian_rule

_ODE_COARSENING = 2.0
_ACCURACY_LOG2 = 12


@dataclass(frozen=True)
class EffectiveDynamics:
    """A trajectory of the summary statistics.

    Attributes:
        times: [t].
        grams: [t, q, q], Gram matrices of (x, mu).
        loss: [t], expected cross-entropy, without the ridge term.
        accuracy: [t], exact for two classes, by 8192 quasi-random points per component (about .001) above.
        mixture: The setting at the start.
        error: Largest relative change of the last Gram matrix with twice the step and coarser nodes.
    """

    times: Tensor
    grams: Tensor
    loss: Tensor
    accuracy: Tensor
    mixture: Mixture
    error: float


class _Flow(NamedTuple):
    """Right-hand side: the setting, quadrature, c_delta/b and rho."""

    mixture: Mixture
    rule: Rule
    heat: float
    ridge: float

    def __call__(self, gram: Tensor) -> Tensor:
        """dG/dt; <(x, mu)_j, Y> = (R v)_j is linear in v, so that E[v | node] is all that is needed."""
        nodes = mixture_nodes(replace(self.mixture, gram=gram), self.rule)
        residuals, classes = nodes.residuals, self.mixture.classes
        weighted = nodes.weights[:, None] * residuals
        root = replace(self.mixture, gram=gram).root()
        drift = torch.zeros_like(gram)
        drift[:classes] = -weighted.T @ nodes.anchors @ root - self.ridge * gram[:classes]
        result = drift + drift.T
        result[:classes, :classes] += self.heat / self.mixture.snr * weighted.T @ residuals
        return result


def _runge_kutta(flow: _Flow, gram: Tensor, dt: float) -> Tensor:
    k1 = flow(gram)
    k2 = flow(gram + dt / 2 * k1)
    k3 = flow(gram + dt / 2 * k2)
    k4 = flow(gram + dt * k3)
    return gram + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def _integrate(flow: _Flow, steps: int, dt: float) -> Tensor:
    grams = [flow.mixture.gram]
    for _ in range(steps):
        grams.append(_runge_kutta(flow, grams[-1], dt))
    return torch.stack(grams)


def expected_loss(mixture: Mixture) -> float:
    """E[-log softmax_c(b)] at the mixture's Gram matrix."""
    nodes = mixture_nodes(mixture, gaussian_rule(mixture.classes - 1, coarsen=_ODE_COARSENING))
    chosen = nodes.logits.log_softmax(1).gather(1, nodes.targets[:, None])[:, 0]
    return -float(nodes.weights @ chosen)


def expected_accuracy(mixture: Mixture) -> float:
    """P(the logit of the label is the largest); ties are split evenly."""
    if mixture.classes == 2:
        return _binary_accuracy(mixture)
    dimension = mixture.classes - 1
    engine = torch.quasirandom.SobolEngine(dimension, scramble=True, seed=0)
    half = torch.special.ndtri(engine.draw(2**_ACCURACY_LOG2, dtype=torch.float64).clamp(1e-12, 1 - 1e-12))
    points = torch.cat((half, -half))
    rule = Rule(points, torch.full((len(points),), 1 / len(points), dtype=torch.float64))
    nodes = mixture_nodes(mixture, rule)
    largest = (nodes.logits >= nodes.logits.max(1, keepdim=True).values - 1e-12).double()
    return float(nodes.weights @ (largest.gather(1, nodes.targets[:, None])[:, 0] / largest.sum(1)))


def _binary_accuracy(mixture: Mixture) -> float:
    """sum_b p_b Phi(margin_b/sd), margin and sd of the difference of the two logits."""
    contrast = torch.tensor([1.0, -1.0], dtype=torch.float64)
    sd = (contrast @ mixture.gram[:2, :2] @ contrast / mixture.snr).clamp(min=0).sqrt()
    margin = contrast @ mixture.gram[:2, 2:] + contrast @ mixture.bias
    signed = margin * contrast[mixture.class_of]
    score = torch.where(signed == 0, 0.0, signed / sd)
    return float(mixture.proportions @ torch.special.ndtr(score))


def _steps(duration: float, dt: float, c_delta: float, batch_size: int, ridge: float) -> int:
    call = "effective_dynamics"
    if not (0 < dt <= duration < math.inf):
        raise ValueError(f"{call}: needs 0 < dt <= duration, got dt={dt}, duration={duration}")
    if not 0 <= c_delta < math.inf or batch_size < 1 or not 0 <= ridge < math.inf:
        raise ValueError(
            f"{call}: needs c_delta >= 0, batch_size >= 1 and ridge >= 0, got c_delta={c_delta}, "
            f"batch_size={batch_size}, ridge={ridge}; c_delta is learning rate times dimension"
        )
    return 2 * math.ceil(duration / dt / 2)


def effective_dynamics(
    gram: Tensor,
    proportions: Sequence[float] | Tensor,
    snr: float,
    *,
    duration: float,
    c_delta: float = 0.0,
    batch_size: int = 1,
    ridge: float = 0.0,
    dt: float = 0.05,
    class_of: Sequence[int] | Tensor | None = None,
    every: int = 1,
) -> EffectiveDynamics:
    """Integrates the summary-statistic ODE by the classical Runge-Kutta method.

    Args:
        gram: G [q, q] of (x, mu) at time zero; the block of the means does not move.
        proportions: p [k].
        snr: lambda.
        duration: Final time, learning rate times number of steps.
        c_delta: Learning rate times dimension; 0 is gradient flow on the expected loss.
        batch_size: b.
        ridge: rho, weight decay.
        dt: Time step; rounded down so that an even number of steps ends at `duration`.
        class_of: Class of each component.
        every: Record every so many steps (the last is always recorded).

    Reference: benarous2022high, benarous2025local
    """
    mixture = make_mixture(gram, proportions, snr, class_of=class_of, call="effective_dynamics")
    steps = _steps(duration, dt, c_delta, batch_size, ridge)
    rule = gaussian_rule(mixture.classes - 1, coarsen=_ODE_COARSENING)
    flow = _Flow(mixture, rule, c_delta / batch_size, ridge)
    grams = _integrate(flow, steps, duration / steps)
    coarse_rule = gaussian_rule(mixture.classes - 1, coarsen=1.5 * _ODE_COARSENING, seed=1)
    check = _integrate(flow._replace(rule=coarse_rule), steps // 2, 2 * duration / steps)
    error = float((check[-1] - grams[-1]).abs().max() / grams[-1].abs().max())
    kept = sorted({*range(0, steps + 1, every), steps})
    settings = [replace(mixture, gram=grams[i]) for i in kept]
    return EffectiveDynamics(
        times=torch.tensor(kept, dtype=torch.float64) * duration / steps,
        grams=grams[kept],
        loss=torch.tensor([expected_loss(setting) for setting in settings], dtype=torch.float64),
        accuracy=torch.tensor([expected_accuracy(setting) for setting in settings], dtype=torch.float64),
        mixture=mixture,
        error=error,
    )
