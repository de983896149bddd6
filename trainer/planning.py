"""Plans for machines that are not here: where the tables of a run would lie, and what it would cost.

Nothing is allocated: tables are sized as for a run, TorchRec's planner shares them out among the
machines that are asked for, and its estimator says what memory and time that takes. Bytes on the wire
are counted, not estimated (`embtables.rows.wire`). The planner's milliseconds are those of its model
of a device (V100 memory, 600 GB/s within a host, 12.5 GB/s between hosts): they compare plans.

Shape letters: W ranks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from data.store import Store
from embtables.budget import (
    Plan,
    byte_budget,
    parse_bytes,
    plan,
    plan_bytes,
    uncompressed_bytes,
)
from embtables.compressor import (
    Table,
    TableConfig,
    sharings,
    widths,
)
from embtables.features import Vocabulary
from embtables.groups import Group, build_groups
from embtables.rows import sharding
from embtables.rows.collections import Collections, key_of
from embtables.rows.optimizers import RowOptimizer
from embtables.rows.sharded import ShardedStore
from embtables.rows.sharding import RESERVED, DoesNotFit, Places, padded
from embtables.rows.store import Init, StoreSpec
from embtables.rows.wire import Part, Shared, Wire, sent_in_a_step
from embtables.tables import logical_tables, types_of
from models.base import models
from trainer.config import RunConfig
from trainer.datasets import model_inputs, vocabularies

CUDA_MEMORY = 80 * 10**9
"""Bytes of a CUDA device, unless said otherwise."""


@dataclass(frozen=True)
class Machines:
    """What a run is planned for.

    Attributes:
        world_size: ranks, one a device.
        hosts: that the ranks are on, equally many on each.
        device: ``cuda`` or ``cpu``.
        memory: bytes of each device, or of a rank's part of a host.

    Raises:
        ValueError: no such machines.
    """

    world_size: int
    hosts: int = 1
    device: str = "cuda"
    memory: int = CUDA_MEMORY

    def __post_init__(self) -> None:
        if self.world_size < 1:
            raise ValueError(f"--world-size must be at least 1, got {self.world_size}")
        if self.hosts < 1 or self.world_size % self.hosts:
            raise ValueError(
                f"--hosts {self.hosts} does not divide --world-size {self.world_size}: hosts have "
                "equally many ranks"
            )
        if self.device not in ("cuda", "cpu"):
            raise ValueError(f"--device must be cuda or cpu, got {self.device!r}")

    @property
    def local(self) -> int:
        """Ranks of a host."""
        return self.world_size // self.hosts

    @property
    def usable(self) -> int:
        """Bytes of a device that tables may take."""
        return int((1 - RESERVED) * self.memory)

    def __str__(self) -> str:
        """Return "16 hosts x 8 cuda devices of 80.0 GB"."""
        hosts = f"{self.hosts} hosts x " if self.hosts > 1 else ""
        devices = f"{self.device} device" + "s" * (self.local > 1)
        return f"{hosts}{self.local} {devices} of {size_text(self.memory)}"


def machines_of(
    world_size: int, hosts: int | None, device: str | None, memory: str | None
) -> Machines:
    """Return the machines that options of the command line name.

    Raises:
        ValueError: no such machines, or CPUs without their memory.
    """
    device = device or "cuda"
    if memory is None and device == "cpu":
        raise ValueError("--device cpu: say how much memory a rank has, such as --memory 32GB")
    size = CUDA_MEMORY if memory is None else parse_bytes(memory)
    return Machines(world_size, 1 if hosts is None else hosts, device, size)


@dataclass(frozen=True)
class Job:
    """What a run asks of machines.

    Attributes:
        config: the run.
        tables: what its tables are made of.
        places: which physical tables are where.
        collections: TorchRec's modules, on the meta device.
        ids: physical table -> ids a row, for each key that reads it.
        maps: bytes of what finds rows, whole on every rank.
        network: numbers of the network and of projections, whole on every rank.
    """

    config: RunConfig
    tables: Plan
    places: Places
    collections: Collections
    ids: Mapping[str, tuple[float, ...]]
    maps: int
    network: int

    @property
    def uncompressed(self) -> int:
        """Bytes of one float32 row for every id."""
        return uncompressed_bytes([one.table for one in self.tables.values()])

    @cached_property
    def packed(self) -> int:
        """Bytes of the tables when packed."""
        return plan_bytes(self.tables)

    @cached_property
    def shared(self) -> int:
        """Bytes of the tables that ranks share, rows padded, with optimizer state."""
        names = set(self.places.tables) - set(self.places.replicated)
        tables = [self.places.tables[name] for name in names]
        return sum(trained_bytes(self.config.rows, t.rows, padded(t.dim)) for t in tables)

    @cached_property
    def replicated(self) -> int:
        """Bytes of the tables that every rank holds whole, with optimizer state."""
        tables = [self.places.tables[name] for name in self.places.replicated]
        return sum(trained_bytes(self.config.rows, table.rows, table.dim) for table in tables)

    @property
    def averaged(self) -> int:
        """Bytes of the gradients that are averaged over ranks in every step."""
        tables = [self.places.tables[name] for name in self.places.replicated]
        return 4 * (self.network + sum(table.rows * table.dim for table in tables))

    def batch(self, machines: Machines) -> int:
        """Return the rows of a batch on the rank that has most."""
        return -(-self.config.train.batch_size // machines.world_size)


def size_text(size: float) -> str:
    """Return bytes with a decimal unit: 80.0 GB."""
    power = min(4, max(0, int(math.log10(max(size, 1))) // 3))
    return f"{size / 1000**power:,.{1 if power else 0}f} {('B', 'KB', 'MB', 'GB', 'TB')[power]}"


@dataclass(frozen=True)
class Placement:
    """Where the tables of a job lie, and what a step costs.

    Attributes:
        machines: that hold them.
        tables: those that ranks share.
        trained: [W] bytes of tables and optimizer state.
        memory: [W] these with maps and the planner's estimate of what is sent and received.
        milliseconds: [4, W] of forward compute and exchange, backward compute and exchange, as the
            planner estimates them.
        wire: bytes sent in a step.
    """

    machines: Machines
    tables: Sequence[Shared]
    trained: np.ndarray
    memory: np.ndarray
    milliseconds: np.ndarray
    wire: Wire


def trained_bytes(optimizer: RowOptimizer, rows: int, dim: int) -> int:
    """Return the bytes of rows [R, d] in float32 and of their optimizer state."""
    state = optimizer.state(rows, dim, like=torch.empty(0, device="meta"))
    return 4 * rows * dim + sum(tensor.nbytes for tensor in state.values())


# -- what a run asks for ---------------------------------------------------------------------------


def job_of(config: RunConfig, store: Store, machines: Machines, scale: float) -> Job:
    """Size the tables of a run and build what the planner looks at.

    Raises:
        ValueError: what the run could not do on several ranks, or a method that cannot be scaled.
    """
    _refuse(config, machines, scale)
    inputs = model_inputs(store)
    features = models.get(config.model.kind).embeddings(config.model, inputs)
    known = _scaled(vocabularies(store, features), scale)
    decided = _sized(config, logical_tables(features, known))
    with torch.device("meta"):
        groups = build_groups(features, decided, known, by_id=config.mini_batch_l2 > 0)
        dims = {feature.name: decided[feature.table].granted for feature in features}
        network = models.get(config.model.kind)(config.model, inputs, dims)
    places = _placed(config, decided, groups, machines)
    collections = Collections(places, [group.read for group in groups], torch.device("meta"))
    learned = [*network.parameters(), *(p for group in groups for p in group.parameters())]
    return Job(
        config,
        decided,
        places,
        collections,
        _ids_by_table(collections, groups, mean_ids(store)),
        maps=sum(buffer.nbytes for group in groups for buffer in group.buffers()),
        network=sum(parameter.numel() for parameter in learned),
    )


def _refuse(config: RunConfig, machines: Machines, scale: float) -> None:
    """Raise ValueError for what several ranks do not train, or what cannot be scaled."""
    batch = config.train.batch_size
    if batch < machines.world_size:
        raise ValueError(
            f"train.batch_size={batch} leaves some of {machines.world_size} ranks without a row; set "
            f"train.batch_size={machines.world_size} or more"
        )
    if scale <= 0:
        raise ValueError(f"--scale must be positive, got {scale:g}")
    if config.backend not in ("auto", "torchrec", "sharded"):
        raise ValueError(f"backend={config.backend} is of one process; use backend=torchrec")
    if config.train.clip_norm is not None:
        raise ValueError(
            "gradients of sharded tables cannot be clipped: they are applied inside backward; set "
            "train.clip_norm=null"
        )
    for path, table in [("table", config.table), *config.fields.items()]:
        _refuse_table(path if path == "table" else f"fields.{path}", table, scale)


def _refuse_table(path: str, table: TableConfig, scale: float) -> None:
    if widths.get(table.width.kind).search(table.width) is not None:
        raise ValueError(
            f"{path}={table}: {table.width.kind} searches in one process; take a width that does not "
            "search (uniform, mde, lowrank)"
        )
    if scale != 1 and sharings.get(table.sharing.kind).counted:
        raise ValueError(
            f"{path}={table}: {table.sharing.kind} chooses ids by their training counts, which ids that "
            "--scale adds do not have; plan it without --scale, or plan hash, which has the same rows"
        )


def _scaled(known: dict[str, Vocabulary], scale: float) -> dict[str, Vocabulary]:
    """Return vocabularies with so many times the rows; nobody has counted the new ones."""
    if scale == 1:
        return known
    return {
        name: replace(one, rows=max(1, round(scale * one.rows)), counts=None)
        for name, one in known.items()
    }


def _sized(config: RunConfig, tables: Sequence[Table]) -> Plan:
    size = byte_budget(tables, config.budget, config.ratio)
    return plan(tables, config.table, config.fields, size)


def _placed(
    config: RunConfig, decided: Plan, groups: Sequence[Group], machines: Machines
) -> Places:
    """Return which physical tables are where, as the sharded store finds it.

    Raises:
        ValueError: what that store refuses.
    """
    physical = {row.name: row for one in decided.values() for row in one.places}
    spec = StoreSpec(
        tables=tuple(physical.values()),
        precisions={row.name: one.precision for one in decided.values() for row in one.places},
        reads=tuple(group.read for group in groups),
        optimizer=config.rows,
        init=Init(),
        seed=0,
        dtype=torch.float32,
        device=torch.device(machines.device),
        sharding=types_of(decided, config.sharding),
        strict=config.sharding.strict,
    )
    reasons = ShardedStore.refusals(spec)
    if reasons:
        raise ValueError("\n".join(reasons))
    return Places.of(spec.tables, spec.reads, spec.sharding, config.rows)


def mean_ids(store: Store) -> dict[str, float]:
    """Return id column -> mean ids a training row."""
    jagged = store.split("train").jagged
    return {
        column.name: float(jagged[column.name][1][-1]) / store.schema.rows["train"]
        if column.name in jagged
        else 1.0
        for column in store.schema.fields
    }


def _ids_by_table(
    collections: Collections, groups: Sequence[Group], mean: Mapping[str, float]
) -> dict[str, tuple[float, ...]]:
    """Return physical table -> ids a row, for each key that reads it."""
    by_key = {
        key_of(group, probe, segment): mean[feature.key]
        for group, one in enumerate(groups)
        for probe in range(len(one.read.tables))
        for segment, feature in enumerate(one.features)
    }
    return {name: tuple(by_key[key] for key in keys) for name, keys in collections.keys.items()}


# -- where it would lie ----------------------------------------------------------------------------


def place(job: Job, machines: Machines) -> Placement:
    """Share the tables of a job out.

    Raises:
        DoesNotFit: they are too large for the machines.
    """
    whole = job.replicated + job.maps
    if whole > machines.usable:
        raise DoesNotFit("what every rank holds whole does not fit")
    options = _options(job, machines, whole)
    ranks = machines.world_size
    trained, memory = np.full(ranks, job.replicated), np.full(ranks, whole)
    milliseconds = np.zeros((4, ranks))
    for shard in (shard for option in options for shard in option.shards):
        trained[shard.rank] += trained_bytes(job.config.rows, *shard.size)
        memory[shard.rank] += shard.storage.hbm + (machines.device == "cpu") * shard.storage.ddr
        perf = shard.perf
        milliseconds[:, shard.rank] += (
            perf.fwd_compute,
            perf.input_dist_comms + perf.fwd_comms,
            perf.bwd_compute,
            perf.bwd_comms,
        )
    tables = [_shared(job, option) for option in options]
    wire = sent_in_a_step(tables, ranks, machines.local, job.batch(machines), job.averaged)
    return Placement(machines, tables, trained, memory, milliseconds, wire)


def _options(job: Job, machines: Machines, whole: int) -> Sequence[Any]:
    """Return the planner's choice for every table that ranks share, with its estimates."""
    if len(job.places.replicated) == len(job.places.tables):
        return []
    topology = sharding.topology(
        machines.device, machines.world_size, machines.local, machines.memory
    )
    _, planner = sharding.plan(
        job.collections, job.config.rows, topology, job.batch(machines), job.ids, whole
    )
    return planner._best_plan


