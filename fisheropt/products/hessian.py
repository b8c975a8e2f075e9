"""Products with the Hessian of the mean loss."""

from __future__ import annotations

from typing import final

from torch import Tensor
from torch.func import grad, vjp

from fisheropt.products.base import LossProduct
from fisheropt.products.batches import Batch
from fisheropt.products.forward import Values
from fisheropt.products.losses import check_mean, mean_loss


@final
class Hessian(LossProduct):
    """H = ∂²L/∂θ∂θᵀ of L, the mean loss over the samples of data: reverse over reverse mode.

    Some losses have no forward derivative of second order, as `F.mse_loss` and `F.huber_loss`.

    Args:
        model: in eval mode where it has BatchNorm or dropout.
        loss: loss(output, target), the mean over a batch, as in `F.cross_entropy`.
        data: batches (inputs, targets); inputs are a tensor, a tuple of arguments or a dict of keywords.
        parameters: names or tensors; None takes all that require gradients.

    Reference: pearlmutter1994fast
    """

    def _apply(self, values: Values, batch: Batch, columns: Values) -> Values:
        if not self._checked:
            check_mean(self._loss, self._forward(values, batch.inputs), batch.targets, self.call)
            self._checked = True

        def mean(at: Values) -> Tensor:
            return mean_loss(self._loss, self._forward(at, batch.inputs), batch.targets, self.call)

        return self._columns(lambda column: vjp(grad(mean), values)[1](column)[0], columns)
