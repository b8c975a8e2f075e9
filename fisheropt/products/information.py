"""The model Fisher along a few directions, as a function of the parameters that can itself be differentiated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import jvp, vjp

from fisheropt.likelihoods import Likelihood, resolve
from fisheropt.products.forward import Forward, Values, exact


def information(
    model: nn.Module, likelihood: Likelihood | str, inputs: Any, directions: Mapping[str, Tensor]
) -> Tensor:
    """VᵀFV of the model Fisher F over one batch: mean over x of (J_x V)ᵀ I(z_x) (J_x V), I = BBᵀ of the likelihood.

    One jvp of the logits a direction, and no per-sample gradients. Autograd differentiates the result with respect to the
    model's own parameters; the gradient of an eigenvalue is that of uᵀVᵀFVu with u held fixed.

    Args:
        model: returns logits [n, ...]; in eval mode where it has BatchNorm or dropout.
        likelihood: of the logits, also by name.
        inputs: of one batch: a tensor [n, ...], a tuple of arguments or a dict of keywords.
        directions: V by parameter name, [k, *parameter] each; parameters left out are not moved.

    Returns:
        [k, k] in float64, as rounding of sums in float32 would look like information. Not checked for finiteness, which
        would make the host wait.

    Raises:
        ValueError: for names or shapes that the model does not have.
        RuntimeError: for BatchNorm in train mode and for active dropout.

    Reference: huang2025spectral
    """
    head = resolve(likelihood)
    if head is None:
        raise ValueError("information(model, likelihood, ...) found likelihood=None; write likelihood='categorical'")
    forward = Forward(model, tuple(directions), "information(model, likelihood, inputs, directions)")
    values: Values = {name: model.get_parameter(name) for name in directions}
    along = _checked(values, directions)

    def root(direction: Values) -> Tensor:
        logits, tangent = jvp(lambda at: forward.logits(at, inputs), (values,), (direction,))[:2]
        return information_root(head, logits, tangent)

    with exact(next(iter(along.values())).device.type):
        roots = forward.columns(root, along)
        flat = roots.flatten(1)
        return flat @ flat.T / roots.shape[1]


def information_root(likelihood: Likelihood, logits: Tensor, tangent: Tensor) -> Tensor:
    """Bᵀt, the transpose of the likelihood's factor: |Bᵀt|² = tᵀ I(z) t; shaped like the logits."""
    z, t = logits.double(), tangent.double()
    _, transpose = vjp(lambda signs: likelihood.factor(z, signs), torch.zeros_like(z))[:2]
    return transpose(t)[0]


def information_times(likelihood: Likelihood, logits: Tensor, tangent: Tensor) -> Tensor:
    """I(z)t = B(Bᵀt), shaped and typed like the logits."""
    root = information_root(likelihood, logits, tangent)
    return likelihood.factor(logits.to(root.dtype), root).to(logits.dtype)


def _checked(values: Values, directions: Mapping[str, Tensor]) -> Values:
    """The directions in the precision of their parameters, k of each."""
    call = "information(model, likelihood, inputs, directions)"
    counts = {len(v) if v.ndim else 0 for v in directions.values()}
    if len(counts) != 1 or 0 in counts or len({id(p) for p in values.values()}) < len(values):
        raise ValueError(
            f"{call}: needs the same number k >= 1 of directions in each parameter, and each tensor under one name; "
            f"found {[(name, tuple(v.shape)) for name, v in directions.items()]}"
        )
    for name, vector in directions.items():
        if vector.shape[1:] != values[name].shape:
            raise ValueError(
                f"{call}: directions[{name!r}] has shape {tuple(vector.shape)}; write [k, "
                f"{', '.join(map(str, values[name].shape))}], k directions of the parameter"
            )
    return {name: v.to(values[name].device, values[name].dtype) for name, v in directions.items()}
