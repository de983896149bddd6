"""Pruned rows: tables in which many numbers are exact zeros, stored without them.

A number is dropped if its stored form decodes to exactly 0, so also one that int8 rounds to 0; not if
that would break up runs and take more bytes than storing the zero. Each table takes the form with the
fewest bytes, everything counted:

    blocks       the rows in runs of neighbours, at most 256; a run is a dense matrix [rows, w] of the
                 columns that it keeps. One run with all columns that any row of the table keeps, or
                 runs found from the zeros themselves (`pruned_kernels.find_runs`). Prefix widths,
                 frequency blocks and dense tables are such.
    sparse rows  the numbers that are not zero side by side, and either a bit for each number of a row,
                 d / 8 bytes, or how many are not zero and their columns, a byte each (two where
                 d > 256): less for rows of fewer than d / 8 - 1 numbers.
    directory    with either: rows of zeros are not stored. A bit for each row and the number of rows
                 before each 512 (`sharing._kept`) say which are there: 1.06 bits a row.

A form costs at most 56 bytes more than the plain table: the dense table is one run of all columns.

Tensors of an arena (T tables of width d; all positions count entries of the whole arena):

    values   [V]          stored numbers ("values" of the precision); row-major within a run or table
    others   [P, ...]     other parts of the precision (int8: "scale"), once for each stored row; a run
                          without columns stores no rows
    words    int64        directories: bit x % 64 of word x / 64 says whether row x is stored
    ranks    int32        and for each 512 rows the number of stored ones before them
    masks    uint8        sparse rows of bits: ceil(d / 8) bytes each; bit j % 8 of byte j / 8: column j
    starts   int32        sparse rows: for each 8 rows the numbers of the table before them; where they
                          are 2^31 or more two entries each, the lower 32 bits first
    columns  uint8        of runs: ascending (uint16 where d > 256); of sparse rows that name theirs: for
                          each row how many, then those
    runs     int64 [N, 5] BEGIN: rank of the first row; VALUE: its first number; STORED: its row of
                          the other parts; COLUMN: first of `columns`, or -1 where they are the first
                          w; WIDTH: w. Of tables of several runs alone.
    layout   int64 [T, 7] RUNS: number of runs, or 0: sparse rows of bits, or -2: that name their
                          columns; 1 less: with two entries a start;
                          one run: VALUE, STORED, COLUMN, WIDTH of it (it has no line in `runs`);
                          several: VALUE is the first line in `runs`, the others 0;
                          sparse rows: VALUE, STORED; COLUMN: first of `masks`, or of `columns`; WIDTH:
                          of `starts`;
                          WORD: first of `words`, or -1: every row is stored; RANK: first of `ranks`

The rank of a row is its place among the stored ones of its table. Rows of an arena are named by
table << 40 | row.

Shape letters: R rows of a table, d their width, n rows that are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from embtables.compressor import Parts, Precision, RowTable
from embtables.sharing._kept import ones, rank_directory

ROW_BITS = 40
RUNS, VALUE, STORED, COLUMN, WIDTH, WORD, RANK = range(7)
BEGIN = 0
BITS, NAMED = 0, -2
"""Of `RUNS`: sparse rows of bits, and those that name their columns."""

STRUCTURE = ("words", "ranks", "masks", "starts", "columns", "runs", "layout")
MOST_RUNS = 256
WIDE = 2**31
"""Numbers of a table from which on starts take two entries."""

_LAYOUT_BYTES, _RUN_BYTES = 7 * 8, 5 * 8
_PIECE = 2**18
"""Numbers that are encoded at once: they stay in the cache."""


# -- zero patterns ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Runs:
    """Runs of stored rows.

    Attributes:
        begin: [N] rank of the first row of each.
        columns: [N, d] whether a run keeps a column.
    """

    begin: np.ndarray
    columns: np.ndarray


@dataclass(frozen=True)
class _Pattern:
    """Which numbers of a table are not zero.

    Attributes:
        bits: [R, ceil(d / 64)] uint64; bit j % 64 of word j / 64 is column j.
        dim: d.
        kept: rows that have a nonzero.
        numbers: numbers that are not zero.
        most: of one row.
        union: [1, d] whether any row has a nonzero in a column.
    """

    bits: np.ndarray
    dim: int
    kept: int
    numbers: int
    most: int
    union: np.ndarray

    @classmethod
    def of(cls, rows: int, dim: int, decoded: Callable[[slice], Tensor]) -> _Pattern:
        """Return the pattern of a table, decoded in pieces [.., d]."""
        from embtables import parallel
        from embtables.rows import pruned_kernels

        bits = torch.empty(rows, -(-dim // 64), dtype=torch.int64)
        step = max(1, _PIECE // dim)
        for first in range(0, rows, step):
            piece = decoded(slice(first, first + step)).float().cpu()
            parallel.call(pruned_kernels.zero_pattern, piece, bits[first : first + step])
        words = bits.numpy().view(np.uint64)
        union = np.zeros((1, words.shape[1]), np.uint64)
        kept, numbers, most = pruned_kernels.summarize(words, union[0])
        return cls(words, dim, kept, numbers, most, _unpacked(union, dim))

    def whole(self) -> _Runs:
        """Return one run of all rows."""
        return _Runs(np.zeros(1, np.int64), self.union)

    def runs(self, all_zero: bool, number: int) -> list[_Runs]:
        """Return the runs of all rows, or of those that have a nonzero; nothing where it is one.

        Runs must save some bytes to be cut off: more where they would be too many.
        """
        from embtables.rows import pruned_kernels

        begin = np.empty(MOST_RUNS, np.int64)
        columns = np.zeros((MOST_RUNS, self.bits.shape[1]), np.uint64)
        least, count = 2 * _RUN_BYTES, MOST_RUNS + 1
        while count > MOST_RUNS:
            count = pruned_kernels.find_runs(self.bits, all_zero, number, least, begin, columns)
            least *= 8
        if count < 2:
            return []
        return [_Runs(begin[:count], _unpacked(columns[:count], self.dim))]

    def stored(self) -> np.ndarray:
        """Return [R], whether a row has a nonzero."""
        return np.bitwise_or.reduce(self.bits, axis=1) != 0


def _unpacked(bits: np.ndarray, dim: int) -> np.ndarray:
    """Return bits [N, ceil(d / 64)] as booleans [N, d]."""
    return np.unpackbits(_as_bytes(bits, dim), axis=1, count=dim, bitorder="little").view(bool)


def _as_bytes(bits: np.ndarray, dim: int) -> np.ndarray:
    """Return bits [N, ceil(d / 64)] as bytes [N, ceil(d / 8)]."""
    flat = np.ascontiguousarray(bits, "<u8").view(np.uint8).reshape(len(bits), 8 * bits.shape[1])
    return np.ascontiguousarray(flat[:, : -(-dim // 8)])


# -- choice ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Form:
    """How a table is stored.

    Attributes:
        bytes: of everything it takes.
        directory: rows of zeros are not stored.
        begin: [N] rank of the first row of each run; None: sparse rows.
        columns: [N, d] whether a run stores a column.
        listed: [N] whether the columns of a run are listed, the others are the first ones; [1] whether
            sparse rows name theirs.
        zeros: share of the numbers that are zero.
    """

    bytes: int
    directory: bool
    begin: np.ndarray | None
    columns: np.ndarray
    listed: np.ndarray
    zeros: float

    @property
    def sparse(self) -> bool:
        """Whether rows are sparse."""
        return self.begin is None

    @property
    def dense(self) -> bool:
        """Whether every number is stored, the zeros too."""
        return not (self.directory or self.sparse) and bool(self.columns.all())


def _choose(pattern: _Pattern, number: int, row: int) -> Form:
    """Return the smallest form; of equal ones the first in the order of the module's text.

    Args:
        pattern: which numbers are not zero.
        number: bytes of a stored number.
        row: bytes of the other parts of a stored row.
    """
    forms = []
    for directory in (False, True) if 0 < pattern.kept < len(pattern.bits) else (False,):
        stored = pattern.kept if directory else len(pattern.bits)
        for runs in (pattern.whole(), *pattern.runs(not directory, number)):
            forms.append(_blocks(pattern, directory, stored, runs, number, row))
        forms += _sparse(pattern, directory, stored, number, row)
    return min(forms, key=lambda form: form.bytes)


def _blocks(
    pattern: _Pattern, directory: bool, stored: int, runs: _Runs, number: int, row: int
) -> Form:
    """Return the form of blocks; a run lists its columns or takes all up to the last one."""
    dim, lengths = pattern.dim, np.diff(runs.begin, append=stored)
    widths = runs.columns.sum(axis=1)
    last = np.where(widths > 0, dim - runs.columns[:, ::-1].argmax(axis=1), 0)
    listing = widths * _column_type(dim).itemsize
    listed = lengths * widths * number + listing < lengths * last * number
    columns = np.where(listed[:, None], runs.columns, np.arange(dim) < last[:, None])
    widths = np.where(listed, widths, last)
    size = (
        _beside(pattern, directory)
        + (lengths * (widths * number + np.where(widths > 0, row, 0))).sum()
        + listing[listed].sum()
        + (_RUN_BYTES * len(lengths) if len(lengths) > 1 else 0)
    )
    return Form(int(size), directory, runs.begin, columns, listed, _zeros(pattern))


def _sparse(pattern: _Pattern, directory: bool, stored: int, number: int, row: int) -> list[Form]:
    """Return the forms of sparse rows: of bits, and of named columns where a row's are not too many."""
    start = 8 if pattern.numbers >= WIDE else 4
    size = (
        _beside(pattern, directory)
        + stored * row
        + start * -(-stored // 8)
        + pattern.numbers * number
    )
    column = _column_type(pattern.dim)
    sizes = {False: size + stored * -(-pattern.dim // 8)}
    if pattern.most <= np.iinfo(column).max:
        sizes[True] = size + (stored + pattern.numbers) * column.itemsize
    nothing, zeros = np.empty((0, pattern.dim), bool), _zeros(pattern)
    return [
        Form(size, directory, None, nothing, np.array([named]), zeros)
        for named, size in sizes.items()
    ]


def _beside(pattern: _Pattern, directory: bool) -> int:
    """Return the bytes of layout and directory."""
    rows = len(pattern.bits)
    return _LAYOUT_BYTES + (8 * -(-rows // 64) + 4 * -(-rows // 512) if directory else 0)


def _zeros(pattern: _Pattern) -> float:
    count = len(pattern.bits) * pattern.dim
    return 1 - pattern.numbers / count if count else 0.0


def _column_type(dim: int) -> np.dtype:
    return np.dtype(np.uint8 if dim <= 256 else np.uint16)


def prunable(precision: Precision, dim: int) -> bool:
    """Return whether rows of a precision can do without their zeros.

    Its parts must be one number in "values" for each number, and others with one row each; a number
    of 0 must mean 0, whatever the others say.
    """
    rows = torch.linspace(-1, 1, 2 * dim).view(2, dim)
    parts = precision.encode(rows)
    values = parts.get("values")
    if values is None or values.shape != rows.shape or parts.keys() & set(STRUCTURE):
        return False
    if any(len(part) != len(rows) for part in parts.values()):
        return False
    return not precision.decode(parts | {"values": torch.zeros_like(values)}).any()


def _sizes(precision: Precision, dim: int) -> tuple[int, int]:
    """Return the bytes of a stored number, and of the other parts of a row."""
    parts = precision.encode(torch.zeros(1, dim))
    number = parts["values"].element_size()
    return number, sum(part.nbytes for part in parts.values()) - number * dim


def _smallest(
    rows: int, dim: int, ways: Iterable[Callable[[slice], Tensor]], precision: Precision
) -> tuple[_Pattern, Form]:
    """Return the zeros that are left out, and the form of a table.

    Args:
        rows: R.
        dim: d.
        ways: decode pieces of it [.., d]; each has the zeros of the one before and perhaps more.
        precision: of the numbers.
    """
    patterns: list[_Pattern] = []
    for decoded in ways:
        pattern = _Pattern.of(rows, dim, decoded)
        if not patterns or pattern.numbers < patterns[-1].numbers:
            patterns.append(pattern)
    found = [(pattern, _choose(pattern, *_sizes(precision, dim))) for pattern in patterns]
    return min(found, key=lambda one: one[1].bytes)


def pruned_bytes(rows: Tensor, precision: Precision) -> int:
    """Return the bytes that float rows [R, d] take in their smallest form.

    It is what `pack_rows` writes for them, and no more than it would write for rows with the same zeros
    that rounding makes no others of; those of the plain table for a precision that cannot be pruned.
    """
    rows = rows.detach()
    dim = rows.shape[1]
    if not prunable(precision, dim):
        return len(rows) * precision.row_bytes(dim)

    def rounded(piece: slice) -> Tensor:
        return precision.decode(precision.encode(rows[piece]))

    return _smallest(len(rows), dim, (rows.__getitem__, rounded), precision)[1].bytes


# -- packing ---------------------------------------------------------------------------------------


class _Pieces:
    """Entries of the tensors of an arena, appended table by table."""

    def __init__(self, dim: int) -> None:
        self.values: list[Tensor] = []
        self.others: dict[str, list[Tensor]] = {}
        self.numbers = self.stored = 0
        kinds = {
            "words": np.empty(0, np.int64),
            "ranks": np.empty(0, np.int32),
            "masks": np.empty(0, np.uint8),
            "starts": np.empty(0, np.int32),
            "columns": np.empty(0, _column_type(dim)),
            "runs": np.empty((0, 5), np.int64),
            "layout": np.empty((0, 7), np.int64),
        }
        self._entries = {name: [nothing] for name, nothing in kinds.items()}
        self._ends = dict.fromkeys(kinds, 0)

    def add(self, name: str, entries: np.ndarray) -> int:
        """Append entries to a tensor of the structure; return the position of the first."""
        first = self._ends[name]
        self._entries[name].append(entries)
        self._ends[name] += len(entries)
        return first

    def add_rows(self, values: list[Tensor], parts: Parts, rows: Tensor) -> tuple[int, int]:
        """Append numbers, and the other parts of rows [P]; return the positions of the first."""
        first = self.numbers, self.stored
        self.values += values
        for name, part in parts.items():
            if name != "values":
                self.others.setdefault(name, []).append(part[rows])
        self.numbers += sum(map(len, values))
        self.stored += len(rows)
        return first

    def tensors(self) -> Parts:
        """Return the tensors of the arena."""
        others = {name: torch.cat(pieces).cpu() for name, pieces in self.others.items()}
        structure = {
            name: torch.from_numpy(np.concatenate(entries))
            for name, entries in self._entries.items()
        }
        return {"values": torch.cat(self.values).cpu(), **others, **structure}


def pack_rows(
    tables: Iterable[tuple[Tensor, Parts]], precision: Precision
) -> tuple[Parts, list[Form]]:
    """Return the tensors of an arena, and the form of each table.

    Args:
        tables: rows [R, d] of each in floats, and as they are stored; all of one width; taken one after
            another.
        precision: what the parts mean; `prunable`.
    """
    pieces, forms = None, []
    for floats, parts in tables:
        rows, dim = floats.shape
        pieces = pieces or _Pieces(dim)

        def rounded(piece: slice, parts: Parts = parts) -> Tensor:
            return precision.decode({k: p[piece] for k, p in parts.items()})

        pattern, form = _smallest(rows, dim, (floats.__getitem__, rounded), precision)
        forms.append(form)
        _pack_table(pieces, parts, pattern, form)
    assert pieces is not None, "an arena without tables"
    return pieces.tensors(), forms


def _pack_table(pieces: _Pieces, parts: Parts, pattern: _Pattern, form: Form) -> None:
    """Append a table."""
    word, block, stored = -1, 0, np.arange(len(pattern.bits))
    if form.directory:
        kept = pattern.stored()
        words, ranks = rank_directory(kept)
        word, block = pieces.add("words", words), pieces.add("ranks", ranks)
        stored = np.flatnonzero(kept)
    pack = _pack_sparse if form.sparse else _pack_blocks
    found = pack(pieces, parts, pattern, form, stored)
    pieces.add("layout", np.array([[*found, word, block]]))


def _pack_sparse(
    pieces: _Pieces, parts: Parts, pattern: _Pattern, form: Form, stored: np.ndarray
) -> tuple[int, ...]:
    """Append the numbers of sparse rows; return the first fields of their layout."""
    values = parts["values"]
    bits, rows = pattern.bits[stored], torch.from_numpy(stored).to(values.device)
    nonzero = _unpacked(bits, pattern.dim)
    numbers = values[rows][torch.from_numpy(nonzero).to(values.device)]
    value, first = pieces.add_rows([numbers], parts, rows)
    counts = np.bitwise_count(bits).sum(axis=1, dtype=np.int64)
    before = np.cumsum(counts) - counts
    wide = pattern.numbers >= WIDE
    starts = before[::8].astype("<i8").view("<i4") if wide else before[::8].astype(np.int32)
    if form.listed[0]:
        kind, column = NAMED, pieces.add("columns", _named(nonzero, counts, before))
    else:
        kind, column = BITS, pieces.add("masks", _as_bytes(bits, pattern.dim).ravel())
    return kind - wide, value, first, column, pieces.add("starts", starts)


def _named(nonzero: np.ndarray, counts: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Return for each row [R, d] how many of its numbers are not zero, and then their columns."""
    entries = np.empty(len(counts) + int(counts.sum()), _column_type(nonzero.shape[1]))
    at = before + np.arange(len(counts))
    columns = np.ones(len(entries), bool)
    columns[at] = False
    entries[at], entries[columns] = counts, np.nonzero(nonzero)[1]
    return entries


def _pack_blocks(
    pieces: _Pieces, parts: Parts, pattern: _Pattern, form: Form, stored: np.ndarray
) -> tuple[int, ...]:
    """Append the runs of a table; return the first fields of its layout."""
    assert form.begin is not None
    lines = []
    cuts = np.split(stored, form.begin[1:])
    for begin, rows, columns, listed in zip(
        form.begin, cuts, form.columns, form.listed, strict=True
    ):
        kept = np.flatnonzero(columns)
        lines.append([begin, *_pack_run(pieces, parts, rows, kept, listed), len(kept)])
    if len(lines) == 1:
        return 1, *lines[0][1:]
    return len(lines), pieces.add("runs", np.array(lines)), 0, 0, 0


def _pack_run(
    pieces: _Pieces, parts: Parts, rows: np.ndarray, columns: np.ndarray, listed: bool
) -> tuple[int, int, int]:
    """Append a run; return its first number, its first stored row, and its first column or -1."""
    values = parts["values"]
    at = torch.from_numpy(rows if len(columns) else rows[:0]).to(values.device)
    taken = values[at]
    if len(columns) < values.shape[1]:
        taken = taken[:, torch.from_numpy(columns).to(values.device)]
    value, first = pieces.add_rows([taken.reshape(-1)], parts, at)
    column = -1
    if listed:
        column = pieces.add("columns", columns.astype(_column_type(values.shape[1])))
    return value, first, column


# -- reading ---------------------------------------------------------------------------------------


class PrunedArena(nn.Module):
    """Rows of several tables without their zeros.

    Args:
        tables: they all have one width.
        precision: what the parts mean.
        parts: from `pack_rows` of the tables in this order.
    """

    values: Tensor
    words: Tensor
    ranks: Tensor
    masks: Tensor
    starts: Tensor
    columns: Tensor
    runs: Tensor
    layout: Tensor
    keys: Tensor

    def __init__(self, tables: Sequence[RowTable], precision: Precision, parts: Parts) -> None:
        super().__init__()
        self.precision = precision
        self.dim = tables[0].dim
        self.base = {table.name: number << ROW_BITS for number, table in enumerate(tables)}
        self.others = tuple(parts.keys() - {"values", *STRUCTURE})
        for name, tensor in parts.items():
            self.register_buffer(name, tensor)
        counts = self.layout[:, RUNS]
        own = torch.repeat_interleave(torch.where(counts > 1, counts, 0))
        keys = own << ROW_BITS | self.runs[:, BEGIN]
        self.register_buffer("keys", keys, persistent=False)

    def gather(self, rows: Tensor, skips: bool = False) -> Tensor:
        """Return float rows [..., d] of arena rows [...]; with `skips` zeros of rows that are -1."""
        flat = rows.reshape(-1)
        place = flat.clamp(min=0) if skips else flat
        table, row = place >> ROW_BITS, place & (1 << ROW_BITS) - 1
        layout = self.layout[table]
        rank = self._rank(layout, row)
        if skips:
            rank = torch.where(flat < 0, -1, rank)
        kept = torch.nonzero(rank >= 0).view(-1)
        layout, rank = layout[kept], rank[kept]
        sparse = layout[:, RUNS] <= 0
        stored = layout[:, STORED] + rank
        named = layout[:, RUNS] <= NAMED
        numbers = [
            self._masked(torch.nonzero(sparse & ~named).view(-1), layout, rank),
            self._named(torch.nonzero(named).view(-1), layout, rank),
        ]
        if not bool(sparse.all()):
            block = self._block(table[kept], layout, rank)
            begin, _, first, _, width = block.unbind(1)
            stored = torch.where(sparse, stored, first + rank - begin)
            # Rows of runs without columns are not stored.
            stored = torch.where(sparse | (width > 0), stored, -1)
            numbers.append(self._listed(torch.nonzero(~sparse).view(-1), block, rank))
        at, column, source = (torch.cat(one) for one in zip(*numbers, strict=True))
        values = self.values.new_zeros(len(kept), self.dim)
        values[at, column] = self.values[source]
        has = stored >= 0
        parts = {"values": values[has]}
        parts |= {name: getattr(self, name)[stored[has]] for name in self.others}
        found = torch.zeros(len(flat), self.dim, device=flat.device)
        found[kept[has]] = self.precision.decode(parts)
        return found.view(*rows.shape, self.dim)

    def _rank(self, layout: Tensor, row: Tensor) -> Tensor:
        """Return the rank [n] of rows [n] of the tables of layout [n, 7], -1 of rows of zeros."""
        word = layout[:, WORD]
        if not len(self.words):
            return row
        eight = torch.arange(8, device=row.device)
        # Rows of tables without a directory are computed too, and dropped: they may point anywhere.
        at = (word + (row >> 9 << 3)).unsqueeze(1) + eight
        bits = self.words[at.clamp(0, len(self.words) - 1)]
        below = (row & 511).unsqueeze(1) - 64 * eight
        shift = below.clamp(0, 63)
        before = torch.where(below >= 64, -1, (1 << shift) - 1)
        ranks = self.ranks[(layout[:, RANK] + (row >> 9)).clamp(0, len(self.ranks) - 1)]
        own = ((bits >> shift & 1).bool() & (below >= 0) & (below < 64)).any(1)
        rank = torch.where(own, ranks + ones(bits & before).sum(1), -1)
        return torch.where(word < 0, row, rank)

    def _block(self, table: Tensor, layout: Tensor, rank: Tensor) -> Tensor:
        """Return the run [n, 5] of ranks [n], as a line of `runs`."""
        one = layout[:, : WIDTH + 1].clone()
        one[:, BEGIN] = 0
        if not len(self.runs):
            return one
        run = torch.searchsorted(self.keys, table << ROW_BITS | rank, right=True) - 1
        return torch.where((layout[:, RUNS] > 1).unsqueeze(1), self.runs[run.clamp(min=0)], one)

    def _listed(self, at: Tensor, block: Tensor, rank: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return row, column and position of every number of the rows `at`, which are in blocks."""
        begin, value, _, first, width = block[at].unbind(1)
        row = torch.repeat_interleave(width)
        k = torch.arange(len(row), device=at.device) - (width.cumsum(0) - width)[row]
        column = k
        if len(self.columns):
            listed = self.columns[(first[row] + k).clamp(0, len(self.columns) - 1)].long()
            column = torch.where(first[row] < 0, k, listed)
        return at[row], column, (value + (rank[at] - begin) * width)[row] + k

    def _masked(self, at: Tensor, layout: Tensor, rank: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return row, column and position of every number of the sparse rows `at`, of bits."""
        if not len(at):
            return at, at, at
        size, rank, layout = -(-self.dim // 8), rank[at], layout[at]
        bytes_of_eight = torch.arange(8 * size, device=at.device)
        group = layout[:, COLUMN] + (rank & ~7) * size
        place = group.unsqueeze(1) + bytes_of_eight
        own = (rank & 7).unsqueeze(1) * size
        masks = self.masks[place.clamp(max=len(self.masks) - 1)].long()
        before = torch.where(bytes_of_eight < own, ones(masks), 0).sum(1)
        mine = masks.gather(1, own + torch.arange(size, device=at.device))
        bits = (mine.unsqueeze(2) >> torch.arange(8, device=at.device) & 1).flatten(1)
        counts = bits.sum(1)
        row, column = torch.nonzero(bits[:, : self.dim], as_tuple=True)
        k = torch.arange(len(row), device=at.device) - (counts.cumsum(0) - counts)[row]
        first = layout[:, VALUE] + self._start(layout, rank >> 3) + before
        return at[row], column, first[row] + k

    def _named(self, at: Tensor, layout: Tensor, rank: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return row, column and position of every number of the rows `at`, which name their columns."""
        if not len(at):
            return at, at, at
        rank, layout = rank[at], layout[at]
        before = self._start(layout, rank >> 3)
        place = layout[:, COLUMN] + (rank & ~7) + before
        for passed in range(7):
            count = torch.where((rank & 7) > passed, self.columns[place].long(), -1)
            place, before = place + 1 + count, before + count.clamp(min=0)
        counts = self.columns[place].long()
        row = torch.repeat_interleave(counts)
        k = torch.arange(len(row), device=at.device) - (counts.cumsum(0) - counts)[row]
        column = self.columns[place[row] + 1 + k].long()
        return at[row], column, (layout[:, VALUE] + before)[row] + k

    def _start(self, layout: Tensor, eight: Tensor) -> Tensor:
        """Return the numbers of a table before rows [n] / 8."""
        wide = (layout[:, RUNS] & 1).bool()
        low = layout[:, WIDTH] + torch.where(wide, 2 * eight, eight)
        high = self.starts[(low + 1).clamp(max=len(self.starts) - 1)].long() << 32
        start = self.starts[low].long()
        return torch.where(wide, (start & 0xFFFFFFFF) | high, start)
