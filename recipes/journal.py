"""What happens after a step: the schedule, a line of the record, a checkpoint; and how a run is restored."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from recipes import checkpoint, observe
from recipes.assemble import Parts
from recipes.record import Metrics
from recipes.trackers import Tracker

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
LINES_A_RUN = 200
EVALUATIONS_A_RUN = 50


class Diverged(FloatingPointError):
    """The loss is no longer a finite number."""


class Journal:
    """Keeps the record of one run, going on where the run's last checkpoint stands.

    Args:
        parts: what is trained and by what; brought to the checkpoint's state. Of several processes each keeps the same
            record, as evaluations may need them all, and the first writes it.
        cfg: the run's configuration.
        folder: the run's directory.
        optimum: f*, where known.
        trackers: who else gets every line.
    """

    def __init__(
        self, parts: Parts, cfg: DictConfig, folder: Path, optimum: float | None, trackers: Sequence[Tracker]
    ) -> None:
        self.step = 0
        self._parts = parts
        self._optimum = optimum
        self._trackers = trackers
        self._checkpoints = folder / CHECKPOINTS
        self._identity = checkpoint.identity(parts.problem.name, parts.optimizer, parts.problem.model, parts.samples)
        self._log_every = cfg.log_every or max(1, parts.total // LINES_A_RUN)
        self._evaluate_every = cfg.evaluate_every or max(1, parts.total // EVALUATIONS_A_RUN)
        self._checkpoint_every: int | None = cfg.checkpoint_every
        self._checkpoint_seconds: float = cfg.checkpoint_seconds
        self._loss = torch.zeros((), dtype=torch.float64)
        self._losses = 0
        self._started = False
        self._earlier = 0.0
        length = self._restore()
        self._metrics = Metrics(folder, length) if parts.parallel.first else None
        self._ticks = parts.ticks
        self._began = self._saved = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Wall-clock time of the run over all its sessions, lost work not counted."""
        return self._earlier + time.perf_counter() - self._began

    def start(self) -> None:
        """The line before the first step; a resumed run has it already."""
        if not self._started:
            self._line(evaluate=True)
            self._started = True

    def after_step(self, loss: Tensor) -> None:
        """Advance the schedule on the sample clock; write a line and a checkpoint when they are due."""
        self.step += 1
        self._loss = self._loss + loss.detach().double()
        self._losses += 1
        before, self._ticks = self._ticks, self._parts.ticks
        while self._parts.schedule.last_epoch < self._ticks:
            self._parts.schedule.step()
        last = self._parts.sampler.epoch >= self._parts.epochs
        evaluate = last or before // self._evaluate_every != self._ticks // self._evaluate_every
        if evaluate or before // self._log_every != self._ticks // self._log_every:
            self._line(evaluate=evaluate)
        if self._due():
            self.checkpoint()

    def close(self) -> None:
        """Close the record."""
        if self._metrics is not None:
            self._metrics.close()

    def checkpoint(self) -> None:
        """Save everything that the rest of the run depends on; all processes have to call it."""
        parts, parallel = self._parts, self._parts.parallel
        state = {
            "identity": self._identity,
            "model": parallel.model_state(parts.problem.model),
            "optimizer": parallel.saved(parts.optimizer.state_dict()),
            "schedule": parts.schedule.state_dict(),
            "sampler": parts.sampler.state_dict(),
            "random": parallel.gathered(checkpoint.random_states()),
            "step": self.step,
            "loss": self._loss,
            "losses": self._losses,
            "seconds": self.seconds,
        }
        if self._metrics is not None:
            state["metrics_bytes"] = self._metrics.sync()
            checkpoint.save(self._checkpoints, self.step, state)
        self._saved = time.perf_counter()

    def _restore(self) -> int:
        """Go to the newest readable checkpoint; the bytes of metrics.jsonl that were written before it."""
        parts, parallel = self._parts, self._parts.parallel
        state, notes = parallel.told(
            checkpoint.load(self._checkpoints, self._identity) if parallel.first else (None, [])
        )
        for note in notes:
            log.warning("%s", note)
        if state is None:
            return 0
        parallel.load_model(parts.problem.model, state["model"])
        parts.optimizer.load_state_dict(parallel.restored(state["optimizer"]))
        parts.schedule.load_state_dict(state["schedule"])
        parts.sampler.load_state_dict(state["sampler"])
        drawn = state["random"]
        self._go_on_drawing(drawn if isinstance(drawn, list) else [drawn])  # older runs had one process, and no list
        self.step, self._earlier, self._started = state["step"], state["seconds"], True
        self._loss, self._losses = state["loss"], state["losses"]
        log.info("resumed at step %d, epoch %.1f", self.step, parts.sampler.samples_seen / parts.samples)
        length: int = state["metrics_bytes"]
        return length

    def _go_on_drawing(self, states: Sequence[dict[str, Any]]) -> None:
        """Each process takes its own generators; with another number of them there is no such thing as going on."""
        parallel = self._parts.parallel
        if len(states) == parallel.ranks:
            checkpoint.restore_random_states(states[parallel.rank])
            return
        log.warning(
            "the checkpoint is of %d processes and this run has %d: the batches stay, sums differ by rounding, and dropout "
            "draws anew",
            len(states),
            parallel.ranks,
        )

    def _due(self) -> bool:
        if self._checkpoint_every is not None and self.step % self._checkpoint_every == 0:
            return True
        return self._parts.parallel.decided(time.perf_counter() - self._saved > self._checkpoint_seconds)

    def _line(self, *, evaluate: bool) -> None:
        line: dict[str, Any] = observe.position(self._parts, self.step)
        line["train/batch_loss"] = float(self._loss) / self._losses if self._losses else None
        if evaluate:
            line |= observe.evaluation(self._parts.problem, self._optimum)
            line |= observe.spectrum(self._parts.optimizer)
        line |= observe.noise(self._parts.optimizer)
        line["time/seconds"] = self.seconds
        self._loss, self._losses = torch.zeros_like(self._loss), 0
        if self._metrics is not None:
            self._metrics.append(line)
        self._check_finite(line)
        for tracker in self._trackers:
            tracker.log(line)

    def _check_finite(self, line: dict[str, Any]) -> None:
        for key in ("train/batch_loss", "train/loss"):
            value = line.get(key)
            if value is not None and not math.isfinite(value):
                lr = line["train/lr"]
                raise Diverged(
                    f"{key} is {value} at step {self.step}: the run diverged with lr {lr:g}. "
                    f"Lower it, for instance optimizer.lr={min(lr / 10, 0.1):g}."
                )
