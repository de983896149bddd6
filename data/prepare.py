"""From a source to a prepared store: once for the same input, and all or nothing."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path

import xxhash

from data.build import Build, Progress
from data.schema import Column
from data.source import Source, SourceConfig, sources
from data.store import FORMAT

log = logging.getLogger(__name__)


def open_source(config: SourceConfig) -> Source:
    """Return the source that a configuration describes.

    Raises:
        ValueError: unknown kind.
    """
    return sources.get(config.kind)(config)


def prepare(source: Source, *, progress: Progress | None = None) -> Path:
    """Return the folder of the prepared store; it is made unless the same input was prepared before.

    The folder appears complete or not at all. Of several processes preparing into one folder, one
    works and the others wait for it.

    Raises:
        ValueError: the input is bad (file, line and what was expected), or cannot be split as asked.
    """
    folder = source.config.store
    path = folder / f"{source.config.kind}-{fingerprint(source)}"
    if path.is_dir():
        return path
    _check_columns(source.columns())
    folder.mkdir(parents=True, exist_ok=True)
    with _only_one(folder):
        if path.is_dir():
            return path
        # Whoever holds the lock is alone: temporary folders are those of runs that died.
        for stale in folder.glob(".*.tmp"):
            shutil.rmtree(stale)
        temporary = folder / f".{path.name}.tmp"
        try:
            temporary.mkdir()
            Build(source, temporary, progress or (lambda what, done, total: None)).run()
            _sync_all(temporary)
            temporary.rename(path)
            sync(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return path


def fingerprint(source: Source) -> str:
    """Return 16 hex digits that change with the settings, the input files and the store format."""
    files = [(path, path.stat()) for path in source.inputs()]
    facts = {
        "format": FORMAT,
        "config": source.config.model_dump(mode="json", exclude={"root", "store"}),
        "files": [(path.name, stat.st_size, stat.st_mtime_ns) for path, stat in files],
    }
    return xxhash.xxh64_hexdigest(json.dumps(facts, sort_keys=True).encode())


def _check_columns(columns: tuple[Column, ...]) -> None:
    names = [column.name for column in columns]
    for name in {*names, *(column.table_name for column in columns)}:
        if not re.fullmatch(r"[\w\- .]+", name) or name.startswith("."):
            raise ValueError(
                f"column or table {name!r} cannot name a file: use letters, digits, space, _ - ."
            )
        if names.count(name) > 1:
            raise ValueError(f"two columns are called {name!r}")
    ids = [column for column in columns if column.kind != "numeric"]
    for one, other in combinations(ids, 2):
        for option in ("vocabulary", "min_count"):
            a, b = getattr(one, option), getattr(other, option)
            if one.table_name == other.table_name and a != b:
                raise ValueError(
                    f"columns {one.name!r} and {other.name!r} share table {one.table_name!r} but "
                    f"differ in {option}: {a} and {b}. Give both the same"
                )


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the system frees it when the process ends, however it ends."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting for another process that prepares data in %s", folder)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _sync_all(folder: Path) -> None:
    """Bring a folder and all that is in it to the disk."""
    for path in sorted(folder.rglob("*")):
        sync(path)
    sync(folder)


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
