"""Any module that treats the samples of its batch apart, by vmap of its vjp.

The module is run again, on a hookless twin, one sample at a time and vectorised: exact for bare parameters, scales,
convolutions and custom layers, at the price of a second forward and of one gradient a sample in memory.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from fisheropt.persample import Dense, PerSample
from fisheropt.rules.registry import Rule, refuse, rule


@final
@rule(nn.Module)
class Generic(Rule):
    """Dense hₙ = ∂⟨gₙ, module(xₙ)⟩/∂parameter, where xₙ is the n-th slice of every tensor input."""

    in_place: ClassVar[bool] = False

    def __init__(self, twin: nn.Module | None = None) -> None:
        self.twin = twin

    def prepare(self, module: nn.Module) -> Rule:
        return Generic(_hookless(module))

    def saved(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, ...]:
        assert self.twin is not None
        for twin, original in zip(self.twin.modules(), module.modules(), strict=True):
            _refuse_coupling(original)
            if twin.training != original.training:
                twin.training = original.training
        given: dict[int | str, Any] = dict(enumerate(args))
        given.update(kwargs)
        self.constants = {key: value for key, value in given.items() if not isinstance(value, Tensor)}
        self.keys = tuple(key for key, value in given.items() if isinstance(value, Tensor))
        nested = [key for key, value in self.constants.items() if isinstance(value, (tuple, list, dict))]
        if nested or not self.keys:
            raise TypeError(
                f"the generic rule needs tensors with the samples on their first axis as inputs of "
                f"{type(module).__name__}; found {', '.join(f'{k}: {type(v).__name__}' for k, v in given.items())}. "
                f"Write a rule: @fisheropt.rule({type(module).__name__})"
            )
        return tuple(given[key] for key in self.keys)

    def _arguments(self, sample: tuple[Tensor, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The inputs of one sample, as a batch of one."""
        given = self.constants | dict(zip(self.keys, (x.unsqueeze(0) for x in sample), strict=True))
        positions = sorted(key for key in given if isinstance(key, int))
        return tuple(given[i] for i in positions), {k: v for k, v in given.items() if isinstance(k, str)}

    def forms(
        self, module: nn.Module, names: tuple[str, ...], saved: tuple[Tensor, ...], grad: Tensor
    ) -> dict[str, PerSample]:
        twin = self.twin
        assert twin is not None
        constants = {name: p.detach() for name, p in module.named_parameters() if name not in names}
        constants |= dict(module.named_buffers())
        variables = {name: module.get_parameter(name).detach() for name in names}

        def pull(g: Tensor, *sample: Tensor) -> dict[str, Tensor]:
            args, kwargs = self._arguments(sample)

            def run(parameters: dict[str, Tensor]) -> Tensor:
                return functional_call(twin, parameters | constants, args, kwargs).squeeze(0)

            output, pullback, *_ = vjp(run, variables)
            return pullback(g.to(output.dtype))[0]

        return {name: Dense(h) for name, h in vmap(pull)(grad, *saved).items()}


def _hookless(module: nn.Module) -> nn.Module:
    """A shallow copy that shares parameters and buffers and has no hooks, so that taps do not see the second run."""
    twin = copy.copy(module)
    for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
        setattr(twin, name, OrderedDict())
    twin._modules = {name: child and _hookless(child) for name, child in module._modules.items()}
    return twin


def _refuse_coupling(module: nn.Module) -> None:
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None):
        raise RuntimeError(
            f"{type(module).__name__} in train mode couples the samples of a batch: no per-sample gradient exists. "
            f"Call .eval() on it, or use nn.GroupNorm or nn.LayerNorm"
        )


_RUNNING = "its child's weight is used without calling the child, so no output gradient of it is seen"
refuse(nn.MultiheadAttention, _RUNNING)
refuse(nn.RNNBase, "the cuDNN and CPU kernels of recurrent layers have no per-sample backward")
refuse(torch.nn.utils.parametrize.ParametrizationList, "a parametrised weight is computed without seeing the samples")
refuse(nn.EmbeddingBag, "its samples are not the first axis of its input")
