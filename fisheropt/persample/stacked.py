"""The samples of several backwards, one after the other."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from fisheropt.persample.base import PerSample
from fisheropt.persample.convolved import Convolved
from fisheropt.persample.dense import Dense
from fisheropt.persample.outer import Outer
from fisheropt.persample.rows import Rows
from fisheropt.persample.tied import Tied


def stacked(forms: list[PerSample]) -> PerSample:
    """One form of all samples of several; of different kinds, or convolutions of different sizes, all hₙ are formed.

    Args:
        forms: of one parameter, at least one.
    """
    if len(forms) == 1:
        return forms[0]
    outer = [form for form in forms if isinstance(form, Outer)]
    rows = [form for form in forms if isinstance(form, Rows)]
    tied = [form for form in forms if isinstance(form, Tied)]
    if len(outer) == len(forms):
        return _outer(outer)
    if len(rows) == len(forms):
        return _rows(rows)
    if len(tied) == len(forms):
        return Tied(_rows([form.rows for form in tied]), _outer([form.outer for form in tied]))
    convolved = [form for form in forms if isinstance(form, Convolved)]
    if len(convolved) == len(forms) and len({form.x.shape[1:] for form in convolved}) == 1:
        g, x = torch.cat([form.g for form in convolved]), torch.cat([form.x for form in convolved])
        return Convolved(g, x, convolved[0].kernel, convolved[0].geometry)
    return Dense(torch.cat([form.materialise() for form in forms]))


def _outer(forms: list[Outer]) -> Outer:
    return Outer(_over_samples([form.g for form in forms]), _over_samples([form.a for form in forms]))


def _rows(forms: list[Rows]) -> Rows:
    index = _over_samples([form.index[:, :, None] for form in forms])[:, :, 0]
    return Rows(_over_samples([form.g for form in forms]), index, forms[0].size)


def _over_samples(parts: list[Tensor]) -> Tensor:
    """[n, t, ...] of all, the shorter ones with positions of zeros."""
    longest = max(part.shape[1] for part in parts)
    return torch.cat([pad(part, (0, 0, 0, longest - part.shape[1])) for part in parts])
