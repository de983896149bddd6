"""CPU kernels of pruned rows (`rows.pruned`): finding the zeros of rows, and reading rows without them.

Shape letters: n rows or reads, d numbers in a row, T threads.
"""

# Intrinsics take a typing context that callers do not give.
# pyright: reportCallIssue=false

from __future__ import annotations

import numpy as np
from numba import njit, prange, types
from numba.extending import overload

from embtables.rows.kernels import half_to_float, ones, place_among, prefetch_line, set_first
from embtables.rows.pruned import (
    BEGIN,
    COLUMN,
    NAMED,
    RANK,
    ROW_BITS,
    RUNS,
    STORED,
    VALUE,
    WIDTH,
    WORD,
)

_ROW = (1 << ROW_BITS) - 1
_TOGETHER = 32
"""Reads whose numbers are prefetched together, once it is known where they are."""
_LINE = 64

# Where the numbers of a read are: their first one, how many, row of the other parts, and either the
# first of their listed columns, or one of:
_AT, _COUNT, _PART, _FORM = range(4)
_PREFIX, _MASKED = -1, -2


def _number(values, k):
    """Return a stored number as float32, of int8 before its scale."""


@overload(_number, inline="always")
def _number_any(values, k):
    if values.dtype == types.int16:
        return lambda values, k: half_to_float(values[k, 0])
    return lambda values, k: np.float32(values[k, 0])


def _put_first(out, o, count, factor, values, at):
    """Set the first numbers of out[o] to stored numbers from `at` on, times a factor."""


@overload(_put_first, inline="always")
def _put_first_any(out, o, count, factor, values, at):
    if values.dtype != types.int16:
        return lambda out, o, count, factor, values, at: set_first(
            out, o, count, factor, values, at
        )

    def put(out, o, count, factor, values, at):
        for j in range(count):
            out[o, j] = factor * _number(values, at + j)

    return put


@njit(inline="always")
def _find(words, ranks, masks, starts, columns, runs, layout, dim, place, found, i):
    """Write where the numbers of a read are; of a masked one the mask's first byte as its count."""
    table, row = place >> ROW_BITS, place & _ROW
    found[i, _COUNT], found[i, _FORM] = 0, _PREFIX
    rank = np.int64(-1)
    if place >= 0:
        word = layout[table, WORD]
        rank = row if word < 0 else place_among(words, ranks, word, layout[table, RANK], row)
    if rank >= 0:
        count, first = layout[table, RUNS], layout[table, VALUE]
        if count == 1:
            width = layout[table, WIDTH]
            found[i, _AT], found[i, _COUNT] = first + rank * width, width
            found[i, _PART], found[i, _FORM] = layout[table, STORED] + rank, layout[table, COLUMN]
        elif count > 1:
            last = first + count
            while last - first > 1:
                middle = (first + last) >> 1
                if runs[middle, BEGIN] <= rank:
                    first = middle
                else:
                    last = middle
            rank, width = rank - runs[first, BEGIN], runs[first, WIDTH]
            found[i, _AT], found[i, _COUNT] = runs[first, VALUE] + rank * width, width
            found[i, _PART], found[i, _FORM] = runs[first, STORED] + rank, runs[first, COLUMN]
        else:
            size, eight, low = (dim + 7) >> 3, rank >> 3, layout[table, WIDTH]
            if count & 1:
                at = np.int64(np.uint32(starts[low + 2 * eight]))
                at |= np.int64(starts[low + 2 * eight + 1]) << 32
            else:
                at = np.int64(starts[low + eight])
            found[i, _PART], column = layout[table, STORED] + rank, layout[table, COLUMN]
            if count <= NAMED:
                column += (eight << 3) + at
                for _ in range(rank & 7):
                    at += columns[column]
                    column += 1 + np.int64(columns[column])
                found[i, _COUNT], found[i, _FORM] = columns[column], column + 1
            else:
                for byte in range(column + (eight << 3) * size, column + rank * size):
                    at += ones(np.uint64(masks[byte]))
                found[i, _COUNT], found[i, _FORM] = column + rank * size, _MASKED
            found[i, _AT] = first + at


@njit(inline="always")
def _scaled(scale, found, i):
    """Return whether the numbers of a read have a scale."""
    return len(scale) > 0 and (found[i, _COUNT] > 0 or found[i, _FORM] == _MASKED)


@njit(inline="always")
def _copy(values, factor, masks, columns, found, i, out, o):
    """Write the numbers of a read to out[o], and zeros elsewhere."""
    d, end = out.shape[1], len(values) - 1
    at, count, form = found[i, _AT], found[i, _COUNT], found[i, _FORM]
    if form == _PREFIX:
        _put_first(out, o, count, factor, values, at)
        for j in range(count, d):
            out[o, j] = 0
    elif form == _MASKED:
        for j in range(d):
            # Without a branch, which would be guessed wrong: a number is read for each zero too.
            bit = np.int64(masks[count + (j >> 3)] >> (j & 7)) & 1
            number = factor * _number(values, min(at, end))
            out[o, j] = number if bit else np.float32(0)
            at += bit
    else:
        for j in range(d):
            out[o, j] = 0
        for j in range(count):
            out[o, columns[form + j]] = factor * _number(values, at + j)


