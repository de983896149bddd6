"""Feature multiplexing (Unified Embedding): all features hash into one shared table.

    e_f(x) = [ E[h(x; f, 0)], ..., E[h(x; f, c_f - 1)] ],   an independent salt for each (f, look-up)

Paper: Coleman et al., Unified Embedding: Battle-Tested Feature Representations for Web-Scale ML
Systems, NeurIPS 2023. With S sub-tables look-ups go round robin over them. A feature of stored width
W takes c_f = ceil(W / chunk) look-ups, so widths may differ by feature. Bytes: M * chunk * S * bits,
independent of the vocabularies, no map. When to use: small budgets, many features, open
vocabularies; models that project each feature before features are added.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import count
from typing import Any, Literal

from pydantic import Field

from embtables.compressor import RowTable, Table, sharings
from embtables.sharing._hashed import HashConfig, HashedSharing

TINY = 5
"""Tables of at most so many rows stay exact by default: in the paper, fields like gender do."""


@sharings.register("multiplex")
class Multiplex(HashedSharing):
    """c hashed rows an id, of tables shared by all features that ask for one width."""

    class Config(HashConfig):
        """Options of feature multiplexing."""

        kind: Literal["multiplex"] = "multiplex"
        exact_rows: int | None = Field(
            default=None,
            ge=0,
            description=f"tables of at most so many rows stay exact; left out: {TINY}",
        )
        lookups: int = Field(default=1, ge=1, description="rows a feature of full width reads")
        subtables: int = Field(default=1, ge=1, description="shared tables, used round robin")

    @classmethod
    def allocate(
        cls, config: Any, tables: Sequence[Table], share: float
    ) -> dict[str, tuple[RowTable, ...]]:
        """Share * sum(n_f * W_f) numbers in the sub-tables of each model width."""
        exact = TINY if config.exact_rows is None else config.exact_rows
        by_dim: dict[int, list[Table]] = defaultdict(list)
        for table in tables:
            saves_nothing = config.exact_rows is None and share >= 1
            if table.open or not (table.rows <= exact or saves_nothing):
                by_dim[table.dim].append(table)
        places: dict[str, tuple[RowTable, ...]] = {}
        for dim, members in by_dim.items():
            places |= cls._share_one(config, dim, members, share)
        return places

    @classmethod
    def _share_one(
        cls, config: Any, dim: int, tables: Sequence[Table], share: float
    ) -> dict[str, tuple[RowTable, ...]]:
        chunk = -(-dim // config.lookups)
        numbers = share * sum(table.rows * table.width for table in tables)
        rows = max(1, int(numbers / (chunk * config.subtables)))
        shared = [
            RowTable(f"{tables[0].name}/multiplex{dim}/{index}", rows, chunk)
            for index in range(config.subtables)
        ]
        turn = count()
        return {
            table.name: tuple(
                shared[next(turn) % config.subtables] for _ in range(-(-table.width // chunk))
            )
            for table in tables
        }
