"""What the hooks of one sample tap share: the leaves that it reads, and the sink of each forward."""

from __future__ import annotations

from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from fisheropt.directions import Directions
from fisheropt.statistics import ParameterStatistic
from fisheropt.taps.collector import Collector
from fisheropt.taps.gather import Gathering
from fisheropt.taps.scores import Waiting
from fisheropt.taps.sink import Fold

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
        self.compiled = False
        self.leaves = leaves
        self.sums = sums
        self.counts = counts
        self.samples: int | None = None
        self.inputs: tuple[Tensor, ...] = ()
        self.called: tuple[str, ...] = ()
        self.tied: frozenset[str] = frozenset()
        self.sizes: dict[str, Tensor] = {}
        self.calls: Calls | None = None
        self.last_calls: Calls | None = None
        self.carrier: Carrier | None = None
        self.last: Carrier | None = None
        self.information: list[Information] = []
        self.parallel = False
        self.seed = 0

    def __getstate__(self) -> dict[str, Any]:
        """A copy is off until its own tap or optimizer switches it on: nobody would clear what a copied model collects."""
        passing: dict[str, Any] = {
            "samples": None,
            "inputs": (),
            "called": (),
            "carrier": None,
            "last": None,
            "calls": None,
            "last_calls": None,
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

    def shared(self) -> Carrier | None:
        """The sink that all layers share: of the running forward, or of the last one while checkpointing repeats it."""
        if self.carrier is None and not torch.compiler.is_compiling() and _repeated():
            return self.last
        return self.carrier

    def gathering(self) -> Calls | None:
        """Where the calls of a statistic of each parameter by itself come together; None where they cannot.

        A compiled graph keeps no Python objects from layer to layer, and a reentrant checkpoint runs backwards of its own.
        """
        if torch.compiler.is_compiling():
            return None
        return self.last_calls if self.calls is None and _repeated() else self.calls

    def drop_gradients(self) -> None:
        """Forget what backward has left."""
        for leaf in (*self.leaves.values(), *self.sums.values(), *self.counts.values(), *self.sizes.values()):
            leaf.grad = None
        self.information = []
        self.clearings += 1
        if self.scores is not None:
            self.scores = self.scores.blank()


@final
class Passage:
    """What the backward of one forward meets at its fold.

    Attributes:
        waiting: the forms of the layers until then; None for a statistic without a response.
        information: what the likelihood's backward of this forward has read. It joins the channel's when the loss's
            backward comes by, so that a forward whose loss is never differentiated does not count, nor stay in memory.
    """

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.waiting = None if channel.scores is None else Waiting()
        self.information: Information | None = None
        self._passed = -1

    def fold(self, z: Tensor) -> None:
        """Count the backward, and turn the waiting forms into responses, now that their coordinates are complete."""
        channel = self.channel
        if not channel.measuring:
            self.differentiate()
        if self.waiting is None:
            return
        assert channel.scores is not None
        with torch.autocast(z.device.type, enabled=False):
            channel.scores.add(self.waiting.take(), z, channel.respond)

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


@final
class Carrier:
    """The sink [n, k] of one forward, which all its layers share; a compiled forward has no passage."""

    def __init__(self, channel: Channel, samples: int) -> None:
        self.passage = None if torch.compiler.is_compiling() else Passage(channel)
        self.waiting = None if self.passage is None else self.passage.waiting
        self.sink: Tensor = Fold.apply(channel.leaves[JOINT], samples, self.passage)  # type: ignore[no-untyped-call]


@final
class Calls:
    """What collects the calls of each parameter in one forward."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.of: dict[str, Gathering] = {}

    def gathering(self, name: str, statistic: ParameterStatistic) -> Gathering:
        """That of a named parameter, opened at its first call, so that it closes as soon as backward has passed all."""
        if name not in self.of:
            channel, made = self.channel, Gathering(statistic, Passage(self.channel))
            made.open(channel.leaves[name], channel.sums[name], channel.sizes[name])
            self.of[name] = made
        return self.of[name]


def _repeated() -> bool:
    """Whether a non-reentrant checkpoint runs its forward again, whose graph is not the one that backward follows.

    A reentrant one runs a backward of its own, which would fold the coordinates of its part of the model alone.
    """
    in_backward: bool = torch._C._current_graph_task_id() != -1
    return in_backward and torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
