"""A batch-size controller beside any torch optimizer.

    steering = BatchSteering(model, optimizer, sampler=sampler, controller="norm_test")

The loop stays as it is: hooks on `optimizer.step` read the noise, set the sampler, and shorten the step where the batch
cannot grow.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, final

from torch import nn
from torch.optim.optimizer import Optimizer

from fisheropt.control import AdaptiveBatchSampler, Controller, resolve
from fisheropt.optim.adaptive_batch import AdaptiveBatchSGD
from fisheropt.optim.amp import LossScale, calling_scale, loss_scale
from fisheropt.optim.group import number
from fisheropt.optim.report import Report


@final
class BatchSteering:
    """Steers the batch size of an optimizer that is not ours, from the noise of the plain gradient.

    The noise is measured in the Euclidean metric, P = I, whatever the optimizer makes of the gradient.

    Args:
        model: whose samples are seen one by one in its ordinary backward.
        optimizer: that trains it; the learning rate of all its groups is scaled during a step, and put back.
        sampler: whose `batch_size` is set; give the same object to DataLoader(batch_sampler=...).
        controller: as of AdaptiveBatchSGD.
        budget: N, the samples planned in all; for controllers that look ahead.
        advise: log what the controller would do, and do nothing.
        every: steps between measurements; "auto" takes the first ten, and then as few as `overhead` asks, at most each tenth.
        overhead: the share of a step that measuring is expected to cost, by the work model.

    Raises:
        ValueError: for a controller that needs what is not given, or a sampler that yields batches in parts.

    Reference: mccandlish2018empirical
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        sampler: AdaptiveBatchSampler | None = None,
        controller: Controller | str = "auto",
        budget: int | None = None,
        advise: bool = False,
        every: int | Literal["auto"] = "auto",
        overhead: float = 0.05,
    ) -> None:
        if isinstance(optimizer, AdaptiveBatchSGD):
            raise ValueError(
                "BatchSteering(model, optimizer) beside AdaptiveBatchSGD would steer twice; leave BatchSteering out"
            )
        if sampler is not None and sampler.device_batch_size is not None:
            raise ValueError(
                "BatchSteering(sampler=...) cannot hold a step of another optimizer back until all parts of a batch were "
                "seen; leave device_batch_size out, or write AdaptiveBatchSGD(model, sampler=sampler)"
            )
        given = None if controller == "auto" else resolve(controller)
        if given is not None and given.needs & {"loss", "drift"}:
            raise ValueError(
                f"BatchSteering(controller={given.name!r}) asks for the loss or the step itself, which another optimizer "
                f"does not show; write AdaptiveBatchSGD(model, controller={given.name!r})"
            )
        self._optimizer = optimizer
        self._watch = AdaptiveBatchSGD(
            model,
            lr=1.0,
            sampler=sampler,
            controller=controller,
            budget=budget,
            advise=advise,
            every=every,
            overhead=overhead,
        )
        self._handles = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]
        self._held: list[Any] = []

    def report(self) -> Report:
        """What the noise says, and what the controller did."""
        return replace(self._watch.report(), optimizer=f"BatchSteering({type(self._optimizer).__name__})")

    def state_dict(self) -> dict[str, Any]:
        """What was measured and decided, for a checkpoint; beside that of the optimizer and of the sampler."""
        return self._watch.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on as the run that was saved.

        Args:
            state_dict: of `state_dict`.
        """
        self._watch.load_state_dict(state_dict)

    def remove(self) -> None:
        """Take all hooks off the model and the optimizer."""
        for handle in self._handles:
            handle.remove()
        self._watch.remove()

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Read the noise of this step's gradient, ask the controller, and scale the learning rate."""
        given = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if given is not None:
            raise RuntimeError(
                f"BatchSteering reads the gradient before optimizer.step, and {type(optimizer).__name__}.step(closure) makes "
                f"it within; write loss.backward(); optimizer.step()"
            )
        first = optimizer.param_groups[0]
        for group in self._watch.param_groups:
            group["lr"], group["momentum"] = number(first["lr"]), float(first.get("momentum", 0.0))
            group["weight_decay"] = _coupled_decay(first)
            group["dampening"] = float(first.get("dampening", 0.0))
        self._restore(optimizer)  # where the last step has raised
        self._watch.watch(_scale_of(optimizer))
        share = self._watch.param_groups[0]["share"]
        self._held = [group["lr"] for group in optimizer.param_groups]
        if share != 1:
            for group in optimizer.param_groups:
                group["lr"] = group["lr"] * share

    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._restore(optimizer)

    def _restore(self, optimizer: Optimizer) -> None:
        for group, lr in zip(optimizer.param_groups, self._held, strict=False):
            group["lr"] = lr
        self._held = []


def _coupled_decay(group: dict[str, Any]) -> float:
    """λ where it is added to the gradient; 0 where weights decay beside it, as AdamW's do."""
    decoupled = group.get("decoupled_weight_decay", "betas" in group)
    return 0.0 if decoupled else float(group.get("weight_decay", 0.0))


def _scale_of(optimizer: Optimizer) -> LossScale:
    """The loss scale: an optimizer that knows no scaler finds its gradients unscaled already, the statistics are not."""
    scale = loss_scale(vars(optimizer))
    return scale if scale.of_statistics is not None else LossScale(None, calling_scale(), scale.overflow)
