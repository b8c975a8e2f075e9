"""Tensors that `fully_shard` has cut among ranks, of which each rank knows its own rows.

What is linear in a tensor is had of the parts, each with zeros in place of the others, and adds up over ranks: k numbers
travel, and never the tensor. A Python number of a reduced DTensor would be this rank's own part, without an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from fisheropt.taps.reduce import ranks, reduce_sum


def cut(tensors: Iterable[Tensor]) -> bool:
    """Whether any of them is distributed over ranks."""
    return any(isinstance(tensor, DTensor) for tensor in tensors)


def here(tensor: Tensor) -> Tensor:
    """The numbers that this rank has to add up: its rows, none of a copy that another rank has; a plain tensor whole."""
    if not isinstance(tensor, DTensor):
        return tensor
    part = tensor.to_local()
    return part if _counts(tensor) else part.new_zeros(0)


def laid_out(tensor: Tensor) -> Tensor:
    """This rank's rows in their place, zero elsewhere: what adds up over ranks to the whole; a plain tensor as it is."""
    if not isinstance(tensor, DTensor):
        return tensor
    part = tensor.to_local()
    whole = part.new_zeros(tensor.shape)
    if _counts(tensor):
        dim, start = _place(tensor)
        whole.narrow(dim, start, part.shape[dim]).copy_(part)
    return whole


def run_of(tensor: Tensor) -> tuple[list[Tensor], int]:
    """Numbers that follow each other in the flattened tensor, to be added up over ranks, and the place of the first."""
    if not isinstance(tensor, DTensor):
        return [tensor], 0
    dim, start = _place(tensor)
    return ([laid_out(tensor)], 0) if dim else ([here(tensor)], start * tensor.shape[1:].numel())


def part_of(whole: Tensor, like: Tensor) -> Tensor:
    """A tensor that every rank knows, cut as another one is.

    Args:
        whole: with as many entries as the other.
        like: a parameter or its gradient.
    """
    whole = whole.reshape(like.shape)
    if not isinstance(like, DTensor):
        return whole
    dim, start = _place(like)
    return alike(whole.narrow(dim, start, like.to_local().shape[dim]).contiguous(), like)


def alike(part: Tensor, like: DTensor) -> DTensor:
    """This rank's part of a tensor that is cut as another one is."""
    mesh, shape = like.device_mesh, like.shape
    return DTensor.from_local(part, mesh, like.placements, run_check=False, shape=shape, stride=like.stride())


def scattered(part: Tensor, like: DTensor) -> DTensor:
    """The sum over ranks of tensors of the whole shape, cut as a parameter is: one reduce-scatter, as of its gradient."""
    axes = [Partial()] * like.device_mesh.ndim
    return DTensor.from_local(part, like.device_mesh, axes, run_check=False).redistribute(placements=like.placements)


