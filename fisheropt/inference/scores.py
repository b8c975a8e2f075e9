"""Scores of each sample and roots of its information, by vmap in float64 and in chunks."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.func import grad, grad_and_value, jacrev, vjp, vmap
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from fisheropt.inference.heads import log_loss
from fisheropt.likelihoods import Likelihood
from fisheropt.products.base import LARGEST_DENSE
from fisheropt.products.batches import Batches
from fisheropt.products.forward import Forward, Values
from fisheropt.products.losses import Loss, check_mean, check_separable, mean_loss

_CHUNK = 1 << 22
_COLUMNS = 32


class Chunk(NamedTuple):
    """Scores s [m, d] of m samples from the `first` on, their losses' sum, and roots R [m, k, d] of their information."""

    first: int
    scores: Tensor
    loss: float
    roots: Tensor | None


class Linear(NamedTuple):
    """The model linearised: logits z [n, ...] and their Jacobian J [n, k, d], with the targets."""

    logits: Tensor
    jacobian: Tensor
    targets: Tensor


@final
class Scores:
    """A model and its data in float64, and what each sample says about the parameters θ.

    Args:
        model: of any precision, in eval mode where it has BatchNorm or dropout; a copy is made.
        loader: batches (inputs, targets) that can be gone through again.
        objective: a likelihood, or loss(output, target), the mean over a batch.
        parameters: names or tensors; None takes all that require gradients.
        call: the user's call, for messages.
    """

    def __init__(
        self,
        model: nn.Module,
        loader: Iterable[Any],
        objective: Likelihood | Loss,
        parameters: Sequence[str | Tensor] | None,
        call: str,
    ) -> None:
        names = Forward(model, parameters, call).names
        self._forward = Forward(copy.deepcopy(model).double(), names, call)
        self._data = Batches(loader, call)
        self.objective, self.call = objective, call
        values = self._forward.values()
        self.shapes = {name: p.shape for name, p in values.items()}
        self.device = next(iter(values.values())).device
        self.theta = torch.cat([p.detach().flatten() for p in values.values()])

    @property
    def samples(self) -> int:
        """Number n of samples."""
        return self._data.samples

    def move(self, theta: Tensor) -> None:
        """Set the copy's parameters to θ [d]."""
        self.theta = theta
        for name, part in self.split(theta).items():
            self._forward.values()[name].data.copy_(part)

    def split(self, vector: Tensor) -> Values:
        """Coordinates [d] by parameter name, in the parameter's shape."""
        parts = vector.split([shape.numel() for shape in self.shapes.values()])
        return {name: part.reshape(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}

    def chunks(self, *, roots: bool) -> Iterator[Chunk]:
        """One pass over the data; `roots` asks for the roots of the information too."""
        first = 0
        for inputs, targets, count in self._batches():
            chunk = self._rooted(inputs, targets, first) if roots else self._plain(inputs, targets, count, first)
            if not bool(chunk.scores.isfinite().all()):
                bad = int((~chunk.scores.isfinite()).any(1).nonzero()[0]) + first
                raise FloatingPointError(
                    f"{self.call}: the score of sample {bad} is not finite; look for NaN in the "
                    f"data, or for logits that overflow"
                )
            yield chunk
            first += count

    def hessian(self) -> Tensor:
        """∂²L/∂θ∂θᵀ [d, d] of the mean loss, reverse over reverse, as some losses have no forward derivative."""
        size = self.theta.numel()
        if size > LARGEST_DENSE:
            raise ValueError(
                f"{self.call}: the Hessian of {size} parameters is too large, choose some with parameters=[...]"
            )
        units = self._units(size)
        total = torch.zeros(size, size, dtype=torch.float64, device=self.device)
        for inputs, targets, count in self._batches():
            if not isinstance(self.objective, Likelihood):
                output = self._output(inputs)
                check_mean(self.objective, output, targets, self.call)
                check_separable(self.objective, output, targets, count, self.call)

            def mean(values: Values, x: Any = inputs, y: Any = targets) -> Tensor:
                return self._mean_loss(self._forward(values, x), y)

            pull = vjp(grad(mean), self._values())[1]
            rows = vmap(lambda unit, pull=pull: pull(unit)[0], chunk_size=_COLUMNS)(units)
            total += count / self.samples * torch.cat([rows[name].flatten(1) for name in self.shapes], 1)
        return (total + total.mT) / 2

    def linearised(self) -> Linear:
        """The whole data's logits and Jacobian at once."""
        parts = [Linear(*self._jacobian(x), y) for x, y, _ in self._batches()]
        return Linear(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def _batches(self) -> Iterator[tuple[Any, Any, int]]:
        """Inputs, targets and their number, in chunks small enough for a Jacobian."""
        outputs = 1
        for inputs, targets, count in _Doubled(self._data, self.device):
            if isinstance(self.objective, Likelihood):
                one = self._logits(_rows(inputs, count, 0, 1))
                outputs = max(1, one.numel())
            size = max(1, _CHUNK // (outputs * (self.theta.numel() + outputs)))
            for start in range(0, count, size):
                stop = min(start + size, count)
                yield _rows(inputs, count, start, stop), _rows(targets, count, start, stop), stop - start

    def _units(self, size: int) -> Values:
        """The unit vectors by parameter name, [d, *parameter] each."""
        parts = torch.eye(size, dtype=torch.float64, device=self.device).split(
            [shape.numel() for shape in self.shapes.values()], 1
        )
        return {
            name: part.reshape(size, *shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def _output(self, inputs: Any) -> Any:
        with torch.no_grad():
            return self._forward(self._values(), inputs)

    def _logits(self, inputs: Any) -> Tensor:
        with torch.no_grad():  # else the taps of an optimizer would take this forward for one of training
            return self._forward.logits(self._values(), inputs)

    def _values(self) -> Values:
        return {name: p.detach() for name, p in self._forward.values().items()}

    def _jacobian(self, inputs: Any) -> tuple[Tensor, Tensor]:
        """Logits [m, ...] and J [m, k, d]."""
        logits = self._logits(inputs)
        jacobian = self._mapped(jacrev, lambda output, _: output[0], (inputs, None), len(logits))
        flat = [jacobian[name].reshape(len(logits), logits[0].numel(), -1) for name in self.shapes]
        return logits, torch.cat(flat, -1)

    def _rooted(self, inputs: Any, targets: Any, first: int) -> Chunk:
        head = self.objective
        assert isinstance(head, Likelihood)
        logits, jacobian = self._jacobian(inputs)
        cotangent, loss = output_scores(head, logits, targets)
        factor = output_factor(head, logits)
        return Chunk(first, torch.einsum("nk,nkd->nd", cotangent, jacobian), loss, factor.mT @ jacobian)

    def _plain(self, inputs: Any, targets: Any, count: int, first: int) -> Chunk:
        head = self.objective
        if isinstance(head, Likelihood):
            targets, total = output_scores(head, self._logits(inputs), targets)

        def value(output: Any, target: Any) -> Tensor:
            if isinstance(head, Likelihood):
                return (output.flatten(1) * target).sum()
            return mean_loss(head, output, target, self.call)

        gradients, values = self._mapped(grad_and_value, value, (inputs, targets), count)
        loss = total if isinstance(head, Likelihood) else float(values.sum())
        return Chunk(first, torch.cat([gradients[name].flatten(1) for name in self.shapes], 1), loss, None)

    def _mapped(self, derivative: Any, of: Any, tree: Any, count: int) -> Any:
        """The derivative by the parameters of `of`(output, target), sample by sample."""
        leaves, spec = tree_flatten(tree)
        axes = tuple(
            0 if isinstance(leaf, Tensor) and leaf.ndim and leaf.shape[0] == count else None for leaf in leaves
        )

        def alone(values: Values, *parts: Any) -> Tensor:
            own = [part if axis is None else part.unsqueeze(0) for part, axis in zip(parts, axes, strict=True)]
            x, y = tree_unflatten(own, spec)
            return of(self._forward(values, x), y)

        with torch.no_grad():
            return vmap(derivative(alone), in_dims=(None, *axes))(self._values(), *leaves)

    def _mean_loss(self, output: Any, targets: Any) -> Tensor:
        if isinstance(self.objective, Likelihood):
            return log_loss(self.objective, output, targets).mean()
        return mean_loss(self.objective, output, targets, self.call)


def output_scores(likelihood: Likelihood, logits: Tensor, targets: Tensor) -> tuple[Tensor, float]:
    """Gradients u [n, k] of each sample's -log p in its logits, and the sum of -log p."""
    with torch.enable_grad():
        z = logits.detach().requires_grad_()
        loss = log_loss(likelihood, z, targets).sum()
        (cotangent,) = torch.autograd.grad(loss, z)
    return cotangent.flatten(1), float(loss.detach())


def output_factor(likelihood: Likelihood, logits: Tensor) -> Tensor:
    """B(z) [n, k, k], column by column."""
    count = logits[0].numel()
    units = torch.eye(count, dtype=logits.dtype, device=logits.device).reshape(count, 1, *logits.shape[1:])
    columns = [likelihood.factor(logits, unit.expand_as(logits)).flatten(1) for unit in units]
    return torch.stack(columns, -1)


@final
class _Doubled:
    """Batches whose real numbers are float64."""

    def __init__(self, data: Batches, device: torch.device) -> None:
        self._data, self._device = data, device

    def __iter__(self) -> Iterator[tuple[Any, Any, int]]:
        for batch in self._data.on(self._device):
            inputs, targets = tree_map_only(Tensor, _double, (batch.inputs, batch.targets))
            yield inputs, targets, batch.samples


def _double(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


def _rows(tree: Any, count: int, start: int, stop: int) -> Any:
    return tree_map_only(Tensor, lambda x: x[start:stop] if x.ndim and x.shape[0] == count else x, tree)
