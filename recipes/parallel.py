"""How the processes of a run share its work: one alone, copies of the model, or parts of it.

A batch is that of the whole run: each process draws its own part of it, and the step is the one that a single process would
take. Everything that is written is written by the first process; the others compute the same numbers and keep them.
"""

from __future__ import annotations

import shlex
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar, final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from recipes import shards
from recipes.schema import ConfigError
from recipes.torchrun import SCRIPT, launched, own_device, place

T = TypeVar("T")

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


class Parallel(ABC):
    """The way in which the processes of a run work together; this one is number `rank` of `ranks`.

    Attributes:
        device: where the model and its batches are.
    """

    def __init__(self) -> None:
        """Find this process among those that torchrun started."""
        self.rank, self.ranks = place()
        self.device = torch.device("cpu")

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    @abstractmethod
    def joined(self, words: Sequence[str]) -> AbstractContextManager[None]:
        """Work with the other processes.

        Args:
            words: of the command line, for the message of an error.

        Raises:
            ConfigError: if the script was not started in this way.
        """

    @abstractmethod
    def wrapped(self, model: nn.Module) -> nn.Module:
        """What the loop calls in the place of the model; the optimizer is built after it, on the model itself."""

    @abstractmethod
    def placed(self, batch: Sequence[Tensor]) -> Sequence[Tensor]:
        """The batch on the device."""

    @abstractmethod
    def pooled(self, loss: Tensor, samples: int) -> tuple[Tensor, Tensor]:
        """The loss to call `backward` on, and the mean over the samples of all processes, to be logged.

        Args:
            loss: mean over this process' samples.
            samples: their number; parts of a batch differ by one where it cannot be divided.
        """

    @abstractmethod
    def decided(self, flag: bool) -> bool:
        """The first process' answer to what may differ between them, such as a clock's."""

    @abstractmethod
    def told(self, value: T) -> T:
        """What the first process knows."""

    @abstractmethod
    def gathered(self, value: T) -> list[T]:
        """What each process knows, in order."""

    @abstractmethod
    def model_state(self, model: nn.Module) -> dict[str, Any]:
        """The model's whole state on the first process."""

    @abstractmethod
    def load_model(self, model: nn.Module, state: dict[str, Any]) -> None:
        """Undo `model_state`."""

    @abstractmethod
    def saved(self, state: Any) -> Any:
        """An optimizer's state in a form that any number of processes can go on with."""

    @abstractmethod
    def restored(self, state: Any) -> Any:
        """Undo `saved`."""


@final
class Alone(Parallel):
    """parallel=none: one process, and no process group."""

    def joined(self, words: Sequence[str]) -> AbstractContextManager[None]:
        """Refuse company: each process would do the whole run."""
        if launched():
            own = [word for word in words if not word.startswith("parallel=")]
            start = ["torchrun", "--nproc-per-node", str(self.ranks), SCRIPT]
            ways = [["python", SCRIPT, *own]]
            if not any(word.startswith("resume=") for word in own):  # which keeps its parallel=none
                ways.insert(0, [*start, "parallel=ddp", *own])
            raise ConfigError(
                f"{shlex.join([*start, *words])}: with parallel=none each of the {self.ranks} processes would do the whole "
                f"run; write {', or '.join(shlex.join(way) for way in ways)}"
            )
        return nullcontext()

    def wrapped(self, model: nn.Module) -> nn.Module:
        """The model itself."""
        return model

    def placed(self, batch: Sequence[Tensor]) -> Sequence[Tensor]:
        """The batch itself."""
        return batch

    def pooled(self, loss: Tensor, samples: int) -> tuple[Tensor, Tensor]:
        """The loss itself, twice."""
        return loss, loss

    def decided(self, flag: bool) -> bool:
        """The flag itself."""
        return flag

    def told(self, value: T) -> T:
        """The value itself."""
        return value

    def gathered(self, value: T) -> list[T]:
        """The value alone."""
        return [value]

    def model_state(self, model: nn.Module) -> dict[str, Any]:
        """The model's state dict."""
        return model.state_dict()

    def load_model(self, model: nn.Module, state: dict[str, Any]) -> None:
        """Load the state dict."""
        model.load_state_dict(state)

    def saved(self, state: Any) -> Any:
        """The state itself."""
        return state

    def restored(self, state: Any) -> Any:
        """The state itself."""
        return state


