"""Plans for machines that are not here: bytes on the wire in closed form, sums, refusals, no memory."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.store import Store
from embtables.compressor import sharings
from embtables.rows.sharding import DoesNotFit, padded
from embtables.rows.wire import KINDS, Part, Shared, Wire, sent_in_a_step
from trainer.cli import main
from trainer.config import RunConfig, load_config
from trainer.datasets import open_store
from trainer.dryplan import dry_plan, ranks_text
from trainer.planning import (
    Job,
    Machines,
    Placement,
    fewest,
    job_of,
    mean_ids,
    place,
    size_text,
    trained_bytes,
)

TB = 10**12


# -- bytes on the wire -----------------------------------------------------------------------------

B, D = 10, 8
"""Rows of a rank's batch, and columns of a table, in the closed forms below."""


def sent(table: Shared, world_size: int, local: int) -> dict[str, np.ndarray]:
    """Return kind -> [W, 2] bytes within and between hosts, of one table."""
    wire = sent_in_a_step([table], world_size, local, B, averaged=0)
    return dict(zip(KINDS, wire.sent, strict=True))


def parts(columns: int, rows: list[int]) -> tuple[Part, ...]:
    return tuple(Part(rank, count, columns) for rank, count in enumerate(rows))


def test_wire_of_a_table_on_one_rank() -> None:
    # Two keys of one and three ids a row: 40 ids, 20 bags and 20 vectors on each rank.
    table = Shared("t", 100, "table_wise", (Part(1, 100, D),), (1.0, 3.0), bags=True)
    found = sent(table, world_size=2, local=2)
    assert found["ids"].tolist() == [[8 * (40 + 20), 0], [0, 0]]
    assert found["vectors"].tolist() == [[0, 0], [4 * D * 20, 0]]
    assert found["gradients"].tolist() == [[4 * D * 20, 0], [0, 0]]
    # Not added up: a vector an id, and one length a key.
    found = sent(replace(table, bags=False), world_size=2, local=2)
    assert found["ids"].tolist() == [[8 * (40 + 2), 0], [0, 0]]
    assert found["vectors"].tolist() == [[0, 0], [4 * D * 40, 0]]


def test_wire_tells_hosts_apart() -> None:
    table = Shared("t", 100, "table_wise", (Part(1, 100, D),), (1.0,), bags=True)
    found = sent(table, world_size=6, local=2)
    assert found["ids"].tolist() == [[160, 0], [0, 0], *[[0, 160]] * 4]
    assert found["vectors"][1].tolist() == [4 * D * B, 4 * 4 * D * B]


def test_wire_of_rows_on_all_ranks() -> None:
    table = Shared("t", 100, "row_wise", parts(D, [60, 40, 0]), (2.0,), bags=True)
    found = sent(table, world_size=3, local=3)
    ids = [8 * (share * 20 + B) for share in (0.6, 0.4, 0.0)]
    assert found["ids"][:, 0] == pytest.approx([ids[1] + ids[2], ids[0] + ids[2], ids[0] + ids[1]])
    # A reduce-scatter of the sums of all bags and an all-gather of their gradients, by all ranks.
    assert found["vectors"].tolist() == [[2 * 4 * D * B, 0]] * 3
    assert found["gradients"].tolist() == [[2 * 4 * D * B, 0]] * 3
    found = sent(replace(table, bags=False), world_size=3, local=3)
    assert found["vectors"][:, 0] == pytest.approx([2 * 4 * D * 12, 2 * 4 * D * 8, 0])
    assert found["gradients"].sum() == pytest.approx(2 * 4 * D * 20)


def test_wire_of_columns_sends_ids_for_each_part() -> None:
    cut = (Part(0, 100, 4), Part(1, 100, 4), Part(1, 100, 4))
    found = sent(Shared("t", 100, "column_wise", cut, (1.0,), bags=True), world_size=2, local=2)
    assert found["ids"].tolist() == [[2 * 160, 0], [160, 0]]
    assert found["vectors"].tolist() == [[4 * 4 * B, 0], [2 * 4 * 4 * B, 0]]
    assert found["gradients"].tolist() == [[2 * 4 * 4 * B, 0], [4 * 4 * B, 0]]


