"""The model Fisher information at any parameters, on the inputs of the last forward: exact, by jvps of the logits.

Dropout is off in it, and autocast too. With several backward a step it rests on the inputs of the last one.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn

from fisheropt.likelihoods import Likelihood
from fisheropt.products.information import information
from fisheropt.taps.reduce import ranks, reduce_sum


@final
class LastBatch:
    """A forward hook of the whole model that keeps the inputs and the shape of the output until the step is over."""

    def __init__(self) -> None:
        self.on = True
        self.inputs: Any = None
        self.shape = torch.Size(())

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not self.on or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return
        if torch._C._are_functorch_transforms_active() or not isinstance(output, Tensor):
            return
        self.inputs = _inputs(module, args, kwargs)
        self.shape = output.shape

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"inputs": None}


@final
class Exact:
    """VᵀFV of a model, averaged over ranks as DistributedDataParallel averages its gradients.

    Args:
        model: with a hook on it from now on; DistributedDataParallel and compiled modules are looked into.
        likelihood: of its output.
    """

    def __init__(self, model: nn.Module, likelihood: Likelihood) -> None:
        self.model, self.likelihood = model, likelihood
        self.batch = LastBatch()
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
        """Forget the last inputs, and keep the next if they will be wanted."""
        self.batch.on, self.batch.inputs = on, None

    def information(self, vectors: dict[int, Tensor], inputs: Any = None) -> Tensor:
        """At the present parameters, [k, k] in float64; differentiable in them, but not across ranks.

        Args:
            vectors: V, [k, *parameter] by the parameter's identity.
            inputs: of the model; those of the last forward if left out.

        Raises:
            RuntimeError: where the last forward was not seen.
        """
        inputs = self.batch.inputs if inputs is None else inputs
        if inputs is None:
            raise RuntimeError(
                "the inputs of the last forward were not seen, and the floor needs the information at them: call the "
                "model that the optimizer was given, and compile before, Opt(torch.compile(model), ...)"
            )
        model = core(self.model)
        names = {id(p): name for name, p in model.named_parameters()}
        with evaluating(model):
            here = information(model, self.likelihood, inputs, {names[i]: v for i, v in vectors.items()}).double()
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


def _inputs(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The arguments as a tuple, or by name where some were given by name."""
    if not kwargs:
        return args
    return dict(inspect.signature(core(module).forward).bind(*args, **kwargs).arguments)
