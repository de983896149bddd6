"""How physical tables are shared out among ranks: what the user may ask for, and TorchRec's plan.

Tables go where their ids are read. One whose look-ups are all pooled is in an EmbeddingBagCollection,
so that bags travel and not the vectors of their ids; any other is in the EmbeddingCollection of its
width. A table that is data-parallel is in neither: every rank holds it whole (`rows.sharded`).

TorchRec's planner places the rest, under constraints that its own defaults lack: fused kernels alone
(it would give small tables dense gradients), row-wise pooled tables on CPUs too (TorchRec's sharder
leaves them out, but they work), and no column-wise tables where that changes the optimizer or cuts
nothing. The plan depends on its arguments alone, so that every rank makes it for itself: TorchRec's way
of making it on one rank and sending it round hangs where planning fails.

Shape letters: d numbers in a row, padded to a multiple of four.
"""

from __future__ import annotations

import logging
import math
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
    from torchrec.distributed.planner.storage_reservations import StorageReservation
    from torchrec.distributed.planner.types import Enumerator, ParameterConstraints
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

RESERVED = 0.15
"""Part of a device's memory that is left to the network, its activations and the libraries."""

_OF_ANY_ROW = ("sgd", "adagrad", "rowwise_adagrad")
"""Row optimizers that leave a row without a gradient alone: all rows of a table can be updated."""

_ACROSS_HOSTS = ("table_row_wise", "grid_shard")

_PATIENCE = 20
"""Proposals without gain after which the planner stops: all of them take time quadratic in tables."""

