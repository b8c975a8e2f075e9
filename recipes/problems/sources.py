"""Where tables come from: scikit-learn's bundled sets by name, and files by path."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine

from recipes.problems.errors import DataError
from recipes.problems.readers import DECOMPRESS, Array, Table, read_table

BUNDLED: dict[str, Callable[..., tuple[Array, Array]]] = {
    "breast_cancer": load_breast_cancer,
    "digits": load_digits,
    "iris": load_iris,
    "wine": load_wine,
}
SYNTHETIC = "synthetic"
_SUFFIXES = ("", *DECOMPRESS)


@final
@dataclass(frozen=True)
class Source:
    """A training table, perhaps a test table that came with it, and where they come from.

    Attributes:
        name: short, for the names of runs.
        origin: the file and its format, for messages.
        train: the training table.
        test: the test table, or None.
    """

    name: str
    origin: str
    train: Table
    test: Table | None


def load(data: str, data_dir: str, *, label: str | None, context: int, with_test: bool) -> Source:
    """The bundled set called `data`, or the file of that path in the current folder or in `data_dir`.

    Args:
        data: name of a bundled set, or a path; `.xz`, `.bz2` and `.gz` may be left out.
        data_dir: second place to look in.
        label: the label's column in a CSV file with a header; None for the last column.
        context: number of previous characters that a text file's next one is predicted from.
        with_test: read the test file that lies beside (`NAME.t`, for MNIST `t10k-...`), if there is one.
    """
    if data in BUNDLED:
        if label is not None:
            raise DataError(f"label={label!r} names a column of a CSV file; {data} is bundled: leave label=null.")
        x, y = BUNDLED[data](return_X_y=True)
        return Source(data, "bundled with scikit-learn", checked(Table(x, y, "bundled"), data), None)
    path = locate(data, data_dir, (*BUNDLED, SYNTHETIC))
    train = checked(read_table(path, label=label, context=context), str(path))
    origin = f"{train.format} file {path}"
    beside = _test_file(path) if with_test else None
    if beside is None:
        return Source(stem(path), origin, train, None)
    test = read_table(beside, label=label, context=context, like=train)
    return Source(stem(path), origin, train, checked(_same_width(test, train, beside, path), str(beside)))


def locate(data: str, data_dir: str, names: Sequence[str]) -> Path:
    """The file that `data` names; else an error: what was looked at, what there is, and other `names`."""
    folders = list(dict.fromkeys((Path.cwd(), Path.cwd() / data_dir)))
    looked = list(dict.fromkeys((folder / data).resolve() for folder in folders))
    found = (path.with_name(path.name + suffix) for path in looked for suffix in _SUFFIXES)
    for path in found:
        if path.is_file():
            return path
    parents = list(dict.fromkeys(path.parent for path in looked))
    there = {stem(path): str(path) for parent in parents for path in _files(parent)}
    close = difflib.get_close_matches(Path(data).name, [*names, *there], n=1)
    cure = there.get(close[0], close[0]) if close else "PATH or problem.data_dir=FOLDER"
    raise DataError(
        f"data={data!r} is neither a file nor one of {', '.join(names)}.\n"
        f"Looked for {', '.join(map(str, looked))}, also with {', '.join(DECOMPRESS)}.\n"
        + "\n".join(_contents(parent) for parent in parents)
        + f"\nWrite problem.data={cure}"
    )


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []


def _contents(folder: Path) -> str:
    if not folder.is_dir():
        return f"There is no folder {folder}."
    names = [path.name for path in _files(folder) if not path.name.startswith(".")]
    return f"Files in {folder}: {', '.join(names[:20]) or 'none'}{', ...' if len(names) > 20 else ''}."


def stem(path: Path) -> str:
    """The file's name without the suffix of its compression."""
    return path.stem if path.suffix in DECOMPRESS else path.name


def _test_file(path: Path) -> Path | None:
    name = stem(path)
    test_name = name.replace("train-", "t10k-") if name.startswith("train-") else f"{name}.t"
    return next((p for suffix in _SUFFIXES if (p := path.with_name(test_name + suffix)).is_file()), None)


def _same_width(test: Table, train: Table, test_path: Path, train_path: Path) -> Table:
    """Pad and cut LIBSVM's, which omits zeros: features unseen in training have weight 0. Refuse others."""
    width, wanted = test.x.shape[1], train.x.shape[1]
    if width != wanted and train.format != "libsvm":
        raise DataError(
            f"{test_path} has {width} features and {train_path} {wanted}.\n"
            "Use files that belong together, or test_fraction=0 to do without a test set."
        )
    x = np.zeros((len(test.x), wanted), test.x.dtype)
    x[:, : min(width, wanted)] = test.x[:, :wanted]
    return Table(x, test.y, test.format, test.first)


def checked(table: Table, where: str) -> Table:
    """The table, if every feature is a number, in float32 too."""
    bad = np.argwhere(~(np.abs(table.x) <= np.finfo(np.float32).max))
    if len(bad):
        row, column = bad[0] + 1
        raise DataError(
            f"{where}: row {row}, feature {column} is {table.x[row - 1, column - 1]} "
            f"({len(bad)} NaN, infinite or above 3e38).\nDrop those rows, or fill them before training."
        )
    return table
