"""What the documentation says is run, and what the code cites exists."""

from __future__ import annotations

import ast
import builtins
import importlib
import importlib.util
import inspect
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

import fisheropt

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
MACHINERY = {
    "arguments",
    "dyson",
    "linear_recursion",
    "mixture_nodes",
    "moments",
    "outliers",
    "quadrature",
    "resolvent",
    "root_finding",
    "silverstein",
    "softmax_weights",
}
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "fisheropt").rglob("*.py")
    if path.stem != "triton"
)


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """The fenced blocks in a language, each with the line that it starts on."""
    text = page.read_text()
    return [(text[: m.start()].count("\n") + 1, m[2]) for m in FENCE.finditer(text) if m[1] == language]


def commands(language: str = "bash") -> list[list[str]]:
    """The words of every command of the documentation, one list a line."""
    found = (block.replace("\\\n", "") for page in PAGES for _, block in blocks(page, language))
    return [shlex.split(line, comments=True) for block in found for line in block.splitlines()]


def bibliography() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bibliography", ROOT / "docs" / "_ext" / "bibliography.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=relative)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": relative(page)}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for line, block in blocks(page, "python"):
            source = "\n" * line + block
            exec(compile(source, str(page), "exec"), namespace)


def test_readme_shows_the_promised_loop() -> None:
    """The user's loop is a promise: these very lines."""
    (loop,) = [block for _, block in blocks(ROOT / "README.md", "python") if "FisherFloorSGD" in block]
    assert loop.endswith("""
opt = fisheropt.FisherFloorSGD(model, lr=0.1)           # was torch.optim.SGD(model.parameters(), lr=0.1)
for x, y in loader:
    F.cross_entropy(model(x), y).backward()
    opt.step(); opt.zero_grad()
print(opt.report())                                     # what the noise says
""")


def test_make_targets_that_are_named_exist() -> None:
    rules = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    prose = (re.findall(r"`make ([a-z]+)", page.read_text()) for page in PAGES)
    named = {words[1] for words in commands() if words[:1] == ["make"]} | {name for names in prose for name in names}
    assert {"train", "test"} <= named
    assert named <= rules


def test_files_that_commands_name_exist() -> None:
    named = {word for words in commands() for word in words if word.endswith((".py", ".txt"))}
    assert "recipes/train.py" in named
    assert [word for word in sorted(named) if not (ROOT / word).exists()] == []


def recipe_overrides() -> list[list[str]]:
    """The Hydra overrides of every documented run, those handed to make included."""
    found = []
    for words in commands():
        if words[:2] == ["python", "recipes/train.py"]:
            found.append([word for word in words[2:] if "=" in word])
        elif words[:2] == ["make", "train"]:
            found += [shlex.split(word.removeprefix("ARGS=")) for word in words if word.startswith("ARGS=")]
    return found


def test_documented_runs_compose() -> None:
    """Every group, choice and key that a documented command names exists; of a sweep, its first job."""
    hydra = pytest.importorskip("hydra")
    from recipes import schema

    schema.register()
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        runs = [run for run in recipe_overrides() if not any(word.startswith("resume=") for word in run)]
        assert len(runs) >= 5
        if importlib.util.find_spec("hydra_plugins") is None:  # of the extra `launchers`
            runs = [run for run in runs if not any(word.startswith("launcher=") for word in run)]
        for run in runs:
            hydra.compose("train", [word.split(",")[0] for word in run])


def dry_run(*arguments: str) -> str:
    """What make would do, unaware of the make that may have started this test."""
    outside = {key: value for key, value in os.environ.items() if "MAKE" not in key and key not in {"MFLAGS", "ARGS"}}
    command = ["make", "--dry-run", *arguments]
    return subprocess.run(command, cwd=ROOT, env=outside, capture_output=True, text=True, check=True).stdout


def test_make_train_passes_on_what_it_is_given() -> None:
    assert "recipes/train.py optimizer=fisher_floor" in dry_run("train")
    given = dry_run("train", "ARGS=optimizer=godambe seed=3")
    assert given.split("recipes/train.py")[1].split() == ["optimizer=godambe", "seed=3"]


def text_of(node: ast.expr) -> str:
    """A string of the source, with … for what is filled in at run time."""
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else "…"


def strings(folder: str) -> str:
    """All strings of a folder's code, as messages need not be written where they are raised."""
    trees = (ast.parse(path.read_text()) for path in (ROOT / folder).rglob("*.py"))
    return "\n".join(text_of(node) for tree in trees for node in ast.walk(tree) if isinstance(node, ast.expr))


def raised(file: Path) -> Iterator[tuple[str, str]]:
    """Class and text of every error that a file raises with a text of its own."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            text = text_of(node.exc.args[0])
            if text != "…":
                yield ast.unparse(node.exc.func), text


def explained() -> set[str]:
    """The pieces of messages that head an entry of the troubleshooting page."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text().split("## Numbers that surprise")[0]
    heads = re.findall(r"^\*\*(`.*)$", page, re.MULTILINE)
    pieces = (
        piece.strip() for head in heads for quote in re.findall("`([^`]+)`", head) for piece in quote.split("...")
    )
    return {piece for piece in pieces if len(piece) > 3 and not hasattr(builtins, piece)}


