"""Products with the exact Fisher information of the model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, final

from torch import Tensor, nn
from torch.func import jvp, vjp

from fisheropt.likelihoods import Likelihood, resolve
from fisheropt.products.base import Product
from fisheropt.products.batches import Batch
from fisheropt.products.forward import Values
from fisheropt.products.information import information_root, information_times


@final
class ModelFisher(Product):
    """F = (1/n) Σ J_xᵀ I(z_x) J_x, the expectation over the model's own labels taken exactly.

    For canonical links, as of every likelihood here, it is also the generalised Gauss-Newton matrix.

    Args:
        model: returns logits [n, ...]; in eval mode where it has BatchNorm or dropout.
        likelihood: of the logits, an object of `fisheropt.likelihoods` or its name.
        data: batches (inputs, targets), or inputs alone, as no target is read.
        parameters: names or tensors; None takes all that require gradients.

    Reference: schraudolph2002fast, martens2020new
    """

    def __init__(
        self,
        model: nn.Module,
        likelihood: Likelihood | str,
        data: Iterable[Any],
        parameters: Sequence[str | Tensor] | None = None,
    ) -> None:
        super().__init__(model, data, parameters)
        head = resolve(likelihood)
        if head is None:
            raise ValueError(f"{self.call} found likelihood=None; write likelihood='categorical'")
        self._likelihood = head

    def _apply(self, values: Values, batch: Batch, columns: Values) -> Values:
        logits, pull = vjp(lambda at: self._forward.logits(at, batch.inputs), values)[:2]

        def product(column: Values) -> Values:
            tangent = jvp(lambda at: self._forward.logits(at, batch.inputs), (values,), (column,))[1]
            return pull(information_times(self._likelihood, logits, tangent) / batch.samples)[0]

        return self._columns(product, columns)

    def _form(self, values: Values, batch: Batch, columns: Values) -> Values:
        def root(column: Values) -> Tensor:
            logits, tangent = jvp(lambda at: self._forward.logits(at, batch.inputs), (values,), (column,))[:2]
            return information_root(self._likelihood, logits, tangent)

        roots = self._columns(root, columns).flatten(1).to(self.dtype)
        return {"form": roots @ roots.T / batch.samples}
