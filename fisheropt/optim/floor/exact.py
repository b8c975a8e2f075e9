"""The model Fisher information at any parameters, on the samples of a step: exact, by jvps of the logits.

Dropout is off in it, and autocast too. With several backward a step it is the mean over the samples of all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn

from fisheropt.likelihoods import Likelihood
from fisheropt.optim.floor.forwards import Forward, Forwards
from fisheropt.products.information import information
from fisheropt.taps.reduce import ranks, reduce_sum


@final
class Exact:
    """VᵀFV of a model, averaged over ranks as DistributedDataParallel averages its gradients.

    Args:
        model: with a hook on it from now on; DistributedDataParallel and compiled modules are looked into.
        likelihood: of its output.
    """

    def __init__(self, model: nn.Module, likelihood: Likelihood) -> None:
        self.model, self.likelihood = model, likelihood
        self.batch = Forwards()
        self.attach()

    def attach(self) -> None:
        """Put the hook on the model."""
        self.model.register_forward_hook(self.batch, with_kwargs=True)

    def remove(self) -> None:
        """Take the hook off the model, found by itself also where both were copied."""
        hooks = self.model._forward_hooks
        for key in [key for key, hook in hooks.items() if hook is self.batch]:
            del hooks[key]
            self.model._forward_hooks_with_kwargs.pop(key, None)

    def arm(self, on: bool) -> None:
        """Forget the last forwards, and keep the next if they will be wanted."""
        self.batch.on = on
        self.batch.clear()

    def information(self, vectors: dict[int, Tensor], inputs: Any = None) -> Tensor:
        """At the present parameters, [k, k] in float64; differentiable in them, but not across ranks.

        Args:
            vectors: V, [k, *parameter] by the parameter's identity.
            inputs: of the model; those of the step's forwards if left out.

        Raises:
            RuntimeError: where no forward of the step was seen.
        """
        if inputs is None:
            return torch.stack([share * self.of(forward, vectors) for forward, share in self.shares()]).sum(0)
        return self._across(self._here(core(self.model), "", inputs, vectors))

    def shares(self) -> list[tuple[Forward, float]]:
        """The step's forwards, each with its share of the samples.

        Raises:
            RuntimeError: where none was seen.
        """
        seen = self.batch.seen
        if not seen:
            raise RuntimeError(
                "the inputs of the last forward were not seen, and the floor needs the information at them: call the "
                "model that the optimizer was given, and compile before, Opt(torch.compile(model), ...)"
            )
        total = sum(forward.samples for forward in seen)
        return [(forward, forward.samples / total) for forward in seen]

    def of(self, forward: Forward, vectors: dict[int, Tensor]) -> Tensor:
        """The same on the samples of one forward."""
        return self._across(self._here(*forward.call(core(self.model)), vectors))

    def _here(self, model: nn.Module, prefix: str, inputs: Any, vectors: dict[int, Tensor]) -> Tensor:
        names = {id(p): prefix + name for name, p in core(self.model).named_parameters()}
        with evaluating(model):
            return information(model, self.likelihood, inputs, {names[i]: v for i, v in vectors.items()}).double()

    def _across(self, here: Tensor) -> Tensor:
        if not self.parallel:
            return here
        return here + (reduce_sum(here.detach()) / ranks() - here.detach())

    @property
    def parallel(self) -> bool:
        """Whether the ranks' gradients are averaged, so that the information is too."""
        return ranks() > 1 and isinstance(self.model, nn.parallel.DistributedDataParallel)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode for the moment: no dropout, and no statistics that couple samples."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def core(model: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel and torch.compile."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return core(model.module)
    inner = vars(model).get("_modules", {}).get("_orig_mod")
    return model if inner is None else core(inner)