@njit(parallel=True, cache=True)
def gather_pruned(
    values, scale, words, ranks, masks, starts, columns, runs, layout, place, out, threads
):
    """Write the rows [n, d] at places [n], table << ROW_BITS | row; zeros at -1.

    Args:
        values: [V, 1] stored numbers; float16 as its bits in int16.
        scale: [P, 1] of int8 rows, else empty.
        words: of directories; this and what follows as `rows.pruned` describes it.
        ranks: of directories.
        masks: of sparse rows.
        starts: of sparse rows.
        columns: of blocks and of sparse rows.
        runs: of blocks.
        layout: [tables, 7].
        place: [n].
        out: [n, d] written.
        threads: T.
    """
    n, size = len(place), values.itemsize
    for t in prange(threads):
        found = np.empty((_TOGETHER, 4), np.int64)
        last = n * (t + 1) // threads
        for start in range(n * t // threads, last, _TOGETHER):
            count = min(_TOGETHER, last - start)
            for i in range(count):
                _find(
                    words,
                    ranks,
                    masks,
                    starts,
                    columns,
                    runs,
                    layout,
                    out.shape[1],
                    place[start + i],
                    found,
                    i,
                )
                if _scaled(scale, found, i):
                    prefetch_line(scale, found[i, _PART], 0)
                if found[i, _FORM] == _MASKED:
                    prefetch_line(values, found[i, _AT], 0)
                else:
                    for byte in range(0, found[i, _COUNT] * size, _LINE):
                        prefetch_line(values, found[i, _AT], byte)
            for i in range(count):
                factor = np.float32(1)
                if _scaled(scale, found, i):
                    factor = scale[found[i, _PART], 0]
                _copy(values, factor, masks, columns, found, i, out, start + i)


@njit(parallel=True, cache=True)
def zero_pattern(rows, out, threads):
    """Write which numbers of float rows [n, d] are not zero.

    Args:
        rows: [n, d].
        out: [n, ceil(d / 64)] int64 written: bit j % 64 of word j / 64 is column j.
        threads: T.
    """
    n, d = rows.shape
    for t in prange(threads):
        for i in range(n * t // threads, n * (t + 1) // threads):
            for word in range(out.shape[1]):
                bits = np.uint64(0)
                for j in range(64 * word, min(64 * word + 64, d)):
                    bits |= np.uint64(rows[i, j] != 0) << np.uint64(j & 63)
                out[i, word] = np.int64(bits)


@njit(cache=True)
def summarize(bits, union):
    """Return the numbers of rows with a nonzero, of nonzeros, and of those of one row at most.

    Args:
        bits: [n, ceil(d / 64)] uint64 of `zero_pattern`.
        union: [ceil(d / 64)] zeros; written: columns with a nonzero.
    """
    kept, numbers, most = 0, 0, 0
    for i in range(len(bits)):
        count = 0
        for word in range(bits.shape[1]):
            count += ones(bits[i, word])
            union[word] |= bits[i, word]
        kept += count > 0
        numbers += count
        most = max(most, count)
    return kept, numbers, most


@njit(cache=True)
def find_runs(bits, all_zero, number, least, begin, columns):
    """Cut rows into runs that keep about the same columns; return how many, one more than fit at most.

    Greedy, in one pass. A row with columns that are new to its run begins another if they would cost
    the rows before it more than `least` bytes. The last rows of a run, its tail, become another once
    doing without the columns that none of them keeps saves more than that. So blocks of equal columns
    are found as they are, and numbers that are zero by chance part nothing.

    Args:
        bits: [n, ceil(d / 64)] uint64 of `zero_pattern`.
        all_zero: rows of zeros count too; otherwise they are passed over and have no rank.
        number: bytes of a number.
        least: bytes.
        begin: [most] written: rank of the first row of each run.
        columns: [most, ceil(d / 64)] written: what any row of a run keeps.
    """
    most, words = columns.shape
    tail = np.zeros(words, np.uint64)
    runs, rank, first = 0, 0, -1  # first row of the tail, or -1
    for i in range(len(bits)):
        count, new, spared, own = 0, 0, 0, 0
        for word in range(words):
            row = bits[i, word]
            count += ones(row)
            if runs:
                held = columns[runs - 1, word]
                new += ones(row & ~held)
                spared += ones((held | row) & ~(tail[word] | row))
                own += ones(held & ~row)
        if not (count or all_zero):
            continue
        if runs == 0 or new * number * (rank - begin[runs - 1]) > least:
            if runs == most:
                return most + 1
            begin[runs], first = rank, -1
            for word in range(words):
                columns[runs, word] = bits[i, word]
            runs += 1
        else:
            if first < 0 or own >= spared * (rank - first + 1):  # a tail from here saves more
                first, spared = rank, own
                tail[:] = 0
            for word in range(words):
                tail[word] |= bits[i, word]
                columns[runs - 1, word] |= bits[i, word]
            if spared == 0:
                first = -1
            elif spared * number * (rank - first + 1) > least:
                if runs == most:
                    return most + 1
                begin[runs], first = first, -1
                for word in range(words):
                    columns[runs, word] = tail[word]
                runs += 1
        rank += 1
    _unite(bits, all_zero, begin[:runs], columns)
    return runs


@njit(cache=True)
def _unite(bits, all_zero, begin, columns):
    """Write what any row of a run keeps: while runs are found, a tail's columns count for its run."""
    columns[:] = 0
    run, rank = -1, 0
    for i in range(len(bits)):
        if all_zero or bits[i].any():
            if run + 1 < len(begin) and begin[run + 1] == rank:
                run += 1
            for word in range(bits.shape[1]):
                columns[run, word] |= bits[i, word]
            rank += 1
