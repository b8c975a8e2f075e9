"""Rows of what a user would take else: per-sample gradients, norms, variances and curvature of other packages.

A call is whatever gives the quantity from a batch, with the gradient where it comes along. Rows that leave parameters out, or
whose sample is another, say so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from recipes.measuring.models import Subject
from recipes.measuring.row import EACH, Call, Prepared, Row
from recipes.measuring.statistics import COUNT
from recipes.measuring.trainee import Trainee

SERVED = (nn.Linear, nn.Conv2d)
"""What curvlinops' KFAC has factors of."""


def peers() -> list[Row]:
    """The cheap ones first, as those that form all gradients leave a heap that others then have to live with."""
    return [
        Row("Opacus, norms (ghost)", "peers", _opacus_ghost, "opacus"),
        Row("BackPACK, norms (BatchL2Grad)", "peers", _backpack("BatchL2Grad", "batch_l2"), "backpack"),
        Row("BackPACK, SumGradSquared", "peers", _backpack("SumGradSquared", "sum_grad_squared"), "backpack"),
        Row("BackPACK, Variance", "peers", _backpack("Variance", "variance"), "backpack"),
        Row("curvlinops, empirical Fisher @ v", "peers", _curvlinops_fisher, "curvlinops"),
        Row("curvlinops, KFAC and @ v", "peers", _curvlinops_kfac, "curvlinops"),
        Row("torch.func, all gradients", "peers", _gradients, "torch"),
        Row(f"torch.func, {COUNT} dense directions", "peers", _projected, "torch"),
        Row("BackPACK, all gradients (BatchGrad)", "peers", _backpack("BatchGrad", "grad_batch"), "backpack"),
        Row("Opacus, all gradients (hooks)", "peers", _opacus_gradients(False), "opacus"),
        Row("Opacus, all gradients (functorch)", "peers", _opacus_gradients(True), "opacus"),
    ]


def _gradients(subject: Subject, device: torch.device) -> Prepared:
    return Prepared({EACH: _vmapped(Trainee(subject, device))})


def _projected(subject: Subject, device: torch.device) -> Prepared:
    trainee = Trainee(subject, device)
    found = _vmapped(trainee)
    basis = {name: p.new_empty(COUNT, p.numel()).normal_() for name, p in trainee.model.named_parameters()}

    def call() -> Tensor:
        return sum((h.flatten(1) @ basis[name].T for name, h in found().items()), start=torch.zeros((), device=device))

    with torch.no_grad():
        return Prepared({EACH: torch.no_grad()(call)})


def _vmapped(trainee: Trainee) -> Callable[[], dict[str, Tensor]]:
    """vmap(grad) over samples: all of their gradients, of which the ordinary one is the mean."""
    model = trainee.model
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        logits = functional_call(model, parameters, (x.unsqueeze(0),))
        return F.cross_entropy(logits.flatten(0, -2), y.flatten())

    every = vmap(grad(loss), (None, 0, 0))
    return lambda: every(parameters, trainee.x, trainee.y)


def _opacus_ghost(subject: Subject, device: torch.device) -> Prepared:
    """Norms by one backward; for clipping Opacus runs a second one."""
    from opacus.grad_sample import GradSampleModuleFastGradientClipping

    trainee = Trainee(subject, device)
    wrapped = GradSampleModuleFastGradientClipping(trainee.model, max_grad_norm=1.0, use_ghost_clipping=True)

    def call() -> None:
        trainee.loss(wrapped).backward()
        wrapped.get_norm_sample()
        wrapped.zero_grad(set_to_none=True)
        for parameter in trainee.model.parameters():
            del parameter._norm_sample

    return Prepared({EACH: call})


