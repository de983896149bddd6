"""Delimited text, plain or gzip, read in blocks of whole lines and checked line by line."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TypeVar

import numpy as np
import polars as pl

from data.cells import Cells, Irregular
from data.prefetch import ordered
from data.rows import KEPT, BadRows, Numbers, Rows, check_columns
from embtables.registry import nearest

BLOCK = 4 * 2**20
"""Bytes read at a time; several blocks are parsed at once."""

_NEWLINE, _QUOTE = ord("\n"), ord('"')

T = TypeVar("T")
Readable = IO[bytes] | gzip.GzipFile


@dataclass(frozen=True)
class Layout:
    """How the lines of a file are made.

    Attributes:
        names: names of all columns, or empty where the first line holds them.
        separator: one ASCII character between two values.
        quoted: a value may stand in double quotes (it must not hold a line break).
        label: name of the column that rows to predict need not have.
    """

    names: tuple[str, ...] = ()
    separator: str = ","
    quoted: bool = False
    label: str | None = "label"

    def without_label(self) -> Layout:
        """Return the layout of files that lack the label."""
        return replace(self, names=tuple(name for name in self.names if name != self.label))


def read(
    path: Path,
    layout: Layout,
    wanted: Sequence[str],
    parse: Callable[[Rows], T],
    bad: BadRows,
) -> Iterator[T]:
    """Yield `parse(rows)` for each block of a file; rows hold the wanted columns as strings.

    Raises:
        ValueError: the file is missing, empty, binary, cut short or has not the wanted columns, or
            a row is bad and bad rows are errors. The message names file and line.
    """
    return _read_blocks(path, layout, wanted, parse, bad, None)


def read_numbers(
    path: Path,
    layout: Layout,
    wanted: Sequence[str],
    parse: Callable[[Numbers], T],
    bad: BadRows,
) -> Iterator[T]:
    """Do as `read` for a `parse` that asks for numbers alone, several times faster.

    Raises:
        ValueError: as `read`.
    """
    return _read_blocks(path, layout, wanted, parse, bad, parse)


def _read_blocks(
    path: Path,
    layout: Layout,
    wanted: Sequence[str],
    parse: Callable[[Rows], T],
    bad: BadRows,
    quick: Callable[[Numbers], T] | None,
) -> Iterator[T]:
    def parsed(block: tuple[int, bytes, list[str]]) -> tuple[T, Rows | None]:
        first, text, names = block
        if quick is not None:
            with suppress(Irregular):
                return quick(Cells(text, names, layout.separator)), None
        rows = _rows(path, text, first, names, layout, wanted)
        return parse(rows), rows

    for result, rows in ordered(parsed, _named_blocks(path, layout, wanted)):
        yield result if rows is None else rows.settle(result, parse, bad)


def _named_blocks(
    path: Path, layout: Layout, wanted: Sequence[str]
) -> Iterator[tuple[int, bytes, list[str]]]:
    """Yield `blocks` without the header, and with the names of the columns."""
    names = list(layout.names)
    for first, text in blocks(path):
        if not names:
            head, _, text = text.partition(b"\n")
            names, first = _header(path, head, layout), 2
        check_columns(f"{path}:1", names, wanted)
        yield first, text, names


def blocks(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (1-based number of the first line, bytes of whole lines ending in a line feed).

    A gzip file is recognised by its content, and CR LF is turned into LF.

    Raises:
        ValueError: the file is missing, empty, binary, not UTF-8 or cut short.
    """
    line, rest = 1, b""
    with open_text(path) as file:
        while True:
            piece = _read(file, path, line)
            data = rest + piece
            _check_no_zero(path, data, line)
            text, rest = _whole_lines(data, last=not piece)
            if text:
                _check_utf8(path, text, line)
                yield line, text.replace(b"\r\n", b"\n") if b"\r" in text else text
                line += int(np.count_nonzero(np.frombuffer(text, np.uint8) == _NEWLINE))
            if not piece:
                break
            if len(rest) > BLOCK:
                raise ValueError(f"{path}:{line}: a line of more than {BLOCK:,} bytes: not a table")
    if line == 1:
        raise ValueError(f"{path}: the file is empty; expected one row a line")


def first_width(path: Path, layout: Layout) -> int:
    """Return the number of values in the first line of a file, 0 if it is blank or there is none.

    Raises:
        ValueError: the gzip data break in it.
    """
    with open_text(path) as file:
        line = _read(file, path, 1).partition(b"\n")[0].rstrip(b"\r")
    return int(_scan(line + b"\n", layout)[2][0]) + 1 if line else 0


def find(root: Path | None, names: Sequence[str]) -> list[Path]:
    """Return the files of these names in a folder; where one is missing its gzip form will do.

    Raises:
        ValueError: no folder is given, or a file is in it in neither form.
    """
    if root is None:
        raise ValueError(f"data.root is not given: the folder that holds {', '.join(names)}")
    return [_plain_or_gzip(root / name) for name in names]


def _plain_or_gzip(path: Path) -> Path:
    zipped = path.with_name(path.name + ".gz")
    if not path.is_file() and zipped.is_file():
        return zipped
    try:
        return existing(path)
    except ValueError as error:
        raise ValueError(f"{error} data.root is the folder of the raw files") from None


