"""Any module that treats the samples of its batch apart, by vmap of its vjp.

The module is run again, on a hookless twin, one sample at a time and vectorised: exact for bare parameters, scales,
convolutions and custom layers, at the price of a second forward and of one gradient a sample in memory.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from contextlib import nullcontext
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.func import functional_call, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.spectral_norm import SpectralNorm

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

    def saved(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Tensor, ...], Any]:
        assert self.twin is not None
        for twin, original in zip(self.twin.modules(), module.modules(), strict=True):
            if isinstance(original, nn.modules.dropout._DropoutNd) and original.training and original.p > 0:
                raise RuntimeError(
                    f"{type(module).__name__} owns parameters and contains {original}, whose mask a second run cannot "
                    f"repeat. Call .eval() on the dropout, or write a rule: @fisheropt.rule({type(module).__name__})"
                )
            if original.training and _iterates(original):
                raise RuntimeError(
                    f"the power iteration of spectral_norm on {original} in train mode goes on in a second run, which then "
                    f"has another weight. Call .eval() on that module"
                )
            if twin.training != original.training:
                twin.training = original.training
        given: dict[int | str, Any] = dict(enumerate(args))
        given.update(kwargs)
        tensors = {key: value for key, value in given.items() if isinstance(value, Tensor)}
        constants = {key: value for key, value in given.items() if not isinstance(value, Tensor)}
        nested = any(isinstance(value, (tuple, list, dict)) for value in constants.values())
        if nested or not tensors or len({x.shape[0] if x.ndim else 0 for x in tensors.values()}) > 1:
            found = ", ".join(f"{k}: {tuple(v.shape) if k in tensors else type(v).__name__}" for k, v in given.items())
            raise TypeError(
                f"the generic rule needs tensors with the samples on their first axis as inputs of "
                f"{type(module).__name__}; found {found}. Write a rule: @fisheropt.rule({type(module).__name__})"
            )
        # of this call: functional_call may have lent them, and the next call may overwrite its buffers
        owned: dict[str, Tensor] = {name: buffer.detach().clone() for name, buffer in module.named_buffers()}
        owned.update(module.named_parameters())
        return (*tensors.values(), *owned.values()), (tuple(tensors), tuple(constants.items()), tuple(owned))

    def forms(
        self, module: nn.Module, names: tuple[str, ...], saved: tuple[Tensor, ...], context: Any, grad: Tensor
    ) -> dict[str, PerSample]:
        twin = self.twin
        assert twin is not None
        keys, fixed, owned = context
        samples, tensors = saved[: len(keys)], dict(zip(owned, (w.detach() for w in saved[len(keys) :]), strict=True))
        constants = {name: tensor for name, tensor in tensors.items() if name not in names}
        variables = {name: tensors[name] for name in names}
        dtype = variables[names[0]].dtype  # under autocast the inputs may be narrower

        def pull(g: Tensor, *sample: Tensor) -> dict[str, Tensor]:
            args, kwargs = _arguments(keys, fixed, tuple(x.to(dtype) if x.is_floating_point() else x for x in sample))

            def run(parameters: dict[str, Tensor]) -> Tensor:
                return functional_call(twin, parameters | constants, args, kwargs).squeeze(0)

            output, pullback, *_ = vjp(run, variables)
            return pullback(g.to(output.dtype))[0]

        with nullcontext() if torch.compiler.is_compiling() else sdpa_kernel(SDPBackend.MATH):  # vmap loops over others
            return {name: Dense(h) for name, h in vmap(pull)(grad, *samples).items()}


def _iterates(module: nn.Module) -> bool:
    """Whether a call moves the power iteration of spectral_norm on, the old one or the parametrisation."""
    hooks = module._forward_pre_hooks.values()
    return isinstance(module, _SpectralNorm) or any(isinstance(hook, SpectralNorm) for hook in hooks)


def _hookless(module: nn.Module) -> nn.Module:
    """A shallow copy that shares parameters and buffers and has no hooks, so that taps do not see the second run.

    Pre-hooks that were there before stay: those of weight_norm and pruning compute the weight. That of fully_shard would
    gather the parameters again.
    """
    twin = _shallow(module) if is_parametrized(module) or isinstance(module, FSDPModule) else copy.copy(module)
    for name in ("_forward_hooks", "_backward_hooks", "_backward_pre_hooks"):
        setattr(twin, name, OrderedDict())
    kept = (pair for pair in module._forward_pre_hooks.items() if not _gathers(pair[1]))
    twin._forward_pre_hooks = OrderedDict(kept)
    twin._modules = {name: child and _hookless(child) for name, child in module._modules.items()}
    return twin


def _shallow(module: nn.Module) -> nn.Module:
    """copy.copy of a parametrised or sharded module, which refuses to be copied that way."""
    twin: nn.Module = object.__new__(type(module))
    vars(twin).update(vars(module))
    return twin


def _gathers(hook: object) -> bool:
    """Whether a pre-hook is that of fully_shard."""
    return (getattr(hook, "__module__", None) or "").startswith("torch.distributed.fsdp")


def _arguments(
    keys: tuple[Any, ...], constants: Any, sample: tuple[Tensor, ...]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The inputs of one sample, as a batch of one."""
    given = dict(constants) | dict(zip(keys, (x.unsqueeze(0) for x in sample), strict=True))
    positions = sorted(key for key in given if isinstance(key, int))
    return tuple(given[i] for i in positions), {k: v for k, v in given.items() if isinstance(k, str)}


_ATTENTION = (
    "its forward is overridden or its weights parametrised, and its child's weight is used without calling the child"
)
refuse(nn.MultiheadAttention, _ATTENTION)
refuse(nn.RNNBase, "its forward is overridden, and the kernels of recurrent layers have no per-sample backward")
refuse(nn.DataParallel, "its replicas run in threads that would share one tap; train with DistributedDataParallel")