def _opacus_gradients(functorch: bool) -> Callable[[Subject, torch.device], Prepared]:
    def prepare(subject: Subject, device: torch.device) -> Prepared:
        from opacus.grad_sample import GradSampleModule

        trainee = Trainee(subject, device)
        wrapped = GradSampleModule(trainee.model, force_functorch=functorch)

        def call() -> None:
            trainee.loss(wrapped).backward()
            wrapped.zero_grad(set_to_none=True)

        trainee.loss(wrapped).backward()
        remark = _without(trainee.model, "grad_sample")
        wrapped.zero_grad(set_to_none=True)
        return Prepared({EACH: call}, remark=remark)

    return prepare


def _backpack(extension: str, result: str) -> Callable[[Subject, torch.device], Prepared]:
    def prepare(subject: Subject, device: torch.device) -> Prepared:
        from backpack import backpack, extend, extensions

        trainee = Trainee(subject, device)
        model, loss = extend(trainee.model), extend(nn.CrossEntropyLoss())

        def run() -> None:
            with backpack(getattr(extensions, extension)()):
                loss(model(trainee.x).flatten(0, -2), trainee.y.flatten()).backward()

        def drop() -> None:
            for parameter in model.parameters():
                if hasattr(parameter, result):
                    delattr(parameter, result)
            trainee.clear()

        run()
        remark = _without(model, result)
        drop()
        return Prepared({EACH: _both(run, drop)}, remark=remark)

    return prepare


def _curvlinops_fisher(subject: Subject, device: torch.device) -> Prepared:
    """One product, the operator being ready; no gradient comes with it."""
    from curvlinops import EFLinearOperator

    trainee = Trainee(subject, device)
    parameters = list(trainee.model.parameters())
    model, loss, data, options = _for_curvlinops(trainee)
    operator = EFLinearOperator(model, loss, parameters, data, **options)
    vector = [torch.randn_like(p) for p in parameters]
    return Prepared({EACH: lambda: _apply(operator, vector)}, remark=_token(subject))


def _curvlinops_kfac(subject: Subject, device: torch.device) -> Prepared:
    """The factors of this batch and one product; no gradient comes with it."""
    from curvlinops import FisherType, KFACLinearOperator

    trainee = Trainee(subject, device)
    served = [m for m in trainee.model.modules() if isinstance(m, SERVED)]
    parameters = [p for m in served for p in m.parameters(recurse=False)]
    vector = [torch.randn_like(p) for p in parameters]
    model, loss, data, options = _for_curvlinops(trainee)

    def call() -> None:
        operator = KFACLinearOperator(model, loss, parameters, data, fisher_type=FisherType.EMPIRICAL, **options)
        _apply(operator, vector)

    left = len(list(trainee.model.parameters())) - len(parameters)
    words = [f"{left} parameters outside of linear and convolutional layers left out" if left else "", _token(subject)]
    return Prepared({EACH: call}, remark="; ".join(word for word in words if word))


def _for_curvlinops(trainee: Trainee) -> tuple[nn.Module, nn.Module, list[Any], dict[str, Any]]:
    options = {
        "check_deterministic": False,
        "num_data": trainee.y.numel(),
        "batch_size_fn": lambda x: trainee.y.numel(),
    }
    model = trainee.model if trainee.subject.length is None else Flattened(trainee.model)
    return model, nn.CrossEntropyLoss(), [(trainee.x, trainee.y.flatten())], options


class Flattened(nn.Module):
    """A model of sequences whose output is a row a token, as curvlinops wants it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n t, classes]."""
        return self.model(x).flatten(0, -2)


def _apply(operator: Any, vector: list[Tensor]) -> None:
    operator @ vector


def _both(run: Call, drop: Call) -> Call:
    def call() -> None:
        run()
        drop()

    return call


def _token(subject: Subject) -> str:
    return "" if subject.length is None else "its sample is the token"


def _without(model: nn.Module, result: str) -> str:
    """How many parameters have no result after a backward."""
    parameters = list(model.parameters())
    missing = sum(getattr(p, result, None) is None for p in parameters)
    return f"{missing} of {len(parameters)} parameters have no result" if missing else ""
