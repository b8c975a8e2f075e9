"""What all products share: columns in, columns out, a weighted mean over batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fisheropt.products.batches import Batch, Batches
from fisheropt.products.forward import Forward, Values, exact
from fisheropt.products.losses import Loss

LARGEST_DENSE = 4096
"""The largest P of which `dense` forms the matrix."""

_COLUMNS = 32


class Product(ABC):
    """A symmetric matrix M [P, P] of the model at its present parameters, known by its products.

    Coordinates are the parameters end to end, each in its own order. Every product passes over the data once; every sample
    weighs 1/n, whatever the size of its batch.

    Args:
        model: in eval mode where it has BatchNorm or dropout.
        data: batches (inputs, targets); inputs are a tensor, a tuple of arguments or a dict of keywords.
        parameters: names or tensors; None takes all that require gradients.
    """

    def __init__(self, model: nn.Module, data: Iterable[Any], parameters: Sequence[str | Tensor] | None) -> None:
        call = f"{type(self).__name__}(model, ...)"
        self._forward = Forward(model, parameters, call)
        self._data = Batches(data, call)
        self.call = call

    @property
    def parameters(self) -> tuple[str, ...]:
        """Their names, in the order of the coordinates."""
        return self._forward.names

    @property
    def size(self) -> int:
        """P, the number of coordinates."""
        return sum(p.numel() for p in self._forward.values().values())

    @property
    def samples(self) -> int:
        """Number n of samples; the first time this may cost a pass over the data, without the model."""
        return self._data.samples

    @property
    def dtype(self) -> torch.dtype:
        """Of the products: the parameters' precision, at least float32."""
        found = torch.float32
        for p in self._forward.values().values():
            found = torch.promote_types(found, p.dtype)
        return found

    @property
    def device(self) -> torch.device:
        """Where the products are."""
        return next(iter(self._forward.values().values())).device

    def __call__(self, vectors: Tensor) -> Tensor:
        """M v, of the shape of v: [P], or [P, k] for k columns at once."""
        columns = self.split(vectors)
        return self._join(self._mean(self._apply, columns)).T.reshape(vectors.shape)

    def __matmul__(self, vectors: Tensor) -> Tensor:
        return self(vectors)

    def quadratic(self, directions: Tensor) -> Tensor:
        """VᵀMV [k, k], symmetric, for directions V [P, k]; one vector [P] counts as one column."""
        (form,) = self._mean(self._form, self.split(directions)).values()
        return (form + form.T) / 2

    def dense(self) -> Tensor:
        """M [P, P] itself, symmetric.

        Raises:
            ValueError: for P above 4096.
        """
        if self.size > LARGEST_DENSE:
            raise ValueError(
                f"{self.call}.dense(): P = {self.size} makes a matrix of {self.size**2:.1e} entries, the limit is "
                f"P = {LARGEST_DENSE}; write fisheropt.measured_spectrum(product), or choose parameters=[...]"
            )
        matrix = self(torch.eye(self.size, dtype=self.dtype, device=self.device))
        return (matrix + matrix.T) / 2

    def split(self, vectors: Tensor) -> Values:
        """Coordinates [P] or [P, k] by parameter name: [k, *parameter] each, k = 1 for one vector."""
        values = self._forward.values()
        if not isinstance(vectors, Tensor) or vectors.ndim not in (1, 2) or vectors.shape[0] != self.size:
            found = tuple(vectors.shape) if isinstance(vectors, Tensor) else type(vectors).__name__
            raise ValueError(f"{self.call}: found a vector {found}; write [P] or [P, k] columns, P = {self.size}")
        rows = vectors.detach().reshape(self.size, -1).T.to(self.device)
        parts = rows.split([p.numel() for p in values.values()], 1)
        return {
            name: part.reshape(-1, *p.shape).to(p.dtype) for (name, p), part in zip(values.items(), parts, strict=True)
        }

    @abstractmethod
    def _apply(self, values: Values, batch: Batch, columns: Values) -> Values:
        """The product of the batch's mean matrix with each column."""

    def _form(self, values: Values, batch: Batch, columns: Values) -> Values:
        """VᵀMV of the batch's mean matrix, as one entry."""
        images = self._join(self._apply(values, batch, columns))
        return {"form": self._join(columns) @ images.T}

    def _mean(self, of: Any, columns: Values) -> Values:
        """The mean over samples of what each batch gives, finite."""
        self._forward.check()
        values = {name: p.detach() for name, p in self._forward.values().items()}
        total: Values = {}
        with torch.no_grad(), exact(self.device.type):
            for batch in self._data.on(self.device):
                for name, part in of(values, batch, columns).items():
                    share = part.to(self.dtype) * batch.samples
                    total[name] = total[name] + share if name in total else share
        total = {name: part / self.samples for name, part in total.items()}
        for name, part in total.items():
            if not part.isfinite().all():
                raise FloatingPointError(
                    f"{self.call}: the product is not finite in {name!r}; look for the overflow, or use model.double()"
                )
        return total

    def _columns(self, along: Any, columns: Values) -> Any:
        return self._forward.columns(along, columns, chunk=_COLUMNS)

    def _join(self, parts: Values) -> Tensor:
        """[k, P] of the parts by name."""
        return torch.cat([parts[name].flatten(1).to(self.dtype) for name in self.parameters], 1)


class LossProduct(Product):
    """A product that knows its model by a loss, which it looks at in the first pass over the data.

    Args:
        model: in eval mode where it has BatchNorm or dropout.
        loss: loss(output, target), the mean over a batch.
        data: batches (inputs, targets); inputs are a tensor, a tuple of arguments or a dict of keywords.
        parameters: names or tensors; None takes all that require gradients.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        data: Iterable[Any],
        parameters: Sequence[str | Tensor] | None = None,
    ) -> None:
        super().__init__(model, data, parameters)
        self._loss = loss
        self._checked = False
