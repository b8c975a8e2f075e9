"""The inputs of one update: logits as rows, weights, and labels where a variant asks for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor

from fisheropt.likelihoods import Categorical, Likelihood


@final
@dataclass(frozen=True)
class Inputs:
    """N inputs x with C logits each; every position of a sequence that is not masked is an input.

    Attributes:
        likelihood: with the classes on the last axis.
        attached: logits [N, C], still on the graph.
        logits: the same, detached and at least float32; 0 where masked.
        roots: √w [N], 0 where masked.
        weight: Σ w.
        targets: labels, [N] classes or [N, C]; None for none.
    """

    likelihood: Likelihood
    attached: Tensor
    logits: Tensor
    roots: Tensor
    weight: float
    targets: Tensor | None

    @property
    def kept(self) -> Tensor:
        """Where an input counts, as indices."""
        return self.roots.nonzero()[:, 0]


def read(
    likelihood: Likelihood,
    logits: Tensor,
    targets: Tensor | None,
    mask: Tensor | None,
    weights: Tensor | None,
    call: str,
) -> Inputs:
    """The inputs of a user's tensors.

    Raises:
        RuntimeError: for logits without a graph.
        ValueError: for shapes that do not fit, and negative weights.
        FloatingPointError: for logits that are not finite.
    """
    _attached(logits, call)
    classes_last = _classes_last(likelihood, logits, call)
    positions = classes_last.shape[:-1]
    roots = _roots(positions, mask, weights, classes_last, call)
    rows = classes_last.reshape(-1, classes_last.shape[-1])
    wide = rows.detach().to(torch.promote_types(rows.dtype, torch.float32))
    wide = wide.masked_fill((roots == 0)[:, None], 0)
    weight = float(roots.double().square().sum())
    if not bool(wide.isfinite().all()):
        raise FloatingPointError(f"{call}: the logits are not finite; look for the overflow, or mask those inputs")
    if weight == 0:
        raise ValueError(f"{call}: no input is left; mask keeps where it is True, and weights need one above 0")
    head = replace(likelihood, dim=None) if isinstance(likelihood, Categorical) else likelihood
    labels = None if targets is None else _labels(likelihood, targets, logits, roots, call)
    return Inputs(head, rows, wide, roots.to(wide.dtype), weight, labels)


def arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The model's arguments and keywords: of a tensor, a tuple or a dict."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs), {}) if isinstance(inputs, tuple | list) else ((inputs,), {})


def _attached(logits: Tensor, call: str) -> None:
    if not isinstance(logits, Tensor):
        raise TypeError(f"{call}: needs a model that returns its logits as one tensor, not {type(logits).__name__}")
    if logits.grad_fn is None:
        raise RuntimeError(
            f"{call}: found logits that are not attached to the graph; write metric.update(logits=model(x)) outside of "
            f"torch.no_grad(), without .detach() and with a trainable parameter below them"
        )


def _classes_last(likelihood: Likelihood, logits: Tensor, call: str) -> Tensor:
    if logits.ndim == 0:
        raise ValueError(f"{call}: found a single number for logits; keep the inputs on the first axis, [n, C]")
    if not isinstance(likelihood, Categorical):
        return logits[:, None] if logits.ndim == 1 else logits
    axis = likelihood.axis(logits)
    if logits.ndim < 2 or logits.shape[axis] < 2:
        raise ValueError(
            f"{call}: likelihood='categorical' needs logits [n, C] of C >= 2 classes, found {tuple(logits.shape)}; for one "
            f"logit an input write likelihood='bernoulli'"
        )
    return logits.movedim(axis, -1)


def _roots(positions: torch.Size, mask: Tensor | None, weights: Tensor | None, logits: Tensor, call: str) -> Tensor:
    """√w of every position, in the order of the rows."""
    total = torch.ones(positions, dtype=torch.float32, device=logits.device)
    for name, given in (("mask", mask), ("weights", weights)):
        if given is None:
            continue
        if given.shape != positions:
            raise ValueError(
                f"{call}: {name} has shape {tuple(given.shape)} for inputs {tuple(positions)}; it is one number an input, "
                f"without the axis of the classes"
            )
        total = total * given.to(total.device, total.dtype)
    if not bool((total >= 0).all()) or bool(total.isinf().any()):
        raise ValueError(f"{call}: weights must be finite and at least 0; write weights.clamp(min=0)")
    return total.sqrt().flatten()


def _labels(likelihood: Likelihood, targets: Tensor, logits: Tensor, roots: Tensor, call: str) -> Tensor:
    if not isinstance(likelihood, Categorical):
        if targets.shape != logits.shape:
            raise ValueError(
                f"{call}: the model returns {tuple(logits.shape)} for targets {tuple(targets.shape)}; give both one shape"
            )
        flat = (targets[:, None] if targets.ndim == 1 else targets).reshape(len(roots), -1)
        return flat.masked_fill((roots == 0)[:, None], 0)
    if targets.numel() != len(roots) or targets.is_floating_point():
        raise ValueError(
            f"{call}: found targets {targets.dtype} {tuple(targets.shape)} for logits {tuple(logits.shape)}; write the "
            f"classes as integers, without their axis"
        )
    return targets.reshape(-1).masked_fill(roots == 0, 0)
