"""The run directory: one configuration, one process, and files that are whole."""

from __future__ import annotations

import fcntl
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any, TextIO

import pytest
import torch

from trainer import checkpoint
from trainer.checkpoint import Checkpoints
from trainer.rundir import RunDir, config_hash, default_path, lock, packed_model

CONFIG = {"model": {"kind": "lr"}, "train": {"epochs": 3}}
OTHER = {"model": {"kind": "lr"}, "train": {"epochs": 4}}


def begun(path: Path) -> Path:
    """A run that has a checkpoint."""
    with RunDir(path, CONFIG) as run:
        run.begin()
        run.record({"step": 1, "auc": float("nan")})
        Checkpoints(run.checkpoints, "run").save(1, {"a": torch.zeros(1)}, {})
    return path


def test_other_configuration_is_refused_with_the_differences(tmp_path: Path) -> None:
    begun(tmp_path)
    with pytest.raises(
        ValueError, match=r"(?s)another configuration.*train\.epochs: 3 -> 4.*--fresh"
    ):
        RunDir(tmp_path, OTHER).__enter__()
    with RunDir(tmp_path, CONFIG) as run:
        assert any(run.checkpoints.iterdir())


def test_fresh_throws_the_old_run_away_when_the_new_one_begins(tmp_path: Path) -> None:
    begun(tmp_path)
    (tmp_path / "summary.json").write_text("{}")
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with RunDir(tmp_path, OTHER, fresh=True) as run:
        assert run.summary() is None
        logging.getLogger("embtables").warning("early")
    after = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert {**after, tmp_path / "lock": b""} == {**before, tmp_path / "lock": b""}
    with RunDir(tmp_path, OTHER, fresh=True) as run:
        logging.getLogger("embtables").warning("early")
        run.begin()
        assert {item.name for item in tmp_path.iterdir()} == {
            *("lock", "config.yaml", "env.json", "log.txt")
        }
        assert "early" in (tmp_path / "log.txt").read_text()


def test_run_that_does_not_begin_leaves_no_directory(tmp_path: Path) -> None:
    with RunDir(tmp_path / "runs" / "a", CONFIG):
        assert (tmp_path / "runs" / "a").exists()
    assert not (tmp_path / "runs" / "a").exists()


def test_other_files_in_a_directory_stay(tmp_path: Path) -> None:
    """Data may be prepared below it."""
    path = tmp_path / "a"
    store = path / "prepared" / "x.npy"
    with RunDir(path, CONFIG):
        store.parent.mkdir()
        store.touch()
    assert [item.name for item in path.iterdir()] == ["prepared"]
    (path / "lock").touch()
    for fresh in (False, True):
        with RunDir(path, CONFIG, fresh=fresh) as run:
            run.begin()
        assert store.exists()


def test_a_lock_that_was_taken_away_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run that held it ends, and takes its directory with it, while another one waits."""
    flock = fcntl.flock

    def late(file: TextIO, how: int) -> None:
        (tmp_path / "lock").unlink()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(ValueError, match="in use by process"):
        lock(tmp_path, "--run-dir")


def test_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    for fresh in (False, True):
        with pytest.raises(ValueError, match="not empty and not a run"):
            RunDir(tmp_path, CONFIG, fresh=fresh).__enter__()
    assert (tmp_path / "thesis.tex").read_text() == "x"


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").touch()
    with pytest.raises(ValueError, match=r"rows\.csv: a file"):
        RunDir(tmp_path / "rows.csv", CONFIG).__enter__()


def test_second_process_is_refused(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from trainer.rundir import RunDir\n"
        "try: RunDir(Path(sys.argv[1]), {}).__enter__()\n"
        "except ValueError as error: print(error)"
    )
    with RunDir(tmp_path, CONFIG):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
        )
    assert "in use by process" in done.stdout


def test_metrics_are_json_and_rewind_drops_later_and_torn_lines(tmp_path: Path) -> None:
    with RunDir(tmp_path, CONFIG) as run:
        run.begin()
        for step in (1, 2, 3):
            run.record({"step": step, "auc": float("nan")})
        file = tmp_path / "metrics.jsonl"
        file.write_text(file.read_text() + '{"step": 2, "au')
        run.rewind(2)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert rows == [{"step": 1, "auc": None}, {"step": 2, "auc": None}]


def test_log_goes_to_the_directory_while_it_is_open(tmp_path: Path) -> None:
    with RunDir(tmp_path, CONFIG) as run:
        logging.getLogger("data.rows").warning("dropped a row")
        run.begin()
        logging.getLogger("embtables").info("trained")
        assert "trained" in (tmp_path / "log.txt").read_text()
    logging.getLogger("embtables").warning("too late")
    text = (tmp_path / "log.txt").read_text()
    assert "dropped a row" in text
    assert "too late" not in text


def test_environment_names_versions_code_and_machine(tmp_path: Path) -> None:
    with RunDir(tmp_path, CONFIG) as run:
        run.begin()
        env = json.loads((tmp_path / "env.json").read_text())
    assert env["versions"]["torch"] == torch.__version__
    assert {
        "python",
        "commit",
        "dirty",
        "cpu",
        "cpu_capability",
        "cores",
        "threads",
        "gpu",
    } <= env.keys()


def test_name_of_a_run_depends_on_its_configuration_alone() -> None:
    assert config_hash(CONFIG) == config_hash(json.loads(json.dumps(CONFIG)))
    assert config_hash(CONFIG) != config_hash(OTHER)
    assert default_path("a/b", CONFIG) == Path("runs") / f"a-b-{config_hash(CONFIG)}"


def test_where_a_run_computes_is_not_what_it_computes(tmp_path: Path) -> None:
    elsewhere = {
        **CONFIG,
        "backend": "torchrec",
        "sharding": {"type": "row_wise"},
        "train": CONFIG["train"] | {"device": "cuda", "rank_timeout": 9, "keep_checkpoints": 5},
    }
    assert config_hash(elsewhere) == config_hash(CONFIG)
    begun(tmp_path)
    with RunDir(tmp_path, elsewhere) as run:
        assert any(run.checkpoints.iterdir())


def test_only_a_finished_run_has_a_packed_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no run here"):
        packed_model(tmp_path)
    with pytest.raises(ValueError, match="not finished"):
        packed_model(begun(tmp_path))


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.Adagrad, torch.optim.SGD])
def test_optimizer_state_round_trip(kind: type[torch.optim.Optimizer], tmp_path: Path) -> None:
    def step(optimizer: torch.optim.Optimizer, weight: torch.Tensor) -> None:
        weight.grad = weight.detach() * 2
        optimizer.step()

    options = {"lr": 0.1, "momentum": 0.9} if kind is torch.optim.SGD else {"lr": 0.1}
    weights = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    make: Any = kind
    first, second = (make([weight], **options) for weight in weights)
    for _ in range(3):
        step(first, weights[0])
    weights[1].data.copy_(weights[0].data)
    checkpoints = Checkpoints(tmp_path, "run")
    path = checkpoints.save(1, checkpoint.optimizer_tensors(first), {})
    checkpoint.load_optimizer_tensors(second, checkpoints.load(path, {}))
    step(first, weights[0])
    step(second, weights[1])
    assert torch.equal(weights[0], weights[1])
