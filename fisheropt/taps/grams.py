"""What a Gram matrix needs of a backward: the forms of all layers, until they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, final

from torch import Tensor

from fisheropt.persample import PerSample
from fisheropt.persample.gram import gram
from fisheropt.persample.stacked import stacked
from fisheropt.statistics.eigenpairs import NoiseGram, centred
from fisheropt.taps.collector import Collector


@final
class Grams(Collector):
    """The forms of some backwards, each with its number of samples.

    Nothing is copied: they are the inputs and output gradients that backward held anyway.

    Args:
        limit: of the samples that are kept.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._backwards: list[tuple[int, dict[str, PerSample]]] = []
        self._versions: list[tuple[Tensor, int]] = []

    def __getstate__(self) -> dict[str, Any]:
        """A copy of the model takes no batch with it."""
        return vars(self.blank())

    def blank(self) -> Grams:
        return Grams(self.limit)

    def add(self, forms: dict[str, PerSample], z: Tensor, respond: bool) -> None:
        samples = sum(count for count, _ in self._backwards) + len(z)
        if samples > self.limit:
            raise RuntimeError(
                f"Gram(limit={self.limit}) would keep the layers' inputs and gradients of {samples} samples. Write "
                f"tap.clear() after each step, or Gram(limit={samples}) for a larger matrix"
            )
        forms = {name: _detached(form) for name, form in forms.items()}
        self._backwards.append((len(z), forms))
        self._versions += [(x, x._version) for form in forms.values() for x in _tensors(form)]

    def merge(self, other: Grams) -> Grams:
        total = self.blank()
        total._backwards, total._versions = self._backwards + other._backwards, self._versions + other._versions
        return total

    def reading(self, samples: int) -> NoiseGram:
        """The Gram matrix of all samples, whichever backward they came by.

        Args:
            samples: how many are data; the others have no gradient.
        """
        if any(x._version != version for x, version in self._versions):
            raise RuntimeError(
                "an input or an activation of the model was changed in place after backward(), which tap.gram() is computed "
                "from. Read tap.gram() before that, or hand the model a copy, model(x.clone())"
            )
        names = list(dict.fromkeys(name for _, forms in self._backwards for name in forms))
        forms = {name: self._whole(name) for name in names}
        return centred(gram(forms.values()), forms, samples)

    def _whole(self, name: str) -> PerSample:
        """The form of all samples, with zeros for those whose backward did not come by."""
        like = next(forms[name] for _, forms in self._backwards if name in forms)
        return stacked([forms.get(name) or _nothing(like, count) for count, forms in self._backwards])


def _detached(form: PerSample) -> PerSample:
    """The same numbers without the graph that they came from."""
    return _mapped(form, Tensor.detach)


def _nothing(form: PerSample, samples: int) -> PerSample:
    """Gradients of zero for so many samples, in the form of others."""
    return _mapped(form, lambda x: x.new_zeros(samples, *x.shape[1:]))


def _mapped(form: PerSample, function: Callable[[Tensor], Tensor]) -> PerSample:
    changed: dict[str, Any] = {}
    for key, value in vars(form).items():
        if isinstance(value, PerSample):
            changed[key] = _mapped(value, function)
        elif isinstance(value, Tensor):
            changed[key] = function(value)
    return replace(form, **changed)


def _tensors(form: PerSample) -> Iterator[Tensor]:
    for value in vars(form).values():
        if isinstance(value, PerSample):
            yield from _tensors(value)
        elif isinstance(value, Tensor):
            yield value
