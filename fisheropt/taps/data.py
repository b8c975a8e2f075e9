"""What one observation is, and which are data: padding and tokens that the loss leaves out are none."""

from __future__ import annotations

from typing import Literal, final

import torch
from torch import Tensor

from fisheropt.taps.channel import Channel

Observation = Literal["sequence", "token"]
"""What one sample is: all that stands at one index of the first axis, or at one of the first two."""


def samples_of(inputs: tuple[Tensor, ...]) -> int:
    """How many samples the inputs of a model have on their first axis."""
    return _most([x.shape[0] for x in inputs])


def tokens_of(inputs: tuple[Tensor, ...], samples: int) -> int:
    """How many tokens each sample has on the second axis."""
    sizes = [x.shape[1] for x in inputs if x.ndim > 1 and x.shape[0] == samples]
    if not sizes:
        raise RuntimeError(
            f"sample='token' needs an input [samples, tokens, ...], found {[tuple(x.shape) for x in inputs]}; write "
            f"observe(..., sample='sequence') for one observation a sample"
        )
    return _most(sizes)


def _most(sizes: list[int]) -> int:
    """The most frequent, of several the largest."""
    return sizes[0] if len(sizes) == 1 else max(sizes, key=lambda size: (sizes.count(size), size))


@final
class Data:
    """What the user says is no data, since the last clear.

    An observation without a gradient adds nothing to any sum, so that only their number has to be mended. A zero gradient
    alone does not tell: a sample on the right side of a hinge has one too, and is data.
    """

    def __init__(self) -> None:
        self.given = 0
        self.ignored: list[Tensor] = []

    def ignore(self, mask: Tensor) -> None:
        """True where an observation is no data.

        Raises:
            ValueError: for a mask of numbers, whose sense could be either.
        """
        if mask.dtype is not torch.bool:
            raise ValueError(
                f"tap.ignore(mask) found a mask of {mask.dtype}; write what is ignored as a condition, "
                f"tap.ignore(attention_mask == 0) or tap.ignore(targets == -100)"
            )
        self.given += mask.numel()
        self.ignored.append(mask.detach().sum())

    def clear(self) -> None:
        """Forget what was said."""
        self.given, self.ignored = 0, []

    def count(self, seen: int, channel: Channel) -> int:
        """The number of observations that are data; reads values back to the host.

        Args:
            seen: how many passed through the layers.
            channel: which tells at how many of them the layers have a gradient, where that is watched.
        """
        if not channel.watching:
            return seen
        calls = [leaf.grad.tolist() for leaf in channel.counts.values() if leaf.grad is not None]
        lit = max((round(some * seen / rows) for rows, some in calls if rows and rows % seen == 0), default=seen)
        if not self.ignored:
            if channel.by_token and lit < seen:
                raise RuntimeError(
                    f"no layer has a gradient at more than {lit} of the {seen} tokens, and whether the others are data was "
                    f"not said. Before each forward write tap.ignore(targets == -100), with the mask of what the loss "
                    f"leaves out; or tap.ignore(torch.zeros_like(targets, dtype=torch.bool)) if it leaves out none"
                )
            return seen
        data = seen - int(sum(int(number) for number in self.ignored))
        if self.given != seen:
            raise RuntimeError(
                f"the masks of tap.ignore(mask) have {self.given} entries in all, and {seen} observations were seen. Call it "
                f"before every forward whose loss is differentiated, with one entry each: [samples], or [samples, tokens] "
                f"of sample='token'"
            )
        if lit > data:
            raise RuntimeError(
                f"tap.ignore(mask) leaves {data} of {seen} observations, yet a layer has a gradient at {lit}: what is "
                f"ignored is in the loss, or reaches it through the other tokens. Call tap.ignore before the forward; ignore "
                f"only what has no gradient; or measure sample='sequence'"
            )
        return data
