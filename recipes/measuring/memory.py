"""How much memory a call takes at its peak, beyond what was there when it began."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable

import torch
from torch.autograd.profiler import profile, record_function

SETTLED = "the first call is over"


def peak(call: Callable[[], object], device: torch.device) -> int:
    """Bytes newly allocated at the peak of the call's second run.

    The first run settles what is kept from call to call, so that a state which is replaced counts as replaced, not as new.

    Args:
        call: leaves nothing behind but what it keeps between calls.
        device: where it allocates. On a CPU every allocation of torch is seen, also those inside of operators; what
            libraries such as oneDNN allocate by themselves is not.
    """
    return _on_cuda(call, device) if device.type == "cuda" else _on_cpu(call)


def _on_cuda(call: Callable[[], object], device: torch.device) -> int:
    call()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _on_cpu(call: Callable[[], object]) -> int:
    with profile(use_kineto=True, profile_memory=True) as seen:
        call()
        with record_function(SETTLED):
            pass
        call()
    events = sorted(seen.kineto_results.events(), key=lambda event: event.start_ns())
    settled = next(index for index, event in enumerate(events) if event.name() == SETTLED)
    return highest(event.nbytes() for event in events[settled:] if event.name() == "[memory]")


def kept(make: Callable[[], object], device: torch.device) -> int:
    """Bytes that are still held when `make` has returned, as long as what it returned is.

    Args:
        make: builds something and uses it, so that it has what it will keep.
        device: where it allocates.
    """
    gc.collect()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        alive = make()
        gc.collect()
        return torch.cuda.memory_allocated(device) - before if alive is not None else 0
    with profile(use_kineto=True, profile_memory=True) as seen:
        alive = make()
        gc.collect()
    events = seen.kineto_results.events()
    return sum(event.nbytes() for event in events if event.name() == "[memory]") if alive is not None else 0


def highest(changes: Iterable[int]) -> int:
    """The highest running sum, at least 0.

    Args:
        changes: in the order of time, positive for an allocation and negative for what is freed.
    """
    held = most = 0
    for change in changes:
        held += change
        most = max(most, held)
    return most
