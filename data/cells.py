"""The cells of regular delimited text as numbers, eight characters at a time in one 64-bit word.

The text is read as a whole: where it begins and ends, each cell is one word of characters, and two
characters at a time become a number by a table of 65,536 entries. That is several times faster than
to cut it into strings. What is not as regular as machines write it raises `Irregular`, and the careful
reader, `data.text`, says what is wrong with it, or reads it after all.

Shape letters: n rows, C columns, k cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from data.hashing import MISSING

_WORD = 8
"""Characters of a word; a cell has two words at most."""

_INVALID = 0x8000
_ANY_INVALID = np.uint64(0x8000800080008000)
_EVEN_LANES = np.uint64(0x0000FFFF0000FFFF)
_LOW = np.uint64(0xFFFFFFFF)

_KEPT = np.array([(2**64 - 1) << 8 * (_WORD - n) & (2**64 - 1) for n in range(_WORD + 1)], "<u8")
"""[9] word masks that keep the last 0 .. 8 characters."""


class Irregular(Exception):
    """The text, or a cell that is asked for, is not of the plain form that is read quickly."""


class Cells:
    """n rows of C columns; the methods give a column as numbers, as those of `data.rows.Rows` do.

    Args:
        text: whole lines, each ending in a line feed; no zero bytes.
        names: [C] names of the columns.
        separator: one ASCII character, no digit, letter or sign; no cell may hold it.

    Raises:
        Irregular: a line is empty or has another number of cells.
    """

    def __init__(self, text: bytes, names: Sequence[str], separator: str) -> None:
        # A word may begin before the first cell.
        self._text = np.frombuffer(b"".join((bytes(_WORD), text)), np.uint8)
        body = self._text[_WORD:]
        newline = body == ord("\n")
        ends = np.flatnonzero(newline | (body == ord(separator)))
        rows, rest = divmod(len(ends), len(names))
        if not rows or rest or np.count_nonzero(newline) != rows:
            raise Irregular
        # One column after the other, as they are asked for.
        self._ends = np.ascontiguousarray(ends.reshape(rows, len(names)).T)
        if not newline[self._ends[-1]].all():
            raise Irregular
        self._columns = {name: at for at, name in enumerate(names)}
        # The word at place i of the padded text ends where the cell with end i does.
        self._words = np.ndarray(len(body) + 1, "<u8", self._text, strides=(1,))

    def __len__(self) -> int:
        return len(self._ends[0])

    def labels(self, name: str) -> np.ndarray:
        """Return [n] float32 labels, 0 or 1.

        Raises:
            Irregular: a label is not the single character 0 or 1.
        """
        ends, lengths = self._cells(name)
        digits = self._text[ends + (_WORD - 1)] - ord("0")
        if (lengths != 1).any() or (digits > 1).any():
            raise Irregular
        return digits.astype(np.float32)

    def integers(self, name: str) -> np.ndarray:
        """Return [n] int64 integers, `MISSING` where the cell is empty.

        Raises:
            Irregular: a cell is not a decimal of at most 16 digits, with or without a minus.
        """
        ends, lengths = self._cells(name)
        missing = lengths == 0
        negative = self._text[ends - lengths + _WORD] == ord("-")
        values = self._numbers(ends, lengths - negative, 10)
        if negative.any():
            if (negative & (lengths == 1)).any():
                raise Irregular
            np.negative(values, out=values, where=negative)
        values[missing] = MISSING
        return values

    def hexadecimals(self, name: str) -> np.ndarray:
        """Return [n] keys: unsigned hexadecimals read as int64, `MISSING` where the cell is empty.

        Raises:
            Irregular: a cell is not a hexadecimal of at most 16 digits.
        """
        ends, lengths = self._cells(name)
        values = self._numbers(ends, lengths, 16)
        values[lengths == 0] = MISSING
        return values

    def _cells(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return where the cells [n] of a column end, and their lengths [n]."""
        at = self._columns[name]
        ends = self._ends[at]
        if at:
            return ends, ends - self._ends[at - 1] - 1
        before = np.concatenate([[-1], self._ends[-1, :-1]])
        return ends, ends - before - 1

    def _numbers(self, ends: np.ndarray, lengths: np.ndarray, base: int) -> np.ndarray:
        """Return the numbers [k] int64 of cells [k] of digits; an empty cell gives 0."""
        longest = int(lengths.max())
        if longest > 2 * _WORD:
            raise Irregular
        values = _digits(self._words[ends] & _KEPT[np.minimum(lengths, _WORD)], base)
        if longest > _WORD:
            long = np.flatnonzero(lengths > _WORD)
            upper = self._words[ends[long] - _WORD] & _KEPT[lengths[long] - _WORD]
            values[long] += _digits(upper, base) * np.uint64(base**_WORD)
        return values.view(np.int64)


def _digits(words: np.ndarray, base: int) -> np.ndarray:
    """Return the numbers [k] uint64 of words [k] of eight digits, of which the first may be zero bytes.

    Raises:
        Irregular: a character is no digit.
    """
    pairs = _pairs(base)[words.view("<u2")].view("<u8")
    if (pairs & _ANY_INVALID).any():
        raise Irregular
    # The first character is in the lowest byte, so each lower lane counts for more.
    fours = (pairs & _EVEN_LANES) * np.uint64(base**2) + (pairs >> np.uint64(16) & _EVEN_LANES)
    return (fours & _LOW) * np.uint64(base**4) + (fours >> np.uint64(32))


@lru_cache
def _pairs(base: int) -> np.ndarray:
    """Return [65536] uint16: the number of two digits, the first in the low byte, or `_INVALID`."""
    digit = np.full(256, _INVALID, np.int64)
    digit[0] = 0
    for value, char in enumerate("0123456789abcdef"[:base]):
        digit[[ord(char), ord(char.upper())]] = value
    first, second = digit[None, :], digit[:, None]
    pairs = np.where((first | second) & _INVALID, _INVALID, first * base + second)
    return pairs.ravel().astype("<u2")
