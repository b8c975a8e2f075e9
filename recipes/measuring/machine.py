"""Where the numbers come from."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path

import torch

PACKAGES = ("opacus", "backpack-for-pytorch", "curvlinops-for-pytorch", "singd")


def machine(device: torch.device, threads: int) -> str:
    """The processor or the GPU, torch, and the day."""
    if device.type == "cuda":
        where = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    else:
        where = f"{processor()}, {os.cpu_count()} cores, {threads} thread{'s' if threads > 1 else ''}"
    return f"{where}; Python {platform.python_version()}, torch {torch.__version__}; {time.strftime('%Y-%m-%d')}"


def processor() -> str:
    """The CPU's name, or at least its kind."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def versions(packages: Sequence[str] = PACKAGES) -> str:
    """The peers that are installed, with their versions."""
    found = []
    for name in packages:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found) or "no peer installed"
