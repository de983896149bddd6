"""What a run would take on machines that are not here: the report of ``--dry-run --world-size N``."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from data.store import Store
from embtables.compressor import RowTable, parse_table
from embtables.rows.sharding import RESERVED, DoesNotFit
from embtables.rows.wire import KINDS, Wire
from trainer.config import RunConfig
from trainer.datasets import open_store
from trainer.planning import Job, Machines, Placement, fewest, fits, job_of, place, size_text


def dry_plan(config: RunConfig, machines: Machines, scale: float = 1.0) -> str:
    """Return the report of a run on machines that are not here.

    The data set is prepared if it is not yet: its vocabularies and the lengths of its bags are read.

    Args:
        config: the run.
        machines: to plan for.
        scale: factor on the rows of every vocabulary.

    Raises:
        ValueError: what the run could not do on several ranks.
        DoesNotFit: the tables are too large, with what would fit.
    """
    store = open_store(config)
    job = job_of(config, store, machines, scale)
    try:
        placed = place(job, machines)
    except DoesNotFit as error:
        raise DoesNotFit(_way_out(job, machines, store, scale)) from error
    enough = fewest(job, machines)
    if enough is None or enough.world_size > machines.world_size:
        enough = machines
    return "\n".join(_report(job, placed, enough))


def _report(job: Job, placed: Placement, enough: Machines) -> list[str]:
    machines = placed.machines
    slowest = placed.milliseconds[:, placed.milliseconds.sum(0).argmax()]
    spread = [
        ("", "min", "mean", "max", "max/mean"),
        _spread("tables and state, bytes", placed.trained),
        _spread("memory with maps and exchange, bytes", placed.memory),
        _spread("estimated step, milliseconds", placed.milliseconds.sum(0)),
        _spread("sent within the host, bytes", placed.wire.sent[:, :, 0].sum(0)),
        _spread("sent to other hosts, bytes", placed.wire.sent[:, :, 1].sum(0)),
    ]
    return [
        *_aligned(_table_rows(job, placed)),
        "",
        f"machines   {machines}; {RESERVED:.0%} of each is left to the network and libraries",
        f"fewest     {enough}",
        f"tables     {job.uncompressed:,} bytes uncompressed, {job.packed:,} packed "
        f"({job.packed / job.uncompressed:.1%}), {int(placed.trained.sum()):,} in training on all ranks",
        f"batch      {job.config.train.batch_size:,} rows, at most {job.batch(machines):,} a rank",
        f"estimate   {slowest.sum():.3f} ms on the slowest rank: forward {slowest[0]:.3f} + "
        f"{slowest[1]:.3f} exchange, backward {slowest[2]:.3f} + {slowest[3]:.3f} exchange",
        "",
        *_aligned(spread),
        "",
        *_aligned(_wire_rows(placed.wire)),
    ]


def _table_rows(job: Job, placed: Placement) -> list[tuple[str, ...]]:
    """Return one line a physical table: those that ranks share, then the replicated ones."""
    tables = job.places.tables
    lines: list[tuple[str, ...]] = [("table", "rows", "width", "bytes", "sharding", "ranks")]
    for one in placed.tables:
        ranks = ranks_text([part.rank for part in one.parts])
        lines.append((*_about(tables[one.name]), one.type, ranks))
    for name in job.places.replicated:
        lines.append((*_about(tables[name]), "data_parallel", "all"))
    return lines


def _about(table: RowTable) -> tuple[str, ...]:
    return table.name, f"{table.rows:,}", str(table.dim), f"{4 * table.rows * table.dim:,}"


def _wire_rows(wire: Wire) -> list[tuple[str, ...]]:
    """Return one line a kind of what is sent in a step by all ranks, and their sum."""
    lines = [("bytes sent in a step", "within hosts", "between hosts", "both")]
    for kind, (near, away) in zip(KINDS, wire.sent.sum(1), strict=True):
        lines.append((kind, f"{near:,.0f}", f"{away:,.0f}", f"{near + away:,.0f}"))
    near, away = wire.sent.sum((0, 1))
    return [*lines, ("all", f"{near:,.0f}", f"{away:,.0f}", f"{near + away:,.0f}")]


def _spread(what: str, values: np.ndarray) -> tuple[str, ...]:
    mean = values.mean()
    digits = 3 if "milliseconds" in what else 0
    balance = f"{values.max() / mean:.2f}" if mean else "-"
    return what, *(f"{v:,.{digits}f}" for v in (values.min(), mean, values.max())), balance


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return cells as columns, the first one to the left."""
    sizes = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(size) if place == 0 else cell.rjust(size)
            for place, (cell, size) in enumerate(zip(row, sizes, strict=True))
        )
        for row in rows
    ]


def ranks_text(ranks: Sequence[int]) -> str:
    """Return ranks as runs: 0-7, 9."""
    found = sorted(set(ranks))
    starts = [r for r in found if r - 1 not in found]
    ends = [r for r in found if r + 1 not in found]
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))


def _command(machines: Machines) -> str:
    return f"--world-size {machines.world_size} --hosts {machines.hosts}"


def _way_out(job: Job, machines: Machines, store: Store, scale: float) -> str:
    """Return that tables do not fit, and what would."""
    lines = [
        f"the tables do not fit {machines}: in training they take {size_text(job.shared)} that ranks "
        f"share and {size_text(job.replicated + job.maps)} on every rank, where all ranks together have "
        f"{size_text(machines.usable * machines.world_size)} ({RESERVED:.0%} of each device is left to "
        "the network)"
    ]
    enough = fewest(job, machines)
    if enough is not None:
        lines.append(f"they fit {enough}: {_command(enough)}")
    for table in dict.fromkeys((str(job.config.table), "hash")):
        ratio = _ratio(job, machines, store, scale, table)
        if ratio is not None:
            lines.append(f"they fit these machines with table={table} ratio={ratio:g}")
            break
    if len(lines) == 1:
        lines.append("use sharding.type=auto, or more memory a device")
    return "\n  ".join(lines)


def _ratio(job: Job, machines: Machines, store: Store, scale: float, table: str) -> float | None:
    """Return a ratio of two digits at which tables of a method fit, None if none is found.

    It is less than the bytes alone would allow where rows are padded or maps stay as they are.
    """
    room = (machines.usable - job.replicated) * machines.world_size
    if room <= 0 or not job.shared:
        return None
    for part in (1.0, 0.8, 0.5, 0.25):
        share = part * job.packed / job.uncompressed * room / job.shared
        digits = 1 - math.floor(math.log10(share))
        ratio = math.floor(share * 10**digits) / 10**digits
        changes = {"table": parse_table(table), "budget": None, "ratio": ratio}
        try:
            smaller = job_of(job.config.model_copy(update=changes), store, machines, scale)
        except ValueError:
            continue  # below what the method reaches
        if fits(smaller, machines):
            return ratio
    return None
