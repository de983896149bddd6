"""Searches: width methods that learn which numbers of a table are worth their bytes, in stages.

A search is data first: `Search.stages` says what is trained in each stage, on which rows, for how
long, and whose weights go on. A loop that runs any of them (`trainer.loop` is one):

    for stage in search.stages(config):
        search.begin(stage)
        for every training batch:
            (loss + search.penalty()).backward(); step               stage.structure is "train"
            loss.backward(); step                                    otherwise, and then with "valid":
            (loss of a validation batch + search.penalty()).backward()   no weight takes this gradient
            search.step(step, steps)
        rebuild = search.end(stage, fitness)

`begin` prepares modules and can be called again when a run resumes; only `end` and `step` change
rows. What a search learns of the structure are parameters of its width modules, so that it is saved
with them; `end` folds them into the rows and takes them away.

A structure is held in one of two ways. Numbers that are pruned are zeros that stay zero
(`Width.prunes`): the pruned rows are what is trained and what is packed. Stored widths that change
make new tables (`Rebuild`).

Shape letters: R rows of a physical table, d numbers in a row, K rows read for an id, n ids.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar, cast

import torch
from torch import Tensor, nn

from embtables.budget import Placed
from embtables.compressor import RowTable, Segments, Table, Width, widths
from embtables.rows.store import float_rows

if TYPE_CHECKING:
    from embtables.groups import Group
    from embtables.tables import EmbeddingTables

_LEAST = 128
"""Bytes a table takes of which a search has left almost nothing."""
_RATE, _FASTEST = 0.01, 0.2
"""Smallest and largest first learning rate of a structure that nobody has set."""
_PIECE = 2**20
"""Ids that are encoded at once."""


@dataclass(frozen=True)
class Stage:
    """One stretch of training. Rows, and what width methods keep, are trained in all of them.

    Attributes:
        name: what progress and summary call it.
        network: whether the network's weights are trained too.
        structure: rows whose loss trains the structure: those of "train", in the same step, or those of
            "valid", a batch after each training batch, which trains nothing else; None: no structure.
        epochs: so many; 0 trains nothing; None as many as the recipe says, with its patience.
        keep: weights that go on: those of the best validation, or the last ones.
        restart: whether the network begins with its initial weights.
        candidates: how often its end measures the tables, at most.
    """

    name: str
    network: bool = True
    structure: Literal["train", "valid"] | None = None
    epochs: int | None = None
    keep: Literal["best", "last"] = "best"
    restart: bool = False
    candidates: int = 0


Fitness = Callable[[int | None], float]
"""Measures the model on so many validation rows, or on all; more is better.

