"""Checkpoints of a run: one folder each, whole or not there, checksummed, the last few kept.

    checkpoints/step-00000420/
        0.bin, 1.bin, ..   tensors and shards, one file a rank (`trainer.storage`)
        content.json       values, the name of the best checkpoint so far, and the index of the tensors
        manifest.json      the run, and bytes and xxh3_128 of the other files; written last

A folder is written as ``.step-00000420.part``; once all of it is on disk it is renamed. None is ever
overwritten: a second checkpoint at a step, as where one stage ends and the next begins, is
``step-00000420.1``. So what a name stands for (the best weights of a stage) does not change.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from data.prepare import sync
from embtables.ranks import on_first, rank
from trainer.storage import (
    Index,
    Records,
    dtype_of,
    read_tensors,
    write_file,
    write_tensors,
)

log = logging.getLogger("embtables")

_MARK = "/"
_NAME = re.compile(r"step-(\d{8,})(?:\.(\d+))?")
_CONTENT, _MANIFEST = "content.json", "manifest.json"


class Checkpoints:
    """The checkpoints of one run. Several ranks all make the same calls, on a folder that all see.

    Args:
        folder: where they are; made when the first is written.
        run: names the run (a hash of its configuration); those of another run are refused.
        keep: that many are kept, and besides them the best one that each of them names.
    """

    def __init__(self, folder: Path, run: str, keep: int = 2) -> None:
        self.folder, self.run, self.keep = folder, run, keep
        self._verified: Path | None = None
        self._passed_over: list[Path] = []

    def name(self, step: int) -> str:
        """Return the name that the next checkpoint gets if it is saved at this step."""
        return on_first(lambda: self._name(step))

    def save(
        self,
        step: int,
        tensors: Mapping[str, Tensor],
        values: dict[str, Any],
        best: str | None = None,
    ) -> Path:
        """Write a checkpoint, then remove those that are no longer to be kept.

        The tensors are not copied; they must not change meanwhile.

        Args:
            step: batches trained on so far.
            tensors: name -> tensor. Plain ones are the same on all ranks and written once, but those
                below ``rng/`` are each rank's own; shards are written by who holds them.
            values: whatever JSON can hold; those of rank 0 count.
            best: the checkpoint with the best weights so far, maybe this one (`name`).

        Returns:
            Its folder, below `folder`.

        Raises:
            OSError: the disk is full, or cannot be written for another reason; earlier checkpoints
                are as they were.
        """
        name = self.name(step)
        path, part = self.folder / name, self.folder / f".{name}.part"
        try:
            on_first(lambda: self._open(part))
            index, files = write_tensors(part, {_stored_name(key): t for key, t in tensors.items()})
            content = {"values": values, "best": best, "tensors": index}
            on_first(lambda: self._close(part, path, content, files))
        except BaseException as error:
            if rank() == 0:
                shutil.rmtree(part, ignore_errors=True)
            if isinstance(error, OSError):
                raise _not_written(path, tensors, error) from error
            raise
        on_first(self._prune)
        return path

    def latest(self) -> Path | None:
        """Return the newest whole checkpoint of this run, None where there is no checkpoint.

        One that is damaged, incomplete or of another run is passed over with a warning; the next
        save removes it.

        Raises:
            ValueError: there are checkpoints, and none is whole.
        """
        return on_first(self._latest)

    def values(self, path: Path) -> dict[str, Any]:
        """Return the values of a checkpoint.

        Raises:
            ValueError: it is not a whole checkpoint of this run.
        """
        self._verify(path)
        return _content(path)["values"]

    def load(
        self, path: Path, into: Mapping[str, Tensor], without: str | None = None
    ) -> dict[str, Tensor]:
        """Return the tensors of a checkpoint, whichever ranks wrote it.

        Args:
            path: its folder.
            into: tensors to fill in place; shards get their part. All others that are stored are
                made on the CPU, whole.
            without: what begins with this is left out.

        Returns:
            All of them. Of those below ``rng/`` a rank gets its own, if there was such a rank.

        Raises:
            ValueError: it is not a whole checkpoint of this run, or one in `into` is not in it or
                of another size or type there.
        """
        self._verify(path)
        index = _content(path)["tensors"]
        names = {
            name: stored
            for name, stored in _names(index).items()
            if without is None or not name.startswith(without)
        }
        for name, tensor in into.items():
            _check_fits(path, index, name, tensor)
        tensors = {
            name: into[name] if name in into else _empty(index[stored])
            for name, stored in names.items()
        }
        read_tensors(path, index, {names[name]: tensor for name, tensor in tensors.items()})
        return tensors

    # -- on rank 0 ---------------------------------------------------------------------------------

    def _all(self) -> list[Path]:
        """Return all folders that are named like checkpoints, the oldest first."""
        named = [path for path in self.folder.glob("step-*") if _NAME.fullmatch(path.name)]
        return sorted((path for path in named if path.is_dir()), key=_order)

    def _name(self, step: int) -> str:
        taken = [serial for other, serial in map(_order, self._all()) if other == step]
        return f"step-{step:08d}" + (f".{max(taken) + 1}" if taken else "")

    def _open(self, part: Path) -> None:
        """Make the folder to write into."""
        self._verified = None
        self._sweep()
        part.mkdir(parents=True)

    def _close(self, part: Path, path: Path, content: Any, files: Records) -> None:
        """Write what describes the tensors, and give the folder its name."""
        for name, record in files.items():
            if not (part / name).exists() or (part / name).stat().st_size != record["bytes"]:
                raise OSError(
                    f"{part / name} was written by another rank and is not here: the run directory must "
                    "be in a file system that all hosts share"
                )
        files = files | {_CONTENT: write_file(part / _CONTENT, [_json(content)])}
        manifest = {"run": self.run, "files": files}
        write_file(part / _MANIFEST, [_json(manifest)])
        sync(part)
        part.rename(path)
        sync(self.folder)

    def _prune(self) -> None:
        """Keep the last ones, and what they name as best."""
        last = [path for path in self._all() if path not in self._passed_over][-self.keep :]
        kept = {path.name for path in last} | {_best(path) for path in last}
        for path in self._all():
            if path.name not in kept:
                # Half of a checkpoint must not lie there under a name that promises a whole one.
                path.rename(self.folder / f".{path.name}.part")
        self._passed_over = []
        self._sweep()

    def _sweep(self) -> None:
        """Remove what a writer or a remover that was killed has left."""
        for part in self.folder.glob(".step-*.part"):
            shutil.rmtree(part, ignore_errors=True)

    def _latest(self) -> Path | None:
        self._sweep()
        flaws: dict[Path, str] = {}
        for path in reversed(self._all()):
            flaw = _flaw(path, self.run)
            if flaw is None:
                if flaws:
                    log.warning("%s; going back to %s", _listed(flaws), path.name)
                self._verified, self._passed_over = path, list(flaws)
                return path
            flaws[path] = flaw
        if flaws:
            raise ValueError(f"no checkpoint is whole: {_listed(flaws)}; start over with --fresh")
        return None

    def _verify(self, path: Path) -> None:
        def verify() -> None:
            if path != self._verified:
                flaw = _flaw(path, self.run)
                if flaw is not None:
                    raise ValueError(f"{path}: {flaw}; start over with --fresh")
                self._verified = path

        on_first(verify)


def _order(path: Path) -> tuple[int, int]:
    """Return step and serial number."""
    match = _NAME.fullmatch(path.name)
    assert match
    return int(match[1]), int(match[2] or 0)


def _listed(flaws: dict[Path, str]) -> str:
    return "; ".join(f"{path}: {flaw}" for path, flaw in flaws.items())


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _content(path: Path) -> dict[str, Any]:
    return json.loads((path / _CONTENT).read_bytes())


def _best(path: Path) -> str | None:
    """Return which checkpoint a checkpoint names as best, None if it can no longer be read."""
    try:
        return _content(path)["best"]
    except (OSError, ValueError, KeyError):
        return None


def _flaw(path: Path, run: str) -> str | None:
    """Return what is wrong with a checkpoint, None if it is whole and of this run."""
    try:
        manifest = json.loads((path / _MANIFEST).read_bytes())
        writer, files = manifest["run"], manifest["files"]
        files = {path / name: (one["bytes"], one["xxh3_128"]) for name, one in files.items()}
    except OSError:
        return f"not a checkpoint, or not a whole one: it has no readable {_MANIFEST}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{_MANIFEST} is damaged"
    if path / _CONTENT not in files:
        return f"{_MANIFEST} is damaged"
    if writer != run:
        return f"a checkpoint of another run (configuration {writer}, not {run})"
    return next(filter(None, (_file_flaw(file, *files[file]) for file in files)), None)


def _file_flaw(file: Path, size: int, digest: str) -> str | None:
    try:
        found = file.stat().st_size
        if found != size:
            return f"{file.name} has {found} bytes, not {size}"
        with file.open("rb") as handle:
            same = hashlib.file_digest(handle, xxhash.xxh3_128).hexdigest() == digest
    except OSError as error:
        return f"{file.name} cannot be read ({error.strerror})"
    return None if same else f"{file.name} is damaged: its hash is another one"


def _not_written(path: Path, tensors: Mapping[str, Tensor], error: OSError) -> OSError:
    """Return the error of a checkpoint that could not be written, for who can make room."""
    needed = sum(math.prod(one.size()) * one.dtype.itemsize for one in tensors.values())
    free = shutil.disk_usage(next(folder for folder in path.parents if folder.exists())).free
    return OSError(
        f"{path}: could not be written ({error.strerror or error}): it takes {needed / 1e6:,.1f} MB "
        f"and {free / 1e6:,.1f} MB are free there. Earlier checkpoints are whole: make room and give "
        "the same command again, which goes on from the last one"
    )


# -- names of tensors ------------------------------------------------------------------------------

_RNG = f"rng{_MARK}"


def _stored_name(name: str) -> str:
    """Return the name to store a tensor by: that of a generator's state carries the rank."""
    return f"{_RNG}{rank()}{_MARK}{name[len(_RNG) :]}" if name.startswith(_RNG) else name


