"""From raw rows to a batch without the training data: what `prepare` learned, in two small files.

    encoder.json               columns, layout of text files, statistics of numeric columns
    vocabulary.safetensors     closed table -> [rows] int64, the raw key of each id

Shape letters: B rows of a batch, W rows of a block.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from data import parquet, text
from data.batch import Batch
from data.cells import Cells, Irregular
from data.columns import Columns, Fields, batches
from data.features import last_ids, only_numbers, read_features
from data.numeric import Statistics, normalize, transform
from data.rows import BadRows, Numbers, Rows, check_columns
from data.schema import Column, Schema
from data.source import Source
from data.store import Store
from data.vocabulary import Dictionary

if TYPE_CHECKING:
    import pandas

    Frame = pl.DataFrame | pandas.DataFrame | Mapping[str, Sequence[Any]]

FORMAT = 1

DESCRIPTION, VOCABULARY = "encoder.json", "vocabulary.safetensors"

ADVICE = "Every row needs its score: mend or remove this one"


@dataclass(frozen=True)
class Encoder:
    """Turns raw rows into what a loader delivers for them, by the code that `prepare` uses.

    Attributes:
        schema: the columns, and how their cells are read.
        layout: of text files.
        blank_is_missing: an empty string is a missing value.
        statistics: numeric column -> those of the training rows.
        keys: closed table -> [rows] int64 raw key of each id.
    """

    schema: Schema
    layout: text.Layout
    blank_is_missing: bool
    statistics: dict[str, Statistics]
    keys: dict[str, np.ndarray]

    @classmethod
    def of(cls, source: Source, store: Store) -> Encoder:
        """Return the encoder of a prepared data set.

        Raises:
            ValueError: an earlier version prepared it, and did not note what its ids are.
        """
        untyped = [column.name for column in store.schema.fields if column.type is None]
        if untyped:
            raise ValueError(
                f"{store.path} does not say how to read {', '.join(untyped)}: an earlier version "
                "prepared it. Delete this folder and run: embtables prepare RECIPE"
            )
        names = Statistics.__dataclass_fields__
        statistics = {
            column: Statistics(**{name: store.stats["columns"][column][name] for name in names})
            for column in store.schema.numeric
        }
        closed = [table.name for table in store.schema.tables if table.vocabulary == "closed"]
        keys = {name: store.keys(name) for name in closed}
        return cls(store.schema, source.layout(), source.blank_is_missing, statistics, keys)

    def save(self, folder: Path) -> None:
        """Write both files into a folder; the same encoder always gives the same bytes."""
        described = {
            "format": FORMAT,
            "schema": self.schema.model_dump(mode="json"),
            "layout": asdict(self.layout),
            "blank_is_missing": self.blank_is_missing,
            "statistics": {name: found.as_dict() for name, found in self.statistics.items()},
        }
        (folder / DESCRIPTION).write_text(json.dumps(described, indent=1) + "\n")
        save_file(self.keys, folder / VOCABULARY)

    @classmethod
    def load(cls, folder: Path) -> Encoder:
        """Read both files.

        Raises:
            ValueError: one is missing, damaged, or of another format.
        """
        file = folder / DESCRIPTION
        try:
            described = json.loads(text.existing(file).read_text())
            if described["format"] != FORMAT:
                raise ValueError(f"format {described['format']}, this version reads {FORMAT}")
            layout = described["layout"]
            return cls(
                Schema.model_validate(described["schema"]),
                text.Layout(**{**layout, "names": tuple(layout["names"])}),
                described["blank_is_missing"],
                {name: Statistics(**one) for name, one in described["statistics"].items()},
                load_file(text.existing(folder / VOCABULARY)),
            )
        except (KeyError, TypeError, ValueError, SafetensorError) as error:
            raise ValueError(f"{folder}: no encoder of raw rows in it ({error})") from None

    def batch(self, frame: Frame) -> Batch:
        """Return B rows as a batch, its labels NaN.

        Args:
            frame: a polars or pandas frame, or column -> B raw values. Other columns are left alone.

        Raises:
            ValueError: a column is missing, or a value is not what its column holds; the message names
                column and row.
        """
        cells = _frame(frame, self._cells)
        columns = self._quickly(cells)
        if columns is None:
            rows = Rows(Path("rows"), cells, np.arange(1, len(cells) + 1), unit="row ")
            columns = rows.read(self._from_values, BadRows("error", ADVICE))
        return columns.batch(0, len(columns))

    def batches(self, path: Path, size: int) -> Iterator[Batch]:
        """Yield the rows of a TSV, CSV or Parquet file in order, in batches of `size` rows.

        Parquet is known by its ending. A file `.tsv` or `.tsv.gz` is separated by tabs, any other text
        as the training files were. Text may be gzip, and a blank line holds no row.

        Raises:
            ValueError: the file is missing, empty or cut short, a column is missing, or a cell is not
                what its column holds; the message names file and line.
        """
        return batches(self._blocks(path), size)

    def _blocks(self, path: Path) -> Iterator[Columns]:
        bad = BadRows("error", ADVICE)
        if text.existing(path).suffix == ".parquet":
            return parquet.read(path, self._cells, self._from_values, bad)
        read: Callable[..., Iterator[Columns]]
        read = text.read_numbers if self._numbers else text.read
        return read(path, self._layout_of(path), self._cells, self._from_cells, bad)

    def _layout_of(self, path: Path) -> text.Layout:
        layout = self.layout
        if path.name.removesuffix(".gz").endswith(".tsv"):
            layout = replace(layout, separator="\t")
        if layout.names and text.first_width(path, layout) < len(layout.names):
            layout = layout.without_label()
        return layout

    @cached_property
    def _numbers(self) -> bool:
        return only_numbers(self.schema.columns)

    @cached_property
    def _cells(self) -> list[str]:
        return list(dict.fromkeys(column.cell_name for column in self.schema.columns))

    @cached_property
    def _columns(self) -> dict[str, Column]:
        return {column.name: column for column in self.schema.columns}

    @cached_property
    def _dictionaries(self) -> dict[str, Dictionary]:
        return {table: Dictionary(keys) for table, keys in self.keys.items()}

    def _quickly(self, frame: pl.DataFrame) -> Columns | None:
        """Return rows of plain numbers as text of them is read, several times faster; else None."""
        hexadecimal = {c.cell_name for c in self.schema.columns if c.type == "hex"}
        plain = self._numbers and all(
            dtype in (pl.String, pl.Null) or (dtype.is_integer() and name not in hexadecimal)
            for name, dtype in frame.schema.items()
        )
        if plain and len(frame):
            lines = frame.write_csv(include_header=False, separator="\t", quote_style="never")
            with suppress(Irregular):
                cells = Cells(lines.encode(), frame.columns, "\t")
                if len(cells) == len(frame) and "\0" not in lines:
                    return self._from_cells(cells)
        return None

    def _from_values(self, rows: Rows) -> Columns:
        if self.blank_is_missing:
            blank = pl.element().replace("", None)
            rows.frame = rows.frame.with_columns(
                pl.col(pl.String).replace("", None), pl.col(pl.List(pl.String)).list.eval(blank)
            )
        return self._from_cells(rows)

    def _from_cells(self, rows: Numbers) -> Columns:
        """Return what `prepare` would store of W rows."""
        found = read_features(rows, self.schema.columns)
        dense = np.empty((len(rows), len(found.numeric)), np.float32)
        for at, (name, values) in enumerate(found.numeric.items()):
            values = transform(self._columns[name], values)
            dense[:, at] = normalize(self._columns[name], self.statistics[name], values)
        ids = np.empty((len(rows), len(found.single)), np.int64)
        for at, (name, keys) in enumerate(found.single.items()):
            ids[:, at] = self._ids(name, keys)
        jagged = {}
        for name, lists in found.jagged.items():
            keys, lengths = last_ids(*lists, self._columns[name].max_length)
            jagged[name] = self._ids(name, keys), np.concatenate([[0], np.cumsum(lengths)])
        label = np.full(len(rows), np.nan, np.float32)
        return Columns(label, dense, ids, jagged, None, self._fields)

    @cached_property
    def _fields(self) -> Fields:
        return Fields.of(self.schema)

    def _ids(self, name: str, keys: np.ndarray) -> np.ndarray:
        """Return ids [m] of raw keys [m] of a column; those of an open vocabulary are the keys."""
        dictionary = self._dictionaries.get(self._columns[name].table_name)
        return keys if dictionary is None else dictionary.ids(keys)


def _frame(given: Frame, cells: Sequence[str]) -> pl.DataFrame:
    """Return the cells as a polars frame."""
    names = given if isinstance(given, Mapping) else given.columns
    check_columns("rows", list(names), cells)
    try:
        return pl.DataFrame({name: _series(name, given[name]) for name in cells})
    except pl.exceptions.ShapeError as error:
        raise ValueError(f"rows: columns of different lengths ({error})") from None


def _series(name: str, values: Any) -> pl.Series:
    if isinstance(values, str) or not hasattr(values, "__len__"):
        raise ValueError(f"column {name!r}: expected one value a row, in a list, got {values!r}")
    if hasattr(values, "to_frame") and not isinstance(values, pl.Series):
        return pl.from_pandas(values)
    if isinstance(values, np.ndarray) and values.dtype == object:
        values = values.tolist()
    try:
        return pl.Series(name, values)
    except TypeError:
        return pl.Series(name, [_text(value) for value in values])


def _text(value: Any) -> str | list[str | None] | None:
    """Return a value of a column of mixed types as a cell of text, which says what it is."""
    if isinstance(value, list | tuple | np.ndarray):
        return [None if one is None else str(one) for one in value]
    missing = value is None or (isinstance(value, float) and math.isnan(value))
    return None if missing else str(value)
