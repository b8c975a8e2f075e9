"""Readers of data files: one function a format, from the file's (uncompressed) bytes to a table."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from sklearn.datasets import load_svmlight_file

from recipes.problems.errors import DataError

Array = np.ndarray[Any, Any]

DECOMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".xz": lzma.decompress,
    ".bz2": bz2.decompress,
    ".gz": gzip.decompress,
}
MAX_DENSE = 2**30
_NUMBER = r"[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|nan|inf|infinity)"
_LIBSVM_LINE = re.compile(rf"{_NUMBER}(?:\s+\d+:{_NUMBER})*", re.IGNORECASE)
_IDX_DIMENSIONS = {b"\x00\x00\x08\x01": 1, b"\x00\x00\x08\x03": 3}


@final
@dataclass(frozen=True)
class Table:
    """Features and labels as a file holds them.

    Attributes:
        x: features, [n, d].
        y: labels as written, numbers or strings, [n].
        format: "libsvm", "csv", "idx", "text", "bundled" or "synthetic".
        first: the index that LIBSVM files call the first feature, 0 or 1.
    """

    x: Array
    y: Array
    format: str
    first: int = 0


def read_bytes(path: Path) -> bytes:
    """The file's content, uncompressed if its suffix is `.xz`, `.bz2` or `.gz`."""
    content = path.read_bytes()
    decompress = DECOMPRESS.get(path.suffix)
    try:
        content = content if decompress is None else decompress(content)
    except (EOFError, OSError, ValueError, lzma.LZMAError, zlib.error) as error:
        raise DataError(
            f"{path} ({len(content)} bytes) is truncated or not a {path.suffix} file: {error}\n"
            "Copy it again and compare its checksum with the origin's; if not compressed, drop the suffix."
        ) from error
    if not content.strip():
        raise DataError(f"{path} is empty: expected one row of data a line.")
    return content


def read_table(path: Path, *, label: str | None = None, context: int = 1, like: Table | None = None) -> Table:
    """Read `path` in the format that its content and name show; `like` is the training set of a test set."""
    content = read_bytes(path)
    stem = path.with_suffix("") if path.suffix in DECOMPRESS else path
    table_format = _format(content, stem)
    if label is not None and table_format != "csv":
        raise DataError(
            f"label={label!r} names a column of a CSV file, but {path} was read as {table_format}.\n"
            "Leave label=null, or give the file the suffix .csv if it is one."
        )
    if table_format == "idx":
        return read_idx(content, path)
    if table_format == "csv":
        return read_csv(content, path, label)
    if table_format == "text":
        return read_text(content, path, context)
    return read_libsvm(content, path, None if like is None else like.first)


def _format(content: bytes, stem: Path) -> str:
    if content[:4] in _IDX_DIMENSIONS:
        return "idx"
    if stem.suffix in (".csv", ".tsv"):
        return "csv"
    opening = content.lstrip()[:100_000].split(b"\n", 1)[0].decode("utf-8", "replace")
    is_pairs = _LIBSVM_LINE.fullmatch(opening.split("#")[0].strip()) and ":" in opening
    return "text" if stem.suffix == ".txt" and not is_pairs else "libsvm"


def read_libsvm(content: bytes, path: Path, first: int | None = None) -> Table:
    """LIBSVM's `label index:value ...` a line; indices count from `first`, found from the file if None."""
    try:
        sparse, y = load_svmlight_file(io.BytesIO(content), zero_based=True)
    except (ValueError, OverflowError) as error:
        raise DataError(f"{path}{_malformed_libsvm(content)}\n(scikit-learn says: {error})") from error
    if sparse.nnz == 0:
        raise DataError(f"{path} has {len(y)} labels and no features: expected `label index:value ...` a line.")
    if sparse.shape[0] * sparse.shape[1] > MAX_DENSE:
        raise DataError(
            f"{path} has {sparse.shape[0]} x {sparse.shape[1]} features, and the recipes hold them dense: "
            f"{8e-9 * sparse.shape[0] * sparse.shape[1]:.0f} GB.\n"
            "Keep fewer rows (`head -n 10000 file > small`) or hash the features first."
        )
    lowest = int(sparse.indices.min())
    if first is not None and lowest < first:
        raise DataError(f"{path} counts features from 0 and its training file from {first}: renumber one of them.")
    first = min(lowest, 1) if first is None else first
    return Table(sparse.toarray()[:, first:], y, "libsvm", first)


def _malformed_libsvm(content: bytes) -> str:
    for number, raw in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
        line = raw.split("#")[0].strip()
        indices = [int(index) for index in re.findall(r"(\d+):", line)]
        if line and not _LIBSVM_LINE.fullmatch(line):
            return f", line {number}: expected `label index:value ...`, found {line[:60]!r}."
        if indices != sorted(set(indices)):
            return f", line {number}: indices must increase, found {indices[:10]}. Sort the pairs of that line."
    return " could not be read as LIBSVM's `label index:value ...` lines; a CSV file needs the suffix .csv."


