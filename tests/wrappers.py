"""What users wrap around a model, its forward or its backward, and statistics must not notice; a new one is one class."""

import copy
import pickle
import re
from typing import ClassVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.parametrize import is_parametrized
from torch.utils.checkpoint import checkpoint

from fisheropt.statistics import Gram, ParameterStatistic
from tests.cases import Case

WRAPPERS: dict[str, "Wrapper"] = {}


class OfTorch(str):
    """Words of torch itself, which refuses with or without a tap."""


def wrapper(title):
    def enrol(cls):
        WRAPPERS[title] = cls()
        return cls

    return enrol


class Wrapper:
    """One way of running a model; what it does not override is done as usual."""

    scale: ClassVar[float] = 1.0
    """Of the loss in backward."""
    tolerance: ClassVar[float | None] = None
    """Of the norm of the difference in that of the truth; None for rounding alone."""
    dtype: ClassVar[torch.dtype] = torch.float64

    def prepared(self, case):
        """The case before the tap is placed."""
        return case

    def placed(self, model, tap):
        """The model and its tap before the forward."""
        return model, tap

    def backward(self, case):
        """Forward and backward of the mean loss."""
        case.loss().backward()

    def refused(self, case, statistic):
        """The words of the error that is due; None where the combination is served."""
        return None


@wrapper("plain")
class Plain(Wrapper):
    """As it is."""


class Accumulated(Wrapper):
    """The batch in parts, each divided as the user would."""

    parts: ClassVar[int]

    def backward(self, case):
        size = -(-case.samples // self.parts)
        for start in range(0, case.samples, size):
            part = case.slice(start, min(start + size, case.samples))
            (part.losses(case.model, *part.batch).sum() / case.samples).backward()


@wrapper("two microbatches")
class Two(Accumulated):
    parts = 2


@wrapper("three microbatches")
class Three(Accumulated):
    parts = 3


@wrapper("compiled")
class Compiled(Wrapper):
    """One graph, run eagerly."""

    def backward(self, case):
        torch._dynamo.reset()
        case.loss(torch.compile(case.model, fullgraph=True, backend="aot_eager")).backward()

    def refused(self, case, statistic):
        if any(isinstance(module, nn.RNNBase) for module in case.model.modules()):
            return OfTorch("Dynamo does not support RNN")
        if isinstance(statistic, Gram):
            return "keep tensors from layer to layer"
        return "cross terms of its calls" if isinstance(statistic, ParameterStatistic) and shares(case) else None


class Repeated(nn.Module):
    """A model that is run again in backward."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *inputs):
        return checkpoint(self.inner, *inputs, use_reentrant=False)


@wrapper("checkpointed")
class Checkpointed(Wrapper):
    def prepared(self, case):
        return Case(Repeated(case.model), case.batch, case.losses)


@wrapper("autocast")
class Autocast(Wrapper):
    """The forward in bfloat16, whose eight bits are what the tolerance is for."""

    tolerance, dtype = 0.1, torch.float32

    def backward(self, case):
        with torch.autocast("cpu", torch.bfloat16):
            loss = case.loss()
        loss.backward()

    def refused(self, case, statistic):
        """Some processors have no kernel of some recurrent layers in bfloat16."""
        try:
            self.backward(cast(case, self.dtype))
        except RuntimeError as error:
            return OfTorch(re.escape(str(error)[:40]))
        return None


@wrapper("loss scale")
class Scaled(Wrapper):
    scale = 4096.0

    def backward(self, case):
        torch.amp.GradScaler("cpu", init_scale=self.scale).scale(case.loss()).backward()


@wrapper("functional_call")
class Lent(Wrapper):
    """The values of the call are lent, and others are in the module."""

    def backward(self, case):
        lent = {n: p.detach().clone().requires_grad_() for n, p in case.model.named_parameters() if p.requires_grad}
        with torch.no_grad():
            for name in lent:
                case.model.get_parameter(name).mul_(-2)
        case.loss(lambda *inputs: torch.func.functional_call(case.model, lent, inputs)).backward()


@wrapper("deepcopy")
class Deepcopied(Wrapper):
    def placed(self, model, tap):
        return copy.deepcopy((model, tap))


@wrapper("pickle")
class Pickled(Wrapper):
    def placed(self, model, tap):
        return pickle.loads(pickle.dumps((model, tap)))

    def refused(self, case, statistic):
        parametrised = any(is_parametrized(module) for module in case.model.modules())
        return OfTorch("Serialization of parametrized modules") if parametrised else None


@wrapper("DistributedDataParallel")
class Parallel(Wrapper):
    """One process by itself; tests of several have files of their own."""

    def backward(self, case):
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        try:
            case.loss(DistributedDataParallel(case.model)).backward()
        finally:
            dist.destroy_process_group()


def cast(case, dtype):
    """The case with all floating numbers in another dtype."""
    case.model.to(dtype)
    case.batch = tuple(x.to(dtype) if x.is_floating_point() else x for x in case.batch)
    return case


def shares(case):
    """Whether a module that owns parameters is called several times, or a parameter belongs to several."""
    calls, handles = [], []
    for module in case.model.modules():
        if any(True for _ in module.parameters(recurse=False)):
            handles.append(module.register_forward_hook(lambda m, *_: calls.extend(id(p) for p in m.parameters(False))))
    with torch.no_grad():
        case.model(*case.batch[: 1 if case.losses.__code__.co_argcount == 3 else None])
    for handle in handles:
        handle.remove()
    return len(calls) > len(set(calls))
