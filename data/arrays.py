"""Arrays on disk that are written and read in pieces: raw columns, and .npy files of known shape.

Plain reads and writes rather than memory maps: mapped pages count as memory of the process, and
`prepare` promises a bounded amount of it.

Shape letters: N rows of the input, n rows of one window.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import BinaryIO

import numpy as np

WINDOW = 2**18
"""Rows of one value handled at a time: the arrays of one column stay in the processor's cache."""

MATRIX_WINDOW = 2**15
"""Rows of many columns handled at a time."""

JAGGED_WINDOW = 2**16
"""Rows of several values handled at a time: a history may hold hundreds."""


def windows(rows: int, size: int | None = None) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of consecutive windows of `rows` rows, `WINDOW` each unless told."""
    size = size or WINDOW
    for start in range(0, rows, size):
        yield start, min(start + size, rows)


class Spill:
    """Columns in a folder, one file each, appended to in one pass and then read by window.

    Several threads may write columns, each its own.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows = 0
        self._columns: dict[tuple[str, str], tuple[BinaryIO, np.dtype]] = {}
        self._numbers = count()
        folder.mkdir()

    def append(self, part: str, name: str, array: np.ndarray) -> None:
        """Append values to the column `name` of a part such as "single" or "lengths"."""
        if (part, name) not in self._columns:
            file = (self.folder / f"{part}.{next(self._numbers)}").open("w+b")
            self._columns[part, name] = file, array.dtype
        file, dtype = self._columns[part, name]
        file.write(np.ascontiguousarray(array, dtype).data)

    def has(self, part: str, name: str = "") -> bool:
        """Return whether the column was ever appended to."""
        return (part, name) in self._columns

    def size(self, part: str, name: str = "") -> int:
        """Return the number of values of a column."""
        file, dtype = self._columns[part, name]
        return os.fstat(file.fileno()).st_size // dtype.itemsize

    def finish(self) -> None:
        """End the writing so far; the columns written are read from now on."""
        for file, _ in self._columns.values():
            file.flush()

    def read(self, part: str, name: str, start: int, stop: int) -> np.ndarray:
        """Return values start .. stop of a column."""
        file, dtype = self._columns[part, name]
        values = np.empty(stop - start, dtype)
        read = os.preadv(file.fileno(), [values.data], start * dtype.itemsize)
        assert read == values.nbytes
        return values

    def stream(self, part: str, name: str = "", size: int | None = None) -> Iterator[np.ndarray]:
        """Yield a column of N values by window of `size` rows."""
        for start, stop in windows(self.rows, size):
            yield self.read(part, name, start, stop)

    def jagged(self, name: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (values [m], lengths [n]) of a jagged column by `JAGGED_WINDOW`."""
        at = 0
        for lengths in self.stream("lengths", name, JAGGED_WINDOW):
            end = at + int(lengths.sum())
            yield self.read("values", name, at, end), lengths
            at = end

    def close(self) -> None:
        """Close the files."""
        for file, _ in self._columns.values():
            file.close()


class ArrayFile:
    """A .npy file of known shape, filled from any position on by any number of writers."""

    def __init__(self, path: Path, dtype: np.typing.DTypeLike, shape: tuple[int, ...]) -> None:
        self.path = path
        self.dtype = np.dtype(dtype)
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": shape}
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            self.start = file.tell()
            file.truncate(self.start + int(np.prod(shape)) * self.dtype.itemsize)

    def writer(self, position: int = 0) -> BinaryIO:
        """Return a file that writes from the element at flat position `position` on."""
        file = self.path.open("r+b")
        file.seek(self.start + position * self.dtype.itemsize)
        return file

    def put(self, file: BinaryIO, array: np.ndarray) -> None:
        """Write the next elements."""
        file.write(np.ascontiguousarray(array, self.dtype).data)
