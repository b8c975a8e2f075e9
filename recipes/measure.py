"""What seeing the noise costs: python recipes/measure.py

Steps of each optimizer as a ratio to torch.optim.SGD on the same model, measured in turns in one process, so that what else
the machine does falls on both alike. The median over rounds has a 95 % interval. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn

import fisheropt
from recipes.files import write_json, write_whole
from recipes.medians import Interval, median_interval

CYCLE = 20  # steps a turn: two of the measured steps of the default schedule, one in ten
WARM = 12  # the first ten steps are all measured


@final
@dataclass(frozen=True)
class Subject:
    """A model with its batch.

    Args:
        build: makes the model.
        inputs: makes a batch's inputs of the given size.
        classes: of its output.
        batch: samples a step.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[int], Tensor]
    classes: int
    batch: int


@final
class Attention(nn.Module):
    """One block of self-attention by plain linear layers, and its mean over positions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down, self.head = nn.Linear(width, 4 * width), nn.Linear(4 * width, width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, 10] of sequences [n, t, width]."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.out(mixed)
        x = x + self.down(nn.functional.gelu(self.up(x)))
        logits: Tensor = self.head(x.mean(1))
        return logits


def mlp() -> nn.Module:
    """784-512-512-10, the reference of the design."""
    return nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))


def cnn() -> nn.Module:
    """Three convolutions and a head."""
    layers = (nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(32 * 49, 10))


SUBJECTS = {
    "mlp": Subject(mlp, lambda n: torch.randn(n, 784), 10, 256),
    "head": Subject(lambda: nn.Linear(128, 10), lambda n: torch.randn(n, 128), 10, 256),
    "cnn": Subject(cnn, lambda n: torch.randn(n, 1, 28, 28), 10, 64),
    "attention": Subject(lambda: Attention(128, 4), lambda n: torch.randn(n, 32, 128), 10, 32),
}

Make = Callable[[nn.Module], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "SGD": lambda model: torch.optim.SGD(model.parameters(), lr=1e-3),
    "FisherFloorSGD": lambda model: fisheropt.FisherFloorSGD(model, lr=1e-3),
    "FisherFloorSGD likelihood": lambda model: fisheropt.FisherFloorSGD(model, lr=1e-3, likelihood="categorical"),
    "FisherFloorSGD off": lambda model: fisheropt.FisherFloorSGD(model, lr=1e-3, floor=None),
    "GodambeSGD": lambda model: fisheropt.GodambeSGD(model, lr=1e-3, likelihood="categorical"),
    "GodambeSGD kronecker": lambda model: fisheropt.GodambeSGD(
        model, lr=1e-3, likelihood="categorical", structure="kronecker"
    ),
    "GodambeSGD diagonal": lambda model: fisheropt.GodambeSGD(
        model, lr=1e-3, likelihood="categorical", structure="diagonal"
    ),
    "AdaptiveBatchSGD": lambda model: fisheropt.AdaptiveBatchSGD(model, lr=1e-3),
}


@final
class Runner:
    """One model with one optimizer on one batch."""

    def __init__(self, subject: Subject, make: Make, device: torch.device) -> None:
        torch.manual_seed(0)
        self.model = subject.build().to(device)
        self.optimizer = make(self.model)
        self.x = subject.inputs(subject.batch).to(device)
        self.y = torch.randint(0, subject.classes, (subject.batch,)).to(device)

    def step(self) -> None:
        """An ordinary training step."""
        nn.functional.cross_entropy(self.model(self.x), self.y).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def seconds(self, steps: int) -> float:
        """Seconds a step, with the device waited for."""
        _wait(self.x.device)
        began = time.perf_counter()
        for _ in range(steps):
            self.step()
        _wait(self.x.device)
        return (time.perf_counter() - began) / steps


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(subject: Subject, rounds: int, device: torch.device) -> Iterator[dict[str, Any]]:
    """A row for each optimizer that serves the model; one that refuses it gives the first line of its reason."""
    runners: dict[str, Runner] = {}
    for name, make in OPTIMIZERS.items():
        try:
            runner = Runner(subject, make, device)
            runner.seconds(WARM)
            runners[name] = runner
        except (ValueError, RuntimeError, TypeError) as error:
            yield {"optimizer": name, "refused": str(error).splitlines()[0]}
    times: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(rounds):
        for name, runner in runners.items():
            times[name].append(runner.seconds(CYCLE))
    for name, seen in times.items():
        ratio = median_interval([a / b for a, b in zip(seen, times["SGD"], strict=True)])
        milliseconds = median_interval([1e3 * value for value in seen])
        yield {"optimizer": name, "ratio": vars(ratio), "milliseconds": vars(milliseconds)}


def table(rows: list[dict[str, Any]], about: str) -> str:
    """The rows as Markdown."""
    lines = ["| model | optimizer | ms a step | ratio to SGD (95 % interval) |", "|---|---|---|---|"]
    for row in rows:
        if "refused" in row:
            lines.append(f"| {row['model']} | {row['optimizer']} | – | refused: {row['refused']} |")
            continue
        ratio, cost = Interval(**row["ratio"]), Interval(**row["milliseconds"])
        shown = f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
        lines.append(f"| {row['model']} | {row['optimizer']} | {cost.median:.3g} | {shown} |")
    return "\n".join([*lines, "", f"*{about}*"]) + "\n"


def main() -> None:
    """Measure what the command line asks for, print the table, and leave it with its numbers in a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(SUBJECTS), help="some of " + ", ".join(SUBJECTS))
    parser.add_argument("--rounds", type=int, default=15, help=f"turns of {CYCLE} steps for each optimizer")
    parser.add_argument("--threads", type=int, default=1, help="of torch on the CPU")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--folder", type=Path, default=Path("logs/measure"), help="for table.md and result.json")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    device, rows = torch.device(given.device), []
    for name in given.models.split(","):
        if name not in SUBJECTS:
            parser.error(f"--models {given.models}: {name!r} is none of {', '.join(SUBJECTS)}")
        print(f"measuring {name} ...", flush=True)
        rows += [{"model": name, **row} for row in measure(SUBJECTS[name], given.rounds, device)]
    where = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{platform.machine()}, {given.threads} thread(s)"
    )
    about = (
        f"{where}; torch {torch.__version__}; {given.rounds} turns of {CYCLE} steps, measuring on the default schedule"
    )
    given.folder.mkdir(parents=True, exist_ok=True)
    write_json(given.folder / "result.json", {"about": about, "rows": rows})
    write_whole(given.folder / "table.md", table(rows, about))
    print(table(rows, about) + f"\ntable: {given.folder / 'table.md'}")


if __name__ == "__main__":
    main()
