"""How physical tables are shared out among ranks: what the user may ask for, and TorchRec's plan.

Tables go where their ids are read. One whose look-ups are all pooled is in an EmbeddingBagCollection,
so that bags travel and not the vectors of their ids; any other is in the EmbeddingCollection of its
width. A table that is data-parallel is in neither: every rank holds it whole (`rows.sharded`).

TorchRec's planner places the rest, under constraints that its own defaults lack: fused kernels alone
(it would give small tables dense gradients), row-wise pooled tables on CPUs too (TorchRec's sharder
leaves them out, but they work), and no column-wise tables where that changes the optimizer. The plan
depends on its arguments alone, so that every rank makes it for itself: TorchRec's way of making it on
one rank and sending it round hangs where planning fails.

Shape letters: d numbers in a row, padded to a multiple of four.
"""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from embtables.compressor import RowTable
from embtables.registry import Config
from embtables.rows.optimizers import RowOptimizer
from embtables.rows.store import Read

if TYPE_CHECKING:
    import torch
    from torchrec.distributed.planner import Topology
    from torchrec.distributed.types import ModuleSharder, ShardingPlan

    from embtables.rows.collections import Collections

log = logging.getLogger("embtables")

ShardingType = Literal[
    "auto",
    "data_parallel",
    "table_wise",
    "row_wise",
    "column_wise",
    "table_row_wise",
    "grid_shard",
]

REPLICATED_BYTES = 2**16
"""Tables up to this size are data-parallel where nobody says how: their gradient is small."""

MULTIPLE = 4
"""FBGEMM asserts widths that are multiples of four; rows are padded with zeros that stay zero."""

_ACROSS_HOSTS = ("table_row_wise", "grid_shard")


class Sharding(Config):
    """How tables are shared out among ranks."""

    type: ShardingType = Field(
        default="auto", description="of all tables; auto: TorchRec's planner chooses"
    )
    tables: dict[str, ShardingType] = Field(default={}, description="other types, by logical table")
    strict: bool = Field(
        default=False, description="refuse what trains another model than one process would"
    )


@dataclass(frozen=True)
class Places:
    """Which physical tables are where, by name.

    Attributes:
        tables: all of them.
        types: how each is to be sharded.
        replicated: those that every rank holds whole.
        bags: those of the EmbeddingBagCollection.
        sequences: those of an EmbeddingCollection, by padded width.
    """

    tables: Mapping[str, RowTable]
    types: Mapping[str, ShardingType]
    replicated: tuple[str, ...]
    bags: tuple[str, ...]
    sequences: Mapping[int, tuple[str, ...]]

    @classmethod
    def of(
        cls, tables: Sequence[RowTable], reads: Sequence[Read], types: Mapping[str, ShardingType]
    ) -> Places:
        """Find them.

        Args:
            tables: physical tables.
            reads: what each group reads.
            types: by physical table; "auto" where one is left out.
        """
        by_id = {
            name
            for read in reads
            for names in read.tables
            for segment, name in enumerate(names)
            if segment >= read.pooled
        }
        found: dict[str, ShardingType] = {
            table.name: types.get(table.name, "auto") for table in tables
        }
        replicated, bags, sequences = [], [], defaultdict(list)
        for table in tables:
            small = 4 * table.rows * table.dim <= REPLICATED_BYTES
            kind = found[table.name]
            if kind == "data_parallel" or (kind == "auto" and small):
                replicated.append(table.name)
            elif table.name in by_id:
                sequences[padded(table.dim)].append(table.name)
            else:
                bags.append(table.name)
        return cls(
            {table.name: table for table in tables},
            found,
            tuple(replicated),
            tuple(bags),
            {dim: tuple(names) for dim, names in sequences.items()},
        )


