"""The only ground truth: per-sample gradients by vmap(grad), and dense covariances of them."""

import torch
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel


def per_sample_gradients(case):
    """The gradients g of each sample's own loss, by parameter name: [n, *parameter]."""
    parameters = {name: p.detach() for name, p in case.model.named_parameters() if p.requires_grad}
    frozen = {name: p.detach() for name, p in case.model.named_parameters() if not p.requires_grad}

    def loss(values, *sample):
        def model(*inputs):
            return functional_call(case.written or case.model, values | frozen, inputs, tie_weights=True)

        return case.losses(model, *(s.unsqueeze(0) for s in sample)).squeeze(0)

    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no rule for vmap
        return vmap(grad(loss), in_dims=(None, *(0 for _ in case.batch)))(parameters, *case.batch)


def flattened(gradients):
    """All parameters end to end: [n, d]."""
    return torch.cat([g.flatten(1) for g in gradients.values()], 1)


def covariance(gradients):
    """The unbiased covariance of one sample's gradient: [d, d]."""
    return torch.cov(flattened(gradients).T).reshape(2 * (flattened(gradients).shape[1],))