def _shared(job: Job, option: Any) -> Shared:
    parts = tuple(Part(shard.rank, *shard.size) for shard in option.shards)
    rows = job.places.tables[option.name].rows
    bags = option.name in job.places.bags
    return Shared(option.name, rows, option.sharding_type, parts, job.ids[option.name], bags)


def fewest(job: Job, machines: Machines) -> Machines | None:
    """Return the fewest devices of one host, or else the fewest such hosts, that hold the tables.

    None: no number of them does, up to four times what the bytes alone would need.
    """
    room = machines.usable - job.replicated - job.maps
    if room <= 0:
        return None
    least = max(1, -(-job.shared // room))
    hosts = -(-least // machines.local)
    inside = [replace(machines, world_size=n, hosts=1) for n in range(least, machines.local + 1)]
    beyond = [
        replace(machines, world_size=n * machines.local, hosts=n)
        for n in range(max(2, hosts), 4 * hosts + 1)
    ]
    return next((one for one in (*inside, *beyond) if fits(job, one)), None)


def fits(job: Job, machines: Machines) -> bool:
    """Return whether the machines hold the tables."""
    if job.replicated + job.maps > machines.usable:
        return False
    try:
        _options(job, machines, job.replicated + job.maps)
    except DoesNotFit:
        return False
    return True
