"""Track networks: steps and seconds until the held-out loss that the best peer ends with."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes.problems.readers import read_bytes
from recipes.problems.sources import load
from recipes.racing import models
from recipes.racing.case import Case
from recipes.racing.entrants import Entrant
from recipes.racing.track import Measure, Outcome, Target, Track
from recipes.racing.walks import minibatches

IMAGES, TEXT = "mnist-t10k-images-idx3-ubyte", "tinyshakespeare.txt"
LOOKS = 25
HELD, MOST = 0.2, 1000  # held out: the share, and no more than so many


@final
class Network(Case):
    """A classifier whose learning rate falls to 0 over the planned steps.

    Args:
        name: of the case.
        build: makes the model.
        data: inputs and classes, of the training samples.
        held: the same of those held out.
        batch: samples a step.
        planned: steps.
    """

    likelihood = "categorical"

    def __init__(
        self,
        name: str,
        words: str,
        build: Callable[[], nn.Module],
        data: tuple[Tensor, Tensor],
        held: tuple[Tensor, Tensor],
        batch: int,
        planned: int,
    ) -> None:
        self.name, self.build, self.data, self.held, self.batch, self.planned = name, build, data, held, batch, planned
        self.sequences = data[1].ndim > 1
        self._twin = build()
        size = sum(p.numel() for p in self._twin.parameters())
        self.words = f"{words}; {size} parameters, batches of {batch}, {planned} steps, {len(held[0])} samples held out"

    def model(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return self.build()

    def loss(self, model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        return F.cross_entropy(model(batch[0]).flatten(0, -2), batch[1].flatten())

    @torch.no_grad()
    def value(self, model: nn.Module) -> float:
        """The mean held-out loss, by a twin of the model that nobody has hooks in."""
        for mine, its in zip(self._twin.parameters(), model.parameters(), strict=True):
            mine.copy_(its)
        return float(self.loss(self._twin, self.held))


@final
class Networks(Track):
    """Steps and seconds to the final loss of the best peer."""

    name = "networks"
    champion = "GodambeSGD, kronecker"
    title = "Networks: steps to the best peer's final loss"
    words = (
        "Every rate falls linearly to 0 over the same number of steps and is tuned for the final held-out loss. The best "
        "peer is the one with the smallest median of it, and that median is the level that the others are timed to: the "
        "share of the steps, and the seconds over those of the best peer's whole run, until the held-out loss, looked at "
        f"{LOOKS} times, is first as low. Ours are tuned as the others."
    )

    def __init__(self, batch: int, sequences: int, context: int, passes: float, steps: int, data_dir: str) -> None:
        self._sizes = {"batch": batch, "sequences": sequences, "context": context, "passes": passes, "steps": steps}
        self._data_dir = data_dir
        self._built = functools.lru_cache(self._make)

    @property
    def measures(self) -> Sequence[Measure]:
        return (
            Measure("final", "final held-out loss", tuned=True),
            Measure("share", "share of the steps to the best peer's", targets=(Target(0.8),)),
            Measure("time", "time to there, of the best peer's", targets=(Target(1.0),)),
        )

    @property
    def settings(self) -> dict[str, Any]:
        return dict(self._sizes)

    def cases(self) -> Sequence[str]:
        found = ["digits_mlp"]
        found.append("mnist_cnn" if self._has(IMAGES) else "digits_cnn")
        return [*found, "shakespeare"] if self._has(TEXT) else [*found, "chain"]

    def describe(self, case: str) -> str:
        return self._built(case).words

    def run(self, case: str, entrant: Entrant, rate: float, seed: int, best: float | None = None) -> Outcome:
        network = self._built(case)
        stride = max(1, network.planned // LOOKS)
        curve: list[tuple[float, float, float]] = []
        for taken, point in enumerate(minibatches(network, entrant.make, rate, seed, network.steps / stride), start=1):
            if not math.isfinite(point.value):
                return {"final": None, "share": None, "time": None}
            curve.append((taken * stride / network.planned, point.seconds, point.value))
            if (taken + 1) * stride > network.planned:
                break
        return {"final": curve[-1][2], "share": None, "time": None, "curve": curve}

    def complete(self, rows: dict[str, dict[str, list[Outcome]]], peers: Sequence[str]) -> None:
        """Find the best peer, and time everyone to the median of its final losses."""
        finals = {name: median(_final(outcome) for outcome in rows[name]["final"]) for name in peers}
        if not finals or min(finals.values()) == math.inf:
            return
        best = min(finals, key=lambda name: finals[name])
        whole = median(outcome["curve"][-1][1] for outcome in rows[best]["final"])
        for found in rows.values():
            for outcomes in found.values():
                for outcome in (outcome for outcome in outcomes if "curve" in outcome):
                    there = next((point for point in outcome["curve"] if point[2] <= finals[best]), None)
                    outcome["share"] = None if there is None else there[0]
                    outcome["time"] = None if there is None else there[1] / whole

    def _has(self, name: str) -> bool:
        return any(Path(self._data_dir).glob(f"{name}*"))

    def _make(self, case: str) -> Network:
        if case in ("shakespeare", "chain"):
            return self._text(case)
        digits = case.startswith("digits")
        source = load("digits" if digits else IMAGES, self._data_dir, label=None, context=1, with_test=False)
        x = torch.from_numpy(np.asarray(source.train.x)).float()
        x, y = (x / 16 if digits else _halved(x)), torch.from_numpy(np.asarray(source.train.y, np.int64))
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        cut = min(MOST, int(HELD * len(x)))
        out, kept = order[:cut], order[cut:]
        flat = case.endswith("mlp")
        shape = x.shape[1] if flat else math.isqrt(x.shape[1])
        build = functools.partial(models.mlp if flat else models.cnn, shape, 10)
        words = f"{source.name}, {'a hidden layer of 64' if flat else 'convolutions'}"
        batch = min(self._sizes["batch"], len(kept))
        planned = int(self._sizes["passes"] * (len(kept) // batch))
        return Network(case, words, build, (x[kept], y[kept]), (x[out], y[out]), batch, planned)

    def _text(self, case: str) -> Network:
        context, batch = self._sizes["context"], self._sizes["sequences"]
        codes = chain(40_000) if case == "chain" else self._characters()
        pieces = codes[: (len(codes) - 1) // context * context + 1].unfold(0, context + 1, context)
        cut = len(pieces) - min(256, len(pieces) // 10)
        kept, out = pieces[:cut], pieces[cut:]
        characters = int(codes.max()) + 1
        build = functools.partial(models.Transformer, characters, context)
        words = f"{'a Markov chain' if case == 'chain' else TEXT}, a transformer of one block on {context} characters"
        pairs = [(part[:, :-1].contiguous(), part[:, 1:].contiguous()) for part in (kept, out)]
        return Network(case, words, build, *pairs, batch, self._sizes["steps"])

    def _characters(self) -> Tensor:
        path = next(Path(self._data_dir).glob(f"{TEXT}*"))
        text = read_bytes(path).decode()
        code = {character: index for index, character in enumerate(sorted(set(text)))}
        return torch.tensor([code[character] for character in text])


def _halved(x: Tensor) -> Tensor:
    """Square images of half the size, rows of pixels as before: a step then takes milliseconds."""
    side = math.isqrt(x.shape[1])
    return F.avg_pool2d(x.reshape(-1, 1, side, side), 2).flatten(1)


def chain(length: int) -> Tensor:
    """A text for where there is none: each of 20 characters has four likely successors."""
    rng = np.random.default_rng(0)
    successors = rng.integers(0, 20, (20, 4))
    choices, codes = rng.integers(0, 4, length), np.zeros(length, np.int64)
    for index in range(1, length):
        codes[index] = successors[codes[index - 1], choices[index]]
    return torch.from_numpy(codes)


def _final(outcome: Outcome) -> float:
    return math.inf if outcome.get("final") is None else float(outcome["final"])
