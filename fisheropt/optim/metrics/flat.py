"""Tensors of a group laid end to end, in the order of the parameters that a matrix was measured for."""

from __future__ import annotations

import torch
from torch import Tensor

from fisheropt.taps.shards import laid_out, part_of, total


def laid(watched: list[Tensor], parameters: list[Tensor], tensors: list[Tensor], like: Tensor) -> Tensor:
    """[d], zero where a watched parameter has no tensor.

    Args:
        watched: the parameters of the matrix.
        parameters: those that have a tensor.
        tensors: one for each of them.
        like: whose dtype and device the result has.
    """
    given = {id(p): t for p, t in zip(parameters, tensors, strict=True)}
    held = [laid_out(given[id(p)]) if id(p) in given else like.new_zeros(p.numel()) for p in watched]
    return total(torch.cat([tensor.reshape(-1).to(like) for tensor in held]), watched)


def parted(flat: Tensor, watched: list[Tensor], parameters: list[Tensor], tensors: list[Tensor]) -> list[Tensor]:
    """The pieces of [d] in the shapes of the parameters; a parameter that is not watched keeps its own tensor."""
    pieces = flat.split([p.numel() for p in watched])
    moved = {id(p): part_of(piece, p).to(p.dtype) for p, piece in zip(watched, pieces, strict=True)}
    return [moved.get(id(p), t) for p, t in zip(parameters, tensors, strict=True)]
