"""Who runs: name, package, how it is built, and the ends of the grid that its learning rate is tuned over.

Every entrant that is tuned gets the same number of trials, spread evenly in log between its own ends. What else its
constructor takes is left as its authors have it, but for weight decay, none, and the interval of expensive preconditioners,
ten steps for all.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import nn
from torch.optim import Optimizer

from fisheropt import GodambeSGD
from recipes.racing.case import Case
from recipes.racing.walks import Make

Kind = Literal["ours", "peer", "full batch", "limit"]
INTERVAL = 10


@final
@dataclass(frozen=True)
class Entrant:
    """A way to train.

    Args:
        name: in the tables.
        kind: "ours"; "peer", a minibatch optimizer; "full batch"; or "limit", which is no optimizer of torch's form.
        make: builds it.
        low: smallest learning rate of the grid.
        high: largest.
        package: that must be importable.
        tuned: whether it gets trials; else its one setting is `high`.
        falls: whether its learning rate falls to 0 over the run where a track leaves that open.
        tracks: where it runs; empty for everywhere.
    """

    name: str
    kind: Kind
    make: Make
    low: float
    high: float
    package: str = "torch"
    tuned: bool = True
    falls: bool = False
    tracks: tuple[str, ...] = ()

    @property
    def installed(self) -> bool:
        """Whether its package can be imported."""
        return importlib.util.find_spec(self.package) is not None

    def grid(self, trials: int) -> list[float]:
        """Learning rates from the middle of the grid outwards, as good ones found early cut bad ones short."""
        if not self.tuned:
            return [self.high]
        ratio = (self.high / self.low) ** (1 / max(trials - 1, 1))
        rates = [self.low * ratio**index for index in range(trials)]
        return sorted(rates, key=lambda rate: abs(rates.index(rate) - (trials - 1) / 2))

    def at_edge(self, rate: float, trials: int) -> bool:
        """Whether the best of the grid is one of its ends, beyond which better may lie."""
        rates = self.grid(trials)
        return self.tuned and rate in (min(rates), max(rates))


def entrants() -> list[Entrant]:
    """All of them, ours last."""
    slow, smooth = ("one_pass",), ("one_pass", "epochs", "mixtures")
    return [
        Entrant("SGD", "peer", sgd, 0.01, 30.0),
        Entrant("SGD, momentum", "peer", momentum, 1e-3, 10.0),
        Entrant("SGD, averaged", "peer", averaged, 0.01, 30.0, tracks=("epochs", "mixtures")),
        Entrant("SGD, linear decay", "peer", sgd, 0.01, 30.0, falls=True, tracks=slow),
        Entrant("AdamW", "peer", adamw, 1e-3, 1.0),
        Entrant("AdamW, linear decay", "peer", adamw, 1e-3, 1.0, falls=True, tracks=slow),
        Entrant("Adagrad", "peer", adagrad, 0.01, 10.0),
        Entrant("Muon", "peer", muon, 1e-3, 1.0),
        Entrant("LBFGS", "full batch", lbfgs, 0.1, 1.0, tracks=("epochs", "mixtures")),
        Entrant("Shampoo (torch-optimizer)", "peer", old_shampoo, 1e-3, 10.0, "torch_optimizer"),
        Entrant("Shampoo (pytorch-optimizer)", "peer", new_shampoo, 0.01, 10.0, "pytorch_optimizer"),
        Entrant("SOAP (pytorch-optimizer)", "peer", soap, 1e-3, 1.0, "pytorch_optimizer"),
        Entrant("SINGD", "peer", singd, 1e-3, 1.0, "singd", tracks=("one_pass", "epochs", "networks")),
        Entrant("GodambeSGD", "ours", godambe, 1.0, 1.0, "fisheropt", tuned=False, tracks=smooth),
        Entrant("GodambeSGD, tuned", "ours", godambe, 0.1, 1.0, "fisheropt", tracks=smooth),
        Entrant("GodambeSGD, low rank", "ours", lowrank, 0.01, 1.0, "fisheropt", tracks=("networks",)),
        Entrant("GodambeSGD, kronecker", "ours", kronecker, 1e-3, 1.0, "fisheropt", tracks=("networks",)),
    ]


def sgd(model: nn.Module, lr: float, case: Case) -> Sequence[Optimizer]:
    return [torch.optim.SGD(model.parameters(), lr)]


def momentum(model: nn.Module, lr: float, case: Case) -> Sequence[Optimizer]:
    return [torch.optim.SGD(model.parameters(), lr, momentum=0.9)]


def averaged(model: nn.Module, lr: float, case: Case) -> Sequence[Optimizer]:
    """The mean of all iterates after the first pass is what a run is judged by."""
    return [torch.optim.ASGD(model.parameters(), lr, lambd=0.0, t0=case.steps)]


def adamw(model: nn.Module, lr: float, case: Case) -> Sequence[Optimizer]:
    return [torch.optim.AdamW(model.parameters(), lr, weight_decay=0.0)]


def adagrad(model: nn.Module, lr: float, case: Case) -> Sequence[Optimizer]:
    return [torch.optim.Adagrad(model.parameters(), lr)]


def muon(model: nn.Module, lr: float, case: Case) -> Sequence[Optimizer]:
    """Muon takes matrices; AdamW the rest, at a tenth of the rate."""
    matrices = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    made: list[Optimizer] = [torch.optim.Muon(matrices, lr, weight_decay=0.0)]
    return made + ([torch.optim.AdamW(others, lr / 10, weight_decay=0.0)] if others else [])


def lbfgs(model: nn.Module, lr: float, case: Case) -> Sequence[Optimizer]:
    """With a line search by the strong Wolfe conditions; it goes on until its loop is broken."""
    rest = {"max_iter": 10**6, "max_eval": 10**6, "tolerance_grad": 0.0, "tolerance_change": 0.0}
    return [torch.optim.LBFGS(model.parameters(), lr, line_search_fn="strong_wolfe", **rest)]


def old_shampoo(model: nn.Module, lr: float, case: Case) -> Sequence[Optimizer]:
    import torch_optimizer

    return [torch_optimizer.Shampoo(model.parameters(), lr, update_freq=INTERVAL)]


def new_shampoo(model: nn.Module, lr: float, case: Case) -> Sequence[Optimizer]:
    import pytorch_optimizer

    return [pytorch_optimizer.Shampoo(model.parameters(), lr, preconditioning_compute_steps=INTERVAL)]


def soap(model: nn.Module, lr: float, case: Case) -> Sequence[Optimizer]:
    import pytorch_optimizer

    options = {"weight_decay": 0.0, "precondition_frequency": INTERVAL}
    return [pytorch_optimizer.SOAP(model.parameters(), lr, **options)]


def singd(model: nn.Module, lr: float, case: Case) -> Sequence[Optimizer]:
    """SINGD takes linear and convolutional layers; AdamW the rest, at the same rate."""
    from singd.optim.optimizer import SINGD

    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    served = {id(p) for layer in layers for p in layer.parameters(recurse=False)}
    others = [p for p in model.parameters() if id(p) not in served]
    mean = "batch+sequence" if case.sequences else "batch"
    made: list[Optimizer] = [SINGD(model, lr=lr, T=INTERVAL, loss_average=mean, warn_unsupported=False)]
    return made + ([torch.optim.AdamW(others, lr, weight_decay=0.0)] if others else [])


def godambe(model: nn.Module, lr: float, case: Case) -> Sequence[Optimizer]:
    """The setting that the documentation gives for a running gain, the same on every convex set and mixture."""
    return [GodambeSGD(model, lr, **_running(case))]


def _running(case: Case) -> dict[str, Any]:
    size = case.samples if case.repeats else None
    return {"gain": "running", "data_size": size, "weight_decay": case.ridge, "likelihood": case.likelihood}


def lowrank(model: nn.Module, lr: float, case: Case) -> Sequence[Optimizer]:
    """For networks, whose rate falls on a plan; up to 4096 parameters it is one matrix."""
    return [GodambeSGD(model, lr, likelihood=case.likelihood)]


def kronecker(model: nn.Module, lr: float, case: Case) -> Sequence[Optimizer]:
    """For networks, with momentum as its peers of that form have."""
    return [GodambeSGD(model, lr, momentum=0.9, likelihood=case.likelihood, structure="kronecker")]
