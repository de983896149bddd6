"""The run directory: everything that a run is told, sees and finds, and one process at a time."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import json
import logging
import logging.handlers
import math
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import yaml

from trainer.board import Board
from trainer.overrides import differences, read_preset

_LOGGERS = ("embtables", "data")
_PACKAGES = ("embtables", "torch", "torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu", "numpy", "polars")


_WHERE = {
    "backend": None,
    "sharding": None,
    "log": None,
    "train": ("device", "rank_timeout", "keep_checkpoints"),
}
"""Keys that say where a run computes and what it keeps or shows, not what it computes: a run that is
resumed may have other values there. None stands for a whole section."""


_WRITTEN = (
    *("config.yaml", "env.json", "log.txt", "metrics.jsonl", "summary.json", "fields.json"),
    *("model.safetensors", "checkpoints", "scores", "tensorboard"),
)
"""What a run writes, and another one throws away."""


def computed(config: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a resolved configuration that its numbers depend on."""
    kept = {key: value for key, value in config.items() if _WHERE.get(key, ()) is not None}
    for section, keys in _WHERE.items():
        if keys is not None and section in kept:
            kept[section] = {k: v for k, v in kept[section].items() if k not in keys}
    return kept


def config_hash(config: dict[str, Any]) -> str:
    """Return 8 hex digits that name a run: what a resolved configuration computes."""
    text = json.dumps(computed(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def default_path(recipe: str, config: dict[str, Any]) -> Path:
    """Return ``runs/<recipe>-<hash of the configuration>``."""
    return Path("runs") / f"{recipe.replace('/', '-')}-{config_hash(config)}"


class RunDir:
    """A locked run directory; use it as a context manager.

    Nothing is written, or thrown away, before `begin`: a run that its data or configuration stop leaves
    no trace.

    Layout: config.yaml (resolved), env.json, metrics.jsonl, summary.json (when finished), log.txt,
    model.safetensors (packed, when finished), scores/test.npy (its logits of the test rows, float32, in
    their order), checkpoints/step-<step>/ (`trainer.checkpoint`), tensorboard/ (if it is logged to).

    Args:
        path: the directory, made if it does not exist.
        config: the resolved configuration as plain values.
        fresh: take what an earlier run left for nothing, and throw it away at `begin`.
        writes: False on ranks that only read it: nothing is locked, checked or written there.
        log_to: "tensorboard" writes what metrics.jsonl gets to event files as well.

    Raises:
        ValueError: tensorboardX is missing; or the directory belongs to a run of another configuration
            (the message says in what), holds something else, is in use by another process, or is a file.
    """

    def __init__(
        self,
        path: Path,
        config: dict[str, Any],
        *,
        fresh: bool = False,
        writes: bool = True,
        log_to: Collection[str] = (),
    ) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.model = path / "model.safetensors"
        self.scores = path / "scores"
        self._config = config
        self._writes = writes
        self._fresh = self._new = fresh
        self._made = False
        self._log = logging.handlers.MemoryHandler(sys.maxsize, logging.CRITICAL + 1, None, False)
        board = writes and "tensorboard" in log_to
        self._board = Board(path / "tensorboard") if board else None

    def __enter__(self) -> RunDir:
        if not self._writes:
            return self
        if self.path.is_file():
            raise ValueError(f"{self.path}: a file; choose another --run-dir")
        stored = self.path / "config.yaml"
        known = (self.path / "lock").exists() and not (self.path / "runs").exists()  # of a sweep
        if self.path.is_dir() and any(self.path.iterdir()) and not known:
            raise ValueError(f"{self.path}: not empty and not a run; choose another --run-dir")
        self._made = not self.path.exists()
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock_file = lock(self.path, "--run-dir")
        try:
            kept = self.summary() is not None or any(self.checkpoints.glob("step-*"))
            self._new = self._new or not (stored.exists() and kept)
            if not self._new:
                self._refuse_other(read_preset(stored))
        except BaseException:
            self._lock_file.close()
            raise
        for name in _LOGGERS:
            logging.getLogger(name).addHandler(self._log)
            logging.getLogger(name).setLevel(logging.INFO)
        return self

    def begin(self) -> None:
        """Write down what is run and where, and keep a log from here on."""
        if not self._writes:
            return
        if self._fresh:
            self._clear()
        if self._new:
            _write(self.path / "config.yaml", yaml.safe_dump(self._config, sort_keys=False))
            self.rewind(0)
        self._new = self._made = False
        _write(self.path / "env.json", json.dumps(environment(), indent=2) + "\n")
        file = logging.FileHandler(self.path / "log.txt")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._log.setTarget(file)
        self._log.flush()
        self._log.capacity = 1

    def __exit__(self, *_: object) -> None:
        for name in _LOGGERS:
            logging.getLogger(name).removeHandler(self._log)
        if self._log.target is not None:
            self._log.target.close()
        if self._board is not None:
            self._board.close()
        if self._writes:
            if self._made:
                (self.path / "lock").unlink(missing_ok=True)
                with suppress(OSError):  # something else has come to lie there
                    self.path.rmdir()
            self._lock_file.close()

    def summary(self) -> dict[str, Any] | None:
        """Return the summary of a finished run, or None."""
        file = self.path / "summary.json"
        return json.loads(file.read_text()) if file.exists() and not self._new else None

    def finish(self, summary: dict[str, Any]) -> None:
        """Write summary.json, which makes the run a finished one."""
        _write(self.path / "summary.json", json.dumps(json_values(summary), indent=2) + "\n")

    def record(self, row: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        if not self._writes:
            return
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(json_values(row)) + "\n")
        if self._board is not None:
            self._board.add(row)

    def rewind(self, step: int) -> None:
        """Drop the lines of metrics.jsonl written after a step, which will be trained again."""
        file = self.path / "metrics.jsonl"
        if self._writes and file.exists():
            lines = file.read_text().splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("\n")]
            _write(file, "".join(line for line in whole if json.loads(line)["step"] <= step))
        if self._board is not None:
            self._board.rewind(step)

    def _clear(self) -> None:
        for item in (self.path / name for name in _WRITTEN):
            if item.is_dir():
                shutil.rmtree(item)
            else:
                item.unlink(missing_ok=True)

    def _refuse_other(self, stored: dict[str, Any]) -> None:
        changed = differences(computed(stored), computed(self._config))
        if changed:
            lines = "\n".join(f"  {line}" for line in changed)
            raise ValueError(
                f"{self.path}: holds a run of another configuration\n{lines}\n"
                "Give another --run-dir, or --fresh to throw the old run away."
            )


def lock(path: Path, option: str) -> TextIO:
    """Keep other processes out of a directory until the file returned is closed.

    Args:
        path: the directory.
        option: of the command line that names another one.

    Raises:
        ValueError: another process is there.
    """
    file = (path / "lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(file.fileno()), os.stat(file.name)):
            raise BlockingIOError
    except (BlockingIOError, FileNotFoundError):  # held, or taken away by the run that held it
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise ValueError(
            f"{path}: in use by process {holder}; wait for it or choose another {option}"
        ) from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def packed_model(path: Path) -> Path:
    """Return the file of the packed model of a finished run.

    Raises:
        ValueError: there is no run, or it is not finished.
    """
    if not (path / "config.yaml").exists():
        raise ValueError(f"{path}: no run here; give the directory that embtables train printed")
    if not (path / "summary.json").exists():
        raise ValueError(f"{path}: not finished; the same embtables train command resumes it")
    return path / "model.safetensors"


def environment() -> dict[str, Any]:
    """Return what a number depends on besides the configuration: versions, code, machine."""
    import torch

    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        **_git(),
        "cpu": _cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "ranks": int(os.environ.get("WORLD_SIZE", 1)),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "command": " ".join(sys.argv),
    }


def _git() -> dict[str, Any]:
    """Return commit and dirty flag of the source tree, None outside a git work tree."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return {"commit": None, "dirty": None}

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    try:
        return {
            "commit": git("rev-parse", "--verify", "--quiet", "HEAD") or None,
            "dirty": bool(git("status", "--porcelain")),
        }
    except FileNotFoundError:
        return {"commit": None, "dirty": None}


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def json_values(value: Any) -> Any:
    """Return a value with NaN and infinity as None, so that every JSON reader takes it."""
    if isinstance(value, dict):
        return {key: json_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_values(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(file: Path, text: str) -> None:
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    with temporary.open("w") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    temporary.replace(file)
