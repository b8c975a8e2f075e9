"""The model as a function of its parameters, for torch.func.

Hooks of taps stay silent under torch.func. What has no derivative there is switched off for the call (fused attention,
autocast), and what makes the samples of a batch depend on each other, or on chance, is refused.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias, final

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

Values: TypeAlias = dict[str, Tensor]

_WRAPPED = {"DataParallel": "module", "DistributedDataParallel": "module", "OptimizedModule": "_orig_mod"}
_RANDOM = nn.modules.dropout._DropoutNd


@final
class Forward:
    """f(θ, x): the module's output with the named parameters set to θ.

    Args:
        model: in eval mode where it has BatchNorm or dropout.
        parameters: names or tensors of the model; None takes all that require gradients.
        call: the user's call, for messages.
    """

    def __init__(self, model: nn.Module, parameters: Sequence[str | Tensor] | None, call: str) -> None:
        self.model, self.call = model, call
        _load_forward_rules()
        self.check()
        self.names = self._names(parameters)
        if not self.names:
            raise ValueError(f"{call}: no parameter to differentiate by; write parameters=['name'] or unfreeze some")
        for name in self.names:
            if isinstance(model.get_parameter(name), DTensor):
                raise TypeError(f"{call}: {name!r} is sharded; gather the model first, with full_tensor()")

    def values(self) -> Values:
        """The live parameters θ by name."""
        return {name: self.model.get_parameter(name) for name in self.names}

    def __call__(self, values: Values, inputs: Any) -> Any:
        arguments, keywords = _arguments(inputs)
        return functional_call(self.model, values, arguments, keywords, tie_weights=True)

    def logits(self, values: Values, inputs: Any) -> Tensor:
        """The output, where it must be one tensor [n, ...] with the samples first."""
        output = self(values, inputs)
        if not isinstance(output, Tensor):
            raise TypeError(
                f"{self.call}: a likelihood needs a model that returns its logits as one tensor, "
                f"not {type(output).__name__}"
            )
        samples = sample_count(inputs, self.call)
        if output.ndim == 0 or output.shape[0] != samples:
            raise ValueError(
                f"{self.call}: the model returns a tensor of shape {tuple(output.shape)} for {samples} samples; "
                f"keep the samples on the first axis, x.unflatten(0, (n, -1))"
            )
        return output

    def columns(self, along: Callable[..., Any], *columns: Any, chunk: int | None = None) -> Any:
        """`along` of each column by vmap, which also finds chance in the forward."""
        try:
            return torch.func.vmap(along, chunk_size=chunk)(*columns)
        except RuntimeError as error:
            if "randomness" not in str(error):
                raise
            raise RuntimeError(
                f"{self.call}: {type(self.model).__name__} draws random numbers in its forward, so that its "
                f"derivatives are random too; write model.eval()"
            ) from error

    def check(self) -> None:
        """Refuse a model whose samples share a batch's statistics, or whose output is random."""
        model, call = self.model, self.call
        wrapper = type(model).__name__
        if wrapper in _WRAPPED:
            raise TypeError(f"{call}: found {wrapper}; write {call.split('(')[0]}(model.{_WRAPPED[wrapper]}, ...)")
        for path, module in model.named_modules():
            what = f"{type(module).__name__} {path!r}"
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None):
                raise RuntimeError(f"{call}: {what} in train mode couples the samples of a batch; write model.eval()")
            if module.training and _drops(module):
                raise RuntimeError(f"{call}: {what} is active, so that products are random; write model.eval()")

    def _names(self, parameters: Sequence[str | Tensor] | None) -> tuple[str, ...]:
        """Canonical names, each tensor once, in the order of the model."""
        known = dict(self.model.named_parameters())
        if parameters is None:
            return tuple(name for name, p in known.items() if p.requires_grad)
        aliases = dict(self.model.named_parameters(remove_duplicate=False))
        wanted = set()
        for given in parameters:
            tensor = aliases.get(given) if isinstance(given, str) else given
            if tensor is None or not any(tensor is p for p in known.values()):
                named = repr(given) if isinstance(given, str) else f"a tensor of shape {tuple(given.shape)}"
                raise ValueError(f"{self.call}: the model has no parameter {named}; write one of {sorted(known)}")
            wanted.add(id(tensor))
        return tuple(name for name, p in known.items() if id(p) in wanted)


@contextmanager
def exact(device: str) -> Iterator[None]:
    """No autocast, of derivatives neither, and attention in the forms that have derivatives of every order and mode."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), torch.autocast(device, enabled=False):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def sample_count(inputs: Any, call: str) -> int:
    """Number of samples of a batch: the first axis of its inputs, of most of them where they differ."""
    sizes = [x.shape[0] for x in torch.utils._pytree.tree_leaves(inputs) if isinstance(x, Tensor) and x.ndim > 0]
    if not sizes or max(sizes) == 0:
        raise ValueError(f"{call}: found a batch without samples; its inputs need tensors [n, ...] with n >= 1")
    return max(sizes, key=lambda size: (sizes.count(size), size))


def _load_forward_rules() -> None:
    """Torch's first jvp loads them by a function that torch itself deprecates, which is not for the user to mend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        importlib.import_module("torch._decomp.decompositions_for_jvp")


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs), {}) if isinstance(inputs, tuple | list) else ((inputs,), {})


def _drops(module: nn.Module) -> bool:
    if isinstance(module, nn.MultiheadAttention | nn.RNNBase):
        return module.dropout > 0
    return isinstance(module, _RANDOM) and module.p > 0
