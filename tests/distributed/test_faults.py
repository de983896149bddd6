"""What ranks do when something ends one of them: a clear error on the others, and a clean resume."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from launching import FOLDERS, Job, command, finish, once, start, train

from trainer.config import load_config
from trainer.rundir import RunDir

LIMIT = 60
"""Seconds after the end of one rank within which the other has ended."""


@pytest.fixture(scope="module")
def unbroken(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the test metrics of a run that nothing disturbed."""
    return metrics(
        once(
            tmp_path_factory,
            "unbroken",
            lambda root: train(root, [job("deepfm", root / "run")], 2),
        )
    )


def metrics(root: Path) -> dict[str, float]:
    return json.loads((root / "run" / "summary.json").read_text())["test"]


def ended(folder: Path, runs: list[dict[str, Any]]) -> list[tuple[int, str]]:
    """Return code and output of two ranks that do not finish their runs, and end soon after another."""
    processes = start(command(folder, runs), 2)
    times: dict[int, float] = {}
    longest = time.monotonic() + 240
    while len(times) < 2 and time.monotonic() < min(
        [longest, *(t + LIMIT for t in times.values())]
    ):
        for rank, one in enumerate(processes):
            if rank not in times and one.poll() is not None:
                times[rank] = time.monotonic()
        time.sleep(0.05)
    printed = finish(processes, seconds=1)
    return [(one.returncode, text) for one, text in zip(processes, printed, strict=True)]


@pytest.mark.parametrize(("killed", "at"), [([1], 17), ([0], 44), ([0, 1], 33)])
def test_killed_ranks_end_the_job_and_it_resumes(
    job: Job, tmp_path: Path, unbroken: Any, killed: list[int], at: int
) -> None:
    run = job("deepfm", tmp_path / "run", "train.rank_timeout=20")
    found = ended(tmp_path, [{**run, "kill_at": at, "kill": killed}])
    for rank, (code, text) in enumerate(found):
        if rank in killed:
            assert code == -9
        else:
            assert code == 2, text
            assert "another rank has ended or no longer answers" in text
    train(tmp_path, [run], 2)
    assert metrics(tmp_path) == pytest.approx(unbroken, rel=1e-6)


def test_loss_that_is_not_finite_ends_all_ranks(job: Job, tmp_path: Path) -> None:
    run = job("deepfm", tmp_path / "run", "rows.lr=1e30")
    for code, text in ended(tmp_path, [run]):
        assert code == 2
        assert "the loss became" in text


def test_directory_in_use_ends_all_ranks(job: Job, tmp_path: Path) -> None:
    run = job("deepfm", tmp_path / "run", "train.rank_timeout=5")
    config = load_config(run["recipe"], run["overrides"]).config
    with RunDir(tmp_path / "run", config.plain()):
        (code, text), (other, _) = ended(tmp_path, [run])
    assert code == 2
    assert f"in use by process {os.getpid()}" in text
    assert other != 0


def test_strict_refuses_what_changes_the_optimizer(job: Job, tmp_path: Path) -> None:
    overrides = ("rows.kind=rowwise_adagrad", "sharding.type=column_wise", "sharding.strict=true")
    for code, text in ended(tmp_path, [job("din", tmp_path / "run", *overrides)]):
        assert code == 2
        assert "rowwise_adagrad then takes the mean of each part" in text


def test_search_among_ranks_is_refused_on_all_of_them(job: Job, tmp_path: Path) -> None:
    run = job("deepfm", tmp_path / "run", "table=optembed")
    for code, text in ended(tmp_path, [run]):
        assert code == 2
        assert "optembed searches in one process" in text


def test_torchrun_restarts_a_killed_worker(job: Job, tmp_path: Path, unbroken: Any) -> None:
    run = {**job("deepfm", tmp_path / "run", "train.rank_timeout=20"), "kill_at": 37, "kill": [1]}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*torchrun, "--max_restarts=1", *command(tmp_path, [run])],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, FOLDERS)),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert metrics(tmp_path) == pytest.approx(unbroken, rel=1e-6)