def _names(index: Index) -> dict[str, str]:
    """Return name -> stored name of the tensors that are this rank's, or everyone's."""
    own = _stored_name(_RNG)
    plain = {name: name for name in index if not name.startswith(_RNG)}
    return plain | {_RNG + name[len(own) :]: name for name in index if name.startswith(own)}


def _empty(stored: dict[str, Any]) -> Tensor:
    return torch.empty(stored["size"], dtype=dtype_of(stored))


def _check_fits(path: Path, index: Index, name: str, tensor: Tensor) -> None:
    """Raise ValueError if a tensor cannot be filled from a checkpoint."""
    stored = index.get(_stored_name(name))
    if stored is None:
        raise ValueError(f"{path}: holds no tensor {name!r}; start over with --fresh")
    found, wanted = [(torch.Size(stored["size"]), dtype_of(stored)), (tensor.size(), tensor.dtype)]
    if found != wanted:
        raise ValueError(
            f"{path}: {name!r} is {_shape(*found)} there and {_shape(*wanted)} here; "
            "start over with --fresh"
        )


def _shape(size: torch.Size, dtype: torch.dtype) -> str:
    return f"{dtype}{list(size)}".removeprefix("torch.")


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with their names put under a prefix."""
    return {f"{prefix}{_MARK}{name}": tensor for name, tensor in tensors.items()}


def taken(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors that lie under a prefix, with the prefix taken off."""
    head = prefix + _MARK
    return {name[len(head) :]: t for name, t in tensors.items() if name.startswith(head)}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the state of a PyTorch optimizer as ``<parameter>/<name>`` -> tensor."""
    return {
        f"{index}{_MARK}{name}": value
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
        if isinstance(value, Tensor)
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put the state of `optimizer_tensors` back; learning rates stay what they are."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(_MARK)
        state.setdefault(int(index), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
