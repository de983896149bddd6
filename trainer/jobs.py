"""Runs in processes of their own, several at a time, none of which can take the others down."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from multiprocessing.resource_tracker import ensure_running
from pathlib import Path
from threading import Thread
from typing import Any

from trainer.config import RunConfig
from trainer.overrides import read_preset
from trainer.rundir import computed
from trainer.signals import Interrupted, StopSignal

Outcome = dict[str, Any]
"""The summary of a run, or {"failure": why there is none}."""

PATIENCE = 120.0
"""Seconds that a run has to write its checkpoint before it is killed."""

_LOOK = 0.25
_CTRL_C = (signal.SIGINT,)


@dataclass(frozen=True)
class Job:
    """A run that is wanted.

    Attributes:
        config: the run.
        folder: its run directory; ``<folder>.log`` has what it printed.
    """

    config: RunConfig
    folder: Path


@dataclass
class _Running:
    job: Job
    process: SpawnProcess
    told: Connection


def failed(reason: str) -> Outcome:
    """Return the outcome of a run that failed."""
    return {"failure": reason}


def outcome_text(outcome: Outcome) -> str:
    """Return an outcome in a few words."""
    if "failure" in outcome:
        return f"failed: {outcome['failure']}"
    metric = outcome["monitor"]
    value = outcome["test"][metric]
    shown = "undefined" if value is None else f"{value:.5f}"
    return f"test {metric} {shown}, {outcome['bytes']['file']:,} bytes"


def finished(job: Job) -> Outcome | None:
    """Return the summary in a run directory; None where there is none, or of another configuration."""
    file = job.folder / "summary.json"
    if not file.exists():
        return None
    stored = read_preset(job.folder / "config.yaml")
    same = computed(stored) == computed(job.config.plain())
    return json.loads(file.read_text()) if same else None


def run_jobs(
    wanted: Callable[[Mapping[Path, Outcome]], Sequence[Job]],
    at_a_time: int = 1,
    threads: int | None = None,
    known: Mapping[Path, Outcome] | None = None,
    look: Callable[[Mapping[Path, Outcome], Sequence[Path], int], None] = lambda *_: None,
) -> dict[Path, Outcome]:
    """Do all runs that are wanted and not finished.

    Args:
        wanted: says which runs are wanted, by what is known so far: a choice may wait for others.
        at_a_time: processes.
        threads: of each; default: the cores shared out among them.
        known: outcomes from before, by run directory; these are not run again.
        look: called now and then with the outcomes, what is running, and the number of runs wanted.

    Returns:
        Run directory -> outcome.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; what was running has kept what it needs to go on.
    """
    each = threads or max(1, (os.cpu_count() or 1) // at_a_time)
    outcomes = dict(known or {})
    running: dict[Path, _Running] = {}
    with StopSignal() as stop:
        try:
            while True:
                jobs = wanted(outcomes)
                for job in jobs:
                    done = None if job.folder in outcomes else finished(job)
                    if done is not None:
                        outcomes[job.folder] = done
                left = [job for job in jobs if job.folder not in outcomes | running]
                for job in left[: at_a_time - len(running)]:
                    running[job.folder] = _start(job, each)
                look(outcomes, list(running), len(jobs))
                if not running and wanted(outcomes) == jobs:
                    return outcomes
                wait([one.process.sentinel for one in running.values()], _LOOK)
                if stop():  # before a process that ended by the same Ctrl-C looks like a failure
                    raise Interrupted
                for folder in [f for f, one in running.items() if not one.process.is_alive()]:
                    outcomes[folder] = _outcome(running.pop(folder))
        finally:
            _stop(running.values())


def _start(job: Job, threads: int) -> _Running:
    told, tell = multiprocessing.Pipe(duplex=False)
    work = (job.config.plain(), job.folder, threads, tell)
    process = multiprocessing.get_context("spawn").Process(target=_run, args=work)
    ensure_running()  # or it would let the signal through at the first start
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _CTRL_C)
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    tell.close()
    return _Running(job, process, told)


def _run(config: dict[str, Any], folder: Path, threads: int, tell: Connection) -> None:
    """Train, in a process of its own that says why it fails."""
    os.setpgid(0, 0)  # Ctrl-C is for the first process, which passes it on
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _CTRL_C)
    Thread(target=_outlived, daemon=True).start()
    folder.parent.mkdir(parents=True, exist_ok=True)
    output = os.open(folder.with_name(f"{folder.name}.log"), os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    import torch

    from trainer.loop import train

    torch.set_num_threads(threads)
    try:
        train(RunConfig.model_validate(config), folder)
    except Interrupted:
        sys.exit(130)
    except Exception as error:
        tell.send(f"{type(error).__name__}: {' '.join(str(error).split())}")
        if not isinstance(error, ValueError | OSError | RuntimeError | MemoryError):
            raise


def _outlived() -> None:
    """Stop this process, as Ctrl-C does, once the one that started it is gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


def _outcome(one: _Running) -> Outcome:
    """Return what a process that ended has left."""
    one.process.join()
    with suppress(EOFError):
        if one.told.poll():
            return failed(one.told.recv())
    done = finished(one.job)
    if done is not None:
        return done
    code = one.process.exitcode or 0
    how = f"killed by signal {-code}" if code < 0 else f"ended with status {code}"
    memory = " (the system does so when memory runs out)" if code == -9 else ""
    return failed(f"{how}{memory}; see {one.job.folder.name}.log")


def _stop(running: Iterable[_Running]) -> None:
    """Ask processes to keep what they have, and wait until they did."""
    for one in running:
        one.process.terminate()
    deadline = time.monotonic() + PATIENCE
    for one in running:
        one.process.join(max(0.0, deadline - time.monotonic()))
        one.process.kill()
        one.process.join()
