"""Products with the second moment of the per-sample gradients."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor
from torch.func import jvp, vjp

from fisheropt.products.base import LossProduct
from fisheropt.products.batches import Batch
from fisheropt.products.forward import Values
from fisheropt.products.losses import check_separable, sample_losses


@final
class EmpiricalFisher(LossProduct):
    """F̂ = (1/n) Σ sₙsₙᵀ of the gradients sₙ of each sample's own loss, not centred.

    No Fisher information away from a well-specified optimum, whatever its name: `ModelFisher` is.

    Args:
        model: in eval mode where it has BatchNorm or dropout.
        loss: loss(output, target), the mean over a batch of the samples' own, each that of the batch it makes alone.
        data: batches (inputs, targets); inputs are a tensor, a tuple of arguments or a dict of keywords.
        parameters: names or tensors; None takes all that require gradients.

    Raises:
        ValueError: in the first product, for a loss that is not such a mean, as with class weights.

    Reference: kunstner2019limitations
    """

    def _mean(self, of: Any, columns: Values) -> Values:
        mean = super()._mean(self._checking(of), columns)
        self._checked = True
        return mean

    def _checking(self, of: Any) -> Any:
        """The same, with a look at the loss of every batch in the first pass."""
        if self._checked:
            return of

        def checked(values: Values, batch: Batch, columns: Values) -> Values:
            output = self._forward(values, batch.inputs)
            check_separable(self._loss, output, batch.targets, batch.samples, self.call)
            result: Values = of(values, batch, columns)
            return result

        return checked

    def _apply(self, values: Values, batch: Batch, columns: Values) -> Values:
        pull = vjp(lambda at: self._losses(at, batch), values)[1]

        def product(column: Values) -> Values:
            scores = jvp(lambda at: self._losses(at, batch), (values,), (column,))[1]
            return pull(scores / batch.samples)[0]

        return self._columns(product, columns)

    def _form(self, values: Values, batch: Batch, columns: Values) -> Values:
        def score(column: Values) -> Tensor:
            return jvp(lambda at: self._losses(at, batch), (values,), (column,))[1]

        scores = self._columns(score, columns).to(self.dtype)
        return {"form": scores @ scores.T / batch.samples}

    def _losses(self, values: Values, batch: Batch) -> Tensor:
        output = self._forward(values, batch.inputs)
        return sample_losses(self._loss, output, batch.targets, batch.samples, self.call)
