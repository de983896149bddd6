"""Sweeps, on an engine that plants the outcome of every run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.store import content_of
from trainer import sweep as module
from trainer.datasets import prepared
from trainer.grid import Axis, Grid, split_values
from trainer.jobs import Job, Outcome
from trainer.records import FILE, Records, read_records
from trainer.rundir import RunDir, lock
from trainer.summary import sweep_text
from trainer.sweep import default_folder, sweep

Plant = Callable[[Job], Outcome]


def outcome(job: Job, **values: float) -> Outcome:
    """Return a summary whose scores follow from the table, the learning rate and the seed."""
    found = {"auc": 0.7 + 0.01 * job.config.train.seed, "logloss": 0.5} | values
    return {
        "valid": found,
        "test": {"auc": 1 - found["auc"], "logloss": 0.4},
        "monitor": job.config.train.monitor,
        "bytes": {"file": 10, "uncompressed": 100},
        "rows_per_second": 5.0,
        "table": str(job.config.table),
        "data": content_of(prepared(job.config.data)),
    }


class Engine:
    """Stands for `run_jobs`: in order, one at a time."""

    def __init__(self) -> None:
        self.plant: Plant = outcome
        self.ran: list[Job] = []

    def __call__(
        self,
        wanted: Callable[[Mapping[Path, Outcome]], Sequence[Job]],
        jobs: int,
        threads: int | None,
        known: Mapping[Path, Outcome],
        look: Callable[..., None],
    ) -> dict[Path, Outcome]:
        outcomes = dict(known)
        look(outcomes, [], 0)
        while missing := [job for job in wanted(outcomes) if job.folder not in outcomes]:
            self.ran.append(missing[0])
            outcomes[missing[0].folder] = self.plant(missing[0])
            look(outcomes, [], len(wanted(outcomes)))
        return outcomes


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    engine = Engine()
    monkeypatch.setattr(module, "run_jobs", engine)
    return engine


@pytest.fixture
def grid(raw: Path) -> Callable[..., Grid]:
    place = (f"data.root={raw}", f"data.store={raw / 'prepared'}")

    def build(
        *over: str, tune: Sequence[str] = (), seeds: int = 2, given: Sequence[str] = ()
    ) -> Grid:
        axes = over or ("table=full,hash", "ratio=0.5,0.1")
        parse = Axis.parse
        return Grid(
            str(raw / "tiny.yaml"),
            (*place, *given),
            tuple(map(parse, axes)),
            tuple(map(parse, tune)),
            seeds,
        )

    return build


def scores(records: Records) -> list[tuple[Any, ...]]:
    return [(*one.cell.values(), one.seed) for one in records.runs if one.summary is not None]


plain = st.text("abc=+.", min_size=1)
values = st.recursive(
    plain,
    lambda inner: st.tuples(
        plain, st.lists(inner, max_size=3), st.sampled_from(["()", "[]", "{}"])
    ).map(lambda parts: parts[0] + parts[2][0] + ",".join(parts[1]) + parts[2][1]),
)


@given(st.lists(values, min_size=1))
def test_values_are_parted_at_commas_outside_brackets(texts: list[str]) -> None:
    assert split_values(",".join(texts)) == tuple(texts)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ratio", "expected key=value,value"),
        ("ratio=", "expected key=value,value"),
        ("ratio=0.1,,0.2", "expected key=value,value"),
        ("ratio=0.1,0.1", "0.1 given twice"),
        ("ratio=0.5,0.1,0.50", r"0\.50 given twice"),
        ("table=dnis(form=element", "brackets do not match"),
        ("table=hash)", "brackets do not match"),
        ("train.seed=1,2", "--seeds"),
    ],
)
def test_bad_axis(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Axis.parse(text)


def test_all_problems_of_a_grid_are_told_before_anything_runs(
    engine: Engine, grid: Callable[..., Grid], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="cells have problems") as caught:
        sweep(grid("table=full,hsah", "ratio=0.5,7", "modle.dim=4"), tmp_path / "sweep")
    text = str(caught.value)
    for word in ("hash", "ratio", "modle"):
        assert word in text
    assert not engine.ran
    assert not (tmp_path / "sweep").exists()
    with pytest.raises(ValueError, match="more than one axis"):
        grid("ratio=0.1", "ratio=0.2")


def test_every_cell_runs_once_first_seeds_first(
    engine: Engine, grid: Callable[..., Grid], raw: Path, tmp_path: Path
) -> None:
    records = sweep(grid(), tmp_path)
    seeds = [job.config.train.seed for job in engine.ran]
    assert seeds == [0] * 4 + [1] * 4
    assert sorted(scores(records)) == sorted(
        (table, ratio, seed)
        for table in ("full", "hash")
        for ratio in (0.5, 0.1)
        for seed in (0, 1)
    )
    assert records == read_records(tmp_path)
    assert records.axes == {"table": ["full", "hash"], "ratio": [0.5, 0.1]}
    assert str(raw) not in (tmp_path / FILE).read_text()
    assert "0.29500 ±0.00707" in sweep_text(records), "mean and deviation of 1 - .70 and 1 - .71"


def test_only_what_is_missing_is_run_even_without_run_directories(
    engine: Engine, grid: Callable[..., Grid], tmp_path: Path
) -> None:
    before = sweep(grid(), tmp_path)
    engine.ran.clear()
    assert sweep(grid(), tmp_path) == before
    assert not engine.ran
    more = sweep(grid("table=qr", "ratio=0.5", seeds=3), tmp_path)
    assert [str(job.config.table) for job in engine.ran] == ["qr"] * 3
    assert len(more.runs) == 11
    assert more.axes == {"table": ["full", "hash", "qr"], "ratio": [0.5, 0.1]}
    engine.ran.clear()
    assert len(sweep(grid(seeds=3), tmp_path).runs) == 15
    assert {job.config.train.seed for job in engine.ran} == {2}


def test_failures_are_kept_and_tried_again_when_asked(
    engine: Engine, grid: Callable[..., Grid], tmp_path: Path
) -> None:
    def plant(job: Job) -> Outcome:
        bad = job.config.ratio == 0.1 and job.config.train.seed == 0
        return {"failure": "ValueError: too small"} if bad else outcome(job)

    engine.plant = plant
    records = sweep(grid(), tmp_path)
    assert len(records.runs) == 8
    assert [one.failure for one in records.runs].count("ValueError: too small") == 2
    text = sweep_text(records)
    assert text.count("failed: ") == 2
    engine.ran.clear()
    sweep(grid(), tmp_path)
    assert not engine.ran
    engine.plant = outcome
    again = sweep(grid(), tmp_path, retry=True)
    assert len(engine.ran) == 2
    assert all(one.failure is None for one in again.runs)


@pytest.mark.parametrize("monitor", ["auc", "logloss"])
def test_tuning_looks_at_validation_only_and_gives_every_cell_the_same_tries(
    engine: Engine, grid: Callable[..., Grid], tmp_path: Path, monitor: str
) -> None:
    best = {"full": 0.01, "hash": 0.03}

    def plant(job: Job) -> Outcome:
        table = str(job.config.table).partition("+")[0]
        off = abs(job.config.rows.lr - best[table])
        return outcome(job, auc=0.9 - off, logloss=0.3 + off)

    engine.plant = plant
    tune = ["rows.lr=0.003,0.01,0.03"]
    given = [f"train.monitor={monitor}"]
    records = sweep(grid("table=full,hash", tune=tune, seeds=3, given=given), tmp_path)
    assert len(engine.ran) == 2 * (3 + 2)
    for one in records.runs:
        assert one.tuned == {"rows.lr": best[one.cell["table"]]}
    assert len(records.runs) == 6
    assert len(records.trials) == 6
    engine.ran.clear()
    assert sweep(grid("table=full,hash", tune=tune, seeds=3, given=given), tmp_path) == records
    assert not engine.ran


def test_cells_that_were_tuned_otherwise_are_not_mixed(
    engine: Engine, grid: Callable[..., Grid], tmp_path: Path
) -> None:
    sweep(grid("table=hash", tune=["rows.lr=0.01,0.03"]), tmp_path)
    engine.ran.clear()
    for tune in ([], ["rows.lr=0.01,0.1"]):
        with pytest.raises(ValueError, match="same tries"):
            sweep(grid("table=full", tune=tune), tmp_path)
    assert not engine.ran
    sweep(grid("table=full", tune=["rows.lr=0.01,0.03"]), tmp_path)
    assert len(engine.ran) == 3


def test_a_cell_whose_tuning_fails_is_a_failure(
    engine: Engine, grid: Callable[..., Grid], tmp_path: Path
) -> None:
    engine.plant = lambda job: {"failure": f"at {job.config.rows.lr}"}
    records = sweep(grid("table=hash", tune=["rows.lr=0.01,0.03"], seeds=3), tmp_path)
    assert len(engine.ran) == 2
    assert [one.failure for one in records.runs] == ["at 0.01"]


def test_a_folder_holds_one_configuration_and_one_sweep_at_a_time(
    engine: Engine, grid: Callable[..., Grid], tmp_path: Path
) -> None:
    sweep(grid(), tmp_path)
    with pytest.raises(ValueError, match=r"model.dim: 4 -> 6"):
        sweep(grid(given=["model.dim=6"]), tmp_path)
    with lock(tmp_path, "--sweep-dir"), pytest.raises(ValueError, match="in use by process"):
        sweep(grid(), tmp_path)


def test_a_sweep_and_a_run_do_not_take_each_others_folder(
    engine: Engine, grid: Callable[..., Grid], tmp_path: Path
) -> None:
    (tmp_path / "sweep" / "runs" / "one").mkdir(parents=True)
    (tmp_path / "sweep" / "lock").touch()
    for fresh in (False, True):
        with pytest.raises(ValueError, match="not empty and not a run"):
            RunDir(tmp_path / "sweep", {}, fresh=fresh).__enter__()
    assert (tmp_path / "sweep" / "runs" / "one").exists()
    with RunDir(tmp_path / "run", {}) as run:
        run.begin()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").touch()
    for name in ("run", "thesis"):
        with pytest.raises(ValueError, match="not empty and not a sweep"):
            sweep(grid(), tmp_path / name)
    assert not engine.ran


def test_what_was_trained_on_other_data_is_not_counted_in(
    engine: Engine, grid: Callable[..., Grid], tmp_path: Path
) -> None:
    engine.plant = lambda job: outcome(job) | {"data": "of-then"}
    with pytest.raises(ValueError, match=r"trained on of-then, and the raw files now give"):
        sweep(grid(), tmp_path)


def test_records_name_no_folder_and_the_environment_of_the_runs(
    engine: Engine, grid: Callable[..., Grid], tmp_path: Path
) -> None:
    def plant(job: Job) -> Outcome:
        if job.config.train.seed:
            return {"failure": "OSError: No space left on device: '/home/me/runs/model.part'"}
        job.folder.mkdir(parents=True)
        (job.folder / "env.json").write_text(json.dumps({"commit": "then", "command": "/home/me"}))
        return outcome(job)

    engine.plant = plant
    records = sweep(grid(), tmp_path)
    assert records.environment == {"commit": "then"}
    assert {one.failure for one in records.runs if one.failure is not None} == {
        "OSError: No space left on device: 'model.part'"
    }
    assert "/home" not in (tmp_path / FILE).read_text()


def test_records_say_which_runs_were_made_elsewhere(
    engine: Engine, grid: Callable[..., Grid], tmp_path: Path
) -> None:
    def plant(job: Job) -> Outcome:
        job.folder.mkdir(parents=True)
        where = {"cpu": f"cpu {job.config.train.seed}", "cores": 2}
        (job.folder / "env.json").write_text(json.dumps(where))
        return outcome(job)

    engine.plant = plant
    records = sweep(grid("table=hash", seeds=2), tmp_path)
    assert records.environment == {"cpu": "cpu 0", "cores": 2}
    assert [one.environment for one in records.runs] == [{}, {"cpu": "cpu 1"}]
    shutil.rmtree(tmp_path / "runs")
    assert sweep(grid("table=hash", seeds=2), tmp_path) == records


def test_a_seed_that_would_be_passed_over_is_refused(grid: Callable[..., Grid]) -> None:
    with pytest.raises(ValueError, match=r"train\.seed: seeds are counted by --seeds"):
        grid(given=["train.seed=5"])


def test_the_folder_depends_on_what_all_cells_share(grid: Callable[..., Grid]) -> None:
    assert default_folder(grid()) == default_folder(grid("table=qr", seeds=9))
    assert default_folder(grid()) != default_folder(grid(given=["model.dim=6"]))


def test_records_that_are_none_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_text(json.dumps({"format": 1, "runs": []}))
    with pytest.raises(ValueError, match="not the records of a sweep"):
        read_records(file)
    with pytest.raises(ValueError, match="neither a run nor a sweep"):
        read_records(tmp_path / "nothing")
