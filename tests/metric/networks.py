"""Small networks, their dense Fisher matrices from the definition, and metrics of them."""

import torch
from torch import nn
from torch.nn import functional as F

import fisheropt
from tests.products.test_products import jacobian

CORES = {
    "bernoulli": lambda z: torch.diag_embed(z.sigmoid() * (1 - z.sigmoid())),
    "categorical": lambda z: torch.diag_embed(z.softmax(-1)) - z.softmax(-1)[..., None] * z.softmax(-1)[..., None, :],
    "gaussian": lambda z: torch.eye(z.shape[-1]).double().expand(*z.shape, -1),
    "multilabel": lambda z: torch.diag_embed(z.sigmoid() * (1 - z.sigmoid())),
    "poisson": lambda z: torch.diag_embed(z.exp()),
}
"""I(z) of every head, from its definition."""


def network(classes=3, hidden=5, seed=1):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, hidden), nn.Tanh(), nn.Linear(hidden, classes)).double()


def points(count=9, classes=3, seed=2):
    torch.manual_seed(seed)
    return torch.randn(count, 4).double(), torch.randint(0, classes, (count,))


def trained(model, x, y, steps=300):
    """Fitted to its labels, so that most probabilities are near 0 and 1."""
    opt = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(steps):
        F.cross_entropy(model(x), y).backward()
        opt.step(), opt.zero_grad()
    return model


def dense(model, x, core, weights=None):
    """Σ_x w_x J ᵀ core(z_x) J, [P, P]."""
    rows = jacobian(model, x)
    w = torch.ones(len(x)).double() if weights is None else weights
    return torch.einsum("n,nap,nab,nbq->pq", w, rows, core(model(x).detach()), rows)


def metric(model, variant="hutchinson", likelihood="categorical", reduction="sum", **settings):
    return fisheropt.FisherMetric(model, likelihood, variant, reduction=reduction, **settings)


def flat(values):
    return torch.cat([v.flatten() for v in values.values()])