def existing(path: Path) -> Path:
    """Return the path of a file.

    Raises:
        ValueError: there is none; the message names the nearest one.
    """
    if path.is_file():
        return path
    beside = [file.name for file in path.parent.glob("*") if file.is_file()]
    folder = path.parent
    hint = nearest(path.name, beside) if folder.is_dir() else f" There is no folder {folder}."
    raise ValueError(f"{path}: no such file.{hint}")


def open_text(path: Path) -> Readable:
    """Open a plain or gzip file for reading bytes.

    Raises:
        ValueError: there is no such file.
    """
    with existing(path).open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if zipped else path.open("rb")


def _read(file: Readable, path: Path, line: int) -> bytes:
    try:
        return file.read(BLOCK)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(
            f"{path}: the gzip data end or break after line {line - 1:,} ({error}). "
            "Was the download cut short? Fetch the file again"
        ) from error


def _whole_lines(data: bytes, last: bool) -> tuple[bytes, bytes]:
    """Split after the last line feed; the end of the file ends its last line."""
    if last:
        return (data if not data or data.endswith(b"\n") else data + b"\n"), b""
    cut = data.rfind(b"\n") + 1
    return data[:cut], data[cut:]


def _check_no_zero(path: Path, data: bytes, line: int) -> None:
    zero = data.find(b"\0")
    if zero >= 0:
        line += data.count(b"\n", 0, zero)
        raise ValueError(f"{path}:{line}: found a zero byte: a binary file, expected text")


def _check_utf8(path: Path, text: bytes, line: int) -> None:
    if text.isascii():
        return
    try:
        text.decode()
    except UnicodeDecodeError as error:
        line += text.count(b"\n", 0, error.start)
        found = text[error.start : error.start + 4]
        raise ValueError(f"{path}:{line}: expected UTF-8 text, got the bytes {found!r}") from error


def _header(path: Path, head: bytes, layout: Layout) -> list[str]:
    text = head.decode().removeprefix("\ufeff")
    names = [name.strip().strip('"') for name in text.split(layout.separator)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{path}:1: the header names {', '.join(map(repr, twice))} twice")
    return names


def _rows(
    path: Path, text: bytes, first: int, names: list[str], layout: Layout, wanted: Sequence[str]
) -> Rows:
    """Parse whole lines into rows of strings; lines with a wrong number of values are left out."""
    starts, ends, counts, open_quote = _scan(text, layout)
    lines = first + np.arange(len(ends))
    blank = starts == ends
    wrong = (open_quote | (counts != len(names) - 1)) & ~blank
    good = ~(wrong | blank)
    reasons = {}
    for row in np.flatnonzero(wrong)[:KEPT].tolist():
        got = (
            "a quote without an end or inside a value" if open_quote[row] else f"{counts[row] + 1}"
        )
        start = text[starts[row] : ends[row]][:40].decode(errors="replace")
        reasons[int(lines[row])] = f"expected {len(names)} columns, got {got}: {start!r}"
    if not good.all():
        text = np.frombuffer(text, np.uint8)[np.repeat(good, ends - starts + 1)].tobytes()
    frame = _frame(text, names, layout).select(wanted)
    return Rows(path, frame, lines[good], int(wrong.sum()), reasons)


def _scan(text: bytes, layout: Layout) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return for each line its start, its end, its separators and whether a quote stays open."""
    data = np.frombuffer(text, np.uint8)
    ends = np.flatnonzero(data == _NEWLINE)
    starts = np.concatenate([[0], ends[:-1] + 1])
    marks = np.flatnonzero(data == ord(layout.separator))
    open_quote = np.zeros(len(ends), bool)
    if layout.quoted and b'"' in text:
        quotes = np.flatnonzero(data == _QUOTE)
        before = np.searchsorted(quotes, starts)
        open_quote = (np.searchsorted(quotes, ends) - before) % 2 == 1
        open_quote[_misplaced(data, quotes, ends, before, layout)] = True
        line = np.searchsorted(ends, marks)
        marks = marks[(np.searchsorted(quotes, marks) - before[line]) % 2 == 0]
    counts = np.diff(np.searchsorted(marks, ends), prepend=0)
    return starts, ends, counts, open_quote


def _misplaced(
    data: np.ndarray, quotes: np.ndarray, ends: np.ndarray, before: np.ndarray, layout: Layout
) -> np.ndarray:
    """Return the lines with a quote that opens or closes in the middle of a value."""
    line = np.searchsorted(ends, quotes)
    opens = (np.arange(len(quotes)) - before[line]) % 2 == 0
    beside = np.where(opens, quotes - 1, quotes + 1)
    edges = [ord(layout.separator), _NEWLINE, ord("\r"), _QUOTE]
    return line[(beside >= 0) & ~np.isin(data[beside], edges)]


def _frame(text: bytes, names: list[str], layout: Layout) -> pl.DataFrame:
    if not text:
        return pl.DataFrame(schema=dict.fromkeys(names, pl.String))
    return pl.read_csv(
        text,
        has_header=False,
        new_columns=names,
        separator=layout.separator,
        quote_char='"' if layout.quoted else None,
        infer_schema=False,
    )
