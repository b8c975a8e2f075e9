"""Signal and noise of a reading in the metric of the step, as a controller wants them.

    A = ‖∇L + λθ‖²_P without the noise's share,    V = tr(PG)

Weight decay is part of the objective, and so of its gradient; it has no noise.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fisheropt.control import GradientNoise
from fisheropt.optim.group import Group
from fisheropt.optim.metrics.flat import laid
from fisheropt.optim.reading import Reading
from fisheropt.taps import Tap
from fisheropt.taps.shards import dot


def gradient_noise(group: Group, reading: Reading, tap: Tap, decay: float) -> GradientNoise | None:
    """A and V of a reading, in the metric if there is one; None where one observation cannot tell them apart.

    Args:
        group: with P under "metric_inverse".
        reading: of the per-sample gradients.
        tap: that it is of.
        decay: what weight decay adds to the squared norm of the minibatch gradient, where the reading is of traces.
    """
    if reading.covariance is None:
        return None
    if reading.covariance.ndim == 0:
        noise, squared, participation = reading.covariance, reading.gradient.square() + decay, float("nan")
    else:
        gradient = _decayed(group, reading.gradient, tap)
        ready = bool(group["metric_ready"])
        inverse = group["metric_inverse"] if ready else torch.eye(len(gradient)).to(gradient)
        product = inverse @ group["covariance"]
        participation = float(product.trace() ** 2 / torch.einsum("ij,ji->", product, product))
        noise = (inverse * reading.covariance).sum()
        squared = gradient @ inverse @ gradient
    return GradientNoise(float(squared - noise / reading.count), float(noise), participation, reading.count)


def of_samples(noise: GradientNoise, samples: int) -> GradientNoise:
    """What was measured on microbatches, as if on their samples: V of one sample is m times that of m of them."""
    return replace(noise, noise=noise.noise * samples / noise.batch_size, batch_size=samples)


def decay_in_square(group: Group, gradients: list[Tensor], parameters: list[Tensor]) -> float:
    """‖g + λθ‖² - ‖g‖²."""
    weight = float(group["weight_decay"])
    if not weight:
        return 0.0
    sign = -1.0 if group["maximize"] else 1.0
    added = [weight * p.detach() for p in parameters]
    return float(dot(added, [2 * sign * g + a for g, a in zip(gradients, added, strict=True)]))


def _decayed(group: Group, gradient: Tensor, tap: Tap) -> Tensor:
    if not group["weight_decay"]:
        return gradient
    sign = -1.0 if group["maximize"] else 1.0
    watched = [p.detach() for p in tap.parameters.values()]
    return sign * gradient + group["weight_decay"] * laid(watched, watched, watched, gradient)