@pytest.mark.parametrize("kind", ["table_row_wise", "grid_shard"])
def test_wire_of_rows_within_a_host(kind: str) -> None:
    # Three hosts of two: ranks 2 and 3 hold the table.
    cut = (Part(2, 50, D), Part(3, 50, D))
    found = sent(Shared("t", 100, kind, cut, (1.0,), bags=True), world_size=6, local=2)
    each, v = 8 * (5 + B), 4 * D * B
    ids = [[0, 2 * each]] * 2 + [[each, 0]] * 2 + [[0, 2 * each]] * 2
    assert found["ids"].tolist() == ids
    # Sums of the batches of three hosts for the neighbour, then those of one's likes.
    vectors = [[0, 0]] * 2 + [[3 * v, 2 * v]] * 2 + [[0, 0]] * 2
    assert found["vectors"].tolist() == vectors
    gradients = [[0, v]] * 2 + [[3 * v, 0]] * 2 + [[0, v]] * 2
    assert found["gradients"].tolist() == gradients


def test_wire_of_what_is_whole_is_a_ring() -> None:
    wire = sent_in_a_step([], world_size=4, local=2, batch=B, averaged=100)
    assert wire.sent[KINDS.index("all-reduce")].tolist() == [[150, 0], [0, 150]] * 2
    assert sent_in_a_step([], 1, 1, B, averaged=100).sent.sum() == 0


def test_one_rank_sends_nothing() -> None:
    for kind in ("table_wise", "row_wise", "column_wise"):
        wire = Wire(1, 1)
        wire.add(Shared("t", 100, kind, (Part(0, 100, D),), (1.0,), bags=True), B)
        assert wire.sent.sum() == 0


# -- plans -----------------------------------------------------------------------------------------

