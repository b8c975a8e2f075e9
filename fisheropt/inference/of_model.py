"""The sandwich covariance of a fitted model, from its data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from fisheropt.inference.covariance import SandwichCovariance
from fisheropt.inference.information import Refit
from fisheropt.inference.moments import Moments, Setting, adjusted_noise, moments
from fisheropt.inference.scores import Scores
from fisheropt.likelihoods import Likelihood, resolve
from fisheropt.products.losses import Loss
from fisheropt.theory.sandwich import (
    Correction,
    Identification,
    correction_factor,
    identification,
    restricted_inverse,
    sandwich_covariance,
    score_distance,
)

_CALL = "fisheropt.inference.sandwich(...)"
_NOTABLE = 0.1
_FEW_CLUSTERS = 50


def sandwich(
    model: nn.Module,
    loader: Iterable[Any],
    likelihood: Likelihood | str | None = None,
    *,
    correction: Correction | None = None,
    clusters: Tensor | Sequence[int] | None = None,
    parameters: Sequence[str | Tensor] | None = None,
    loss: Loss | None = None,
    curvature: Literal["fisher", "hessian"] | None = None,
    project: Tensor | None = None,
    l2: float = 0.0,
    one_step: bool = False,
    tolerance: float = 1.0,
) -> SandwichCovariance:
    """H⁻¹GH⁻¹/n of the parameters at the optimum of their mean loss, from one pass over the data.

    Computed in float64 on a copy of the model. Valid whether or not the model is true, and then for the parameters that
    fit best; n should be large beside the number of parameters.

    Args:
        model: fitted; in eval mode where it has BatchNorm or dropout.
        loader: batches (inputs, targets) that can be gone through again; inputs are a tensor, a tuple of arguments or a
            dict of keywords.
        likelihood: of the output: "bernoulli", "categorical", "gaussian", "poisson", "multilabel" or an object of
            `fisheropt.likelihoods`.
        correction: "HC0" for G as it is, "HC1" times n/(n - d), "HC2" and "HC3" for residuals divided by (1 - h)^½ and
            1 - h; None takes "HC0", or "HC1" with clusters.
        clusters: label [n] of each sample's cluster, in the order of the loader; samples of one cluster may depend on each
            other.
        parameters: names or tensors; None takes all that require gradients. The others count as known.
        loss: loss(output, target), the mean over a batch, in place of a likelihood.
        curvature: "fisher", the model Fisher, or "hessian"; the same for canonical links and linear models. None takes
            "fisher", or "hessian" with a loss.
        project: projector [d, d] or basis [d, r] of the identified directions; None finds them.
        l2: λ of a penalty (λ/2)‖θ‖² in the mean loss, torch's weight_decay; it enters H, and intervals are about the
            penalised optimum.
        one_step: take the Newton step θ - H⁻¹∇L first, which makes an efficient estimate of any that is 1/√n near; the
            model is left as it is.
        tolerance: largest distance from the optimum, in standard errors of the worst direction; math.inf only tells it.

    Raises:
        RuntimeError: farther from the optimum than `tolerance`.
        ValueError: for arguments that do not go together, a loss that is not the mean of its samples' own, or data that are
            other samples in another pass.
        FloatingPointError: for a score that is not finite.

    Reference: huber1967behavior, white1982maximum
    """
    objective = _objective(likelihood, loss)
    chosen = _correction(correction, curvature, objective, clusters)
    scores = Scores(model, loader, objective, parameters, _CALL)
    setting = Setting(float(l2), _fisher(objective, curvature), _cluster_index(clusters, loader, scores))
    point = _measured(scores, setting, project)
    count = None if setting.clusters is None else int(setting.clusters.max()) + 1
    factor = correction_factor(chosen, scores.samples, point.directions.basis.shape[1], count)
    if one_step:
        scores.move(scores.theta - restricted_inverse(point.moments.curvature, point.directions.basis) @ point.gradient)
        point = _measured(scores, setting, project)
    if not point.distance <= tolerance:
        raise RuntimeError(_far(point.distance, one_step))
    return _covariance(scores, setting, point, chosen, factor)


class _Point(NamedTuple):
    """Moments at the present parameters; the gradient is that in identified directions."""

    moments: Moments
    directions: Identification
    gradient: Tensor
    distance: float


def _measured(scores: Scores, setting: Setting, project: Tensor | None) -> _Point:
    found = moments(scores, setting)
    directions = identification(found.curvature, project)
    gradient = directions.basis @ (directions.basis.mT @ found.gradient)
    distance = score_distance(gradient, found.noise, found.curvature, scores.samples)
    return _Point(found, directions, gradient, distance)


def _covariance(
    scores: Scores, setting: Setting, point: _Point, correction: Correction, factor: float
) -> SandwichCovariance:
    basis, null = point.directions
    count = None if setting.clusters is None else int(setting.clusters.max()) + 1
    H, noise = point.moments.curvature, point.moments.noise
    if correction in ("HC2", "HC3"):
        noise = adjusted_noise(scores, setting, restricted_inverse(H, basis) / scores.samples, correction)
    likely = isinstance(scores.objective, Likelihood)
    return SandwichCovariance(
        shapes=scores.shapes,
        estimate=scores.theta - null @ (null.mT @ scores.theta),
        covariance=factor * sandwich_covariance(H, noise, scores.samples, basis),
        curvature=H,
        noise=noise,
        samples=scores.samples,
        null=null,
        correction=correction,
        clusters=count,
        log_likelihood=-point.moments.loss * scores.samples if likely else None,
        distance=point.distance,
        remarks=_remarks(point, setting, count),
        refit=Refit(scores, basis) if likely and setting.l2 == 0 else None,
    )


def _objective(likelihood: Likelihood | str | None, loss: Loss | None) -> Likelihood | Loss:
    head = resolve(likelihood)
    if (head is None) == (loss is None):
        found = "neither" if head is None else "both"
        raise ValueError(
            f"{_CALL}: found {found} of likelihood and loss; write likelihood='bernoulli', or loss=F.huber_loss"
        )
    objective = loss if head is None else head
    assert objective is not None
    return objective


def _fisher(objective: Likelihood | Loss, curvature: str | None) -> bool:
    if curvature not in (None, "fisher", "hessian"):
        raise ValueError(f"{_CALL}: curvature={curvature!r}; write 'fisher' or 'hessian'")
    if not isinstance(objective, Likelihood) and curvature == "fisher":
        raise ValueError(f"{_CALL}: a loss has no Fisher information; write curvature='hessian', or a likelihood")
    return isinstance(objective, Likelihood) and curvature != "hessian"


def _correction(
    correction: Correction | None, curvature: str | None, objective: Likelihood | Loss, clusters: object
) -> Correction:
    chosen = correction or ("HC0" if clusters is None else "HC1")
    if chosen in ("HC2", "HC3") and (clusters is not None or not _fisher(objective, curvature)):
        reason = "clusters need leverages of blocks" if clusters is not None else "leverages need the model Fisher"
        raise ValueError(f"{_CALL}: correction={chosen!r}, but {reason}, which is not served; write correction='HC1'")
    return chosen


def _cluster_index(clusters: Tensor | Sequence[int] | None, loader: Any, scores: Scores) -> Tensor | None:
    """Clusters numbered from zero [n]."""
    if clusters is None:
        return None
    ordered = not isinstance(loader, DataLoader) or (
        type(loader.batch_sampler) in (BatchSampler, type(None)) and isinstance(loader.sampler, SequentialSampler)
    )
    if not ordered:
        raise ValueError(
            f"{_CALL}: clusters= follow the order of the loader, which shuffles; write DataLoader(..., shuffle=False)"
        )
    index = torch.as_tensor(clusters).unique(return_inverse=True)[1]
    if index.shape != (scores.samples,):
        raise ValueError(
            f"{_CALL}: clusters is {tuple(index.shape)}; write one label for each of the {scores.samples} samples"
        )
    return index.to(scores.device)


def _far(distance: float, one_step: bool) -> str:
    where = "after the Newton step, too" if one_step else "in the worst direction"
    cure = "train further" if one_step else "train further, or write one_step=True, which takes the Newton step"
    return (
        f"{_CALL}: |H⁻¹∇L| is {distance:.3g} standard errors {where}, so this is not the optimum and the intervals would be "
        f"about another point; {cure}. Perfectly separated classes have no optimum at all: give l2=. "
        f"tolerance=math.inf only tells the distance"
    )


def _remarks(point: _Point, setting: Setting, clusters: int | None) -> tuple[str, ...]:
    said = []
    null = point.directions.null
    if null.shape[1]:
        touched = int((null.square().sum(1) > 1e-12).sum())
        said.append(
            f"{null.shape[1]} directions are not identified (as a shift of all logits is not): {touched} coordinates are "
            f"shown without their part in them, NaN where nothing is left."
        )
    if point.distance > _NOTABLE:
        said.append(
            f"The optimum is {point.distance:.2g} standard errors away in the worst direction: train further, or write "
            f"one_step=True."
        )
    if setting.l2:
        said.append(
            f"Penalised with l2 = {setting.l2:g}: the intervals are about the penalised optimum, bias included."
        )
    if clusters is not None and clusters < _FEW_CLUSTERS:
        said.append(f"Only {clusters} clusters: normal intervals are too short; write summary(dof={clusters - 1}).")
    return tuple(said)
