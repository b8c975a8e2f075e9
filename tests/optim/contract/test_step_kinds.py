"""step.*: kinds of parameters, gradients and learning rates, each stepped as its plain counterpart."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.optim.candidates import Candidate, every
from tests.optim.contract.problems import (
    assert_equal,
    assert_finite,
    network,
    parameters,
    set_gradients,
    train,
    values,
    walk,
)

HALVES = (torch.bfloat16, torch.float16)


@every()
def test_step_layouts(candidate: Candidate) -> None:
    """step.layouts: transposed, channels_last and expanded tensors give the contiguous result."""
    plain = parameters([(4, 3), (2, 3, 4, 4), (3, 2)])
    others = [
        nn.Parameter(plain[0].detach().t().contiguous().t()),
        nn.Parameter(plain[1].detach().to(memory_format=torch.channels_last)),
        nn.Parameter(plain[2].detach().clone()),
    ]
    optimizers = candidate.make(plain), candidate.make(others)
    for seed in range(4):
        for params, optimizer in zip((plain, others), optimizers, strict=True):
            set_gradients(params, seed)
            row = params[2].grad[:1].clone()
            params[2].grad = row.expand(3, 2) if params is others else row.repeat(3, 1)
            optimizer.step()
    assert_equal(values(others), values(plain))
    assert not others[0].is_contiguous() and others[1].is_contiguous(memory_format=torch.channels_last)


@every()
def test_step_sizes(candidate: Candidate) -> None:
    """step.sizes: scalar, one-element, empty and five-dimensional parameters step, each as it would alone."""
    shapes = [(), (1,), (0,), (0, 3), (1, 1), (2, 1, 2, 1, 2)]
    params, alone = parameters(shapes), parameters(shapes)
    walk(candidate.make(params), params, range(3))
    optimizers = [candidate.make([parameter]) for parameter in alone]
    for seed in range(3):
        set_gradients(alone, seed)
        for optimizer in optimizers:
            optimizer.step()
    assert_equal(values(params), values(alone), rtol=1e-6, atol=1e-7)
    assert [tuple(parameter.shape) for parameter in params] == shapes


@every(given=None)
def test_step_half(candidate: Candidate) -> None:
    """step.half: bfloat16 and float16 parameters move, keep their dtype and stay finite."""
    for dtype in HALVES:
        model = network(dtype=dtype)
        optimizer = candidate.build(model, 0.05)
        before = values(model.parameters())
        train(optimizer, model, range(4))
        for old, new in zip(before, model.parameters(), strict=True):
            assert new.dtype == dtype
            assert not torch.equal(old, new)
        assert_finite(values(model.parameters()))
        assert_finite(optimizer.state_dict()["state"])


@every()
def test_step_mixed_dtypes(candidate: Candidate) -> None:
    """step.mixed_dtypes: four dtypes in one group step as each would alone."""
    dtypes = [torch.float64, torch.float32, *HALVES]
    mixed = [parameters([(3, 2)], dtype)[0] for dtype in dtypes]
    alone = [parameters([(3, 2)], dtype)[0] for dtype in dtypes]
    together = candidate.make(mixed)
    single = [candidate.make([parameter]) for parameter in alone]
    for seed in range(4):
        set_gradients(mixed, seed)
        set_gradients(alone, seed)
        together.step()
        for optimizer in single:
            optimizer.step()
    assert_equal(values(mixed), values(alone))


@every()
def test_step_mixed_devices(candidate: Candidate) -> None:
    """step.mixed_devices: one group on the CPU and on another device steps as the CPU part would alone.

    The other device is CUDA where there is one, else meta: it refuses every read.
    """
    other = "cuda" if torch.cuda.is_available() else "meta"
    mixed, alone = parameters([(3, 2), (2,)]), parameters([(3, 2)])
    mixed[1] = nn.Parameter(mixed[1].detach().to(other))
    together, single = candidate.make(mixed), candidate.make(alone)
    for seed in range(4):
        set_gradients(mixed[:1], seed)
        mixed[1].grad = torch.ones(2, device=other)
        set_gradients(alone, seed)
        together.step()
        single.step()
    assert_equal(values(mixed[:1]), values(alone))


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
@every()
def test_step_sparse(candidate: Candidate) -> None:
    """step.sparse: sparse (also uncoalesced) gradients equal dense ones, or an error names "sparse"."""
    sparse, dense = parameters([(5, 2)]), parameters([(5, 2)])
    optimizers = candidate.make(sparse), candidate.make(dense)
    for rows in ([0, 3], [3, 3], [1, 4]):
        gradient = torch.sparse_coo_tensor(torch.tensor([rows]), torch.tensor([[1.0, 2.0], [0.5, -1.0]]), (5, 2))
        sparse[0].grad, dense[0].grad = gradient, gradient.to_dense()
        try:
            optimizers[0].step()
        except (RuntimeError, ValueError, NotImplementedError, TypeError) as error:
            assert "sparse" in str(error).lower()  # noqa: PT017
            return
        optimizers[1].step()
    assert_equal(values(sparse), values(dense), rtol=1e-6, atol=1e-7)


@every()
def test_step_complex(candidate: Candidate) -> None:
    """step.complex: complex parameters equal their view_as_real run, or an error names "complex"."""
    start = torch.complex(*torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(0)))
    whole, parts = nn.Parameter(start.clone()), nn.Parameter(torch.view_as_real(start).clone())
    try:
        optimizers = candidate.make([whole]), candidate.make([parts])
        for seed in range(4):
            set_gradients([parts], seed)
            whole.grad = torch.view_as_complex(parts.grad.clone())
            for optimizer in optimizers:
                optimizer.step()
    except (RuntimeError, ValueError, NotImplementedError, TypeError) as error:
        assert "complex" in str(error).lower()  # noqa: PT017
        return
    assert_equal(torch.view_as_real(whole.detach()), parts.detach(), rtol=1e-6, atol=1e-7)


@every()
def test_step_lr_tensor(candidate: Candidate) -> None:
    """step.lr_tensor: a Tensor lr of 0 or 1 dimensions gives the numbers of a float and is never modified."""
    for foreach in (False, True) if candidate.offers("foreach") else (None,):
        for lr in (torch.tensor(0.1), torch.tensor([0.1])):
            extra = {} if foreach is None else {"foreach": foreach}
            by_tensor, by_float = parameters(), parameters()
            try:
                optimizer = candidate.make(by_tensor, lr, **extra)
            except ValueError as error:
                assert foreach and "Tensor" in str(error)  # noqa: PT017
                continue
            walk(optimizer, by_tensor, range(4))
            walk(candidate.make(by_float, 0.1, **extra), by_float, range(4))
            assert_equal(values(by_tensor), values(by_float), rtol=1e-5, atol=1e-5)
            assert_equal(lr, torch.full_like(lr, 0.1))


@every(given="module")
def test_step_lr_tensor_given_a_module(candidate: Candidate) -> None:
    """step.lr_tensor: the same while noise is measured."""
    by_tensor, by_float = network(), network()
    train(candidate.build(by_tensor, torch.tensor(0.1)), by_tensor, range(4))
    optimizer = candidate.build(by_float, 0.1)
    train(optimizer, by_float, range(4))
    assert_equal(values(by_tensor.parameters()), values(by_float.parameters()), rtol=1e-5, atol=1e-5)
