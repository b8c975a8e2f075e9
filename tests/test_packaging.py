"""The package as users get it: what the wheel holds, what an import costs, imports that go down only."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "fisheropt"
FLOORS = {
    "batch_steering": 4,
    "kernels": 0,
    "cost": 0,
    "theory": 0,
    "persample": 1,
    "directions": 1,
    "rules": 2,
    "statistics": 2,
    "taps": 3,
    "likelihoods": 3,
    "metric": 4,
    "optim": 4,
    "control": 4,
    "inference": 4,
    "monitor": 4,
    "penalty": 4,
    "products": 4,
    "spectra": 4,
}
STRANGERS = {frozenset({"rules", "statistics"}), frozenset({"kernels", "theory"})}
PROMISED = {
    "AdaptiveBatchSGD",
    "AdaptiveBatchSampler",
    "FisherFloorSGD",
    "FisherMetric",
    "FullCovariance",
    "GodambeSGD",
    "Gram",
    "Kronecker",
    "Projection",
    "SecondMoment",
    "Trace",
    "explain",
    "get",
    "observe",
    "rule",
}
HEAVY = {
    "hydra",
    "jinja2",
    "matplotlib",
    "numpy",
    "omegaconf",
    "pandas",
    "rich",
    "scipy",
    "sklearn",
    "triton",
    "wandb",
}
SOURCES = sorted(PACKAGE.rglob("*.py"))


def run_python(code: str, *arguments: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): ast.parse(path.read_text()) for path in SOURCES}


def imported(module: str) -> Iterator[str]:
    """The modules of this package that a module imports, wherever the import stands.

    A plain `import` of the package that the module lies in does not count: Python began with that one.
    """
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.Import):
            names = (alias.name for alias in node.names)
            yield from (name for name in names if name in MODULES and not f"{module}.".startswith(f"{name}."))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the package, so that their floor is seen"
            if node.module and node.module.split(".")[0] == "fisheropt":
                names = (f"{node.module}.{alias.name}" for alias in node.names)
                yield from (name if name in MODULES else node.module for name in names)


def floor_of(module: str) -> tuple[str, int]:
    name = module.split(".")[1]
    assert name in FLOORS, f"{module} is on no floor: give fisheropt.{name} its place in tests/test_packaging.py"
    return name, FLOORS[name]


def pins() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    options = [
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--no-cache-dir",
        "--disable-pip-version-check",
    ]
    command = [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", str(folder), str(ROOT)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("fisheropt-*.whl")
    return path


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return archive.read(name).decode()


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == {path.relative_to(ROOT).as_posix() for path in [*SOURCES, PACKAGE / "py.typed"]}


def test_wheel_requires_torch_alone(metadata: str) -> None:
    required = [Requirement(line) for line in re.findall(r"^Requires-Dist: (.*)$", metadata, re.MULTILINE)]
    assert [requirement.name for requirement in required if requirement.marker is None] == ["torch"]
    assert "Requires-Python: >=3.10" in metadata
    assert "License-Expression: BSD-3-Clause" in metadata


def test_wheel_imports_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    code = """
import importlib, pkgutil, sys
sys.path.insert(0, sys.argv[1])
import fisheropt
for module in pkgutil.walk_packages(fisheropt.__path__, "fisheropt."):
    if not module.name.endswith(".triton"):
        assert importlib.import_module(module.name).__file__.startswith(sys.argv[1]), module.name
print(fisheropt.__file__)
"""
    assert run_python(code, str(installed), cwd=tmp_path).startswith(str(installed))


def test_import_is_light(tmp_path: Path) -> None:
    """Beside what torch loads to make its own SGD, only the package itself comes in."""
    code = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
torch.optim.SGD([torch.zeros(1, requires_grad=True)])
before = set(sys.modules)
import fisheropt
print(*sorted({name.split(".")[0] for name in set(sys.modules) - before}))
"""
    fresh = set(run_python(code, str(ROOT), cwd=tmp_path).split())
    assert "fisheropt" in fresh
    assert not fresh & HEAVY


def test_public_names_that_exist_are_exported() -> None:
    import fisheropt

    defined = {
        node.name for tree in MODULES.values() for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)
    }
    assert sorted(PROMISED & defined - set(fisheropt.__all__)) == []
    assert {"FisherFloorSGD", "GodambeSGD", "AdaptiveBatchSGD"} <= defined
    assert sorted(fisheropt.__all__) == sorted(set(fisheropt.__all__))
    assert all(getattr(fisheropt, name) is not None for name in fisheropt.__all__)


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"fisheropt"}))
def test_imports_go_down_only(module: str) -> None:
    name, floor = floor_of(module)
    for target in imported(module):
        assert target != "fisheropt", f"{module} imports the package's own front door"
        below, lower = floor_of(target)
        assert lower <= floor, f"{module} (floor {floor}) imports {target} (floor {lower})"
        assert frozenset({name, below}) not in STRANGERS, (
            f"{module} imports {target}: neither floor-mate knows the other"
        )


def test_imports_have_no_cycle() -> None:
    TopologicalSorter({module: set(imported(module)) for module in MODULES}).prepare()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_file_is_one_concept(path: Path) -> None:
    assert path.stem not in {"utils", "util", "misc", "helpers", "common"}, "name the concept"
    lines = len(path.read_text().splitlines())
    assert lines <= 300, "two concepts, perhaps"


def test_constraints_pin_every_extra(metadata: str) -> None:
    pinned = pins()
    for line in re.findall(r"^Requires-Dist: (.*)$", metadata, re.MULTILINE):
        requirement = Requirement(line)
        if any(
            f"extra == '{extra}'" in str(requirement.marker).replace('"', "'") for extra in ("peers", "tensorboard")
        ):
            continue
        pin = pinned[canonicalize_name(requirement.name)]
        (version,) = [specifier.version for specifier in pin.specifier if specifier.operator == "=="]
        assert requirement.specifier.contains(version), line


def test_an_install_never_changes_torch(metadata: str) -> None:
    pinned = pins()
    assert str(pinned["torch"].specifier) == "==2.13.0"
    assert "torchvision" not in pinned
    assert "torchvision" not in metadata.split("\n\n")[0]


def test_version_is_told_alike_everywhere(metadata: str) -> None:
    import fisheropt

    (version,) = re.findall(r"^Version: (.*)$", metadata, re.MULTILINE)
    assert fisheropt.__version__ == version
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()
