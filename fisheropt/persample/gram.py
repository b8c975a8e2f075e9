"""Inner products between the gradients of a batch's samples, over all parameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from fisheropt.persample.base import PerSample, tile_of
from fisheropt.persample.convolved import Convolved
from fisheropt.persample.dense import Dense
from fisheropt.persample.outer import Outer
from fisheropt.persample.rows import Rows
from fisheropt.persample.tied import Tied

BLOCK = 64
"""Ours: rows of the Gram matrix that are computed at once, up to their own diagonal; wider loses more than it saves."""

SLICE = 1 << 18
"""Ours: numbers of all hₙ that are formed at once, small enough to be read again from the cache."""

WIDE = 1 << 22
"""Ours: the same of a convolution, whose input is laid out anew for every slice."""


def gram(forms: Iterable[PerSample]) -> Tensor:
    """Σ over parameters of ⟨hₙ, h_m⟩, [n, n].

    At one position a sample (gₙᵀg_m)(aₙᵀa_m), with the product of the output gradients shared by weight and bias; at several
    the hₙ of some output features are formed, contracted and dropped. Only one half of the matrix is computed.

    Args:
        forms: one for each parameter, of the same samples.
    """
    forms = list(forms)
    samples = forms[0].samples
    total = _zeros(forms[0], samples)
    paired, rest = _paired(forms)
    for g, features, biases in paired:
        _add_pairs(total, g, features, biases)
    flat = [h for h in rest if isinstance(h, Dense)]
    if flat:
        _add_product(total, torch.cat([form.h.reshape(samples, -1) for form in flat], 1))
    for form in rest:
        if not isinstance(form, Dense):
            for h in _slices(form):
                _add_product(total, h)
    return total.tril() + total.tril(-1).T


def _zeros(form: PerSample, samples: int) -> Tensor:
    like = _any(form)
    return like.new_zeros(samples, samples)


def _any(form: PerSample) -> Tensor:
    """A tensor of the form's device and dtype."""
    if isinstance(form, Tied):
        return form.rows.g
    if isinstance(form, Dense):
        return form.h
    assert isinstance(form, (Convolved, Outer, Rows))
    return form.g


def _paired(forms: list[PerSample]) -> tuple[list[tuple[Tensor, list[Tensor], int]], list[PerSample]]:
    """Output gradients with the features of all weights that they belong to, and how many biases have them; the others."""
    gradients: dict[tuple[object, ...], tuple[Tensor, list[Tensor]]] = {}
    others: list[PerSample] = []
    for form in forms:
        if isinstance(form, Outer) and _crossing(form):
            gradients.setdefault(_place(form.g), (form.g, []))[1].append(form.a)
        else:
            others.append(form)
    places = [_place(form.h[:, None]) for form in others if isinstance(form, Dense)]
    rest = [f for f in others if not isinstance(f, Dense) or _place(f.h[:, None]) not in gradients]
    return [(g, features, places.count(place)) for place, (g, features) in gradients.items()], rest


def _place(x: Tensor) -> tuple[object, ...]:
    """By which two tensors are the same numbers."""
    return x.data_ptr(), x.shape, x.stride(), x.dtype


def _crossing(form: Outer) -> bool:
    """Whether products between samples are cheaper than hₙ."""
    samples, positions, outputs, inputs = *form.g.shape, form.a.shape[2]
    return samples * positions**2 * (outputs + inputs) <= (positions + samples) * outputs * inputs


def _blocks(total: Tensor, height: int = BLOCK) -> Iterator[tuple[slice, slice]]:
    """Rows, and the columns up to the last of them."""
    for start in range(0, len(total), height):
        stop = min(start + height, len(total))
        yield slice(start, stop), slice(stop)


def _add_pairs(total: Tensor, g: Tensor, features: list[Tensor], biases: int) -> None:
    positions = g.shape[1]
    height = min(BLOCK, tile_of(len(total) * positions**2))
    for rows, columns in _blocks(total, height):
        outputs, held = _between(g, rows, columns), total[rows, columns]
        for a in features:
            if positions == 1:
                held.addcmul_(outputs, _between(a, rows, columns))
            else:
                products = outputs * _between(a, rows, columns)
                held.add_(products.unflatten(0, (-1, positions)).unflatten(2, (-1, positions)).sum((1, 3)))
        if biases:
            held.add_(outputs, alpha=biases)


def _between(x: Tensor, rows: slice, columns: slice) -> Tensor:
    """Products of all positions of some samples with those of others."""
    return x[rows].flatten(0, 1) @ x[columns].flatten(0, 1).T


def _add_product(total: Tensor, h: Tensor) -> None:
    for rows, columns in _blocks(total):
        total[rows, columns].addmm_(h[rows], h[columns].T)


def _slices(form: PerSample) -> Iterator[Tensor]:
    """hₙ of some rows of the parameter at a time, [n, rows·rest]."""
    if isinstance(form, Rows):
        form = _used(form)
    size, rest, unit = _extent(form)
    numbers = WIDE if isinstance(form, Convolved) else SLICE
    rows = max(1, numbers // (unit * form.samples * rest)) * unit
    for start in range(0, size, rows):
        yield _formed(form, start, min(start + rows, size)).flatten(1)


def _extent(form: PerSample) -> tuple[int, int, int]:
    """Rows of the parameter, numbers in each, and how many must stay together."""
    if isinstance(form, Convolved):
        groups = form.geometry.groups
        return form.kernel[0], form.kernel[1:].numel(), 1 if groups == 1 else form.kernel[0] // groups
    outer = form.outer if isinstance(form, Tied) else form
    if isinstance(outer, Outer):
        return outer.g.shape[2], outer.a.shape[2], 1
    assert isinstance(outer, Rows)
    return outer.size, outer.g.shape[2], 1


def _formed(form: PerSample, start: int, stop: int) -> Tensor:
    """hₙ of the rows from start to stop, [n, rows, ...]."""
    if isinstance(form, Outer):
        return form.g[:, :, start:stop].mT @ form.a
    if isinstance(form, Rows):
        return _looked_up(form, start, stop)
    if isinstance(form, Tied):
        return _looked_up(form.rows, start, stop) + _formed(form.outer, start, stop)
    assert isinstance(form, Convolved)
    kernel, every = torch.Size((stop - start, *form.kernel[1:])), form.geometry.groups
    if every == 1:
        return Convolved(form.g[:, start:stop], form.x, kernel, form.geometry).materialise()
    groups, first = every * (stop - start) // form.kernel[0], every * start // form.kernel[0]
    x = form.x[:, first * form.kernel[1] : (first + groups) * form.kernel[1]]
    return Convolved(form.g[:, start:stop], x, kernel, form.geometry._replace(groups=groups)).materialise()


def _looked_up(form: Rows, start: int, stop: int) -> Tensor:
    """Rows from start to stop, with one more for all others, which is dropped."""
    if start == 0 and stop == form.size:
        return form.materialise()
    inside = (form.index >= start) & (form.index < stop)
    index = torch.where(inside, form.index - start, stop - start)
    return Rows(form.g, index, stop - start + 1).materialise()[:, :-1]


def _used(form: Rows) -> Rows:
    """The same without the rows that no sample looks up."""
    rows, index = form.index.unique(return_inverse=True)
    return Rows(form.g, index, len(rows))
