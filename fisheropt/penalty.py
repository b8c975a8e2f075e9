"""A Fisher floor beside any torch optimizer: a term to add to the loss.

    loss(model(x), y) + penalty(x),    penalty = a ψ(1 - λ/τ)

λ is the smallest eigenvalue of the model Fisher information in k directions, on the batch x.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from fisheropt.likelihoods import Likelihood, of_loss
from fisheropt.optim import critical
from fisheropt.optim.floor.exact import core, evaluating
from fisheropt.optim.floor.penalty import automatic_weight
from fisheropt.products.forward import Forward
from fisheropt.products.information import information
from fisheropt.theory.certificate import FloorCertificate, certify_floor_cholesky
from fisheropt.theory.penalty import PsiName, guaranteed_floor
from fisheropt.theory.penalty import resolve as resolve_psi

_NULL = 1e-9  # of the largest eigenvalue
_NEGLIGIBLE = 1e-3  # of the largest weight of the soft minimum


@final
class FisherFloorPenalty:
    """A ψ(1 - λ/τ), which keeps the smallest information λ of a model above τ; zero where it is.

    Its gradient is that of Rayleigh quotients along the weak eigenvectors with those held fixed: k jvps of the logits, and
    where it acts one more with reverse mode through it. It is steep, a/τ: clip the gradient of the sum
    (`torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)`) rather than shorten the steps.

    Args:
        model: whose output are the logits; it is computed in eval mode.
        likelihood: of the output, an object or a name.
        directions: as those of FisherFloorSGD; of structural null directions, as a shift of all logits, none may be among
            them, as nothing lifts them.
        floor: τ, in units of the information of one sample; "auto" is half of λ at the first call.
        weight: a; "auto" is twice the loss of a model that knows nothing, 2 ln C for each label.
        psi: "hinge", "squared" or "softmin", a hinge on the soft minimum of all eigenvalues.

    Raises:
        ValueError: for arguments outside their range, or directions without information.

    Reference: huang2025spectral
    """

    def __init__(
        self,
        model: nn.Module,
        likelihood: Likelihood | str,
        directions: critical.Chosen = "auto",
        floor: float | Literal["auto"] = "auto",
        weight: float | Literal["auto"] = "auto",
        psi: PsiName = "hinge",
    ) -> None:
        for name, value in (("floor", floor), ("weight", weight)):
            if value != "auto" and (isinstance(value, str) or not 0 < value < float("inf")):
                raise ValueError(f"FisherFloorPenalty({name}={value!r}): write 'auto' or a number > 0")
        head = of_loss(likelihood)
        if head is None:
            raise ValueError(
                "FisherFloorPenalty(likelihood=None): write likelihood='categorical' or that of the output"
            )
        self.model, self.likelihood = core(model), head
        self.psi = resolve_psi(psi, "FisherFloorPenalty(psi=...)")
        self.floor = 0.0 if floor == "auto" else float(floor)
        if weight == "auto":
            automatic_weight(head, torch.Size((1, 2)))  # refuses what it does not know
        self.weight = 0.0 if weight == "auto" else float(weight)
        self.vectors = _vectors(self.model, directions)
        self._information: Tensor | None = None

    def __call__(self, inputs: Any) -> Tensor:
        """The penalty on a batch, a scalar; differentiable in the model's parameters.

        Args:
            inputs: of the model: a tensor, a tuple of arguments or a dictionary of keywords.
        """
        fresh = self._information is None
        self._information = self._measured(inputs)
        values, vectors = torch.linalg.eigh(self._information)
        if fresh:
            self._start(values, inputs)
        smallest = float(self.psi.smallest(values, self.floor))
        shortfall = 1 - smallest / self.floor
        value = values.new_tensor(self.weight * self.psi.charge(shortfall))
        if shortfall > 0:
            density = self.psi.density(values, self.floor)
            heavy = density > _NEGLIGIBLE * density.max()
            rows = (vectors * density.sqrt()).T[heavy]
            lifted = self._fisher(inputs, rows).double().trace()
            slope = self.weight / self.floor * self.psi.slope(shortfall)
            value = value - slope * (lifted - lifted.detach())
        return value.to(next(self.model.parameters()).dtype)

    @property
    def information(self) -> Tensor:
        """Γ of the last batch in the directions, [k, k], float64."""
        if self._information is None:
            raise RuntimeError("nothing was measured so far: call penalty(inputs) first")
        return self._information

    @property
    def smallest(self) -> float:
        """λ of the last batch, the smallest eigenvalue."""
        return float(torch.linalg.eigvalsh(self.information)[0])

    @property
    def active(self) -> bool:
        """Whether the last batch was charged."""
        return float(self.psi.smallest(torch.linalg.eigvalsh(self.information), self.floor)) < self.floor

    def guarantee(self, gap: float) -> float:
        """λ ≥ τ(1 - gap/a), or τ(1 - √(gap/a)) for "squared", at a point with F ≤ F(θ_f) + ε.

        Args:
            gap: L(θ_f) - L(θ) + ε, with θ_f any point that meets the floor, as the start does for floor="auto".
        """
        self._check_started()
        return guaranteed_floor(self.floor, gap, self.weight, self.psi)

    def certify(self, inputs: Any) -> FloorCertificate:
        """Whether Γ on these inputs is at least τ in every direction, by Cholesky; on held-out ones it says more.

        Args:
            inputs: of the model.
        """
        self._check_started()
        return certify_floor_cholesky(self._measured(inputs), self.floor)

    def state_dict(self) -> dict[str, float]:
        """What "auto" has become, for a checkpoint: {"floor": τ, "weight": a}, 0 where it is not set so far."""
        return {"floor": self.floor, "weight": self.weight}

    def load_state_dict(self, state_dict: Mapping[str, float]) -> None:
        """Go on with the floor and the weight of a checkpoint, and not with those of the next batch.

        Args:
            state_dict: of `state_dict`.

        Raises:
            ValueError: for another's.
        """
        if set(state_dict) != {"floor", "weight"}:
            raise ValueError(
                f"penalty.load_state_dict(...) found {sorted(state_dict)}, not ['floor', 'weight']; give it what "
                f"penalty.state_dict() returned"
            )
        self.floor, self.weight = float(state_dict["floor"]), float(state_dict["weight"])

    def _measured(self, inputs: Any) -> Tensor:
        found = self._fisher(inputs, None).detach().double()
        if not found.isfinite().all():
            raise FloatingPointError("the information of this batch is not finite: the model has diverged; lower lr")
        return found

    def _fisher(self, inputs: Any, rows: Tensor | None) -> Tensor:
        """The information along the directions, or along combinations of them with coefficients [r, k]."""
        along = self.vectors if rows is None else {n: _combined(rows, v) for n, v in self.vectors.items()}
        with torch.enable_grad(), evaluating(self.model):
            return information(self.model, self.likelihood, inputs, along)

    def _start(self, values: Tensor, inputs: Any) -> None:
        """Set what is "auto", at the parameters and on the batch of the first call."""
        null = int((values <= _NULL * values[-1]).sum())
        if null:
            self._information = None
            raise ValueError(
                f"{null} of the {len(values)} directions carry no information on this batch, and no penalty lifts them: "
                f"give directions= without structural null ones, as a shift of all logits, or a larger first batch"
            )
        self.floor = self.floor or float(values[0]) / 2
        if not self.weight:
            with torch.no_grad(), evaluating(self.model):
                forward = Forward(self.model, None, "FisherFloorPenalty(model)(inputs)")
                self.weight = automatic_weight(self.likelihood, forward.logits(forward.values(), inputs).shape)

    def _check_started(self) -> None:
        if not (self.floor and self.weight):
            raise RuntimeError(
                "floor and weight are not set so far: call penalty(inputs) first, or give both as numbers"
            )


def _vectors(model: nn.Module, directions: critical.Chosen) -> dict[str, Tensor]:
    """The directions, orthonormal, [k, *parameter] by name."""
    parameters: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
    statistic = critical.statistic(directions, parameters)
    along = {} if statistic is None else statistic.directions(parameters)
    if statistic is None or not along:
        raise ValueError(f"FisherFloorPenalty(directions={directions!r}) watches nothing of this model")
    units = torch.eye(statistic.rank(parameters), dtype=torch.float64)
    found = {
        name: torch.stack([d.combine(u.to(parameters[name].device)).detach().flatten().double() for u in units])
        for name, d in along.items()
    }
    gram = torch.stack([v.cpu() @ v.cpu().T for v in found.values()]).sum(0)
    values, vectors = torch.linalg.eigh(gram)
    frame = (vectors * values.rsqrt()) @ vectors.T
    return {n: _combined(frame, v).reshape(-1, *parameters[n].shape).to(parameters[n]) for n, v in found.items()}


def _combined(rows: Tensor, vectors: Tensor) -> Tensor:
    return torch.tensordot(rows.to(vectors), vectors, 1)
