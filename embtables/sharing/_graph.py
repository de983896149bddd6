"""What the methods that cluster ids have in common: sizes, the graph, and the map it gives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pydantic import Field
from scipy.sparse import csr_matrix
from torch import Tensor

from embtables.clustering import Clusters, assign, graph
from embtables.compressor import Interactions, Pairs, RowTable, Segments, Sharing, Table
from embtables.hashing import hash_rows, salt
from embtables.registry import Config
from embtables.sharing._map import RowMaps, index_bytes


class GraphConfig(Config):
    """Options of graph clustering."""

    against: str | None = Field(
        default=None,
        min_length=1,
        description="table to cluster against; left out, and for itself: the largest other one",
    )
    weighted: bool = Field(default=True, description="a pair met twice weighs two")
    positives: bool = Field(default=False, description="pairs of positive rows alone")


class GraphSharing(Sharing):
    """A sharing whose ids read the row of their cluster, alone or beside others."""

    @classmethod
    def allocate(
        cls, config: Any, tables: Sequence[Table], share: float
    ) -> dict[str, tuple[RowTable, ...]]:
        """ceil(share * n_f) rows a table.

        Raises:
            ValueError: a table with an open vocabulary, whose ids no map can hold.
        """
        places = {}
        for table in tables:
            if table.open:
                raise ValueError(
                    f"table {table.name!r}: {config.kind} maps the ids of a closed vocabulary; "
                    "with an open one use hash, double_hash or multiplex"
                )
            rows = max(1, math.ceil(share * table.rows))
            if rows < table.rows:
                places[table.name] = cls.rows_of(table, rows)
        return places

    @classmethod
    def rows_of(cls, table: Table, rows: int) -> tuple[RowTable, ...]:
        """Return the physical tables that an id of a table with `rows` rows reads."""
        return (RowTable(table.name, rows, table.width),)

    @classmethod
    def map_bytes(cls, config: Any, table: Table, places: Sequence[RowTable]) -> int:
        """One row number an id."""
        return table.rows * index_bytes(places[0].rows)

    def __init__(
        self, config: Any, tables: Sequence[Table], places: Sequence[Sequence[RowTable]]
    ) -> None:
        super().__init__(config, tables, places)
        first = [place[0] for place in places]
        self.maps = RowMaps(tables, first)
        self._sizes = {t.name: (t.rows, p.rows) for t, p in zip(tables, first, strict=True)}

    def fit(self, interactions: Interactions | None) -> None:
        """Cluster every table; those clustered against each other share the work.

        Raises:
            ValueError: no interactions are given.
        """
        if interactions is None:
            raise ValueError(
                f"{self.config.kind} learns from training pairs: give "
                "EmbeddingTables(interactions=...); with `embtables train` they are there"
            )
        clusters: dict[tuple[str, str], Clusters] = {}
        for table, (_, rows) in self._sizes.items():
            other = interactions.partner(table, self.config.against)
            sides = min(table, other), max(table, other)
            if sides not in clusters:
                clusters[sides] = Clusters(self._graph(interactions.pairs(*sides)))
            self._set(table, clusters[sides].cut(sides.index(table), rows))

    def assign(self, table: str, known: Pairs, new: Pairs) -> int:
        """Give ids without training pairs the cluster that most of their neighbours' ids are in."""
        others = 1 + max(int(known.right.max(initial=0)), int(new.right.max(initial=0)))
        shape = self._sizes[table][0], others
        before, after = self._graph(known, shape), self._graph(new, shape)
        rows, seen = self.maps.get(table), np.diff(before.indptr) > 0
        labels = assign(np.where(seen, rows, -1), before, after)
        found = (labels >= 0) & ~seen
        self.maps.set(table, np.where(found, labels, rows))
        return int(found.sum())

    def _graph(self, pairs: Pairs, shape: tuple[int, int] | None = None) -> csr_matrix:
        left, right = pairs.left, pairs.right
        if self.config.positives:
            positive = np.flatnonzero(pairs.labels)
            left, right = left[positive], right[positive]
        shape = shape or (1 + int(pairs.left.max(initial=0)), 1 + int(pairs.right.max(initial=0)))
        return graph(left, right, shape, self.config.weighted)

    def _set(self, table: str, labels: np.ndarray) -> None:
        """Write the rows of a table: clusters [.., -1 for none], and hashed rows for the others."""
        ids, rows = self._sizes[table]
        found = np.full(ids, -1, np.int64)
        found[: len(labels)] = labels
        taken = int(found.max(initial=-1)) + 1
        spare = rows - taken if rows > taken else rows
        missing = np.flatnonzero(found < 0)
        hashed = hash_rows(
            torch.from_numpy(missing), torch.tensor(salt(table)), torch.tensor(spare)
        )
        found[missing] = rows - spare + hashed.numpy()
        self.maps.set(table, found)

    def encode(self, ids: Tensor, segments: Segments) -> Tensor:
        """Return the row [1, n] of ids [n]."""
        return self.maps(ids, segments).unsqueeze(0)