def padded(dim: int) -> int:
    """Return the width that FBGEMM holds a row in."""
    return -(-dim // MULTIPLE) * MULTIPLE


def refusals(
    types: Mapping[str, ShardingType], optimizer: RowOptimizer, device: str, strict: bool
) -> list[str]:
    """Return why tables cannot be sharded as asked, with the alternative; empty if they can.

    Args:
        types: by physical table.
        optimizer: row optimizer.
        device: ``cpu`` or ``cuda``.
        strict: whether what changes the optimizer is refused; else it is logged.
    """
    found = []
    asked = set(types.values())
    for kind in sorted(asked & set(_ACROSS_HOSTS)) if device == "cpu" else ():
        found.append(
            f"sharding.type={kind} is of CUDA devices; on CPUs use table_wise, row_wise, column_wise "
            "or data_parallel"
        )
    columns = sorted(asked & {"column_wise", "grid_shard"})
    if columns and optimizer.kind == "rowwise_adagrad":
        reason = (
            f"sharding.type={columns[0]} cuts rows, and rowwise_adagrad then takes the mean of each "
            "part: another optimizer than in one process. Use rows.kind=adagrad, or row_wise"
        )
        if strict:
            found.append(reason)
        else:
            log.warning("%s (sharding.strict=true refuses this)", reason)
    return found


def sharders() -> list[ModuleSharder[Any]]:
    """Return what shards the collections: as TorchRec does, and row-wise bags on CPUs too."""
    from torchrec.distributed.embedding import EmbeddingCollectionSharder
    from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder

    class BagSharder(EmbeddingBagCollectionSharder):
        def sharding_types(self, compute_device_type: str) -> list[str]:
            return sorted({*super().sharding_types(compute_device_type), "row_wise"})

    return [BagSharder(), EmbeddingCollectionSharder()]


def this_topology(device: torch.device, world_size: int) -> Topology:
    """Return the machines of this job, from what torchrun says of them and this one's memory."""
    import torch
    from torchrec.distributed.planner import Topology

    local = min(int(os.environ.get("LOCAL_WORLD_SIZE", world_size)), world_size)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // local
    hbm = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    return Topology(
        world_size=world_size,
        compute_device=device.type,
        local_world_size=local,
        hbm_cap=hbm,
        ddr_cap=memory,
    )


def plan(
    collections: Collections,
    optimizer: RowOptimizer,
    topology: Topology,
    batch_size: int,
    pooling: Mapping[str, Sequence[float]] | None = None,
) -> tuple[ShardingPlan, Any]:
    """Return the sharding plan of the collections, and the planner that made it.

    Args:
        collections: on the meta device.
        optimizer: row optimizer.
        topology: the machines.
        batch_size: rows of a batch on one rank.
        pooling: physical table -> ids a row of each key that reads it; 1 where left out.

    Raises:
        ValueError: the tables do not fit the machines, or not as asked; with the planner's reason.
    """
    from torchrec.distributed.planner import EmbeddingShardingPlanner
    from torchrec.distributed.planner.types import ParameterConstraints, PlannerError

    places = collections.places
    known = {"table_wise", "row_wise"}
    if topology.compute_device == "cuda":
        known |= {"table_row_wise"}
    if optimizer.kind != "rowwise_adagrad":
        known |= {"column_wise"} | ({"grid_shard"} if topology.compute_device == "cuda" else set())
    constraints = {
        name: ParameterConstraints(
            sharding_types=sorted(known) if places.types[name] == "auto" else [places.types[name]],
            compute_kernels=["fused"],
            pooling_factors=list((pooling or {}).get(name, [1.0] * len(collections.keys[name]))),
        )
        for name in (*places.bags, *(name for names in places.sequences.values() for name in names))
    }
    planner = EmbeddingShardingPlanner(
        topology=topology, batch_size=batch_size, constraints=constraints, debug=False
    )
    try:
        return planner.plan(collections, sharders()), planner
    except PlannerError as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(
            f"the tables cannot be shared out among {topology.world_size} ranks: {first} Use a smaller "
            "budget, more ranks, or sharding.type=auto"
        ) from error
