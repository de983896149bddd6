"""How a store is filled, in bounded memory.

The raw columns go to disk as the source streams them; every row gets its split; then each column is
read back and mapped by dictionaries and statistics of the training rows alone; at last the columns
are joined to rows and written split by split. Memory holds a few windows of rows and the dictionaries
being built.

Shape letters: N rows of the input, n rows and m ids of one window, F1 fields of one id, D numeric
columns.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data import arrays
from data.arrays import ArrayFile, Spill, windows
from data.bayes import bayes
from data.features import last_ids
from data.hashing import MISSING
from data.numeric import Statistics, normalize, transform
from data.prefetch import ordered, workers
from data.schema import SPLITS, Column, Schema, Table
from data.source import Chunk, Source
from data.splits import TRAIN, assign
from data.store import FORMAT, write_checksums
from data.vocabulary import Counted, Dictionary, by_frequency, count_keys, merge

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and of how much (0: not known)."""

KeyMap = Callable[[np.ndarray], np.ndarray]


class Build:
    """Fills one folder from one source.

    Args:
        source: where the rows come from.
        folder: an empty folder.
        progress: called now and then.
    """

    def __init__(self, source: Source, folder: Path, progress: Progress) -> None:
        self.source = source
        self.folder = folder
        self.progress = progress
        self.columns = source.columns()
        self.rows = [0] * len(SPLITS)
        self.stats: dict[str, Any] = {"format": FORMAT, "columns": {}}
        self.spill = Spill(folder / "spill")

    def run(self) -> None:
        """Fill the folder.

        Raises:
            ValueError: the input is bad or cannot be split as asked.
        """
        try:
            self._read()
            self._split()
            self._write_dense()
            tables = self._write_tables()
            self._write_ids()
            self._write_labels()
        finally:
            self.spill.close()
        shutil.rmtree(self.spill.folder)
        schema = Schema(
            columns=self.columns,
            tables=tuple(tables),
            rows=dict(zip(SPLITS, self.rows, strict=True)),
            group=self.source.group_name if self.spill.has("group") else None,
        )
        # Tables end in the order of their threads; the file has the order of the columns.
        notes = self.stats["columns"]
        self.stats["columns"] = {c.name: notes[c.name] for c in self.columns}
        (self.folder / "schema.json").write_text(schema.model_dump_json(indent=1))
        (self.folder / "stats.json").write_text(json.dumps(self.stats, indent=1))
        write_checksums(self.folder)

    def _read(self) -> None:
        bad = self.source.bad
        bad.clear()
        for chunk in self.source.chunks():
            self._append(chunk)
            self.spill.rows += len(chunk.label)
            self.progress("reading", self.spill.rows, 0)
        self.spill.finish()
        if self.spill.rows == 0:
            inputs = ", ".join(map(str, self.source.inputs()))
            raise ValueError(f"no good row in {inputs} ({bad.count:,} bad ones)")
        self.stats["bad_rows"] = {"count": bad.count, "first": bad.first}
        if bad.count:
            log.warning("dropped %d bad rows of %d", bad.count, bad.count + self.spill.rows)

    def _append(self, chunk: Chunk) -> None:
        append = self.spill.append
        append("label", "", chunk.label.astype(np.uint8))
        for column in self.columns:
            name = column.name
            if column.kind == "numeric":
                append("numeric", name, chunk.numeric[name])
            elif column.kind == "categorical":
                append("single", name, chunk.single[name])
            else:
                values, lengths = last_ids(*chunk.jagged[name], column.max_length)
                append("values", name, values)
                append("lengths", name, lengths)
        for part in ("group", "day", "split", "probability"):
            array = getattr(chunk, part)
            if array is not None:
                append(part, "", array)

    def _split(self) -> None:
        rows = np.zeros(len(SPLITS), np.int64)
        for split in assign(self.source.config.split, self.spill):
            self.spill.append("part", "", split)
            rows += np.bincount(split, minlength=len(SPLITS))
        self.spill.finish()
        self.rows = rows.tolist()
        if self.rows[TRAIN] == 0:
            raise ValueError(
                f"none of the {self.spill.rows:,} rows is left to train on: change data.split"
            )
        for name in SPLITS:
            (self.folder / name).mkdir()

    def _write_dense(self) -> None:
        columns = [column for column in self.columns if column.kind == "numeric"]
        with workers() as pool:
            statistics = list(pool.map(self._statistics, columns))

        def read(at: int, start: int, stop: int) -> np.ndarray:
            values = transform(
                columns[at], self.spill.read("numeric", columns[at].name, start, stop)
            )
            return normalize(columns[at], statistics[at], values)

        self._write_matrix("dense", np.float32, len(columns), read)

    def _statistics(self, column: Column) -> Statistics:
        found = Statistics.of(
            transform(column, values[split == TRAIN])
            for values, split in self._stream("numeric", column.name)
        )
        missing = 1 - found.count / self.rows[TRAIN]
        self.stats["columns"][column.name] = {"missing": missing, **found.as_dict()}
        return found

    def _write_tables(self) -> list[Table]:
        """Build the tables and map their columns, a few at a time."""
        (self.folder / "vocab").mkdir()
        tables: dict[str, list[Column]] = {}
        for column in self.columns:
            if column.kind != "numeric":
                tables.setdefault(column.table_name, []).append(column)
        with workers() as pool:
            done = []
            for table in pool.map(self._write_table, tables, tables.values()):
                done.append(table)
                self.progress("tables", len(done), len(tables))
            return done

    def _write_table(self, name: str, columns: list[Column]) -> Table:
        """Build one table, and write the ids of its columns: singles to the spill, others at once."""
        counted = merge([self._count(column) for column in columns])
        kind = columns[0].vocabulary
        if kind == "open":
            rows, ids = max(1, len(counted[0])), _unchanged
        else:
            keys, counts = by_frequency(counted, columns[0].min_count)
            np.save(self.folder / "vocab" / f"{name}.keys.npy", keys)
            np.save(self.folder / "vocab" / f"{name}.counts.npy", counts)
            rows, ids = len(keys), Dictionary(keys).ids
        for column in columns:
            if column.kind == "categorical":
                for keys in self.spill.stream("single", column.name):
                    self.spill.append("ids", column.name, ids(keys))
            else:
                self._write_jagged(column, ids, np.int64 if kind == "open" else np.int32)
        return Table(name=name, rows=rows, vocabulary=kind)

    def _write_ids(self) -> None:
        self.spill.finish()
        columns = [column for column in self.columns if column.kind == "categorical"]
        wide = any(column.vocabulary == "open" for column in columns)

        def read(at: int, start: int, stop: int) -> np.ndarray:
            return self.spill.read("ids", columns[at].name, start, stop)

        self._write_matrix("ids", np.int64 if wide else np.int32, len(columns), read)

    def _write_matrix(
        self,
        name: str,
        dtype: np.typing.DTypeLike,
        columns: int,
        read: Callable[[int, int, int], np.ndarray],
    ) -> None:
        """Write a matrix of rows whose columns are given by read(column, start, stop)."""

        def rows(window: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
            start, stop = window
            matrix = np.empty((stop - start, columns), dtype)
            for at in range(columns):
                matrix[:, at] = read(at, start, stop)
            return matrix, self.spill.read("part", "", start, stop)

        pieces = ordered(rows, windows(self.spill.rows, arrays.MATRIX_WINDOW))
        self._write(self._files(name, dtype, lambda rows: (rows, columns)), pieces)

    def _count(self, column: Column) -> Counted:
        """Return the training keys of a column, and note its statistics."""
        counted = keys, counts = count_keys(self._training(column))
        stats: dict[str, float] = {"cardinality": len(keys)}
        if column.kind == "categorical":
            stats["missing"] = int(counts[keys == MISSING].sum()) / self.rows[TRAIN]
        else:
            lengths = self._stream("lengths", column.name)
            empty = sum(int((n[split == TRAIN] == 0).sum()) for n, split in lengths)
            stats["missing"] = empty / self.rows[TRAIN]
            stats["mean_length"] = int(counts.sum()) / self.rows[TRAIN]
        self.stats["columns"][column.name] = stats
        return counted

    def _training(self, column: Column) -> Iterator[np.ndarray]:
        if column.kind == "categorical":
            for keys, split in self._stream("single", column.name):
                yield keys[split == TRAIN]
        else:
            for values, lengths, split in self._jagged(column.name):
                yield values[np.repeat(split == TRAIN, lengths)]

    def _write_jagged(self, column: Column, ids: KeyMap, dtype: type[np.integer]) -> None:
        name = column.name
        sizes = np.zeros(len(SPLITS), np.int64)
        for lengths, split in self._stream("lengths", name):
            sizes += np.bincount(split, weights=lengths, minlength=len(SPLITS)).astype(np.int64)
        files = self._files(f"{name}.values", dtype, lambda rows: (rows,), sizes.tolist())
        pieces = self._jagged(name)
        self._write(files, ((ids(v), np.repeat(split, n)) for v, n, split in pieces))

        ends = np.zeros(len(SPLITS), np.int64)
        offsets = self._files(f"{name}.offsets", np.int64, lambda rows: (rows + 1,))

        def offsets_of(lengths: np.ndarray, split: np.ndarray) -> np.ndarray:
            result = np.empty(len(lengths), np.int64)
            for number in range(len(SPLITS)):
                inside = split == number
                result[inside] = ends[number] + np.cumsum(lengths[inside])
                ends[number] += lengths[inside].sum()
            return result

        # Element 0 of each file stays 0, as a new file is full of zeros.
        lengths = self._stream("lengths", name)
        self._write(offsets, ((offsets_of(n, s), s) for n, s in lengths), skip=1)

    def _write_labels(self) -> None:
        self._write(self._files("label", np.uint8, lambda rows: (rows,)), self._stream("label"))
        if self.spill.has("group"):
            files = self._files("group", np.int64, lambda rows: (rows,))
            self._write(files, self._stream("group"))
        clicks = np.zeros(len(SPLITS))
        for label, split in self._stream("label"):
            clicks += np.bincount(split, weights=label, minlength=len(SPLITS))
        self.stats["splits"] = {
            name: {"rows": rows, "label_mean": count / rows if rows else None}
            for name, rows, count in zip(SPLITS, self.rows, clicks.tolist(), strict=True)
        }
        if self.spill.has("probability"):
            self.stats["bayes"] = {
                name: bayes(partial(self._planted, number), self.rows[number])
                for number, name in enumerate(SPLITS)
                if self.rows[number]
            }

    def _planted(self, number: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        labels = self.spill.stream("label")
        for (planted, split), label in zip(self._stream("probability"), labels, strict=True):
            inside = split == number
            yield planted[inside].astype(np.float64), label[inside]

    def _stream(self, part: str, name: str = "") -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (values [n], split [n]) of a column by window."""
        return zip(self.spill.stream(part, name), self.spill.stream("part"), strict=True)

    def _jagged(self, name: str) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield (values [m], lengths [n], split [n]) of a jagged column by window."""
        splits = self.spill.stream("part", size=arrays.JAGGED_WINDOW)
        for (values, lengths), split in zip(self.spill.jagged(name), splits, strict=True):
            yield values, lengths, split

    def _files(
        self,
        name: str,
        dtype: np.typing.DTypeLike,
        shape: Callable[[int], tuple[int, ...]],
        sizes: list[int] | None = None,
    ) -> list[ArrayFile]:
        """Create one array a split; its shape follows from the split's rows (or other size)."""
        return [
            ArrayFile(self.folder / split / f"{name}.npy", dtype, shape(size))
            for split, size in zip(SPLITS, sizes or self.rows, strict=True)
        ]

    def _write(
        self,
        files: list[ArrayFile],
        pieces: Iterable[tuple[np.ndarray, np.ndarray]],
        skip: int = 0,
    ) -> None:
        """Write pieces (values, split of each), each value to the file of its split.

        Args:
            files: one a split.
            pieces: in the order of the rows.
            skip: elements left as they are at the start.
        """
        with ExitStack() as stack:
            writers = [stack.enter_context(file.writer(skip)) for file in files]
            for values, split in pieces:
                for number, (file, writer) in enumerate(zip(files, writers, strict=True)):
                    file.put(writer, values[split == number])


def _unchanged(keys: np.ndarray) -> np.ndarray:
    return keys
