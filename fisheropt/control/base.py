"""What every batch-size controller is: a deterministic map of (state, reading, moment) to a proposal.

Legend: A = ||grad L||_P^2, V = tr(PG) a sample, d = V^2/tr((PG)^2), b batch size, eta step size, N samples planned.
"""

import abc
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from torch import Tensor

LARGEST = 1e100
State = dict[str, Any]
"""Floats, and where a rule needs a short history lists of floats of bounded length; with the same keys at every step."""


class Sketches(Protocol):
    """Sketches of the gradients P^{1/2} g of past steps: <u, w> of two of them estimates <g, P g'>."""

    @property
    def steps(self) -> int:
        """How many steps back it reaches, the present one included."""
        ...

    def mean(self, latest: int, steps: int) -> Tensor:
        """The mean sketch [m] of `steps` consecutive steps, of which the newest lies `latest` steps back."""
        ...

    def last(self, steps: int) -> Tensor:
        """The sketches [steps, m] of the last steps, oldest first."""
        ...


@dataclass(frozen=True)
class GradientNoise:
    """One measurement of signal and noise of the gradient in the metric P, at the parameters before the step.

    Args:
        signal: unbiased estimate of A = ||grad L||_P^2; negative where noise wins.
        noise: unbiased estimate of V = tr(PG), the variance of one sample's gradient.
        participation: d = V^2/tr((PG)^2), the number of directions that share the noise; nan if unknown.
        batch_size: samples in the measurement, which is what its error depends on.
    """

    signal: float
    noise: float
    participation: float
    batch_size: int

    @property
    def usable(self) -> bool:
        """Whether it says anything: numbers, some noise, and their squares within the range of a float."""
        return abs(self.signal) < LARGEST and 1.0 / LARGEST < self.noise < LARGEST


@dataclass(frozen=True)
class Moment:
    """The step at which a controller is asked.

    Args:
        lr: eta of that step before any factor of the controller's, theta <- theta - eta P g (with momentum m: lr/(1 - m)).
        batch_size: b of that step.
        samples: samples seen, this batch included.
        bounds: smallest and largest batch size.
        budget: N, samples planned in all; None where nobody said.
        loss: the minibatch loss of that step; nan where the optimizer was not given it.
        drift: <theta, P g> - (eta/2) ||P g||^2 of that step, which SASA+ tests; nan where it was not measured.
        sketches: of the gradients up to this one; None where the controller does not ask for them.
        in_use: batch size that the loader goes on with, where this batch was shorter, as at the end of an epoch.
        data_size: n of a loader that shuffles n samples and uses each once an epoch; None for independent samples.
    """

    lr: float
    batch_size: float
    samples: int
    bounds: tuple[float, float]
    budget: int | None = None
    loss: float = float("nan")
    drift: float = float("nan")
    sketches: Sketches | None = None
    in_use: float | None = None
    data_size: int | None = None

    def stay(self) -> float:
        """The batch size in use, within the bounds."""
        return self.clip(self.batch_size if self.in_use is None else self.in_use)

    def clip(self, size: float) -> float:
        """The batch size within the bounds that is nearest."""
        return min(max(size, self.bounds[0]), self.bounds[1])


@dataclass(frozen=True)
class Proposal:
    """What a controller wants for the next step.

    Args:
        batch_size: real-valued, within the bounds.
        state: the controller's own, for the next call.
        lr_factor: by which the step size is multiplied at that batch size; 1 for rules that steer by the batch alone.
        why: a few words for the report, such as "noise outweighs signal 3 to 1"; empty where nothing changed.
    """

    batch_size: float
    state: State = field(default_factory=dict)
    lr_factor: float = 1.0
    why: str = ""


class Controller(abc.ABC):
    """Proposes batch sizes, or step sizes, or both. Subclasses are frozen dataclasses of hyper-parameters, one a file.

    A controller holds no history: that is in `state`, plain numbers, so that it can live in a parameter group
    and is saved with the optimizer.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()
    """What it wants to be given beside the reading: of "budget", "loss", "drift", "sketches", "participation"."""
    planned: ClassVar[bool] = False
    """Whether its sizes are a plan, to be taken as they are, and no estimates that fluctuate."""

    @property
    def newton(self) -> bool:
        """Whether its rule is for steps eta < 1 in a metric P near H^-1, and for no others."""
        return False

    def kept(self, lr: float, wanted: float, actual: float) -> float:
        """What a batch of `actual` samples keeps of the step that was meant for `wanted`; here, at equal temperature.

        Args:
            lr: eta of the step.
            wanted: b*, proposed before.
            actual: b of the batch at hand, such as the short one at the end of an epoch.
        """
        return min(1.0, actual / wanted)

    @abc.abstractmethod
    def initial_state(self) -> State:
        """State before the first reading."""

    @abc.abstractmethod
    def propose(self, state: State, reading: GradientNoise | None, moment: Moment) -> Proposal:
        """The size of the next batch and the factor of its step size.

        Args:
            state: from `initial_state` or the last proposal; not changed.
            reading: of the gradient with which the present step is made; None where it was not measured.
            moment: that step.
        """
