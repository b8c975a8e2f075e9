"""Raising the smallest eigenvalue: a soft minimum to differentiate, an anchor that adds what is missing."""

import torch
from torch import Tensor

from fisheropt.theory.arguments import checked_positive


def soft_minimum(matrix: Tensor, sharpness: float) -> Tensor:
    """-(1/kappa) ln tr exp(-kappa Gamma), in [lambda_min - ln(k)/kappa, lambda_min]; smooth at ties.

    Its gradient with respect to Gamma is a density matrix, positive and of trace one; at a simple lowest
    eigenvalue and large kappa it is v v^T, so that the gradient of the floor is that of v^T Gamma v with v
    held fixed.

    Args:
        matrix: Gamma, symmetric [k, k].
        sharpness: kappa.
    """
    kappa = checked_positive(sharpness, "sharpness", "soft_minimum")
    values = torch.linalg.eigvalsh(matrix.to(torch.float64))
    return -torch.logsumexp(-kappa * values, 0) / kappa


def anchor_strengths(eigenvalues: Tensor, tau: float) -> Tensor:
    """max(0, tau - l_i) on each eigendirection.

    The quadratic prior (1/2) sum_i a_i <v_i, theta - theta_0>^2 of these strengths adds sum_i a_i v_i v_i^T
    to the curvature, so data plus anchor have a smallest eigenvalue of at least tau on the span of the v_i.
    The floor holds for that objective, not for the data.

    Args:
        eigenvalues: l [k].
        tau: The floor.
    """
    return (tau - eigenvalues).clamp(min=0)
