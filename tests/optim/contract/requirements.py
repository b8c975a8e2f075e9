"""The requirements by id: traps of torch's optimizer contract, and the test that states each."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

from tests.optim.contract import (
    test_amp,
    test_checkpoints,
    test_compile,
    test_construction,
    test_distributed,
    test_flags,
    test_groups,
    test_hooks,
    test_schedulers,
    test_state,
    test_step,
    test_step_kinds,
    test_step_manners,
)

IDS: list[str] = re.findall(
    r"[\w.]+",
    """
make.subclass make.defaults make.lr_second make.errors make.duplicates_warn make.bad_lr make.bad_numbers
make.unknown_keyword make.cliques make.repr
group.lr group.lr_edit group.independent group.weight_decay group.add group.empty group.named
step.descends step.layouts step.in_place step.none_grad step.freeze step.zero_grads step.zero_lr step.sizes
step.half
step.mixed_dtypes step.mixed_devices step.no_sync step.deterministic step.global_state step.quiet step.closure
step.zero_grad step.one_per_parameter step.sparse step.complex step.lr_tensor
flag.maximize flag.foreach flag.fused flag.differentiable flag.differentiable_lr flag.capturable
state.keys state.round_trip state.weights_only state.pickle state.deepcopy state.older state.plain_step
state.cast
state.fp32_stats state.mismatch state.hooks state.dcp
hook.order hook.args hook.profiler hook.released
sched.all sched.momentum sched.lr_tensor sched.swa
amp.scaler amp.fused amp.autocast
compile.matches compile.stable
dist.ddp dist.ddp_hook dist.zero dist.fsdp2 dist.fsdp2_foreach dist.fsdp2_state
""",
)

MODULES: list[ModuleType] = [
    test_amp,
    test_checkpoints,
    test_compile,
    test_construction,
    test_distributed,
    test_flags,
    test_groups,
    test_hooks,
    test_schedulers,
    test_state,
    test_step,
    test_step_kinds,
    test_step_manners,
]


def statements(requirement: str) -> list[Callable[..., Any]]:
    """Every test that states a requirement: test_<id>, and its variants test_<id>_<what>."""
    name = "test_" + requirement.replace(".", "_")
    longer = ["test_" + other.replace(".", "_") for other in IDS if other.startswith(requirement + "_")]
    return [
        function
        for module in MODULES
        for key, function in inspect.getmembers(module, inspect.isfunction)
        if (key == name or key.startswith(name + "_")) and not key.startswith(tuple(longer))
    ]
