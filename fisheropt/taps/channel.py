"""What the hooks of one sample tap share: the leaves that it reads, and the sink of each forward."""

from __future__ import annotations

from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from fisheropt.directions import Directions
from fisheropt.taps.collector import Collector
from fisheropt.taps.forward import Forward
from fisheropt.taps.shapes import Call

JOINT = ""
"""The name of the leaf that a joint statistic of all parameters has."""


class Information(NamedTuple):
    """What the likelihood's backward of one forward has read: the folded coordinates and, where asked for, the scores."""

    augmented: Tensor
    scores: Collector | None

    def plus(self, other: Information) -> Information:
        """Over the samples of both."""
        scores = None if self.scores is None or other.scores is None else self.scores.merge(other.scores)
        return Information(self.augmented + other.augmented, scores)


@final
class Channel:
    """What the hooks of one tap share. It holds leaves only, so it is copied and pickled with the model.

    Args:
        leaves: whose gradients are the readings.
        sums: whose gradients are Σₙ hₙ.
        counts: whose gradients are numbers of samples.
        directions: of a joint statistic, in each parameter.
        scores: where the response of the directions is collected; None for other statistics.

    Attributes:
        shapes: of the layers' calls in the last forward that was observed.
        ways: the contraction that is asked for, by parameter; the cheapest for all others.
        by_token: whether one observation is a position of the second axis, of which there are `tokens`.
        watching: whether layers count the observations at which they have a gradient.
    """

    def __init__(
        self,
        leaves: dict[str, Tensor],
        sums: dict[str, Tensor],
        counts: dict[str, Tensor],
        directions: dict[str, Directions],
        scores: Collector | None,
    ) -> None:
        self.on = True
        self.directions = directions
        self.scores = scores
        self.respond = True
        self.measuring = False
        self.clearings = 0
        self.passed = 0
        self.compiled = False
        self.leaves = leaves
        self.sums = sums
        self.counts = counts
        self.samples: int | None = None
        self.tokens = 1
        self.by_token = False
        self.watching = False
        self.inputs: tuple[Tensor, ...] = ()
        self.called: tuple[str, ...] = ()
        self.shapes: tuple[Call, ...] = ()
        self.ways: dict[str, str] = {}
        self.tied: frozenset[str] = frozenset()
        self.sizes: dict[str, Tensor] = {}
        self.forward: Forward | None = None
        self.gate: Tensor | None = None
        self.carrier: Tensor | None = None
        self.last: Forward | None = None
        self.information: list[Information] = []
        self.parallel = False
        self.sharded = False
        self.seed = 0

    def __getstate__(self) -> dict[str, Any]:
        """A copy is off until its own tap or optimizer switches it on: nobody would clear what a copied model collects."""
        passing: dict[str, Any] = {
            "samples": None,
            "inputs": (),
            "called": (),
            "shapes": (),
            "forward": None,
            "gate": None,
            "carrier": None,
            "last": None,
            "information": [],
            "on": False,
        }
        return vars(self) | passing

    def observing(self) -> bool:
        """Whether a forward now leads to a backward that is to be read; torch.func has gradients of its own."""
        if not self.on or not torch.is_grad_enabled():
            return False
        return torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active()

    def given(self, x: Tensor) -> bool:
        """Whether a row of indices is one of each sample: an input of the model, a column of one, or all that there is."""
        if all(given.ndim == 1 for given in self.inputs):
            return True
        if torch.compiler.is_compiling():  # where no storage can be looked at
            return any(x is given for given in self.inputs)
        place = x.untyped_storage().data_ptr()
        return any(
            given.untyped_storage().data_ptr() == place and given.stride(0) == x.stride(0) for given in self.inputs
        )

    def current(self) -> tuple[Forward, Tensor] | None:
        """What the layers leave their gradients with, and the gate they take.

        Of the running forward, or of the last one while checkpointing repeats it. None in a compiled graph, which
        keeps no Python objects from layer to layer, and in a reentrant checkpoint, which runs backwards of its own.
        """
        if torch.compiler.is_compiling():
            return None
        if self.forward is not None and self.gate is not None:
            return self.forward, self.gate
        if self.last is None or not _repeated():
            return None
        return self.last, next(iter(self.counts.values()))  # no backward follows this graph

    def drop_gradients(self) -> None:
        """Forget what backward has left."""
        for leaf in (*self.leaves.values(), *self.sums.values(), *self.counts.values(), *self.sizes.values()):
            leaf.grad = None
        self.information = []
        self.clearings += 1
        self.passed = 0
        if self.scores is not None:
            self.scores = self.scores.blank()


@final
class Passage:
    """What the backward of one forward counts as.

    Attributes:
        information: what the likelihood's backward of this forward has read. It joins the channel's when the loss's
            backward comes by, so that a forward whose loss is never differentiated does not count, nor stay in memory.
    """

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.information: Information | None = None
        self._passed = -1

    def differentiate(self) -> None:
        """Refuse a second backward: the coordinates of a sample must be summed over all losses before they are squared."""
        if self._passed == self.channel.clearings:
            raise RuntimeError(_TWICE)
        self._passed = self.channel.clearings
        if self.information is not None:
            self.channel.information.append(self.information)


_TWICE = (
    "a second backward() went through one forward of the model: its samples would count twice, and the cross terms of the "
    "two losses be lost. Add the losses and run one backward, (first + second).backward(); or write optimizer.zero_grad(), "
    "of a tap tap.clear(), between them, if only the last is to count"
)


def _repeated() -> bool:
    """Whether a non-reentrant checkpoint runs its forward again, whose graph is not the one that backward follows.

    A reentrant one runs a backward of its own, which would fold the coordinates of its part of the model alone.
    """
    in_backward: bool = torch._C._current_graph_task_id() != -1
    return in_backward and torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
