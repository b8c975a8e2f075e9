"""A learning-rate scheduler of torch that counts samples, so that it does not run ahead of batches that change."""

from typing import Any, Protocol, final

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fisheropt.control.schedule import Schedule, check, factor_at


class Counts(Protocol):
    """What knows how many samples were seen: an AdaptiveBatchSampler."""

    @property
    def samples_seen(self) -> int:
        """Over all ranks and epochs."""
        ...


@final
class SampleLR(LRScheduler):
    """eta = eta_0 f(n/N): the same step size at the same sample n, whatever the batch sizes on the way.

    For any optimizer of torch. `step()` after each `optimizer.step()`, as ever. A controller that sets the step
    size by the budget, such as LinearDecay, takes the place of a scheduler and is not to be combined with one.

    Args:
        optimizer: whose groups' "lr" is set.
        schedule: f, "linear", "cosine", or a function of the part of the budget that is spent, in [0, 1].
        budget: N, samples planned in all; beyond it f(1) holds.
        sampler: that counts the samples; with DataLoader workers let it count by `commit()`, as it otherwise
            counts what was fetched ahead too. None where `step(samples)` is told the size of each batch.
    """

    def __init__(self, optimizer: Optimizer, schedule: Schedule, budget: int, sampler: Counts | None = None) -> None:
        check("SampleLR", schedule)
        if not budget > 0:
            raise ValueError(f"SampleLR(budget={budget}): the samples planned in all; write budget=epochs * len(data).")
        self.schedule, self.budget, self.sampler = schedule, budget, sampler
        self.samples, self._begun = 0, False
        super().__init__(optimizer)
        self._begun = True

    def step(self, samples: int | None = None) -> None:
        """Set the learning rate of the step that begins after the samples seen by now.

        Args:
            samples: in the batch of the last step, over all ranks; None with a sampler.
        """
        if self.sampler is not None and samples is None:
            self.samples = self.sampler.samples_seen
        elif self.sampler is None and (samples is not None or not self._begun):
            self.samples += samples or 0
        else:
            raise ValueError(
                f"SampleLR.step({samples}): {'no' if self.sampler is None else 'a'} sampler counts the samples; write "
                + ("step(len(x)), or SampleLR(..., sampler=sampler)." if self.sampler is None else "step().")
            )
        super().step()

    def get_lr(self) -> list[float | Tensor]:
        """eta_0 f of every group."""
        factor = factor_at(self.schedule, min(self.samples / self.budget, 1.0))
        return [lr * factor for lr in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """Numbers only: the schedule and the sampler are given anew, and the sampler is saved by itself."""
        return {key: value for key, value in super().state_dict().items() if key not in ("schedule", "sampler")}
