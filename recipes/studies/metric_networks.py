"""The networks of the Fisher-metric studies: Gaussian blobs, a ReLU MLP, and the exact rows of its Fisher matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from torch.nn import functional as F

from fisheropt.likelihoods import Categorical

FEATURES = 20
SEPARATION = {2: 0.34, 4: 0.29}
"""Standard deviation of the centres; chosen so that trained networks are as certain as the document's."""


@final
@dataclass(frozen=True)
class Case:
    """A network, the points that it is measured at, and its name.

    Attributes:
        name: "C = 4, trained".
        model: MLP 20-48-48-C in float64.
        x: points [N, 20].
        y: their classes [N].
    """

    name: str
    model: nn.Sequential
    x: Tensor
    y: Tensor

    @property
    def certainty(self) -> float:
        """Mean largest probability."""
        with torch.no_grad():
            return float(self.model(self.x).softmax(1).amax(1).mean())

    def jacobian(self) -> Tensor:
        """J [N, C, P] of the logits, parameters end to end."""
        values = {name: p.detach() for name, p in self.model.named_parameters()}

        def logits(at: dict[str, Tensor], x: Tensor) -> Tensor:
            return functional_call(self.model, at, (x[None],))[0]

        parts = vmap(jacrev(logits), in_dims=(None, 0))(values, self.x)
        return torch.cat([part.flatten(2) for part in parts.values()], 2)

    def rows(self) -> Tensor:
        """a [N C, P], Σ a aᵀ = F: J ᵀ times the columns of B."""
        with torch.no_grad():
            z = self.model(self.x)
        unit = torch.eye(z.shape[1], dtype=z.dtype)
        B = torch.stack([Categorical().factor(z, e.expand_as(z)) for e in unit], -1)
        return torch.einsum("nap,nab->nbp", self.jacobian(), B).flatten(0, 1)

    def weights(self) -> dict[str, slice]:
        """Where the three weight matrices lie among the parameters."""
        found, at = {}, 0
        for name, p in self.model.named_parameters():
            if name.endswith("weight"):
                found[name] = slice(at, at + p.numel())
            at += p.numel()
        return found


def case(classes: int, epochs: int, points: int, seed: int, hidden: int = 48) -> Case:
    """A network after some epochs of Adam 1e-3 on 1024 points, batches of 64; 0 for its initialisation."""
    generator = torch.Generator().manual_seed(seed)
    centres = SEPARATION[classes] * torch.randn(classes, FEATURES, generator=generator, dtype=torch.float64)
    y = torch.randint(0, classes, (1024,), generator=generator)
    x = centres[y] + torch.randn(1024, FEATURES, generator=generator, dtype=torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [
            nn.Linear(FEATURES, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, classes),
        ]
        model = nn.Sequential(*layers).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(epochs):
        for batch in torch.randperm(1024, generator=generator).split(64):
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
            optimizer.zero_grad()
    return Case(f"C = {classes}, {'trained' if epochs else 'at initialisation'}", model, x[:points], y[:points])