class Together(Parallel, ABC):
    """Several processes started by torchrun, whose gradients are averaged: gloo on CPUs, nccl on GPUs.

    Args:
        device: "cpu", "cuda", or "auto" for a GPU of its own for each process where there are enough.
    """

    def __init__(self, device: str = "auto") -> None:
        super().__init__()
        self.device = own_device(device)

    @contextmanager
    def joined(self, words: Sequence[str]) -> Iterator[None]:
        """Form the process group, or use the one that is there.

        After an error it is left as it is: others may wait in it, until torchrun ends them.
        """
        if not launched():
            raise ConfigError(
                f"python {SCRIPT} {shlex.join(words)}: {self._name()} is for several processes, and torchrun has not "
                f"started this one; write torchrun --nproc-per-node 2 {SCRIPT} {shlex.join(words)}"
            )
        if dist.is_initialized():
            yield
            return
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        dist.init_process_group("gloo" if self.device.type == "cpu" else "cpu:gloo,cuda:nccl")
        yield
        dist.destroy_process_group()

    def placed(self, batch: Sequence[Tensor]) -> Sequence[Tensor]:
        """The batch on this process' device."""
        return [part.to(self.device, non_blocking=True) for part in batch]

    def pooled(self, loss: Tensor, samples: int) -> tuple[Tensor, Tensor]:
        """R n_r/n loss_r, whose mean over the R processes is that of all n samples; and that mean."""
        count = torch.full((), samples, dtype=torch.float64, device=loss.device)
        sums = torch.stack([loss.detach().double() * count, count])
        dist.all_reduce(sums)
        return loss * (self.ranks * samples / sums[1]).to(loss.dtype), sums[0] / sums[1]

    def decided(self, flag: bool) -> bool:
        """By a number on the CPU, which waits for no GPU."""
        answer = torch.tensor(flag)
        dist.broadcast(answer, 0)
        return bool(answer)

    def told(self, value: T) -> T:
        """By one broadcast."""
        values = [value]
        dist.broadcast_object_list(values, 0)
        return values[0]

    def gathered(self, value: T) -> list[T]:
        """By one gathering."""
        values: list[Any] = [None] * self.ranks
        dist.all_gather_object(values, value)
        return values

    def model_state(self, model: nn.Module) -> dict[str, Any]:
        """On the CPU; the other processes get nothing."""
        return get_model_state_dict(model, options=WHOLE)

    def load_model(self, model: nn.Module, state: dict[str, Any]) -> None:
        """Each process takes its part."""
        set_model_state_dict(model, state, options=WHOLE)

    @abstractmethod
    def _name(self) -> str:
        """As the user wrote it."""


@final
class Replicated(Together):
    """parallel=ddp: each process has the whole model, wrapped in DistributedDataParallel."""

    def wrapped(self, model: nn.Module) -> nn.Module:
        """DistributedDataParallel around the model, which stays as it is."""
        return DistributedDataParallel(model.to(self.device))

    def saved(self, state: Any) -> Any:
        """The state itself: it is the same on all."""
        return state

    def restored(self, state: Any) -> Any:
        """The state itself."""
        return state

    def _name(self) -> str:
        return "parallel=ddp"


@final
class Sharded(Together):
    """parallel=fsdp2: each process has a part of every parameter, cut by fully_shard.

    The model is one unit, right for one whose whole fits once beside the parts. For a large one call `fully_shard` on its
    blocks first.
    """

    def wrapped(self, model: nn.Module) -> nn.Module:
        """The model, its parameters now in parts; whoever needs them whole asks on all processes at once."""
        fully_shard(model.to(self.device), mesh=self._mesh())
        return model

    def saved(self, state: Any) -> Any:
        """With whole tensors, and how they were cut."""
        return shards.joined(state)

    def restored(self, state: Any) -> Any:
        """Cut again, over the processes that there are now."""
        return shards.cut(state, self._mesh())

    def _mesh(self) -> DeviceMesh:
        return init_device_mesh(self.device.type, (self.ranks,))

    def _name(self) -> str:
        return "parallel=fsdp2"
