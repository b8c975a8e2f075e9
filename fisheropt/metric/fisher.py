"""The Fisher matrix of a network, estimated from a few backwards from its logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from fisheropt.likelihoods import Likelihood, resolve
from fisheropt.metric.chance import PROBES, Chance
from fisheropt.metric.inputs import Inputs, arguments, read
from fisheropt.metric.layers import Layers
from fisheropt.metric.low_rank import LowRank, leading
from fisheropt.metric.pullback import Measured, Pullback
from fisheropt.metric.readings import Estimate, Interval, Variation
from fisheropt.metric.running import Running
from fisheropt.metric.settings import check
from fisheropt.metric.variants import Probes, Variant, build
from fisheropt.theory.estimator_quality import skew_warning

_LARGEST_BLOCK = 8192
_CALL = "metric.update(...)"


@final
class FisherMetric:
    """The Fisher matrix F = Σₓ Jₓᵀ I(zₓ) Jₓ of a network over the inputs that it was shown.

    "hutchinson" pulls back u = √p∘ξ - p⟨√p, ξ⟩ of all inputs at once, one backward a probe and no label: E[ggᵀ] = F for
    g = Σₓ Jₓᵀuₓ. No entry of the diagonal has a coefficient of variation above √(2/M) after M probes.

    Gradients are asked of the logits, not of the loss: its scale, clipping and accumulation do not matter and `.grad` is not
    touched. A rank of a distributed run measures its own data; give each a seed of its own and join them by `summed`.

    Args:
        model: whose parameters are meant.
        likelihood: of its logits, an object of `fisheropt.likelihoods` or its name.
        variant: "hutchinson"; "eig", one sign an input less; "upper", diag(p) in place of I; "lower", rank k in place of I;
            "monte_carlo", labels from the model summed before the square; "monte_carlo_per_sample", N backwards a draw;
            "exact", N C backwards; "empirical", the labels of the data, N backwards, which does not estimate F.
        num_probes: M, draws an update; "all" takes every column of the factor, N C backwards, and leaves nothing to chance.
        rank: k of "lower" and of `interval`.
        probe: "rademacher", or "gaussian", which is never better.
        reduction: "mean" over inputs (weights, where given), or "sum".
        seed: of the draws; no global generator is touched.
        ema: decay b of an average over updates, counted in updates; None takes all updates alike.
        keep: whether rows g [P] are kept for `block` and `low_rank`; P numbers a draw, so for few updates.
        parameters: names or tensors; None takes all that require gradients.

    Raises:
        ValueError: for an unknown name, and a number outside its range.

    Reference: sun2025, hutchinson1989stochastic
    """

    def __init__(
        self,
        model: nn.Module,
        likelihood: Likelihood | str,
        variant: str = "hutchinson",
        *,
        num_probes: Probes = 1,
        rank: int = 1,
        probe: Literal["rademacher", "gaussian"] = "rademacher",
        reduction: Literal["mean", "sum"] = "mean",
        seed: int = 0,
        ema: float | None = None,
        keep: bool = False,
        parameters: Sequence[str | Tensor] | None = None,
    ) -> None:
        head = resolve(likelihood)
        if head is None:
            raise ValueError("FisherMetric(model, likelihood=None): write likelihood='categorical'")
        check(num_probes, rank, probe, reduction, ema, keep)
        self._model, self._likelihood, self._name = model, head, variant
        self._pull = Pullback(model, parameters, _CALL)
        self._layers = Layers(self._pull.names)
        self._probes: Probes = "all" if variant == "exact" else num_probes
        self._variant = build(variant, num_probes, rank)
        self._rank, self._probe, self._seed, self._keep = rank, PROBES[probe], seed, keep
        self._mean = reduction == "mean"
        self._running = Running(self._pull.names, mean=self._mean, ema=ema)
        self._bound = 0.0
        self.unreached: tuple[str, ...] = ()

    @property
    def parameters(self) -> tuple[str, ...]:
        """Their names, in the order of the model."""
        return self._pull.names

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the modules that hold the parameters."""
        return self._layers.names

    @property
    def updates(self) -> int:
        """How many there were since the start, or since `clear`."""
        return self._running.updates

    def update(
        self,
        inputs: Any = None,
        *,
        logits: Tensor | None = None,
        targets: Tensor | None = None,
        mask: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> FisherMetric:
        """Take in one batch: logits that you have, before their loss's backward, or inputs to run the model on.

        Args:
            inputs: of the model: a tensor, a tuple of arguments or a dict of keywords.
            logits: [n, C], [n, t, C] or, of other heads than softmax, [n]; still attached to the graph, which stays usable.
            targets: labels, for "empirical" alone: classes [n], or shaped like the logits.
            mask: True where an input counts, shaped like the logits without the axis of the classes.
            weights: w >= 0 of the inputs, shaped alike: F = Σ w JᵀIJ.

        Returns:
            The metric itself.

        Raises:
            RuntimeError: for logits without a graph, or of another model.
            ValueError: for shapes that do not fit, and missing targets.
            FloatingPointError: for numbers that are not finite; nothing of the update is kept.
        """
        if self._variant.labelled != (targets is not None):
            need = (
                "needs targets=" if self._variant.labelled else "takes no targets, which only 'empirical' reads; drop"
            )
            raise ValueError(f"FisherMetric(..., {self._name!r}).update(...): {need} targets=y")
        given = self._read(inputs, logits, targets, mask, weights)
        found = self._measured(self._variant, given, keep=self._keep)
        self._running.add(found, given.weight)
        self.unreached = found.unreached
        draws = self._variant.draws * self._running.effective_updates
        self._bound = self._variant.cv_bound(given, draws, self._probe.kurtosis)
        return self

    def diagonal(self) -> dict[str, Tensor]:
        """F_ii of every parameter by name, shaped like it, at least float32."""
        self._seen("diagonal()")
        return self._running.diagonal()

    def trace(self, layer: str | None = None) -> Estimate:
        """The trace of F, of one layer or of all, with its standard error.

        The error is measured over draws where an update has two or more, and is chance in the draws alone: the data are
        taken as given.

        Args:
            layer: of `layers`, or the name of a parameter; None for all.
        """
        self._seen("trace()")
        return self._running.trace(self._layers.chosen(layer), self._bound if self._variant.random else None)

    def coefficient_of_variation(self) -> Variation:
        """How far the diagonal may be off: the bound of theory, and what the draws show."""
        self._seen("coefficient_of_variation()")
        draws = self._variant.draws * self._running.effective_updates
        warning = skew_warning(draws) if self._variant.random else ""
        measured = self._running.variation() if self._running.dof else {}
        return Variation(self._bound, measured, self._running.dof, draws, warning)

    def block(self, name: str) -> Tensor:
        """F of one parameter or one layer, [p, p], from the rows that were kept.

        Args:
            name: of a parameter, or of a layer.

        Raises:
            RuntimeError: for a metric that keeps no rows.
            ValueError: for an unknown name, and more than 8192 coordinates.
        """
        rows, chosen = self._rows(f"block({name!r})"), self._layers.chosen(name)
        sizes = [shape.numel() for shape in self._pull.shapes.values()]
        columns = chosen.repeat_interleave(torch.tensor(sizes)).to(rows.device)
        if int(columns.sum()) > _LARGEST_BLOCK:
            raise ValueError(
                f"metric.block({name!r}): {int(columns.sum())} coordinates make a matrix above the limit of "
                f"{_LARGEST_BLOCK}; write metric.low_rank(k)"
            )
        part = rows[:, columns]
        return part.T @ part

    def low_rank(self, rank: int) -> LowRank:
        """The leading eigenpairs of the estimate, from the rows that were kept.

        With M probes of a matrix of tr F/|F| = r the error in norm is about |F|(√(r/M) + r/M).

        Args:
            rank: k, at most the number of rows.

        Raises:
            RuntimeError: for a metric that keeps no rows.
            ValueError: for more pairs than rows.
        """
        rows = self._rows(f"low_rank({rank})")
        if not 1 <= rank <= min(rows.shape):
            raise ValueError(
                f"metric.low_rank({rank}): {rows.shape[0]} rows were kept of {rows.shape[1]} coordinates; write 1 to "
                f"{min(rows.shape)}, or num_probes={rank}"
            )
        return leading(rows, rank, self.parameters)

    def interval(
        self,
        inputs: Any = None,
        *,
        logits: Tensor | None = None,
        mask: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> dict[str, Interval]:
        """Traces of lower bound, Fisher information and upper bound of one batch, layer by layer; the metric stays as it is.

        Exact with num_probes="all" and for "exact"; else estimates that share their signs. Arguments are those of `update`.
        """
        given = self._read(inputs, logits, None, mask, weights)
        found = {name: self._once(name, given) for name in ("lower", "hutchinson", "upper")}
        return {
            layer: Interval(*(running.trace(self._layers.chosen(layer), bound) for running, bound in found.values()))
            for layer in self.layers
        }

    def clear(self) -> None:
        """Forget all updates; the draws go on from the seed."""
        self._running.clear()

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers, for `torch.save`."""
        return {"variant": self._name, "bound": self._bound, **self._running.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of a metric of the same variant and parameters.

        Raises:
            ValueError: for a state of another variant, or of other parameters.
        """
        shapes = {name: tuple(value.shape) for name, value in state["diagonal"].items()}
        wanted = {name: tuple(shape) for name, shape in self._pull.shapes.items()}
        if state["variant"] != self._name or (shapes and shapes != wanted):
            other = [name for name in {**shapes, **wanted} if shapes.get(name) != wanted.get(name)]
            raise ValueError(
                f"metric.load_state_dict(state): the state is of variant={state['variant']!r} and differs in the "
                f"parameters {other}; build FisherMetric(model, likelihood, {state['variant']!r}) of that model"
            )
        self._running.load_state_dict(dict(state), self._pull.values())
        self._bound = state["bound"]

    def __str__(self) -> str:
        head = f"FisherMetric, {self._name}, {self.updates} update(s)"
        if not self.updates:
            return head
        lines = [f"  {layer or 'model'}: trace {self.trace(layer)}" for layer in self.layers]
        if self.unreached:
            lines.append(f"  not reached from the logits, so without information: {', '.join(self.unreached)}")
        return "\n".join([f"{head}: trace {self.trace()}", *lines])

    def _read(
        self, inputs: Any, logits: Tensor | None, targets: Tensor | None, mask: Tensor | None, weights: Tensor | None
    ) -> Inputs:
        """The batch as rows of logits; runs the model where inputs were given."""
        if (inputs is None) == (logits is None):
            raise ValueError(
                f"{_CALL}: give either inputs or logits; write metric.update(x) or metric.update(logits=model(x))"
            )
        if logits is None:
            positional, keywords = arguments(inputs)
            logits = self._model(*positional, **keywords)
        return read(self._likelihood, logits, targets, mask, weights, _CALL)

    def _once(self, name: str, given: Inputs) -> tuple[Running, float | None]:
        """What one update of a variant finds, and the bound on its error."""
        variant = build(name, self._probes, self._rank)
        running = Running(self.parameters, mean=self._mean, ema=None)
        running.add(self._measured(variant, given, keep=False), given.weight)
        bound = variant.cv_bound(given, variant.draws, self._probe.kurtosis)
        return running, bound if variant.random else None

    def _measured(self, variant: Variant, given: Inputs, *, keep: bool) -> Measured:
        device = given.logits.device
        chance = Chance(self._seed, self.updates, self._probe, device)
        with torch.autocast(device.type, enabled=False):
            return self._pull.measure(variant, given, chance, keep=keep)

    def _seen(self, call: str) -> None:
        if not self.updates:
            raise RuntimeError(f"metric.{call}: nothing was measured yet; write metric.update(x) before")

    def _rows(self, call: str) -> Tensor:
        self._seen(call)
        if not self._running.rows:
            raise RuntimeError(
                f"metric.{call}: no rows were kept; write FisherMetric(..., keep=True), which holds one gradient a draw, or "
                f"fisheropt.products.ModelFisher(...).dense() for the matrix itself"
            )
        return torch.cat(self._running.rows) / self._running.scale**0.5
