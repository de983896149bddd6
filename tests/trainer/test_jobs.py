"""Runs in processes of their own: their ends, however they come."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from trainer import jobs
from trainer.config import RunConfig
from trainer.jobs import Job, finished, outcome_text, run_jobs
from trainer.loop import train
from trainer.rundir import lock
from trainer.signals import Interrupted

Tiny = Callable[..., RunConfig]


def test_what_fails_or_is_killed_leaves_the_others_alone(tiny: Tiny, tmp_path: Path) -> None:
    long = tiny("train.epochs=5000", "train.patience=5000")
    work = [
        Job(tiny("table=hash", "budget=1"), tmp_path / "small"),
        Job(long, tmp_path / "killed"),
        Job(tiny(), tmp_path / "good"),
    ]

    def kill(outcomes: Mapping[Path, Any], running: Sequence[Path], total: int) -> None:
        assert total == 3
        begun = (tmp_path / "killed" / "metrics.jsonl").exists()
        if running == [tmp_path / "killed"] and begun:
            for child in multiprocessing.active_children():  # it may take a while to end
                child.kill()

    outcomes = run_jobs(lambda _: work, look=kill)
    assert "budget of 1 bytes" in outcomes[tmp_path / "small"]["failure"]
    assert "killed by signal 9" in outcomes[tmp_path / "killed"]["failure"]
    assert outcomes[tmp_path / "good"] == finished(work[2])
    assert finished(work[1]) is None
    assert finished(Job(long, tmp_path / "good")) is None, "of another configuration"


def test_interrupted_runs_go_on_to_the_same_numbers(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny("train.epochs=60", "train.patience=60")
    job = Job(config, tmp_path / "run")

    def interrupt(outcomes: Mapping[Path, Any], running: Sequence[Path], total: int) -> None:
        if list((job.folder / "checkpoints").glob("step-*")):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        run_jobs(lambda _: [job], look=interrupt)
    assert finished(job) is None
    assert not multiprocessing.active_children()
    found = run_jobs(lambda _: [job])[job.folder]
    unbroken = train(config, tmp_path / "unbroken")
    assert found["test"] == unbroken["test"]
    assert "resuming" in (job.folder / "log.txt").read_text()


def test_a_process_that_ended_by_the_same_interruption_has_not_failed(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[Path, Any]] = []

    def interrupted(sentinels: Sequence[int], timeout: float) -> list[int]:
        for child in multiprocessing.active_children():
            child.kill()
            child.join()
        os.kill(os.getpid(), signal.SIGINT)
        return list(sentinels)

    monkeypatch.setattr(jobs, "wait", interrupted)
    job = Job(tiny(), tmp_path / "run")
    with pytest.raises(Interrupted):
        run_jobs(lambda _: [job], look=lambda outcomes, *_: told.append(dict(outcomes)))
    assert told == [{}]


def test_a_choice_waits_for_what_it_chooses_by(tiny: Tiny, tmp_path: Path) -> None:
    first = Job(tiny(), tmp_path / "first")
    second = Job(tiny("train.seed=1"), tmp_path / "second")
    known = {first.folder: {"valid": {"auc": 0.7}}}
    asked = []

    def wanted(outcomes: Mapping[Path, Any]) -> list[Job]:
        asked.append(set(outcomes))
        return [first, second] if first.folder in outcomes else [first]

    outcomes = run_jobs(wanted, known=known)
    assert outcomes[first.folder] == known[first.folder]
    assert not first.folder.exists()
    assert outcomes[second.folder]["seed"] == 1


def test_runs_stop_when_the_process_that_started_them_is_gone(
    raw: Path, tiny: Tiny, tmp_path: Path
) -> None:
    """What they did is kept: whoever comes next goes on from it."""
    config = tiny("train.epochs=2000", "train.patience=2000")
    (tmp_path / "config.json").write_text(json.dumps(config.plain()))
    code = """if True:
        import json, sys
        from pathlib import Path
        from trainer.config import RunConfig
        from trainer.jobs import Job, run_jobs
        folder = Path(sys.argv[1])
        config = RunConfig.model_validate(json.loads((folder / "config.json").read_text()))
        run_jobs(lambda _: [Job(config, folder / "run")])
    """
    started = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    run = tmp_path / "run"
    wait_until(lambda: (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").stat().st_size)
    started.kill()
    started.wait()
    lines = len((run / "metrics.jsonl").read_text().splitlines())
    wait_until(lambda: unlocked(run))
    assert lines <= len((run / "metrics.jsonl").read_text().splitlines()) < 2000
    assert any((run / "checkpoints").glob("step-*"))
    assert not (run / "summary.json").exists()


def wait_until(true: Callable[[], Any], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def unlocked(run: Path) -> bool:
    try:
        lock(run, "--run-dir").close()
    except ValueError:
        return False
    return True


def test_an_undefined_metric_is_said_in_words() -> None:
    outcome = {"monitor": "auc", "test": {"auc": None}, "bytes": {"file": 1200}}
    assert outcome_text(outcome) == "test auc undefined, 1,200 bytes"
