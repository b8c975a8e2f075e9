"""Dense answers for the structures that keep parameters apart."""

import torch
from torch import nn

from tests.oracle import per_sample_gradients


def matrices(case):
    """Per-sample gradients as matrices, the first axis by all others: {name: [n, o, i]}."""
    found = per_sample_gradients(case)
    return {name: g.reshape(len(g), g.shape[1] if g.ndim > 1 else 1, -1) for name, g in found.items()}


def variances(case, left=None, right=None):
    """The variance of each coordinate of UₗᵀhUᵣ by parameter, from the dense gradients."""
    turned = {}
    for name, h in matrices(case).items():
        h = h if not left or left.get(name) is None else left[name].T @ h
        turned[name] = h if not right or right.get(name) is None else h @ right[name]
    return {name: h.var(0) for name, h in turned.items()}


def vector(model):
    return nn.utils.parameters_to_vector(model.parameters()).detach().clone()


def step(case, optimizer):
    case.loss().backward()
    optimizer.step()
    optimizer.zero_grad()


def partial_traces(h):
    """The partial traces of the covariance of matrices [n, o, i]."""
    centred = h - h.mean(0)
    count = len(h) - 1
    return torch.einsum("noi,npi->op", centred, centred) / count, torch.einsum("noi,noj->ij", centred, centred) / count