_LEAST_PART = 128
"""Columns of a part that the planner may cut by itself: narrower ones only send ids more often."""


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
        cls,
        tables: Sequence[RowTable],
        reads: Sequence[Read],
        types: Mapping[str, ShardingType],
        optimizer: RowOptimizer,
    ) -> Places:
        """Find them.

        Args:
            tables: physical tables.
            reads: what each group reads.
            types: by physical table; "auto" where one is left out.
            optimizer: row optimizer: one that tells rows of the batch from others replicates nothing.
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
            small = 4 * table.rows * table.dim <= REPLICATED_BYTES and optimizer.kind in _OF_ANY_ROW
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
    if "data_parallel" in asked and optimizer.kind not in _OF_ANY_ROW:
        found.append(
            f"sharding.type=data_parallel updates every row at every step, which {optimizer.kind} does "
            f"not; use rows.kind={', '.join(_OF_ANY_ROW)}, or another type"
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
    import torch.distributed as dist

    local = min(int(os.environ.get("LOCAL_WORLD_SIZE", world_size)), world_size)
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // local
    # Ranks of hosts that differ must make one plan: the least memory, and as many ranks on each host.
    least = torch.tensor([memory, local, -local], device=device)
    dist.all_reduce(least, dist.ReduceOp.MIN)
    memory, local, most = least.tolist()
    if local != -most:
        raise ValueError(
            f"hosts have {local} to {-most} ranks; start as many on each (torchrun --nproc_per_node)"
        )
    return topology(device.type, world_size, local, memory)


def topology(device: str, world_size: int, local: int, memory: int) -> Topology:
    """Return machines with so many ranks in all and on each host.

    Args:
        device: ``cpu`` or ``cuda``.
        world_size: ranks.
        local: ranks of a host.
        memory: bytes of a rank's device, a part of the host's for CPUs.
    """
    from torchrec.distributed.planner.types import (
        HardwareConfig,
        KernelConfig,
        TopologyFactory,
        TrainerConfig,
    )

    cuda = device == "cuda"
    return TopologyFactory.create_topology(
        TrainerConfig(world_size=world_size, local_world_size=local),
        HardwareConfig(
            hbm_cap_bytes=memory if cuda else None, ddr_cap_bytes=None if cuda else memory
        ),
        KernelConfig(compute_device=device),
    )


class DoesNotFit(ValueError):
    """Tables that the memory of the machines does not hold."""


def plan(
    collections: Collections,
    optimizer: RowOptimizer,
    topology: Topology,
    batch_size: int,
    pooling: Mapping[str, Sequence[float]] | None = None,
    whole: int = 0,
) -> tuple[ShardingPlan, Any]:
    """Return the sharding plan of the collections, and the planner that made it.

    Args:
        collections: on the meta device.
        optimizer: row optimizer; the bytes of its state count.
        topology: the machines.
        batch_size: rows of a batch on one rank.
        pooling: physical table -> ids a row of each key that reads it; 1 where left out.
        whole: bytes that every rank holds besides: replicated tables, maps.

    Raises:
        ValueError: the tables cannot be sharded as asked.
        DoesNotFit: not on these machines, with the planner's reason.
    """
    import torch
    from torchrec.distributed.planner import EmbeddingShardingPlanner
    from torchrec.distributed.planner.proposers import GreedyProposer, UniformProposer
    from torchrec.distributed.planner.types import PlannerError

    from embtables.rows.torchrec import fused_optimizers

    fused = fused_optimizers(torch.device(topology.compute_device))[optimizer.kind]
    for parameter in collections.parameters():
        parameter._optimizer_classes = [fused]  # pyright: ignore[reportAttributeAccessIssue]
    constraints = _constraints(collections, optimizer, topology, pooling or {})
    planner = EmbeddingShardingPlanner(
        topology=topology,
        batch_size=batch_size,
        enumerator=_in_order(topology, batch_size, constraints),
        storage_reservation=_reserve(whole),
        # Without the grid search: its thousands of proposals take minutes at 128 ranks.
        proposer=[
            GreedyProposer(threshold=_PATIENCE),
            GreedyProposer(use_depth=False, threshold=_PATIENCE),
            UniformProposer(),
        ],
        stats=[],
        constraints=constraints,
        debug=False,
    )
    try:
        return planner.plan(collections, sharders()), planner
    except PlannerError as error:
        first = str(error).strip().splitlines()[0]
        raise DoesNotFit(
            f"the tables cannot be shared out among {topology.world_size} ranks: {first} Use a smaller "
            "budget, more ranks, or sharding.type=auto"
        ) from error


def _constraints(
    collections: Collections,
    optimizer: RowOptimizer,
    topology: Topology,
    pooling: Mapping[str, Sequence[float]],
) -> dict[str, ParameterConstraints]:
    """Return what the planner may do with each table.

    Raises:
        ValueError: a type that TorchRec does not have for a table.
    """
    from torchrec.distributed.planner.types import ParameterConstraints

    places = collections.places
    found = {}
    for name in (*places.bags, *(name for names in places.sequences.values() for name in names)):
        table, asked = places.tables[name], places.types[name]
        if asked in _ACROSS_HOSTS and name not in places.bags:
            raise ValueError(
                f"sharding.type={asked} of table {name!r}: TorchRec has it for tables that are read as "
                "sums of bags, and this one is read id by id; use row_wise, table_wise or column_wise"
            )
        types = [asked] if asked != "auto" else _choices(table, optimizer, topology)
        found[name] = ParameterConstraints(
            sharding_types=types,
            compute_kernels=["fused"],
            pooling_factors=list(pooling.get(name, [1.0] * len(collections.keys[name]))),
            min_partition=_part(padded(table.dim), asked, topology),
        )
    return found


def _choices(table: RowTable, optimizer: RowOptimizer, topology: Topology) -> list[str]:
    """Return the types that the planner chooses from where nobody says how."""
    width = padded(table.dim)
    cuts = any(width % part == 0 for part in range(_LEAST_PART, width, MULTIPLE))
    columns = cuts and optimizer.kind != "rowwise_adagrad"
    found = ["table_wise", "row_wise"] + ["column_wise"] * columns
    # TorchRec holds the rows of a part of a host's tables in 32 bits.
    across = math.ceil(table.rows / topology.local_world_size) < 2**31
    if topology.compute_device == "cuda" and across:
        found += ["table_row_wise"] + ["grid_shard"] * columns
    return found


def _part(width: int, asked: ShardingType, topology: Topology) -> int | None:
    """Return the columns of a part of a table that is to be cut: as many parts as there is room for.

    A row that has no such parts is cut into more. None leaves the planner's own width, 128 at least.
    """
    rooms = {
        "column_wise": topology.world_size,
        "grid_shard": topology.world_size // topology.local_world_size,
    }
    if asked not in rooms:
        return None
    units = width // MULTIPLE
    parts = [n for n in range(2, units + 1) if units % n == 0] or [1]
    return width // max((n for n in parts if n <= rooms[asked]), default=parts[0])


def _in_order(
    topology: Topology, batch_size: int, constraints: dict[str, ParameterConstraints]
) -> Enumerator:
    """Return an enumerator of one order in every process.

    TorchRec's takes the types from a set of strings, whose order differs from process to process, and
    which of two equally good plans is found first then differs from rank to rank.
    """
    from torchrec.distributed.planner.enumerators import EmbeddingEnumerator

    class InOrder(EmbeddingEnumerator):
        def enumerate(self, module: Any, sharders: Any) -> Any:
            found = super().enumerate(module, sharders)
            return sorted(found, key=lambda option: (option.fqn, option.sharding_type))

    return InOrder(topology, batch_size, constraints)


def _reserve(whole: int) -> StorageReservation:
    """Return what the planner leaves free on each device: `RESERVED` of it, and so many bytes."""
    from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation

    class Reserve(FixedPercentageStorageReservation):
        def reserve(self, topology: Topology, *arguments: Any, **named: Any) -> Topology:
            left = super().reserve(topology, *arguments, **named)  # the percentage of CUDA memory
            for device in left.devices:
                if topology.compute_device == "cuda":
                    device.storage.hbm -= whole
                else:
                    device.storage.ddr = int((1 - RESERVED) * device.storage.ddr) - whole
            return left

    return Reserve(RESERVED)
