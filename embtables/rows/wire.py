"""Bytes that ranks send each other in a training step: exactly, from a plan and the size of a batch.

What is sent for a table whose look-ups are, on each of W ranks, N ids in L bags that give V vectors
(V = L where bags are added up, else V = N; ids and lengths take 8 bytes, numbers 4; d columns):

    table-wise       to the owner from each other rank 8 (N + L), back 4 d V, gradients to it 4 d V
    column-wise      the same for each part of d columns, the ids as often as there are parts
    row-wise         to the rank of a share p of the rows 8 (p N + L) from each other rank; back 4 d V of
                     partial sums (a reduce-scatter), gradients to it 4 d V (an all-gather); without
                     bags p V vectors there and p V gradients back
    table-row-wise   ids as row-wise, to the H-th host's ranks alone; these send each other partial sums
                     of the batches of all hosts, 4 d V for each host, then each sends 4 d V to its
                     like on every other host; gradients the same way back
    grid             table-row-wise for each part of d columns
    data-parallel    a ring all-reduce of all gradients: 2 (W - 1) / W of their bytes to the next rank

Ids are taken to be spread evenly over the rows of a table. What a rank keeps for itself is not sent,
and a few bytes a table that announce the sizes of what follows are left out.

Shape letters: W ranks, N ids, L bags, V vectors, d columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

KINDS = ("ids", "vectors", "gradients", "all-reduce")
_IDS, _VECTORS, _GRADIENTS, _ALL_REDUCE = range(len(KINDS))


@dataclass(frozen=True)
class Part:
    """What one rank holds of a table."""

    rank: int
    rows: int
    columns: int


@dataclass(frozen=True)
class Shared:
    """A physical table that ranks share.

    Attributes:
        name: its name.
        rows: number of rows.
        type: how it is sharded, such as ``row_wise``.
        parts: of all ranks.
        ids: ids a row of the batch, for each key that reads it.
        bags: whether ids are added up before vectors are sent.
    """

    name: str
    rows: int
    type: str
    parts: tuple[Part, ...]
    ids: tuple[float, ...]
    bags: bool


class Wire:
    """Bytes sent in a step.

    Args:
        world_size: W.
        local: ranks of a host; rank r is on host r // local.

    Attributes:
        sent: [4, W, 2] by kind (`KINDS`), rank, and whether to another host.
    """

    def __init__(self, world_size: int, local: int) -> None:
        self.world_size, self.local = world_size, local
        self.host = np.arange(world_size) // local
        self.sent = np.zeros((len(KINDS), world_size, 2))

    def add(self, table: Shared, batch: int) -> None:
        """Add what is sent for a table.

        Args:
            table: where it is and how it is read.
            batch: rows of the batch of each rank.
        """
        ids = batch * sum(table.ids)
        bags = len(table.ids) * (batch if table.bags else 1)
        vectors = bags if table.bags else ids
        for part in table.parts:
            share = part.rows / table.rows
            whole = 4 * part.columns * vectors
            self._gather(_IDS, part.rank, 8 * (share * ids + bags))
            if table.type in ("table_row_wise", "grid_shard"):
                self._across(part.rank, whole)
            else:
                mine = whole if table.bags else share * whole
                self._spread(_VECTORS, part.rank, mine)
                self._gather(_GRADIENTS, part.rank, mine)

    def all_reduce(self, size: int) -> None:
        """Add an all-reduce of so many bytes."""
        each = 2 * (self.world_size - 1) / self.world_size * size
        away = np.roll(self.host, -1) != self.host
        self.sent[_ALL_REDUCE, np.arange(self.world_size), away.astype(int)] += each

    def _gather(self, kind: int, owner: int, size: float) -> None:
        """Every other rank sends the owner so many bytes."""
        away = self.host != self.host[owner]
        self.sent[kind, away, 1] += size
        near = ~away
        near[owner] = False
        self.sent[kind, near, 0] += size

    def _spread(self, kind: int, owner: int, size: float) -> None:
        """The owner sends every other rank so many bytes."""
        near = self.local - 1
        self.sent[kind, owner] += size * np.array([near, self.world_size - self.local])

    def _across(self, owner: int, size: float) -> None:
        """A rank of a table's host takes part in adding up, and serves its likes on other hosts."""
        hosts = self.world_size // self.local
        for kind in (_VECTORS, _GRADIENTS):
            self.sent[kind, owner, 0] += (self.local - 1) * hosts * size
        self.sent[_VECTORS, owner, 1] += (hosts - 1) * size
        likes = np.arange(owner % self.local, self.world_size, self.local)
        self.sent[_GRADIENTS, likes[likes != owner], 1] += size


def sent_in_a_step(
    tables: Sequence[Shared], world_size: int, local: int, batch: int, averaged: int
) -> Wire:
    """Return what ranks send.

    Args:
        tables: that ranks share.
        world_size: ranks.
        local: ranks of a host.
        batch: rows of the batch of each rank.
        averaged: bytes of the gradients of what every rank holds whole.
    """
    wire = Wire(world_size, local)
    for table in tables:
        wire.add(table, batch)
    wire.all_reduce(averaged)
    return wire
