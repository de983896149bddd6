"""Low rank: every table is a product of narrow rows and one small matrix.

    e(x) = E[x] P_f,               E: n_f * r,   P_f: r * D,   r = max(1, floor(share * D))
    e(x) = E[x] P_f + mu_f         after=true: the best product of a trained table, rank r_f

The factorised embedding of Lan et al., ALBERT, ICLR 2020, one factor a table, or with shared=true one
for all tables. With after=true the full table is trained and then reduced by the principal components
of what is looked up, so that a row counts as often as training reads it (Atomic Feature Mimicking: the
unified low-rank method, KDD 2024); a component is kept where it holds the most variance a byte, over
all tables. Bytes: n_f * r * bits + r * D * 4, with after=true D * 4 more; floor 1/D of the full table.
Unlike a narrower table it leaves the width of the model alone. When to use: before any hashing
wherever the budget allows a rank of two or more; after=true where a table is trained already.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from embtables.budget import Placed
from embtables.compressor import RowTable, Table, widths
from embtables.registry import Config
from embtables.search import Fitness, Rebuild, Search, Stage
from embtables.width._projection import ProjectedWidth, saves

if TYPE_CHECKING:
    from embtables.tables import EmbeddingTables


class Components(Search["LowRank"]):
    """Principal components of the trained tables, as many as the budget allows."""

    counted = True

    @classmethod
    def stages(cls, config: Any) -> tuple[Stage, ...]:
        """Train; what is left of it is measured as it is."""
        return (Stage("train"),)

    @classmethod
    def least(cls, placed: Placed, place: RowTable) -> int:
        """Bytes at rank one."""
        return costs_of(placed, place)[0]

    def begin(self, stage: Stage) -> None:
        """Refuse a budget that cannot be met before anything is trained."""
        self._ranks({n: torch.zeros(self.placed[p].table.dim) for n, p in self.first_of.items()})

    @torch.no_grad()
    def end(self, stage: Stage, fitness: Fitness) -> Rebuild:
        """Reduce the tables."""
        names, reads = self.first_of, self.reads()
        found = {n: principal(self.rows(p).double(), reads[p]) for n, p in names.items()}
        ranks = self._ranks({name: values for name, (_, values, _) in found.items()})

        @torch.no_grad()
        def fill(tables: EmbeddingTables) -> None:
            new = Components(self.config, tables)
            for group, width in zip(new.groups, new.widths, strict=True):
                for table in group.tables:
                    mean, _, vectors = found[table.name]
                    rows = self.rows(names[table.name]).double()
                    kept = vectors[:, : table.width]
                    if table.width < table.dim:
                        rows = (rows - mean) @ kept
                        slot = width.names.index(table.name)
                        width.projection[slot] = kept.T.float()
                        width.bias[slot] = mean.float()
                    tables.store.load(names[table.name], rows.float())

        return Rebuild(ranks, fill)

    def _ranks(self, variances: dict[str, Tensor]) -> dict[str, int]:
        """Return the rank of each logical table: components by variance a byte until none fits.

        Raises:
            ValueError: rank one of all tables does not fit.
        """
        costs = {n: costs_of(self.placed[p], self.physical[p]) for n, p in self.first_of.items()}
        place = dict.fromkeys(self.first_of, 0)
        left = self.limit - sum(cost[0] for cost in costs.values())
        if left < 0:
            raise ValueError(
                f"lowrank(after=true): rank 1 of all tables takes {self.limit - left:,.0f} bytes, the "
                f"budget leaves {self.limit:,.0f}; raise it, or hash the largest tables (fields)"
            )
        kept = {name: _kept(variances[name], len(cost)) for name, cost in costs.items()}
        while True:
            gains = [
                (
                    (kept[name][to] - kept[name][now]) / (costs[name][to] - costs[name][now]),
                    name,
                    to,
                )
                for name, now in place.items()
                for to in range(now + 1, len(costs[name]))
                if costs[name][to] - costs[name][now] <= left
            ]
            if not gains:
                break
            _, name, to = max(gains)
            left -= costs[name][to] - costs[name][place[name]]
            place[name] = to
        return {
            name: self.placed[self.first_of[name]].table.dim
            if at + 1 == len(costs[name])
            else at + 1
            for name, at in place.items()
        }


def costs_of(placed: Placed, place: RowTable) -> list[int]:
    """Return the bytes of a table of rank 1, 2, .., the last of them its own as it is."""
    rows, dim, bits = place.rows, placed.table.dim, placed.precision
    each = [rows * bits.row_bytes(rank) + 4 * dim * (rank + 1) for rank in range(1, dim)]
    whole = rows * bits.row_bytes(dim)
    # Where a product is no smaller than the table, the table stays as it is.
    return [cost for cost in each if cost < whole] + [whole]


def _kept(variances: Tensor, count: int) -> list[float]:
    """Return the variance that rank 1, 2, .. keeps, of so many; the last of them keeps all."""
    sums = variances.cumsum(0)
    return [*sums[: count - 1].tolist(), float(sums[-1])]


def principal(rows: Tensor, reads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean [D], variances [D] and directions [D, D] of rows [R, D], read so often, [R].

    Variances fall; direction j is column j.
    """
    weight = reads.to(rows) / reads.sum().clamp(min=1)
    mean = weight @ rows
    centered = rows - mean
    values, vectors = torch.linalg.eigh(centered.T @ (centered * weight.unsqueeze(1)))
    return mean, values.flip(0).clamp(min=0), vectors.flip(1)


@widths.register("lowrank")
class LowRank(ProjectedWidth):
    """One rank for all tables, or one each after training; a projection for each or for all."""

    class Config(Config):
        """Options of low rank."""

        kind: Literal["lowrank"] = "lowrank"
        shared: bool = Field(default=False, description="one projection for all tables")
        after: bool = Field(default=False, description="reduce full tables once they are trained")

        @model_validator(mode="after")
        def _either(self) -> LowRank.Config:
            if self.shared and self.after:
                raise ValueError("after=true finds a projection for each table; leave out shared")
            return self

    @classmethod
    def search(cls, config: Any) -> type[Components] | None:
        """The reduction after training, if asked for."""
        return Components if config.after else None

    @classmethod
    def needs(cls, config: Any) -> Literal["any rows", "own rows"]:
        """Tables reduced after training are each of one logical table."""
        return "own rows" if config.after else "any rows"

    @classmethod
    def shared(cls, config: Any) -> bool:
        """As configured."""
        return config.shared

    @classmethod
    def biased(cls, config: Any) -> bool:
        """The mean row is added where tables are reduced after training."""
        return config.after

    @classmethod
    def widths(cls, config: Any, tables: Sequence[Table], share: float) -> list[int]:
        """floor(share * D), at least 1; D where a product saves nothing, or is made after training."""
        ranks = [t.dim if config.after else max(1, int(share * t.dim)) for t in tables]
        return [r if saves(t, r) else t.dim for t, r in zip(tables, ranks, strict=True)]
