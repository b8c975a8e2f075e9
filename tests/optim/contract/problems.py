"""Tiny problems, training loops and comparisons that the requirements share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tests.optim.candidates import Candidate

SHAPES = [(3, 2), (2,), ()]


def network(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A regression network of 19 parameters in four tensors, the same at every call."""
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))
    return filled(model, seed).to(dtype)


def filled(model: nn.Module, seed: int = 0) -> nn.Module:
    """Overwrite the parameters of a model from a generator of its own."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return model


def parameters(
    shapes: Iterable[tuple[int, ...]] = SHAPES, dtype: torch.dtype = torch.float32, seed: int = 0
) -> list[nn.Parameter]:
    """Loose parameters of the given shapes."""
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)) for shape in shapes]


def set_gradients(params: Iterable[Tensor], seed: int, scale: float = 1.0) -> None:
    """Give each parameter a gradient that depends on its position and the seed alone."""
    for position, parameter in enumerate(params):
        generator = torch.Generator().manual_seed(1000 * seed + position)
        value = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * scale
        parameter.grad = value.to(parameter.dtype)


def walk(optimizer: Optimizer, params: Iterable[Tensor], steps: Iterable[int], scale: float = 1.0) -> None:
    """Take one step from made-up gradients for each seed in `steps`."""
    params = list(params)
    for seed in steps:
        set_gradients(params, seed, scale)
        optimizer.step()


def batches(
    step: int, count: int = 3, size: int = 4, dtype: torch.dtype = torch.float32
) -> Iterator[tuple[Tensor, Tensor]]:
    """The microbatches of one step; the target is noisy, so that gradients scatter."""
    generator = torch.Generator().manual_seed(7919 + step)
    for _ in range(count):
        inputs = torch.randn(size, 4, generator=generator, dtype=torch.float64)
        noise = torch.randn(size, 1, generator=generator, dtype=torch.float64)
        yield inputs.to(dtype), (inputs[:, :1] - 0.5 * inputs[:, 1:2] + 0.3 * noise).to(dtype)


def backward(model: nn.Module, step: int, count: int = 3, sign: float = 1.0) -> None:
    """Accumulate the mean squared error of one step's microbatches."""
    dtype = next(model.parameters()).dtype
    for inputs, target in batches(step, count, dtype=dtype):
        (sign * nn.functional.mse_loss(model(inputs), target) / count).backward()


def train(optimizer: Optimizer, model: nn.Module, steps: Iterable[int], count: int = 3, sign: float = 1.0) -> None:
    """The user's loop with gradient accumulation, the way in which either construction can measure noise."""
    for step in steps:
        optimizer.zero_grad()
        backward(model, step, count, sign)
        optimizer.step()


def trained(
    candidate: Candidate, steps: int = 4, dtype: torch.dtype = torch.float32, **extra: Any
) -> tuple[nn.Module, Optimizer]:
    """A model and its optimizer after some steps."""
    model = network(dtype=dtype)
    optimizer = candidate.build(model, **extra)
    train(optimizer, model, range(steps))
    return model, optimizer


def values(params: Iterable[Tensor]) -> list[Tensor]:
    """Copies of some tensors."""
    return [parameter.detach().clone() for parameter in params]


def group_parameters(optimizer: Optimizer) -> list[Tensor]:
    """All parameters of an optimizer in its own order."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def leaves(tree: Any, path: str = "") -> dict[str, Any]:
    """Flatten nested dicts, lists and tuples to {path: value}."""
    if isinstance(tree, dict):
        items: Iterable[tuple[Any, Any]] = tree.items()
    elif isinstance(tree, (list, tuple)):
        items = enumerate(tree)
    else:
        return {path: tree}
    return {name: value for key, branch in items for name, value in leaves(branch, f"{path}.{key}").items()}


def tensors(tree: Any) -> dict[str, Tensor]:
    """The tensors among the leaves."""
    return {name: value for name, value in leaves(tree).items() if isinstance(value, Tensor)}


def numbers(optimizer: Optimizer) -> dict[str, Any]:
    """The whole state_dict, flat, without parameter names."""
    return {name: value for name, value in leaves(optimizer.state_dict()).items() if ".param_names." not in name}


def assert_equal(left: Any, right: Any, **tolerance: float) -> None:
    """Compare nested values; bit for bit (and NaN equal to NaN) unless a tolerance is given."""
    left, right = leaves(left), leaves(right)
    assert left.keys() == right.keys(), f"keys differ: {sorted(left.keys() ^ right.keys())}"
    close = {"rtol": 0.0, "atol": 0.0, **tolerance}
    for name, value in left.items():
        if isinstance(value, (Tensor, float)) and isinstance(right[name], (Tensor, float)):
            torch.testing.assert_close(
                value, right[name], equal_nan=True, msg=lambda text, at=name: f"{at}: {text}", **close
            )
        else:
            assert type(value) is type(right[name]) and value == right[name], (
                f"{name}: {value!r} is not {right[name]!r}"
            )


def assert_finite(tree: Any) -> None:
    """No NaN and no infinity in any floating tensor."""
    for name, value in tensors(tree).items():
        assert value.isfinite().all(), f"{name} is not finite: {value}"
