"""Weights of softmax regression at the nodes of a mixture: one diagonal block, or the full matrix.

Index legend: a block; U [C, C - 1] the gauge basis; pi probabilities; r = pi - onehot.

    block, Hessian      pi_a (1 - pi_a)             full, Hessian      U^T (diag pi - pi pi^T) U  (= GGN =
    model Fisher) block, information  r_a^2                       full, information  U^T r r^T U
    (empirical Fisher)

Full weights are returned as factors V [N, C - 1, s] with W = V V^T; s = C for the Hessian, 1 for the
information.
"""

import torch
from torch import Tensor

from fisheropt.theory.mixture_nodes import Nodes, gauge_basis


def hessian_block(nodes: Nodes, block: int) -> Tensor:
    """pi_a (1 - pi_a), [N]; 1 - pi_a is summed over the other classes."""
    probabilities = nodes.probabilities
    others = [c for c in range(probabilities.shape[1]) if c != block]
    return probabilities[:, block] * probabilities[:, others].sum(1)


def information_block(nodes: Nodes, block: int) -> Tensor:
    """(1{c(b) = a} - pi_a)^2, [N]."""
    return nodes.residuals[:, block].square()


def hessian_factors(nodes: Nodes) -> Tensor:
    """U^T B [N, C - 1, C] with B = diag(sqrt pi) - pi sqrt(pi)^T, as diag pi - pi pi^T = B B^T."""
    probabilities = nodes.probabilities
    roots = probabilities.sqrt()
    factor = torch.diag_embed(roots) - probabilities[:, :, None] * roots[:, None, :]
    return gauge_basis(probabilities.shape[1]).T @ factor


def information_factors(nodes: Nodes) -> Tensor:
    """U^T r, [N, C - 1, 1]."""
    residuals = nodes.residuals
    return (residuals @ gauge_basis(residuals.shape[1]))[:, :, None]