def whole(tensor: Tensor) -> Tensor:
    """All of a small tensor on every rank."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def total(values: Tensor, over: Iterable[Tensor]) -> Tensor:
    """The sum over ranks of what each made of its own part of some tensors; of plain tensors, the values as they are."""
    return reduce_sum(values) if cut(over) else values


def dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """Σ ⟨l, r⟩ over pairs of tensors that are cut alike, in float64, the same on each rank."""
    home = left[0].device
    products = [(here(a).double() * here(b).double()).sum().to(home) for a, b in zip(left, right, strict=True)]
    return total(torch.stack(products).sum(), left)


def _place(tensor: DTensor) -> tuple[int, int]:
    """Along which axis a tensor is cut, and where this rank's part begins."""
    axis, placement = next((i, p) for i, p in enumerate(tensor.placements) if isinstance(p, Shard))
    size = tensor.shape[placement.dim]
    each = -(-size // tensor.device_mesh.size(axis))  # as torch.chunk cuts
    return placement.dim, min(size, each * tensor.device_mesh.get_local_rank(axis))


def _counts(tensor: DTensor) -> bool:
    """Whether this rank has the first of the copies that a mesh of replicas keeps."""
    mesh = tensor.device_mesh
    return all(mesh.get_local_rank(i) == 0 for i, p in enumerate(tensor.placements) if isinstance(p, Replicate))


@final
class Shards:
    """Readings of the parameters' shape, each reduced to this rank's part as soon as a backward has left it.

    At no time is more than one of them whole. The parts of several backwards add up.

    Args:
        model: that the parameters are of.
        parameters: by name; those that are DTensors are looked after.

    Raises:
        TypeError: for parameters that are distributed in another way than by `fully_shard` over all ranks.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, Tensor]) -> None:
        self.model = model
        self.parameters = {name: p for name, p in parameters.items() if isinstance(p, DTensor)}
        if self.parameters:
            _check(model, parameters)
        self._held: dict[tuple[str, str], Tensor] = {}
        self.last: dict[str, Tensor] = {}

    def gathered(self, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
        """Parameters in full on every rank, kept as `last`; plain ones as they are."""
        if not self.parameters:
            return parameters
        self.last = {name: whole(p.detach()) for name, p in parameters.items()}
        return self.last

    def leaf(self, kind: str, name: str, dtype: torch.dtype) -> Tensor:
        """A leaf of zeros that takes no memory, shaped like a parameter; its gradients are reduced and held here."""
        parameter = self.parameters[name]
        zeros = torch.zeros((), dtype=dtype, device=parameter.device).expand(parameter.shape).requires_grad_()
        zeros.register_post_accumulate_grad_hook(_Reduction(self, (kind, name)))
        return zeros

    def add(self, key: tuple[str, str], part: Tensor) -> None:
        """Reduce what this rank has of a reading, and add it to the part held."""
        reduced, held = scattered(part, self.parameters[key[1]]), self._held.get(key)
        self._held[key] = reduced if held is None else held.add_(reduced)

    def left(self, kind: str, name: str, leaf: Tensor) -> Tensor:
        """What backward has left of a leaf, zero where none came by."""
        if name in self.parameters and leaf.shape == self.parameters[name].shape:
            held = self._held.get((kind, name))
            return torch.zeros_like(self.parameters[name], dtype=leaf.dtype).detach() if held is None else held
        return torch.zeros_like(leaf, requires_grad=False) if leaf.grad is None else leaf.grad

    def divisor(self) -> float:
        """By what `fully_shard` divides the sum of the ranks' gradients: their number, or what the user has set."""
        factors = {group.gradient_divide_factor for module in _sharded(self.model) for group in _groups(module)}
        if len(factors) > 1:
            raise RuntimeError(
                f"set_gradient_divide_factor was given {factors} for modules of one model, so that no one scale makes a "
                f"sample's gradient; write one factor for all of them"
            )
        (factor,) = factors
        return float(next(iter(self.parameters.values())).device_mesh.size() if factor is None else factor)

    def clear(self) -> None:
        """Forget all readings."""
        self._held = {}


@final
class _Reduction:
    """The hook on a leaf: outside of any compiled graph, and on every rank in the order of backward."""

    def __init__(self, shards: Shards, key: tuple[str, str]) -> None:
        self.shards, self.key = shards, key

    def __call__(self, leaf: Tensor) -> None:
        grad, leaf.grad = leaf.grad, None
        assert grad is not None
        self.shards.add(self.key, grad)


def _sharded(model: nn.Module) -> Iterator[FSDPModule]:
    return (module for module in model.modules() if isinstance(module, FSDPModule))


def _groups(module: FSDPModule) -> list[Any]:
    state: Any = module._get_fsdp_state()
    several = getattr(state, "_fsdp_param_groups", None)  # torch 2.11 has one for each module
    found = [state._fsdp_param_group] if several is None else several
    return [group for group in found if group is not None]


def _check(model: nn.Module, parameters: Mapping[str, Tensor]) -> None:
    """Refuse what is distributed in another way than by `fully_shard` over all ranks."""
    name, reason = next(_unserved(model, parameters), ("", ""))
    if reason:
        raise TypeError(
            f"per-sample statistics see parameters that fully_shard has cut over all ranks, and {name!r} {reason}. Write "
            f"fully_shard(model) for the whole model before the optimizer or tap is built, on a mesh of all ranks; or "
            f"freeze or leave out that parameter"
        )


def _unserved(model: nn.Module, parameters: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    wrapped = next(_sharded(model), None) is not None
    for name, p in parameters.items():
        if not isinstance(p, DTensor):
            yield name, "is not sharded"
            continue
        kinds, mesh = [type(placement) for placement in p.placements], p.device_mesh
        if not wrapped:
            yield name, "is distributed without it"
        elif kinds.count(Shard) != 1 or kinds.count(Replicate) != len(kinds) - 1:
            yield name, f"is placed {p.placements}, as by tensor parallelism"
        elif mesh.size() != ranks():
            yield name, f"lies on {mesh.size()} of {ranks()} ranks"
        elif p.device.type != mesh.device_type:
            yield name, f"is offloaded to {p.device.type}"
