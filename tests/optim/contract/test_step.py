"""step.*: the numbers of a step, over shapes, layouts, dtypes and missing gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.optim.candidates import Candidate, every
from tests.optim.contract.problems import (
    assert_equal,
    assert_finite,
    backward,
    network,
    parameters,
    set_gradients,
    train,
    values,
    walk,
)

HALVES = (torch.bfloat16, torch.float16)


@every()
def test_step_descends(candidate: Candidate) -> None:
    """step.descends: least squares falls in 20 closure steps, contiguous and strided, float32 and float64."""
    for dtype in (torch.float32, torch.float64):
        for strided in (False, True):
            weight = parameters([(5, 8)], dtype)[0]
            weight = nn.Parameter(weight.detach().repeat(1, 2)[:, ::2]) if strided else weight
            assert weight.is_contiguous() is not strided
            target, inputs = parameters([(5,), (8,)], dtype, seed=3)
            optimizer = candidate.make([weight], 0.01)
            closure = least_squares(optimizer, weight, inputs.detach(), target.detach())
            first = closure().item()
            for _ in range(20):
                optimizer.step(closure)
            assert closure().item() < 0.9 * first


def least_squares(
    optimizer: torch.optim.Optimizer, weight: Tensor, inputs: Tensor, target: Tensor
) -> Callable[[], Tensor]:
    """The closure of |W x - y|^2."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (weight @ inputs - target).square().sum()
        loss.backward()
        return loss

    return closure


@every(given="module")
def test_step_descends_given_a_module(candidate: Candidate) -> None:
    """step.descends: the network's own loss falls in 30 accumulated steps."""
    model = network()
    optimizer = candidate.build(model, 0.05)
    losses = []
    for _ in range(31):
        optimizer.zero_grad()
        backward(model, step=0)
        losses.append(sum(parameter.grad.square().sum().item() for parameter in model.parameters()))
        optimizer.step()
    assert losses[-1] < losses[0]


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
def test_step_none_grad(candidate: Candidate) -> None:
    """step.none_grad: no gradient, no motion, also with state; none is made up; all without is a no-op."""
    params = parameters([(3, 2), (2,), (4,)])
    optimizer = candidate.make(params)
    before = values(params)
    optimizer.step()
    assert_equal(values(params), before)
    assert all(parameter.grad is None for parameter in params)
    for seed in range(3):
        set_gradients(params[:2], seed)
        optimizer.step()
    assert params[2].grad is None
    assert_equal([params[2]], before[2:])
    resting = values(params)
    optimizer.zero_grad()
    set_gradients(params[:1], seed=4)
    optimizer.step()
    assert params[1].grad is None
    assert_equal(values(params[1:]), resting[1:])
    assert not torch.equal(params[0], resting[0])


@every(given=None)
def test_step_none_grad_of_a_skipped_layer(candidate: Candidate) -> None:
    """step.none_grad: a layer whose forward was not used in a step does not coast."""
    model = network()
    optimizer = candidate.build(model)
    train(optimizer, model, range(3))
    before = values(model.parameters())
    optimizer.zero_grad()
    model[2](torch.ones(2, 3)).sum().backward()
    optimizer.step()
    assert_equal(values(model[0].parameters()), before[:2])
    assert not torch.equal(model[2].weight, before[2])


@every(given=None)
def test_step_freeze(candidate: Candidate) -> None:
    """step.freeze: a layer frozen for some steps stays, resumes, and all stays finite."""
    model = network()
    optimizer = candidate.build(model)
    train(optimizer, model, range(3))
    model[0].requires_grad_(False)
    before = values(model[0].parameters())
    train(optimizer, model, range(3, 6))
    assert_equal(values(model[0].parameters()), before)
    model[0].requires_grad_(True)
    train(optimizer, model, range(6, 9))
    assert not torch.equal(model[0].weight, before[0])
    assert_finite(values(model.parameters()))
    assert_finite(optimizer.state_dict()["state"])


