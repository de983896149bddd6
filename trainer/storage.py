"""Tensors of a checkpoint on disk: planned by torch.distributed.checkpoint, stored as plain bytes.

A rank writes the tensors and shards that fall to it into one file, one behind the other, row-major and
unpadded. An index that JSON can hold says where each of them lies:

    {name: {"dtype": "float32", "size": [R, d], "pieces": [{"file", "at", "offsets", "sizes"}, ..]}}

`at` is a byte, `offsets` and `sizes` say which part of the tensor the piece is. Bytes are written from
where they lie in memory and read into where they belong, some megabytes at a time: tables that fill
more than half of the memory are stored and read all the same. Nothing is pickled.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
import xxhash
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from embtables.ranks import patient, rank, ranks

Index = dict[str, dict[str, Any]]
Records = dict[str, dict[str, Any]]
T = TypeVar("T")

CHUNK = 2**24
"""Bytes that are hashed, written or read at a time."""


@contextmanager
def _plainly() -> Iterator[None]:
    """Raise what went wrong on some rank, not its wrapper; no remark that there is one process."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            yield
    except CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from None


# -- writing -------------------------------------------------------------------------------------


def write_file(file: Path, parts: Iterable[Any]) -> dict[str, Any]:
    """Write buffers to a file and wait until they are on disk; return its bytes and xxh3_128."""
    digest = xxhash.xxh3_128()
    with file.open("wb") as handle:
        for part in parts:
            digest.update(part)
            handle.write(part)
        handle.flush()
        os.fsync(handle.fileno())
        return {"bytes": handle.tell(), "xxh3_128": digest.hexdigest()}


def write_tensors(folder: Path, tensors: Mapping[str, Tensor]) -> tuple[Index, Records]:
    """Write tensors as ``<rank>.bin``; all ranks call it.

    Args:
        folder: where to; it exists.
        tensors: plain ones are the same on all ranks, unless only some ranks name them.

    Returns:
        On rank 0 the index, and file -> bytes and hash; on other ranks nothing.

    Raises:
        OSError: a file could not be written.
    """
    writer = _Writer(folder)
    planner = DefaultSavePlanner(flatten_state_dict=False)
    with _plainly():
        save(dict(tensors), storage_writer=writer, planner=planner, process_group=_together())
    return writer.index, writer.records


def _together() -> ProcessGroup | None:
    """Return the ranks that write and read, None for one process."""
    return patient() if ranks() > 1 else None


class _Writer(FileSystemWriter):
    """Writes one file a rank, and keeps the index instead of pickling it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.index: Index = {}
        self.records: Records = {}

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        future: Future[list[WriteResult]] = Future()
        future.set_result(self._write(plan, planner) if plan.items else [])
        return future

    def _write(self, plan: SavePlan, planner: SavePlanner) -> list[WriteResult]:
        name = f"{rank()}.bin"
        tensors = [cast("Tensor", planner.resolve_data(item)) for item in plan.items]
        starts = accumulate((tensor.nbytes for tensor in tensors), initial=0)
        record = write_file(Path(self.path) / name, _bytes_of(tensors))
        return [
            WriteResult(item.index, tensor.nbytes, (name, start, record))
            for item, tensor, start in zip(plan.items, tensors, starts, strict=False)
        ]

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        found = {one.index: one.storage_data for of_rank in results for one in of_rank}
        for name, one in metadata.state_dict_metadata.items():
            assert isinstance(one, TensorStorageMetadata)
            pieces = []
            for chunk in one.chunks:
                file, at, self.records[file] = found[MetadataIndex(name, chunk.offsets)]
                place = {"offsets": list(chunk.offsets), "sizes": list(chunk.sizes)}
                pieces.append({"file": file, "at": at, **place})
            dtype = str(one.properties.dtype).removeprefix("torch.")
            self.index[name] = {"dtype": dtype, "size": list(one.size), "pieces": pieces}


def _bytes_of(tensors: Iterable[Tensor]) -> Iterator[np.ndarray]:
    """Yield the bytes of tensors, row-major; only one that is not contiguous is copied whole."""
    for tensor in tensors:
        # A tensor of one number may have any stride and counts as contiguous.
        flat = tensor.detach().contiguous().as_strided((tensor.numel(),), (1,)).view(torch.uint8)
        for part in flat.split(CHUNK):
            yield part.cpu().numpy()


# -- reading -------------------------------------------------------------------------------------


def dtype_of(stored: dict[str, Any]) -> torch.dtype:
    """Return the dtype that an entry of the index names."""
    return getattr(torch, stored["dtype"])


def read_tensors(folder: Path, index: Index, tensors: Mapping[str, Tensor]) -> None:
    """Fill tensors in place, however they were cut when they were written; all ranks call it.

    Args:
        folder: where `write_tensors` wrote.
        index: what it returned.
        tensors: all of them in the index, with the same sizes.
    """
    planner = DefaultLoadPlanner(flatten_state_dict=False)
    with _plainly():
        reader = _Reader(folder, index)
        load(dict(tensors), storage_reader=reader, planner=planner, process_group=_together())


class _Reader(FileSystemReader):
    """Reads what `_Writer` wrote."""

    def __init__(self, folder: Path, index: Index) -> None:
        super().__init__(folder)
        self.index = index

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        tensors, places = {}, {}
        for name, one in self.index.items():
            properties = TensorProperties(dtype=dtype_of(one))
            chunks = []
            for piece in one["pieces"]:
                offsets, sizes = torch.Size(piece["offsets"]), torch.Size(piece["sizes"])
                chunks.append(ChunkStorageMetadata(offsets, sizes))
                places[MetadataIndex(name, offsets)] = piece, properties.dtype
            tensors[name] = TensorStorageMetadata(properties, torch.Size(one["size"]), chunks)
        return Metadata(tensors, storage_data=places)

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        for item in plan.items:
            target = planner.resolve_tensor(item).detach()
            self._read(item, target if target.dim() else target.view(1))
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def _read(self, item: ReadItem, target: Tensor) -> None:
        """Fill the part of a tensor that one piece holds, a block of rows at a time."""
        piece, dtype = self.storage_data[item.storage_index]
        row = piece["sizes"][1:]
        width = dtype.itemsize * math.prod(row)
        first = item.storage_offsets[0] if piece["sizes"] else 0
        columns = list(zip(item.storage_offsets, item.lengths, strict=True))[1:]
        block = max(1, CHUNK // width)
        with (Path(self.path) / piece["file"]).open("rb") as file:
            file.seek(piece["at"] + first * width)
            for part in target.split(block):
                data = np.fromfile(file, np.uint8, len(part) * width)
                rows = torch.from_numpy(data).view(dtype).view(len(part), *row)
                for dim, (start, length) in enumerate(columns, 1):
                    rows = rows.narrow(dim, start, length)
                part.copy_(rows)
