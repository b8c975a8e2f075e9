"""Every Triton form compiled for a GPU that need not be there, in a process of its own, by the launches it makes."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any, final

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from fisheropt.kernels import KERNELS, Sizes

HOPPER = 90
SIZES = Sizes(4, 64, 192, 256, 16)


@final
class Absent:
    """What Triton asks of a device before it compiles for it."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", HOPPER, 32)


def launches(name: str, dtype: torch.dtype) -> list[dict[str, Any]]:
    """What each launch of a kernel was compiled to: machine code's size, shared memory in bytes, and its PTX's products."""
    module = importlib.import_module(f"fisheropt.kernels.{name}.triton")
    made: list[dict[str, Any]] = []

    def compile_only(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        code = run(self, *arguments, grid=grid, warmup=True, **options)
        made.append(
            {
                "code": len(code.asm["cubin"]),
                "shared": code.metadata.shared,
                "products": "wgmma" in code.asm["ptx"] or "mma.sync" in code.asm["ptx"],
                "local": ".local" in code.asm["ptx"],
            }
        )

    run, JITFunction.run = JITFunction.run, compile_only
    try:
        arguments = KERNELS[name].example(SIZES, lambda *shape: torch.zeros(*shape, dtype=dtype))
        getattr(module, name)(*arguments)
    finally:
        JITFunction.run = run
    return made


if __name__ == "__main__":
    driver.set_active(Absent())
    found = {name: launches(name, torch.float32) for name in KERNELS}
    found["outer_square_sum in bfloat16"] = launches("outer_square_sum", torch.bfloat16)
    Path(sys.argv[1]).write_text(json.dumps(found))