@every(given=None)
def test_step_freeze_from_the_start(candidate: Candidate) -> None:
    """step.freeze: parameters with requires_grad=False are accepted, and train once they are released."""
    model = network()
    model[0].requires_grad_(False)
    optimizer = candidate.build(model)
    train(optimizer, model, range(3))
    assert_equal(values(model[0].parameters()), values(network()[0].parameters()))
    model[0].requires_grad_(True)
    train(optimizer, model, range(3, 6))
    assert not torch.equal(model[0].weight, network()[0].weight)
    assert_finite(values(model.parameters()))


@every(given=None)
def test_step_zero_grads(candidate: Candidate) -> None:
    """step.zero_grads: zero gradients without decay move nothing from the first step; finite after."""
    model = network()
    extra = {"weight_decay": 0.0} if candidate.offers("weight_decay") else {}
    optimizer = candidate.build(model, **extra)
    before = values(model.parameters())
    for step in range(3):
        optimizer.zero_grad()
        backward(model, step, sign=0.0)
        optimizer.step()
    assert_equal(values(model.parameters()), before)
    train(optimizer, model, range(3, 6))
    assert_finite(values(model.parameters()))
    assert_finite(optimizer.state_dict()["state"])
    assert not torch.equal(next(model.parameters()), before[0])


@every(given=None)
def test_step_zero_lr(candidate: Candidate) -> None:
    """step.zero_lr: lr 0 moves nothing, whatever the gradients, leaves finite state, and training starts."""
    model = network()
    optimizer = candidate.build(model, 0.1)
    optimizer.param_groups[0]["lr"] = 0.0
    before = values(model.parameters())
    for sign in (0.0, 0.0, 1.0, 1.0):
        optimizer.zero_grad()
        backward(model, step=0, sign=sign)
        optimizer.step()
    assert_equal(values(model.parameters()), before)
    assert_finite(optimizer.state_dict()["state"])
    optimizer.param_groups[0]["lr"] = 0.1
    train(optimizer, model, range(3))
    assert_finite(values(model.parameters()))
    assert not torch.equal(next(model.parameters()), before[0])


@every()
def test_step_zero_lr_at_construction(candidate: Candidate) -> None:
    """step.zero_lr: an optimizer constructed at lr 0 moves nothing, and moves once its group says so."""
    params = parameters()
    optimizer = candidate.make(params, 0.0)
    before = values(params)
    walk(optimizer, params, range(3))
    assert_equal(values(params), before)
    optimizer.param_groups[0]["lr"] = 0.1
    walk(optimizer, params, range(3, 5))
    assert not torch.equal(params[0], before[0])


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


@every()
def test_step_one_per_parameter(candidate: Candidate) -> None:
    """step.one_per_parameter: one optimizer a parameter, stepped from hooks, trains as a group each."""
    hooked, ordinary = network(), network()
    own = {parameter: candidate.make([parameter]) for parameter in hooked.parameters()}

    def step_and_release(parameter: Tensor) -> None:
        own[parameter].step()
        own[parameter].zero_grad()

    for parameter in hooked.parameters():
        parameter.register_post_accumulate_grad_hook(step_and_release)
    whole = candidate.make([{"params": [parameter]} for parameter in ordinary.parameters()])
    for step in range(4):
        backward(hooked, step, count=1)
        train(whole, ordinary, [step], count=1)
    assert all(parameter.grad is None for parameter in hooked.parameters())
    assert_equal(values(hooked.parameters()), values(ordinary.parameters()), rtol=1e-6, atol=1e-7)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
@every()
def test_step_sparse(candidate: Candidate) -> None:
    """step.sparse: sparse (also uncoalesced) gradients equal dense ones, or an error names "sparse"."""
    sparse, dense = parameters([(5, 2)]), parameters([(5, 2)])
    optimizers = candidate.make(sparse), candidate.make(dense)
    for rows in ([0, 3], [3, 3], [1, 4]):
        gradient = torch.sparse_coo_tensor(
            torch.tensor([rows]), torch.tensor([[1.0, 2.0], [0.5, -1.0]]), (5, 2)
        )
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
