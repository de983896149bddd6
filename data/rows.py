"""Rows on their way from text to numbers: typed columns, and what becomes of a bad row.

Shape letters: n rows of the block.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import numpy as np
import polars as pl

from data.hashing import MISSING, string_keys
from embtables.registry import nearest

log = logging.getLogger(__name__)

KEPT = 10

T = TypeVar("T")


def check_columns(where: str, names: Sequence[str], wanted: Iterable[str]) -> None:
    """Raise ValueError unless a file or frame has the wanted columns; `where` opens the message."""
    other = len(names) == 1 and re.search(r"[,;|\t]", names[0])
    advice = f" Is the delimiter {other[0]!r}?" if other else ""
    for name in wanted:
        if name not in names:
            raise ValueError(
                f"{where}: no column {name!r}.{nearest(name, names)} It has: {', '.join(names)}{advice}"
            )


class BadRows:
    """What a source does with a row it cannot read: raise, or count it and keep the first ten.

    Args:
        policy: raise an error, or skip the row.
        advice: the next step, at the end of an error.

    Attributes:
        count: rows dropped so far.
        first: "file:line: reason" of the first ten.
    """

    def __init__(
        self,
        policy: Literal["error", "skip"],
        advice: str = "To drop and count such rows: data.bad_rows=skip",
    ) -> None:
        self.policy, self.advice = policy, advice
        self.clear()

    def clear(self) -> None:
        """Forget all rows: a new pass over the input begins."""
        self.count = 0
        self.first: list[str] = []

    def add(self, path: Path, count: int, reasons: dict[int, str], unit: str = "") -> None:
        """Report rows of one file.

        Args:
            path: the file.
            count: how many rows are bad.
            reasons: 1-based line (or row) number -> what was expected there, at least the first ten.
            unit: what the numbers count if not lines, such as "row ".

        Raises:
            ValueError: the policy is "error"; the message is that of the first row.
        """
        texts = [f"{path}:{unit}{line}: {reasons[line]}" for line in sorted(reasons)[:KEPT]]
        if texts and self.policy == "error":
            raise ValueError(f"{texts[0]}. {self.advice}")
        for text in texts[: KEPT - len(self.first)]:
            log.warning("dropped %s", text)
            self.first.append(text)
        self.count += count


class Numbers(Protocol):
    """n rows of one file that give columns of numbers: `Rows`, or `data.cells.Cells` of plain text."""

    def __len__(self) -> int: ...

    def labels(self, name: str) -> np.ndarray:
        """Return [n] float32 labels, 0 or 1."""
        ...

    def integers(self, name: str) -> np.ndarray:
        """Return [n] int64 integers, `MISSING` where missing."""
        ...

    def hexadecimals(self, name: str) -> np.ndarray:
        """Return [n] keys: unsigned 64-bit hexadecimals read as int64, or `MISSING`."""
        ...


class Rows:
    """n rows of one file; the methods give a column as numbers and note the cells that are none.

    Args:
        path: the file.
        frame: [n] rows, columns of strings (text files) or typed (Parquet); null where missing.
        lines: [n] 1-based line number of each row.
        left_out: how many rows were found bad before and are not in `frame`.
        reasons: line -> what was expected there, for the first of them.
        unit: see `BadRows.add`.

    Attributes:
        wrong: [n] true where a cell was not what its column should hold.
    """

    def __init__(
        self,
        path: Path,
        frame: pl.DataFrame,
        lines: np.ndarray,
        left_out: int = 0,
        reasons: dict[int, str] | None = None,
        unit: str = "",
    ) -> None:
        self.path = path
        self.frame = frame
        self.lines = lines
        self.left_out = left_out
        self.reasons = reasons or {}
        self.wrong = np.zeros(len(frame), bool)
        self.unit = unit

    def __len__(self) -> int:
        return len(self.frame)

    def expect(self, name: str, wrong: pl.Series | np.ndarray, what: str) -> None:
        """Note that column `name` should hold `what` but does not where `wrong` [n] is true."""
        wrong = np.asarray(wrong, bool)
        self.wrong |= wrong
        for row in np.flatnonzero(wrong)[:KEPT].tolist():
            reason = f"column {name!r}: expected {what}, got {self.frame[name][row]!r}"
            self.reasons.setdefault(int(self.lines[row]), reason)

    def parse(self, name: str, dtype: pl.DataType | type[pl.DataType], what: str) -> pl.Series:
        """Return a column cast to a type, null where missing."""
        raw = self.frame[name]
        if raw.dtype.is_float():
            raw = raw.fill_nan(None)
        values = raw.cast(dtype, strict=False)
        if values.null_count() > raw.null_count():
            self.expect(name, values.is_null() & raw.is_not_null(), what)
        return values

    def integers(self, name: str) -> np.ndarray:
        """Return [n] int64 integers, `MISSING` where missing."""
        values = self.parse(name, pl.Int64, "a 64-bit integer")
        if self.frame[name].dtype.is_float():
            raw = self.frame[name].fill_nan(None)
            self.expect(name, (raw != values.cast(raw.dtype)).fill_null(False), "a 64-bit integer")
        return (values.fill_null(MISSING) if values.null_count() else values).to_numpy()

    def numbers(self, name: str) -> np.ndarray:
        """Return [n] float64 numbers, NaN where missing."""
        raw = self.frame[name]
        values = raw if raw.dtype.is_float() else self.parse(name, pl.Float64, "a number")
        values = values.cast(pl.Float64).to_numpy()
        infinite = np.isinf(values)
        if infinite.any():
            self.expect(name, infinite, "a finite number")
        return values

    def hexadecimals(self, name: str) -> np.ndarray:
        """Return [n] keys: unsigned 64-bit hexadecimals of any width read as int64, or `MISSING`."""
        raw = self._text(name, "a hexadecimal, as text")
        values = raw.str.to_integer(base=16, dtype=pl.UInt64, strict=False)
        signed = raw.str.starts_with("+")
        if values.null_count() > raw.null_count() or signed.any():
            wrong = (values.is_null() & raw.is_not_null()) | signed.fill_null(False)
            self.expect(name, wrong, "a hexadecimal of at most 16 digits")
        keys = values.to_numpy() if values.null_count() == 0 else values.fill_null(0).to_numpy()
        return np.where(values.is_null().to_numpy(), MISSING, keys.view(np.int64))

    def strings(self, name: str) -> np.ndarray:
        """Return the [n] keys of strings, `MISSING` where missing."""
        if self.frame[name].dtype.is_float():
            return string_keys(self._text(name, "a string"))  # 7.0 would not be "7"
        return string_keys(self.frame[name].cast(pl.String))

    def _text(self, name: str, what: str) -> pl.Series:
        """Return a column of strings; any other value is noted as wrong."""
        raw = self.frame[name]
        if raw.dtype in (pl.String, pl.Categorical, pl.Enum):
            return raw.cast(pl.String)
        known = raw.is_not_null() & (raw.is_not_nan() if raw.dtype.is_float() else True)
        self.expect(name, known, what)
        return pl.Series(name, [None] * len(raw), dtype=pl.String)

    def lists(
        self, name: str, separator: str | None, keys: Callable[[Rows], np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return (keys [m] of all elements, lengths [n]) of a column of lists.

        Args:
            name: the column: lists, or text with a separator; empty elements are left out.
            separator: of text.
            keys: gives the keys [m] of the elements, which are rows with this one column.

        Raises:
            ValueError: the column is text and no separator is given.
        """
        lists = self.frame[name]
        if not isinstance(lists.dtype, pl.List):
            if separator is None:
                raise ValueError(
                    f"{self.path}: column {name!r} is no list: give its separator in data.columns, "
                    "or lists as Parquet has them"
                )
            lists = lists.cast(pl.String).str.split(separator)
            lists = lists.list.eval(pl.element().filter(pl.element() != ""))
        lists = lists.list.drop_nulls()
        lengths = lists.list.len().fill_null(0).cast(pl.Int64).to_numpy()
        owner = np.repeat(np.arange(len(lengths)), lengths)
        elements = lists.filter(lengths > 0).explode().to_frame()
        inner = Rows(self.path, elements, self.lines[owner], unit=self.unit)
        values = keys(inner)
        self.wrong[owner[inner.wrong]] = True
        self.reasons = inner.reasons | self.reasons
        return values, lengths

    def labels(self, name: str) -> np.ndarray:
        """Return [n] float32 labels, 0 or 1."""
        raw = self.frame[name]
        text = raw.cast(pl.Float64, strict=False)
        wrong = ~text.is_in([0.0, 1.0]).fill_null(False)
        if wrong.any():
            self.expect(name, wrong, "a label 0 or 1")
        return text.fill_null(0).cast(pl.Float32).to_numpy()

    def read(self, parse: Callable[[Rows], T], bad: BadRows) -> T:
        """Return `parse(rows)` of the good rows, and report the others.

        Raises:
            ValueError: a row is bad, and bad rows are errors.
        """
        return self.settle(parse(self), parse, bad)

    def settle(self, parsed: T, parse: Callable[[Rows], T], bad: BadRows) -> T:
        """Do as `read` where `parsed` is what `parse` returned for all rows, which may be bad."""
        count = self.left_out + int(self.wrong.sum())
        if count == 0:
            return parsed
        bad.add(self.path, count, self.reasons, self.unit)
        good = ~self.wrong
        return parse(Rows(self.path, self.frame.filter(good), self.lines[good], unit=self.unit))
