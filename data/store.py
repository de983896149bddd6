"""A prepared data set on disk: columns as memory-mapped arrays, one folder a split.

    schema.json  stats.json  checksums.json
    vocab/<table>.keys.npy  vocab/<table>.counts.npy      [rows], closed tables
    <split>/label.npy [N]  dense.npy [N, D]  ids.npy [N, F1]  group.npy [N]
    <split>/<column>.values.npy [M]  <column>.offsets.npy [N+1]      multi and sequence columns

Shape letters: N rows of the split, D numeric columns, F1 fields of one id, M ids of a jagged column.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from data.schema import SPLITS, Counts, Schema

FORMAT = 2
"""Number of this layout; it rises with every change, so that older folders are prepared again."""


@dataclass(frozen=True)
class Split:
    """The rows of one split, memory-mapped.

    Attributes:
        label: [N] uint8.
        dense: [N, D] float32.
        ids: [N, F1] int32 or int64, one column for each categorical column in the schema's order.
        jagged: column -> (values [M], offsets [N+1] int64): row i holds values[offsets[i]:offsets[i+1]].
        group: [N] int64, or None.
    """

    label: np.ndarray
    dense: np.ndarray
    ids: np.ndarray
    jagged: dict[str, tuple[np.ndarray, np.ndarray]]
    group: np.ndarray | None

    @property
    def rows(self) -> int:
        """Number of rows N."""
        return len(self.label)


@dataclass(frozen=True)
class Store:
    """A prepared data set.

    Attributes:
        path: its folder.
        schema: what a loader delivers.
        stats: cardinalities, missing rates, label means, bad rows: see `stats.json`.
    """

    path: Path
    schema: Schema
    stats: dict[str, Any]

    @classmethod
    def open(cls, path: Path) -> Store:
        """Open a folder made by `data.prepare.prepare`.

        Raises:
            ValueError: it is not such a folder, or one of another release.
        """
        path = Path(path)
        if not (path / "checksums.json").is_file():
            raise ValueError(f"{path} is not a prepared data set. Run: embtables prepare RECIPE")
        stats = json.loads((path / "stats.json").read_text())
        if stats["format"] != FORMAT:
            raise ValueError(
                f"{path} has layout {stats['format']}, this release reads {FORMAT}. "
                "Run: embtables prepare RECIPE"
            )
        schema = Schema.model_validate_json((path / "schema.json").read_text())
        return cls(path, schema, stats)

    @cached_property
    def counts(self) -> Counts:
        """Closed table -> [rows] int64 occurrences of each id in the training rows."""
        return {
            table.name: np.load(self.path / "vocab" / f"{table.name}.counts.npy")
            for table in self.schema.tables
            if table.vocabulary == "closed"
        }

    @cached_property
    def content(self) -> str:
        """Name of what is in it, see `content_of`."""
        return content_of(self.path)

    def keys(self, table: str) -> np.ndarray:
        """Return [rows] int64, the raw key of each id of a closed table (that of id 0 is void)."""
        return np.load(self.path / "vocab" / f"{table}.keys.npy")

    def split(self, name: str) -> Split:
        """Return one split.

        Raises:
            ValueError: there is no split of this name.
        """
        if name not in SPLITS:
            raise ValueError(f"unknown split {name!r}. Known: {', '.join(SPLITS)}")
        folder = self.path / name
        jagged = [c.name for c in self.schema.columns if c.kind in ("multi", "sequence")]
        group = folder / "group.npy"
        return Split(
            label=_map(folder / "label.npy"),
            dense=_map(folder / "dense.npy"),
            ids=_map(folder / "ids.npy"),
            jagged={
                c: (_map(folder / f"{c}.values.npy"), _map(folder / f"{c}.offsets.npy"))
                for c in jagged
            },
            group=_map(group) if group.is_file() else None,
        )

    def verify(self) -> None:
        """Compare every file with its checksum.

        Raises:
            ValueError: a file is missing or has changed; the message names it.
        """
        verify_checksums(self.path, f"Delete {self.path} and prepare it again")


def content_of(folder: Path) -> str:
    """Return a name for what is in a store, such as ``frappe_x1-9770f97b3f7759d1``.

    It is the same on every machine; the folder's own name tells raw files apart by their times, without
    reading them.
    """
    sums = json.loads((folder / "checksums.json").read_text())
    del sums["stats.json"]  # bad rows are told with the paths of their files
    digest = xxhash.xxh64_hexdigest(json.dumps(sums, sort_keys=True).encode())
    return f"{folder.name.rpartition('-')[0]}-{digest}"


def verify_checksums(folder: Path, advice: str) -> None:
    """Compare every file that checksums.json names with its checksum.

    Raises:
        ValueError: a file is missing or has changed; the message names it and ends in the advice.
    """
    file = folder / "checksums.json"
    try:
        sums = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}. {advice}") from None
    for name, expected in sums.items():
        file = folder / name
        found = _checksum(file) if file.is_file() else "nothing"
        if found != expected:
            raise ValueError(f"{file} is damaged: checksum {found}, expected {expected}. {advice}")


def write_checksums(folder: Path) -> None:
    """Write checksums.json: XXH64 of every other file of the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sums = {path.relative_to(folder).as_posix(): _checksum(path) for path in files}
    (folder / "checksums.json").write_text(json.dumps(sums, indent=1))


def _checksum(path: Path) -> str:
    digest = xxhash.xxh64()
    with path.open("rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()


def _map(path: Path) -> np.ndarray:
    """Map a .npy file; the plain array view spares the cost of the memmap subclass."""
    return np.load(path, mmap_mode="r").view(np.ndarray)
