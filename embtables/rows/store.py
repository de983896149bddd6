"""The contract of a row store: all physical tables of all compressors, and their optimizer.

Shape letters: K rows read for an id, S segments of a group, B rows of a batch, n ids of a group,
O bags of a group, d numbers in a row, C numbers of a combined vector (K * d if concatenated, else d).

A store is built with the static plan of what will be read (`Read`, one for each group), so that a
backend can fuse, place or shard it. A training step is

    vectors = store.lookup(rows, segments, bags);  ... loss.backward();  store.step()

Without an optimizer the rows are ordinary parameters and any torch optimizer may train them.
Backends are the files of this folder that register themselves here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn

from embtables.compressor import Bags, Combine, Parts, Precision, RowTable, Segments
from embtables.hashing import salt
from embtables.registry import Config, Registry
from embtables.rows.optimizers import RowOptimizer

if TYPE_CHECKING:
    from embtables.rows.sharding import ShardingType

_PIECE = 2**16
"""Rows that are drawn at once: no second copy of a table, not even while it is made."""


@dataclass(frozen=True)
class Read:
    """What a group reads.

    Attributes:
        tables: names of the physical tables, [K][S], all of one width and precision.
        combine: how the K rows of an id become one vector.
        skips: rows may be -1: nothing is read, zeros stand for it and take no gradient.
        pooled: so many segments, the first ones, are only ever read as sums of bags, and combining
            may follow adding up.
    """

    tables: tuple[tuple[str, ...], ...]
    combine: Combine
    skips: bool = False
    pooled: int = 0


class Init(Config):
    """Initial values of rows: normal with a standard deviation, or uniform in [-scale, scale]."""

    kind: Literal["normal", "uniform"] = "normal"
    scale: PositiveFloat = 0.01

    def draw(
        self, table: RowTable, seed: int, dtype: torch.dtype
    ) -> Iterator[tuple[slice, Tensor]]:
        """Yield the initial rows [.., d] of a table piece by piece, and where they belong.

        They depend on the table's name and the seed alone.
        """
        generator = torch.Generator().manual_seed(salt(table.name, seed % 2**64) & (2**63 - 1))
        scale = self.scale * table.scale
        for start in range(0, table.rows, _PIECE):
            end = min(start + _PIECE, table.rows)
            rows = torch.empty(end - start, table.dim, dtype=dtype)
            if self.kind == "normal":
                rows.normal_(table.mean, scale, generator=generator)
            else:
                rows.uniform_(table.mean - scale, table.mean + scale, generator=generator)
            yield slice(start, end), rows


@dataclass(frozen=True)
class StoreSpec:
    """What a store holds and how it is trained.

    Attributes:
        tables: physical tables.
        precisions: the precision of each, by name.
        reads: what each group reads.
        optimizer: fused row optimizer, or None for ordinary parameters.
        init: initial values.
        seed: seed of the initial values and of stochastic rounding.
        dtype: of the rows while computing.
        device: where the rows live.
        sharding: how each physical table is shared out among ranks, by name.
        strict: whether sharding that changes the optimizer is refused.
    """

    tables: tuple[RowTable, ...]
    precisions: dict[str, Precision]
    reads: tuple[Read, ...]
    optimizer: RowOptimizer | None
    init: Init
    seed: int
    dtype: torch.dtype
    device: torch.device
    sharding: Mapping[str, ShardingType] = field(default_factory=dict)
    strict: bool = False

    @property
    def held(self) -> list[str]:
        """Kinds of precision in which rows are held while training."""
        return sorted({p.config.kind for p in self.precisions.values() if p.while_training})

    def first_rows(self, table: RowTable) -> Iterator[tuple[slice, Tensor]]:
        """Yield the initial rows [.., d] of a table piece by piece, and where they belong."""
        return self.init.draw(table, self.seed, self.dtype)


class RowStore(nn.Module, ABC):
    """Rows, their bits, and their optimizer.

    Raises:
        ValueError: the backend cannot do what is asked; every reason, with the alternative.
    """

    def __init__(self, spec: StoreSpec) -> None:
        super().__init__()
        reasons = self.refusals(spec)
        if reasons:
            raise ValueError("\n".join(reasons))
        self.tables = {table.name: table for table in spec.tables}
        self.optimizer = spec.optimizer
        self.lr = spec.optimizer.lr if spec.optimizer else 0.0

    @classmethod
    @abstractmethod
    def refusals(cls, spec: StoreSpec) -> list[str]:
        """Return why this backend cannot do what is asked, with the alternative; empty if it can."""

    clips: bool = True
    """Whether row gradients can be measured and scaled before the step."""

    weighs: bool = True
    """Whether the ids of a bag may have weights."""

    @abstractmethod
    def lookup(
        self,
        rows: Sequence[Tensor],
        segments: Sequence[Segments],
        bags: Sequence[Bags | None],
    ) -> list[Tensor]:
        """Return the combined vectors of the rows [K, n] of every group, added up where it has bags.

        They are [S, B, C] if every bag of the batch holds one id (`Segments.single`), else [n, C];
        with bags the same of the segments of their sums.
        """

    def step(self) -> None:
        """Update the rows read since the last step."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget what was read."""
        super().zero_grad(set_to_none)

    def grad_square_sum(self) -> Tensor:
        """Return the sum of squares of the row gradients, for clipping by global norm."""
        raise AssertionError("asked of a backend that does not clip")

    def scale_grads(self, factor: Tensor) -> None:
        """Multiply the row gradients."""
        raise AssertionError("asked of a backend that does not clip")

    @abstractmethod
    def export(self, name: str) -> Parts:
        """Return the rows of a table as they are held: float "values", or a precision's parts."""

    @abstractmethod
    def load(self, name: str, rows: Tensor) -> None:
        """Set the rows of a table from float values [R, d]."""

    @abstractmethod
    def training_state(self) -> dict[str, Tensor]:
        """Return what training goes on from, as flat tensors that are not copied.

        Its names are those of every backend, so that one continues from another: for each table
        ``rows.<table>.values`` (or a precision's parts) and ``optimizer.<table>.<slot>``, and whatever
        else the backend counts or draws.
        """

    @torch.no_grad()
    def load_training_state(self, state: dict[str, Tensor]) -> None:
        """Copy what `training_state` returned in place."""
        for key, tensor in self.training_state().items():
            if key.startswith(("rows.", "optimizer.")):
                put(tensor, state[key])

    @torch.no_grad()
    def restart(self) -> None:
        """Forget the optimizer's state of all rows, which stay as they are."""
        for key, tensor in self.training_state().items():
            if key.startswith("optimizer."):
                tensor.zero_()

    def training_bytes(self) -> int:
        """Return the bytes of rows and optimizer state."""
        state = self.training_state().items()
        return sum(t.nbytes for key, t in state if key.startswith(("rows.", "optimizer.")))


def put(held: Tensor, new: Tensor) -> None:
    """Copy a tensor in place, unless it was filled where it lies."""
    if held.data_ptr() != new.data_ptr():
        held.copy_(new)


def float_rows(store: RowStore, name: str, precision: Precision) -> Tensor:
    """Return the rows of a table in floats, [R, d]: to be read, not written."""
    held = store.export(name)
    return precision.decode(held) if precision.while_training else held["values"]


backends: Registry[RowStore] = Registry("embtables.rows", "backend")