An `end` that was interrupted is called again and gets the values that are known already, so that
the tables it measures must follow from those alone.
"""

PLAIN = (Stage("train"),)
"""The stages of tables without a search."""


@dataclass(frozen=True)
class Rebuild:
    """New tables that a stage ends with.

    Attributes:
        widths: stored width of the logical tables where it changes.
        fill: puts rows and projections into the new tables.
    """

    widths: dict[str, int]
    fill: Callable[[EmbeddingTables], None]


W = TypeVar("W", bound=Width)


class Search(ABC, Generic[W]):
    """What learns the structure of the tables of one width config. One instance a run.

    Args:
        config: the method's Config.
        tables: tables of which some use it.

    Attributes:
        device: where rows and structure are.
        groups: the groups that use it.
        widths: their width modules.
        physical: the physical tables they read, by name.
        first_of: logical table -> the (first) physical table that its ids read.

    Raises:
        ValueError: a table without training counts, where the method needs them (`counted`).
    """

    counted: ClassVar[bool] = False
    """Whether it asks for `reads`."""

    def __init__(self, config: Any, tables: EmbeddingTables) -> None:
        self.config = config
        self.tables = tables
        self.device = tables.device
        every = [cast("Group", group) for group in tables.groups]
        self.groups = [group for group in every if group.width.config == config]
        self.widths = [cast(W, group.width) for group in self.groups]
        # In the order of the groups, which is that of every process, unlike that of a set of texts.
        read = (name for group in self.groups for column in group.read.tables for name in column)
        named = dict.fromkeys(read)
        self.physical: dict[str, RowTable] = {name: tables.store.tables[name] for name in named}
        self.first_of = {
            table.name: group.read.tables[0][segment]
            for group in self.groups
            for segment, table in enumerate(group.tables)
        }
        self.placed: dict[str, Placed] = {
            row.name: one for one in tables.plan.values() for row in one.places if row.name in named
        }
        self.check(config, (table for group in self.groups for table in group.tables))

    @classmethod
    @abstractmethod
    def stages(cls, config: Any) -> tuple[Stage, ...]:
        """Return the stages of training, the first to the last."""

    @classmethod
    def least(cls, placed: Placed, place: RowTable) -> int:
        """Return the bytes that a physical table takes when packed, if the search leaves the least.

        Args:
            placed: one of the logical tables that read it.
            place: the physical table.
        """
        return _LEAST

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What is learned of the structure in this stage; not trained by the run's optimizers."""
        return []

    @property
    def statistics(self) -> list[Tensor]:
        """What the width modules remember of the rows they have seen while training."""
        return []

    def begin(self, stage: Stage) -> None:
        """Prepare the width modules for a stage; again when a run resumes in it."""

    def penalty(self) -> Tensor:
        """Return what is added to the loss that trains the structure, a scalar."""
        return torch.zeros(())

    def step(self, step: int, steps: int) -> bool:
        """Update the structure from its gradients, after each training step.

        Args:
            step: which one of the stage it was, counted from 1.
            steps: of the stage, at most.

        Returns:
            Whether the stage has found what it looks for and is over.
        """
        return False

    @abstractmethod
    def end(self, stage: Stage, fitness: Fitness) -> Rebuild | None:
        """Fold, prune and hand over at the end of a stage.

        Args:
            stage: the stage that is over.
            fitness: measures the tables as they now are.

        Returns:
            The tables to go on with, or None to go on with these.

        Raises:
            ValueError: the byte budget cannot be met.
        """

    @cached_property
    def limit(self) -> float:
        """Bytes that the searched tables may take when packed: rows, and what their widths keep.

        Infinite where all of them fit as they are.
        """
        if self.tables.budget is None or all(one.share == 1.0 for one in self.placed.values()):
            return float("inf")
        return self.tables.budget - self.tables.bytes_beside(self.groups)

    def rows(self, name: str) -> Tensor:
        """Return the rows of a physical table in floats, [R, d]: to be read, not written."""
        return float_rows(self.tables.store, name, self.placed[name].precision)

    def set_rows(self, name: str, rows: Tensor) -> None:
        """Set the rows of a physical table, [R, d]."""
        self.tables.store.load(name, rows)

    def first_rows(self, name: str) -> Tensor:
        """Return the rows [R, d] that a physical table had before training."""
        return self.tables.first_rows(name)

    def reads(self) -> dict[str, Tensor]:
        """Return how often training reads each row of each physical table, [R] float64.

        All logical tables must have training counts.
        """
        found = {n: torch.zeros(t.rows, dtype=torch.float64) for n, t in self.physical.items()}
        seen: set[tuple[str, ...]] = set()
        for group in self.groups:
            for segment, table in enumerate(group.tables):
                names = tuple(column[segment] for column in group.read.tables)
                if (table.name, *names) in seen:
                    continue
                seen.add((table.name, *names))
                assert table.counts is not None
                counts = torch.from_numpy(table.counts.astype("float64"))
                for start in range(0, table.rows, _PIECE):
                    ids = torch.arange(start, min(start + _PIECE, table.rows), device=self.device)
                    lengths = [0] * len(group.tables)
                    lengths[segment] = len(ids)
                    rows = group.sharing.encode(ids, Segments(lengths))
                    own = counts[start : start + len(ids)]
                    for name, row in zip(names, rows.cpu(), strict=True):
                        inside = row >= 0
                        found[name].index_add_(0, row[inside], own[inside])
        return found

    @classmethod
    def check(cls, config: Any, tables: Iterable[Table]) -> None:
        """Check that tables can be searched.

        Raises:
            ValueError: one without training counts, where the method needs them.
        """
        for table in tables if cls.counted else ():
            if not counted(table):
                raise ValueError(
                    f"table {table.name!r}: {config.kind} needs training counts, which a closed "
                    "vocabulary has (Vocabulary(counts=...)); pep and magnitude do without"
                )


def counted(table: Table) -> bool:
    """Return whether it is known how often training reads each id of a table."""
    return not table.open and table.counts is not None


def falling_rate(first: float | None, step: int, steps: int) -> float:
    """Return the learning rate of a structure whose gradients are of size one; it falls to zero.

    Args:
        first: of the first step; None: 0.01, and more in fewer than 2,000 steps, in which a structure
            would hardly move from where it begins: rates add up to 10, and none is above 0.2.
        step: counted from 1.
        steps: of the stage.
    """
    if first is None:
        first = min(max(_RATE, 20 / steps), _FASTEST)
    return first * (1 - step / steps)


def search_of(tables: EmbeddingTables) -> Search | None:
    """Return the search of the tables, or None where no method searches.

    Raises:
        ValueError: two searches in one run.
    """
    configs = {
        one.config.width
        for one in tables.plan.values()
        if widths.get(one.config.width.kind).search(one.config.width) is not None
    }
    if len(configs) > 1:
        kinds = " and ".join(sorted(str(config) for config in configs))
        raise ValueError(
            f"table and fields name two searches ({kinds}); a run has the stages of one. Give the "
            "tables of the other a width that does not search (uniform, mde, lowrank)"
        )
    for config in configs:
        search = widths.get(config.kind).search(config)
        assert search is not None
        return search(config, tables)
    return None


def stages_of(search: Search | None) -> Sequence[Stage]:
    """Return the stages of a search, or the one of plain training."""
    return PLAIN if search is None else search.stages(search.config)