Config = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Return the maker of a configuration on small data: 26 fields, and a history of one."""
    folder = tmp_path_factory.mktemp("planning")

    def make(*overrides: str) -> RunConfig:
        small = ("data.rows=2000", "data.history=true", f"data.store={folder}", "model.dim=8")
        return load_config("synthetic/autoint", (*small, *overrides)).config

    return make


@pytest.fixture(scope="module")
def store(config: Config) -> Store:
    return open_store(config())


def job(config: RunConfig, store: Store, machines: Machines, scale: float = 1.0) -> Job:
    return job_of(config, store, machines, scale)


def check_sums(job: Job, placed: Placement) -> None:
    tables = job.places.tables
    assert {one.name for one in placed.tables} | set(job.places.replicated) == set(tables)
    for one in placed.tables:
        cells = sum(part.rows * part.columns for part in one.parts)
        assert cells == one.rows * padded(tables[one.name].dim)
        assert {part.rank for part in one.parts} <= set(range(placed.machines.world_size))
    every = placed.machines.world_size * job.replicated
    assert placed.trained.sum() == job.shared + every
    assert (placed.memory >= placed.trained).all()
    assert placed.memory.max() <= placed.machines.usable
    alone = Wire(placed.machines.world_size, placed.machines.local)
    alone.all_reduce(job.averaged)
    for one in placed.tables:
        alone.add(one, job.batch(placed.machines))
    assert alone.sent == pytest.approx(placed.wire.sent)
    if placed.machines.hosts == 1:
        assert placed.wire.sent[:, :, 1].sum() == 0


def scale_to(job: Job, size: float) -> float:
    return size / job.uncompressed


@pytest.mark.parametrize(("ranks", "hosts", "ratio"), [(8, 1, 0.05), (128, 16, None)])
def test_a_terabyte_is_planned(
    config: Config, store: Store, ranks: int, hosts: int, ratio: float | None
) -> None:
    machines = Machines(ranks, hosts)
    of = config("table=hash", f"ratio={'null' if ratio is None else ratio}")
    scale = scale_to(job(config(), store, machines), TB)
    large = job(of, store, machines, scale)
    assert large.uncompressed == pytest.approx(TB, rel=1e-3)
    assert large.packed == pytest.approx((ratio or 1) * TB, rel=1e-3)
    assert large.shared == pytest.approx(3 * large.packed, rel=1e-3)  # Adam holds two moments
    placed = place(large, machines)
    check_sums(large, placed)
    enough = fewest(large, machines)
    assert enough is not None
    assert enough.world_size * enough.usable >= large.shared
    assert enough.hosts == (1 if ratio else 6)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_planning_allocates_no_table(config: Config, store: Store) -> None:
    def status(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024

    machines = Machines(16, 2)
    scale = scale_to(job(config(), store, machines), TB)  # loads what is loaded once, too
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    for table in ("hash", "graphhash", "multiplex+mde"):
        place(job(config(f"table={table}", "ratio=0.05"), store, machines, scale), machines)
    assert status("VmHWM") - before < 200 * 2**20


@pytest.mark.parametrize("kind", sharings.names())
def test_every_sharing_is_planned(config: Config, store: Store, kind: str) -> None:
    machines = Machines(4, 2)
    asked = config(f"table={kind}", "ratio=0.5")
    if sharings.get(kind).counted:
        with pytest.raises(ValueError, match=f"table={kind}: {kind} chooses ids by their training"):
            job(asked, store, machines, 10)
        planned = job(asked, store, machines)
    else:
        planned = job(asked, store, machines, 1000)
    check_sums(planned, place(planned, machines))


@pytest.mark.parametrize("kind", ["table_wise", "row_wise", "column_wise", "table_row_wise"])
def test_types_that_are_asked_for(config: Config, store: Store, kind: str) -> None:
    machines = Machines(4, 2)
    asked = job(
        config(f"sharding.type={kind}", "sharding.tables={C4: row_wise}", "rows.kind=adagrad"),
        store,
        machines,
    )
    placed = place(asked, machines)
    check_sums(asked, placed)
    assert {one.type for one in placed.tables if one.name != "C4"} == {kind}
    for one in placed.tables:
        if one.type == "column_wise":  # rows of 8 numbers have two parts of four
            assert [part.columns for part in one.parts] == [4, 4]
        if one.type == "table_row_wise":
            assert len({part.rank // 2 for part in one.parts}) == 1


def test_bags_are_as_long_as_those_of_the_data(config: Config, store: Store) -> None:
    values, offsets = store.split("train").jagged["C4_history"]
    mean = len(values) / (len(offsets) - 1)
    assert mean > 2
    assert mean_ids(store)["C4_history"] == pytest.approx(mean)
    planned = job(config("sharding.type=row_wise"), store, Machines(2))
    assert sorted(planned.ids["C4"]) == pytest.approx([1, mean])
    assert planned.ids["C5"] == (1,)


def test_sequences_are_read_id_by_id(config: Config, store: Store) -> None:
    machines, model = Machines(4, 2), "model={kind: din, dim: 8}"
    asked = job(config(model, "sharding.type=row_wise"), store, machines)
    placed = place(asked, machines)
    check_sums(asked, placed)
    assert [one.name for one in placed.tables if not one.bags] == ["C4"]
    asked = job(config(model, "sharding.type=table_row_wise"), store, machines)
    with pytest.raises(ValueError, match=r"table 'C4'.*read id by id; use row_wise"):
        place(asked, machines)


def test_optimizer_state_counts() -> None:
    from embtables.rows.optimizers import SGD, Adagrad, Adam, RowWiseAdagrad

    found = [trained_bytes(kind(), 10, 8) for kind in (SGD, RowWiseAdagrad, Adagrad, Adam)]
    assert found == [320, 320 + 40, 640, 960]


def test_every_process_makes_the_same_plan(
    config: Config, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchrec.distributed.planner.enumerators import EmbeddingEnumerator

    found = EmbeddingEnumerator._filter_sharding_types
    machines = Machines(2)  # row-wise and table-row-wise are equally good on one host of two
    asked = job(config("model.dim=16"), store, machines, 1000)

    def plan(falling: bool) -> list[tuple[str, str, tuple[Part, ...]]]:
        # TorchRec's order is that of a set of strings, another one in every process.
        monkeypatch.setattr(
            EmbeddingEnumerator,
            "_filter_sharding_types",
            lambda *arguments: sorted(found(*arguments), reverse=falling),
        )
        return [(one.name, one.type, one.parts) for one in place(asked, machines).tables]

    assert plan(falling=False) == plan(falling=True)


# -- what cannot be planned ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.batch_size=4"], "train.batch_size=4 leaves some of 8 ranks without a row"),
        (["table=full+pep"], "table=pep: pep searches in one process"),
        (["fields={C3: full+optembed}"], "fields.C3=optembed: optembed searches"),
        (["backend=native"], "backend=native is of one process; use backend=torchrec"),
        (["train.clip_norm=10"], "set train.clip_norm=null"),
        (["rows.kind=dense_adam"], "no fused dense_adam on cuda"),
        (["table=full+int8(train=true)"], "trains float32 rows, not int8"),
        (["sharding.tables={C99: row_wise}"], "there is no table 'C99'"),
    ],
)
def test_what_ranks_do_not_train_is_refused(
    config: Config, store: Store, overrides: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        job(config(*overrides), store, Machines(8))


def test_across_hosts_is_of_cuda(config: Config, store: Store) -> None:
    asked = config("sharding.type=table_row_wise", "rows.kind=adagrad")
    with pytest.raises(ValueError, match="table_row_wise is of CUDA devices"):
        job(asked, store, Machines(4, 2, "cpu", 10**9))


def test_machines_that_there_are_not() -> None:
    for arguments, message in {
        (0,): "--world-size must be at least 1",
        (8, 3): "--hosts 3 does not divide --world-size 8",
        (8, 1, "tpu"): "--device must be cuda or cpu",
    }.items():
        with pytest.raises(ValueError, match=message):
            Machines(*arguments)


def test_what_does_not_fit_says_what_would(config: Config, store: Store) -> None:
    machines = Machines(8)
    scale = scale_to(job(config(), store, machines), TB)
    with pytest.raises(DoesNotFit) as caught:
        dry_plan(config("table=hash"), machines, scale)
    text = str(caught.value)
    assert "do not fit 8 cuda devices of 80.0 GB: in training they take 3.0 TB" in text
    assert "they fit 6 hosts x 8 cuda devices of 80.0 GB: --world-size 48 --hosts 6" in text
    ratio = float(text.rpartition("with table=hash ratio=")[2])
    smaller = job(config("table=hash", f"ratio={ratio}"), store, machines, scale)
    check_sums(smaller, place(smaller, machines))
    assert smaller.shared > 0.7 * 8 * machines.usable


def test_a_table_that_no_rank_holds(config: Config, store: Store) -> None:
    machines = Machines(2)
    scale = scale_to(job(config(), store, machines), TB)
    with pytest.raises(DoesNotFit) as caught:
        dry_plan(config("sharding.type=data_parallel", "rows.kind=adagrad"), machines, scale)
    assert "2.0 TB on every rank" in str(caught.value)


def test_lazy_adam_is_not_data_parallel(config: Config) -> None:
    with pytest.raises(ValueError, match=r"data_parallel updates every row .* adam does not"):
        dry_plan(config("sharding.type=data_parallel"), Machines(2))


# -- the command -----------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    out, err = capsys.readouterr()
    return int(str(caught.value.code)), out, err


def test_command_prints_plan(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["data.rows=2000", "data.history=true", f"data.store={store.path.parent}"]
    options = ["--world-size", "8", "--hosts", "2", "--memory", "40GB", "--scale", "1000"]
    code, out, err = run(
        capsys, "train", "synthetic/autoint", *given, "--dry-run", *options,
        "--run-dir", str(tmp_path / "run"),
    )  # fmt: skip
    assert code == 0, err
    assert "machines   2 hosts x 4 cuda devices of 40.0 GB; 15% of each is left" in out
    for line in ("fewest", "tables and state, bytes", "estimated step, milliseconds", "gradients"):
        assert any(found.startswith(line) for found in out.splitlines())
    assert not (tmp_path / "run").exists()
    kinds = [line.split()[-3:] for line in out.splitlines()[-5:]]
    numbers = np.array([[int(cell.replace(",", "")) for cell in row] for row in kinds])
    assert numbers[:4].sum(0) == pytest.approx(numbers[4], abs=4)
    assert (abs(numbers[:, 0] + numbers[:, 1] - numbers[:, 2]) <= 1).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--world-size", "8"], "--world-size plans a run without training it: add --dry-run"),
        (["--hosts", "2"], "--hosts says what machines to plan for: add --dry-run --world-size N"),
        (["--dry-run", "--scale", "2"], "--scale says what machines to plan for"),
        (["--dry-run", "--world-size", "8", "--hosts", "3"], "does not divide"),
        (["--dry-run", "--world-size", "8", "--device", "cpu"], "such as --memory 32GB"),
        (["--dry-run", "--world-size", "8", "--memory", "big"], "'big' is not a size in bytes"),
        (["--dry-run", "--world-size", "8", "--scale", "0"], "--scale must be positive"),
    ],
)
def test_command_refuses(
    store: Store, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["data.rows=2000", "data.history=true", f"data.store={store.path.parent}"]
    code, out, err = run(capsys, "train", "synthetic/autoint", *given, *options)
    assert (code, out) == (2, "")
    assert message in err


def test_texts() -> None:
    assert ranks_text([3, 0, 1, 2, 5, 5]) == "0-3, 5"
    assert [size_text(size) for size in (0, 999, 80 * 10**9, 1.006e12)] == [
        "0 B",
        "999 B",
        "80.0 GB",
        "1.0 TB",
    ]
