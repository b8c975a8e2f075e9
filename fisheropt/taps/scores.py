"""What the response of tracked directions needs of a backward: forms that wait until the coordinates are complete.

A layer's share of zₙₖ = ⟨hₙ, v_k⟩ is known when its own backward runs, their sum over layers only at the end. So every layer
leaves its forms (activations and output gradients, which backward holds anyway) and the fold turns them into
Σₙ zₙₖ hₙ: one weight gradient a direction, and no hₙ.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from fisheropt.persample import PerSample, joined
from fisheropt.taps.collector import Collector


@final
class Scores(Collector):
    """Sums over the samples of some backwards, additive over them.

    Attributes:
        responses: per parameter Σₙ hₙ zₙᵀ and, as the last row, Σₙ hₙ: [k+1, *parameter]; [1, *parameter] of a backward
            whose responses are not asked for.
        coordinates: z of each backward, [n, k].
        squared_norms: ‖hₙ‖² over all parameters, [n].
    """

    def __init__(self) -> None:
        self.responses: dict[str, Tensor] = {}
        self.coordinates: list[Tensor] = []
        self.squared_norms: list[Tensor] = []

    def blank(self) -> Scores:
        return Scores()

    def add(self, forms: dict[str, PerSample], z: Tensor, respond: bool) -> None:
        ones = z.new_ones(z.shape[0], 1)
        weights = torch.cat([z, ones], 1) if respond else ones
        norms = z.new_zeros(z.shape[0])
        for name, form in forms.items():
            response = form.combine(weights)
            held = self.responses.get(name)
            self.responses[name] = response if held is None else held + response
            norms += form.squared_norms()
        self.coordinates.append(z)
        self.squared_norms.append(norms)

    def over(self, parameters: dict[str, Tensor]) -> Scores:
        """The same with a response of every parameter, in their order; zero for one that no backward came through."""
        total = Scores()
        rows = max((len(response) for response in self.responses.values()), default=1)
        for name, p in parameters.items():
            held = self.responses.get(name)
            dtype = torch.promote_types(p.dtype, torch.float32)
            total.responses[name] = p.new_zeros((rows, *p.shape), dtype=dtype).detach() if held is None else held
        total.coordinates, total.squared_norms = self.coordinates, self.squared_norms
        return total

    def merge(self, other: Scores) -> Scores:
        total = Scores()
        total.responses = dict(self.responses)
        for name, response in other.responses.items():
            held = total.responses.get(name)
            total.responses[name] = response if held is None else held + response
        total.coordinates = self.coordinates + other.coordinates
        total.squared_norms = self.squared_norms + other.squared_norms
        return total


@final
class Waiting:
    """The forms of one forward's layers, until the backward that made them folds its coordinates."""

    def __init__(self) -> None:
        self._forms: dict[str, list[PerSample]] = {}
        self._task = -1

    def keep(self, name: str, form: PerSample) -> None:
        """Leave a form of a parameter; those of a backward that never came to its fold are dropped."""
        task = torch._C._current_graph_task_id()
        if task != self._task:
            self._forms, self._task = {}, task
        self._forms.setdefault(name, []).append(form)

    def take(self) -> dict[str, PerSample]:
        """The forms that the running backward has left, joined where a parameter is used several times."""
        forms = self._forms if torch._C._current_graph_task_id() == self._task else {}
        self._forms, self._task = {}, -1
        return {name: joined(held) for name, held in forms.items()}
