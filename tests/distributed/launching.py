"""Processes that train together, started as torchrun does, and ended together."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

Job = Callable[..., dict[str, Any]]

HERE = Path(__file__).parent
TESTS = HERE.parent
FOLDERS = (TESTS.parent, TESTS, TESTS / "contract", HERE)


def start(
    command: Sequence[str], world: int, env: Mapping[str, str] | None = None
) -> list[subprocess.Popen[str]]:
    """Start one process a rank of ``python COMMAND``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, FOLDERS)),
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        **(env or {}),
    }
    return [
        subprocess.Popen(
            [sys.executable, *command],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]


def finish(processes: Sequence[subprocess.Popen[str]], seconds: float = 240) -> list[str]:
    """Wait for all processes, kill those that take too long, and return what each printed."""
    try:
        deadline = time.monotonic() + seconds
        return [one.communicate(timeout=deadline - time.monotonic())[0] for one in processes]
    finally:
        for one in processes:
            one.kill()
            one.wait()


def run(command: Sequence[str], world: int = 2) -> None:
    """Run a command on all ranks to its end.

    Raises:
        AssertionError: a process failed; with what all of them printed.
    """
    processes = start(command, world)
    printed = finish(processes)
    failed = [rank for rank, one in enumerate(processes) if one.returncode]
    assert not failed, f"ranks {failed} failed:\n" + "\n----\n".join(printed)


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder that one of the processes which run the tests has filled."""
    base = factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with root.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / "made").exists():
            root.mkdir(exist_ok=True)
            make(root)
            (root / "made").touch()
    return root


def command(folder: Path, runs: Sequence[dict[str, Any]]) -> list[str]:
    """Return the arguments of a rank that does these runs, one after the other."""
    file = folder / "job.json"
    file.write_text(json.dumps(runs))
    return [str(HERE / "train_worker.py"), str(file)]


def train(folder: Path, runs: Sequence[dict[str, Any]], world: int) -> None:
    """Do runs on so many ranks, to their end."""
    run(command(folder, runs), world)