def test_messages_explained_are_messages_raised() -> None:
    code = strings("fisheropt")
    assert len(explained()) > 20
    assert sorted(piece for piece in explained() if piece not in code) == []


def test_messages_raised_in_training_are_explained() -> None:
    """RuntimeError and TypeError meet a user whose arguments looked right; where the text is put together, not checked."""
    pieces = explained()
    missing = []
    for folder in ("optim", "rules", "statistics", "taps"):
        for file in (ROOT / "fisheropt" / folder).rglob("*.py"):
            for kind, text in raised(file):
                if kind in {"RuntimeError", "TypeError"} and not any(piece in text for piece in pieces):
                    missing.append(f"{relative(file)}: {text}")
    assert missing == []


def test_citations_are_in_the_bibliography() -> None:
    source = bibliography()
    entries = source.parse((ROOT / "docs" / "references.bib").read_text())
    sources = [
        *(ROOT / "fisheropt").rglob("*.py"),
        *(ROOT / "recipes").rglob("*.py"),
        *(ROOT / "tests").rglob("*.py"),
    ]
    cited = {key for path in sources for key in source.cited(path.read_text())}
    assert len(cited) >= 5
    assert sorted(cited - set(entries)) == []


def test_references_name_keys() -> None:
    """A line that says Reference has keys after it, so that none escapes the test above."""
    source = bibliography()
    loose = [
        f"{relative(path)}: {line.strip()}"
        for path in (ROOT / "fisheropt").rglob("*.py")
        for line in path.read_text().splitlines()
        if re.search(r"\bReferences?:", line) and not source.cited(line)
    ]
    assert loose == []


def test_bibliography_is_sound() -> None:
    source = bibliography()
    text = (ROOT / "docs" / "references.bib").read_text()
    entries = source.parse(text)
    assert len(entries) == text.count("\n@") + text.startswith("@"), "a key twice, or an entry that cannot be read"
    for key, entry in entries.items():
        assert entry.keys() >= {"author", "title", "year"}, key
        assert entry["year"] in key, key


@pytest.mark.parametrize("name", MODULES)
def test_public_names_are_documented(name: str) -> None:
    """Modules, classes, functions and methods have a docstring, their own or inherited."""
    module = importlib.import_module(name)
    missing = [] if module.__doc__ else [module.__name__]
    for name, thing in vars(module).items():
        if name.startswith("_") or getattr(thing, "__module__", None) != module.__name__:
            continue
        if inspect.isclass(thing):
            members = [m for m in vars(thing) if not m.startswith("_") and callable(getattr(thing, m))]
            missing += [f"{name}.{member}" for member in members if not inspect.getdoc(getattr(thing, member))]
        if (inspect.isclass(thing) or inspect.isfunction(thing)) and not inspect.getdoc(thing):
            missing.append(name)
    assert missing == []


def test_theory_is_in_the_documentation() -> None:
    """Every theory module has its section, but for the machinery below them."""
    shown = set(re.findall(r"automodule:: fisheropt\.theory\.(\w+)", (ROOT / "docs" / "theory.md").read_text()))
    written = {path.stem for path in (ROOT / "fisheropt" / "theory").glob("*.py")} - {"__init__"}
    assert sorted(written - MACHINERY - shown) == []


def test_public_names_are_in_the_documentation() -> None:
    pages = "\n".join(page.read_text() for page in (ROOT / "docs").rglob("*.md"))
    shown = set(re.findall(r"auto(?:class|function):: fisheropt\.([\w.]+)", pages))
    for name in re.findall(r"automodule:: (fisheropt[\w.]*)", pages):
        module = importlib.import_module(name)
        shown |= {thing for thing, value in vars(module).items() if getattr(value, "__module__", None) == name}
        shown.add(name.removeprefix("fisheropt."))
    shown = {name.rpartition(".")[2] for name in shown}
    public = {*fisheropt.__all__, *fisheropt.control.__all__, *fisheropt.statistics.__all__}
    hidden = {"theory", "JointStatistic", "ParameterStatistic", "Statistic", "resolve"}
    assert sorted(public - hidden - shown) == []


def test_no_path_of_one_machine() -> None:
    parts = ("/work" + "/", "/root" + "/", "/tmp" + "/")
    suffixes = {".py", ".md", ".toml", ".yaml", ".txt", ".bib", ".cfg"}
    folders = ("fisheropt", "recipes", "conf", "tests", "docs")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in suffixes]
    files += [path for path in ROOT.iterdir() if path.suffix in suffixes or path.name == "Makefile"]
    hits = [f"{relative(path)} has {part}" for path in files for part in parts if part in path.read_text()]
    assert hits == []


def test_examples_parse_as_this_python() -> None:
    """Every Python block is valid for the oldest Python that the package supports."""
    for page in PAGES:
        for line, block in blocks(page, "python"):
            ast.parse(block, filename=f"{page}:{line}", feature_version=(3, 10))
    assert sys.version_info >= (3, 10)