def read_csv(content: bytes, path: Path, label: str | None = None, labelled: bool = True) -> Table:
    """Delimited numbers, with a header line or without; the label is the column `label`, or the last."""
    lines = _decode(content, path).splitlines()
    delimiter = max(",;\t", key=next(line for line in lines if line.strip()).count)
    numbered = [(i, row) for i, row in enumerate(csv.reader(lines, delimiter=delimiter), 1) if row]
    header = _header([row for _, row in numbered[:2]])
    body = numbered[header is not None :]
    width = len(numbered[0][1])
    for i, row in body:
        if len(row) != width:
            raise DataError(f"{path}, line {i}: {len(row)} columns, but the first line has {width}: {row[:6]}")
    if not body:
        raise DataError(f"{path} has a header and no rows.")
    column = _label_column(header, label, path, width) if labelled else width
    features = [j for j in range(width) if j != column]
    x = np.array([[_number(row[j], path, i, j, header) for j in features] for i, row in body])
    y = np.array([row[column].strip() for _, row in body]) if labelled else np.zeros(len(body))
    return Table(x.reshape(len(body), len(features)), y, "csv")


def _header(first_rows: list[list[str]]) -> list[str] | None:
    """The first row, if one of its cells is no number where the next row's cell is one."""
    if len(first_rows) < 2:
        return None
    is_header = any(_is_number(below) and not _is_number(cell) for cell, below in zip(*first_rows, strict=False))
    return [cell.strip() for cell in first_rows[0]] if is_header else None


def _label_column(header: list[str] | None, label: str | None, path: Path, width: int) -> int:
    if width < 2:
        raise DataError(f"{path} has one column: features and a label are needed, delimited by a comma, ; or a tab.")
    if label is None:
        return width - 1
    if header is None or label not in header:
        found = "has no header line" if header is None else f"has the columns {', '.join(header)}"
        raise DataError(f"label={label!r}: {path} {found}. Name one of its columns, or label=null for the last one.")
    return header.index(label)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _number(cell: str, path: Path, line: int, column: int, header: list[str] | None) -> float:
    try:
        return float(cell)
    except ValueError:
        name = f"column {column + 1}" if header is None else f"column {header[column]!r}"
        raise DataError(
            f"{path}, line {line}, {name}: {cell!r} is not a number.\n"
            "Features must be numbers: drop the column, encode it in 0/1 columns, or fill the missing value."
        ) from None


def read_idx(content: bytes, path: Path) -> Table:
    """MNIST's idx images, scaled to [0, 1], with the labels of the idx1 file that lies beside them."""
    labels = path.with_name(path.name.replace("images-idx3", "labels-idx1").replace("images.idx3", "labels.idx1"))
    if labels == path or not labels.is_file():
        beside = ", ".join(sorted(p.name for p in path.parent.iterdir() if "idx1" in p.name)) or "none"
        raise DataError(f"{path}: its labels, {labels.name}, are not beside it (label files there: {beside}).")
    images, y = _idx_array(content, path, 3), _idx_array(read_bytes(labels), labels, 1)
    if len(images) != len(y):
        raise DataError(
            f"{path} has {len(images)} images and {labels.name} {len(y)} labels: they do not belong together."
        )
    return Table(images.reshape(len(y), -1) / 255.0, y, "idx")


def _idx_array(content: bytes, path: Path, dimensions: int) -> Array:
    start = 4 + 4 * dimensions
    if _IDX_DIMENSIONS.get(content[:4]) != dimensions or len(content) < start:
        raise DataError(
            f"{path} is not an idx file of bytes with {dimensions} dimension(s): it begins {content[:4]!r}."
        )
    shape = np.frombuffer(content, ">i4", dimensions, 4)
    if len(content) - start != int(np.prod(shape, dtype=np.int64)):
        raise DataError(
            f"{path} promises {tuple(map(int, shape))} bytes and holds {len(content) - start}: copy it again."
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def read_text(content: bytes, path: Path, context: int = 1) -> Table:
    """Next-character prediction: the previous `context` characters, one-hot each, the nearest first."""
    characters = np.array(list(_decode(content, path)))
    if not 1 <= context < len(characters):
        raise DataError(f"context={context}: {path} has {len(characters)} characters; 1 <= context < that is needed.")
    alphabet, codes = np.unique(characters, return_inverse=True)
    rows = len(codes) - context
    if rows * context * len(alphabet) > MAX_DENSE:
        raise DataError(f"context={context} makes {rows} x {context * len(alphabet)} features: take a smaller context.")
    x = np.zeros((rows, context * len(alphabet)), np.float32)
    for back in range(context):
        x[np.arange(rows), back * len(alphabet) + codes[context - 1 - back : len(codes) - 1 - back]] = 1.0
    return Table(x, characters[context:], "text")


def _decode(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error}): convert it, `iconv -t utf-8`.") from error
