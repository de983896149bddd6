"""Kill training jobs at random moments, again and again: nothing may be lost, and nothing may hang.

    python tests/distributed/soak.py [--cycles 100] [--seed 0] [--folder DIR]

Every cycle starts a job of two ranks on a run that an earlier cycle left behind, and kills it: one
rank or all of them, after any time; while it prepares data, writes a checkpoint or packs the model.
The ranks left over must end by themselves within `LIMIT` seconds. A run that gets to its end must have
the history and the results of one that nothing disturbed; then the next one begins. Processes are
forked from this one, which has imported everything, so that a cycle takes seconds.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import random
import shutil
import signal
import socket
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

# Imported once, before the forks; not what starts threads, as the kernels' module does.
import torch
import torch.distributed.checkpoint
import torchrec.distributed.model_parallel
import torchrec.distributed.planner  # noqa: F401
from small_runs import DEEPFM

LIMIT = 60
"""Seconds within which all ranks of a job have ended."""

WORLD = 2


def die() -> None:
    """End as by SIGKILL."""
    os.kill(os.getpid(), signal.SIGKILL)


def after(path: str, name: str, calls: int) -> None:
    """Let the process die within the call of a function of a module that comes after so many."""
    module: Any = import_module(path)
    plain, left = getattr(module, name), [calls]

    def dying(*arguments: Any, **options: Any) -> Any:
        left[0] -= 1
        found = plain(*arguments, **options)
        if left[0] < 0:
            die()  # what was written is there, what should follow is not
        return found

    setattr(module, name, dying)


def child(recipe: Path, folder: Path, rank: int, port: int, prepare: Callable[[], None]) -> None:
    """Train as one rank, and leave as the command line does."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": "2"}
    log = os.open(folder / f"rank{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = 0
    try:
        from trainer import loop
        from trainer.config import load_config

        prepare()
        overrides = [f"data.store={folder / 'prepared'}", "train.rank_timeout=20"]
        loop.train(load_config(str(recipe), overrides).config, folder / "run")
    except (ValueError, OSError) as error:
        print(f"error: {error}", flush=True)
        code = 2
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        os._exit(code)


def start(recipe: Path, folder: Path, plans: dict[int, Callable[[], None]]) -> list[int]:
    """Fork the ranks of a job; some of them with a plan to die."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pids = []
    for rank in range(WORLD):
        pid = os.fork()
        if pid == 0:
            child(recipe, folder, rank, port, plans.get(rank, lambda: None))
        pids.append(pid)
    return pids


def ended(pids: list[int]) -> list[int]:
    """Wait for all ranks and return their codes.

    Raises:
        AssertionError: one hangs.
    """
    codes: dict[int, int] = {}
    deadline = time.monotonic() + LIMIT
    while len(codes) < len(pids):
        for pid in pids:
            if pid not in codes:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    codes[pid] = os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            for pid in set(pids) - codes.keys():
                os.kill(pid, signal.SIGKILL)
            raise AssertionError(f"a rank hangs: ended are {codes}")
        time.sleep(0.02)
    return [codes[pid] for pid in pids]


def attack(recipe: Path, folder: Path, rng: random.Random, seconds: float) -> tuple[str, list[int]]:
    """Start the job once and kill something; return what, and the codes of the ranks."""
    kind = rng.choice(["rank", "rank", "all", "checkpoint", "checkpoint", "prepare", "pack"])
    victim = rng.randrange(WORLD)
    if kind == "checkpoint":
        calls = rng.randrange(12)
        pids = start(
            recipe, folder, {victim: lambda: after("trainer.storage", "write_file", calls)}
        )
        return kind, ended(pids)
    if kind == "pack":
        return kind, ended(
            start(recipe, folder, {0: lambda: after("trainer.predict", "save_file", 0)})
        )
    if kind == "prepare":
        shutil.rmtree(folder / "prepared", ignore_errors=True)
    pids = start(recipe, folder, {})
    time.sleep(rng.uniform(0, 0.5 if kind == "prepare" else seconds))
    for pid in pids if kind == "all" else [pids[victim]]:
        os.kill(pid, signal.SIGKILL)
    return kind, ended(pids)


def results(folder: Path) -> Any:
    """Return what a finished run found: its history and its final metrics."""
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    summary = json.loads((folder / "run" / "summary.json").read_text())
    return [json.loads(line) for line in lines], summary["valid"], summary["test"]


def check(folder: Path, expected: Any) -> None:
    """Raise AssertionError unless a finished run has the expected results."""
    found = results(folder)
    assert len(found[0]) == len(expected[0]), f"another history in {folder}"
    for one, other in zip([*found[0], *found[1:]], [*expected[0], *expected[1:]], strict=True):
        for key, value in other.items():
            # Sums may be rounded in another order, nothing else may differ.
            same = one[key] == value or math.isclose(one[key], value, rel_tol=1e-6)
            assert same, f"{key} is {one[key]}, not {value}, in {folder}"


def soak(cycles: int, seed: int, root: Path) -> None:
    """Run the cycles and print what happened.

    Raises:
        AssertionError: a rank hung or ended without a clear error, or a run came to other results.
    """
    rng = random.Random(seed)
    recipe = root / "deepfm.yaml"
    recipe.write_text(DEEPFM)
    whole = root / "whole"
    whole.mkdir()
    began = time.monotonic()
    assert ended(start(recipe, whole, {})) == [0, 0], (whole / "rank0.log").read_text()
    seconds, expected = time.monotonic() - began, results(whole)
    kinds: Counter[str] = Counter()
    finished = lives = 0
    folder = root / "0"
    folder.mkdir()
    while sum(kinds.values()) < cycles:
        kind, codes = attack(recipe, folder, rng, seconds)
        lives += 1
        killed = -signal.SIGKILL in codes
        kinds[kind] += killed
        assert set(codes) <= {0, 2, -signal.SIGKILL}, f"{kind}: ended with {codes}, see {folder}"
        assert killed or codes == [0, 0], f"{kind}: ended with {codes}, see {folder}"
        if (folder / "run" / "summary.json").exists():
            check(folder, expected)
            finished += 1
            shutil.rmtree(folder)
            folder = root / str(finished)
            folder.mkdir()
    while not (folder / "run" / "summary.json").exists():
        assert ended(start(recipe, folder, {})) == [0, 0], (folder / "rank0.log").read_text()
    check(folder, expected)
    print(
        f"{sum(kinds.values())} kills ({dict(kinds)}) in {lives} starts; {finished + 1} runs came to "
        "their end, all with the results of an unbroken one"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cycles", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(1)
    soak(given.cycles, given.seed, given.folder or Path(tempfile.mkdtemp(prefix="soak")))
