"""The hooks on the model itself, where a forward begins and ends."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves

from fisheropt.likelihoods import Likelihood
from fisheropt.statistics import Statistic
from fisheropt.taps.apart import Apart
from fisheropt.taps.base import of_parameter
from fisheropt.taps.channel import JOINT, Channel, Information
from fisheropt.taps.data import samples_of, tokens_of
from fisheropt.taps.sink import Carry, Fold, Gate
from fisheropt.taps.together import Together


@final
class RootEntry:
    """Takes the number of samples when the model is called, and opens the sink that all layers share."""

    def __init__(self, channel: Channel, model: nn.Module, statistic: Statistic) -> None:
        self.channel, self.statistic = channel, statistic
        self.model = model
        self.coupling = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if getattr(module, "_is_replica", False):
            raise RuntimeError(
                "nn.DataParallel calls replicas of the model in threads that would share one tap; train with "
                "DistributedDataParallel(model), one process a device"
            )
        if not torch.is_grad_enabled():
            return
        self.channel.samples, self.channel.called, self.channel.carrier = None, (), None
        self.channel.forward, self.channel.gate, self.channel.inputs = None, None, ()
        if not self.channel.observing():
            return
        self.channel.shapes = ()
        if self.channel.scores is not None and torch.compiler.is_compiling():
            self.channel.compiled = True
            return
        for norm in self.coupling:
            if norm.training or norm.running_mean is None:
                raise RuntimeError(coupled(norm))
        inputs = tuple(x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.ndim > 0)
        if not inputs:
            return
        self.channel.inputs = inputs
        samples = self.channel.samples = samples_of(inputs)
        if self.channel.by_token:
            self.channel.tokens = tokens_of(inputs, samples)
        inside = DistributedDataParallel._active_ddp_module is not None or isinstance(module, DistributedDataParallel)
        self.channel.parallel = self.channel.sharded or inside
        if inside and not torch.compiler.is_compiling():
            self._check_join(module)
        self._open(samples * self.channel.tokens)

    def _check_join(self, module: nn.Module) -> None:
        """Refuse to measure where ranks that have run out of data answer for DistributedDataParallel alone."""
        wrapper = DistributedDataParallel._active_ddp_module or module
        if isinstance(wrapper, DistributedDataParallel) and wrapper._join_config.enable:
            raise RuntimeError(
                "a step cannot be measured inside model.join(): a rank without data takes no step, and the others would wait "
                "for its samples. Give every rank as many batches, DistributedSampler(..., drop_last=True); batches of "
                "different sizes are served"
            )

    def _open(self, samples: int) -> None:
        """Make what all layers share."""
        channel = self.channel
        leaf = channel.leaves.get(JOINT)
        if torch.compiler.is_compiling():
            channel.carrier = None if leaf is None else Fold.apply(leaf, samples)  # type: ignore[no-untyped-call]
            return
        if leaf is not None:
            channel.forward = Together(channel, samples)
        else:
            leaf, channel.forward = (
                next(iter(channel.counts.values())),
                Apart(channel, of_parameter(self.statistic), samples),
            )
        channel.gate = Gate.apply(leaf, channel.forward)  # type: ignore[no-untyped-call]
        if isinstance(channel.forward, Together) and any(_compiled(m) for m in self.model.modules()):
            count = leaf.shape[0] - 1
            channel.carrier = Carry.apply(channel.gate, channel.forward, samples, count)  # type: ignore[no-untyped-call]


@final
class RootExit:
    """Closes the shared sink and, given a likelihood, measures the model Fisher by one extra backward."""

    def __init__(self, channel: Channel, likelihood: Likelihood | None) -> None:
        self.channel = channel
        self.likelihood = likelihood

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not torch.is_grad_enabled():
            return
        channel, forward = self.channel, self.channel.forward
        channel.samples, channel.carrier, channel.inputs = None, None, ()
        if forward is None:
            return
        channel.last, channel.forward, channel.gate = forward, None, None
        if self.likelihood is None or not isinstance(forward, Together) or output is None:  # the model may have failed
            return
        if not isinstance(output, Tensor):
            raise TypeError(
                f"likelihood= needs a model that returns its logits as one tensor, not {type(output).__name__}"
            )
        cotangent = self.likelihood.cotangent(output.detach(), channel.seed)
        forward.passage.information = self._information(output, cotangent)
        channel.seed += forward.passage.information is not None

    def _information(self, output: Tensor, cotangent: Tensor) -> Information | None:
        """One backward from the cotangent, whose scores are kept apart from those of the loss; None for a frozen model."""
        if not output.requires_grad:
            return None
        channel, held, respond = self.channel, self.channel.scores, self.channel.respond
        channel.scores, channel.respond, channel.measuring = held and held.blank(), True, True
        try:
            leaf = channel.leaves[JOINT]
            (reading,) = torch.autograd.grad(output, leaf, cotangent, retain_graph=True, allow_unused=True)
            return None if reading is None else Information(reading, channel.scores)
        finally:
            channel.scores, channel.respond, channel.measuring = held, respond, False


def _compiled(module: nn.Module) -> bool:
    """Whether a module inside an eager model is a compiled graph of its own."""
    return module._compiled_call_impl is not None or "_orig_mod" in module._modules


def coupled(norm: nn.Module) -> str:
    """Why a layer of batch statistics cannot be measured."""
    return (
        f"{type(norm).__name__} in train mode couples the samples of a batch: no per-sample gradient exists. Call .eval() "
        f"on it, use nn.GroupNorm or nn.LayerNorm, or give the optimizer model.parameters() and run two or more "
        f"backward() a step"
    )
