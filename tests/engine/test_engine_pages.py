"""Large pages: tables and their optimizer state ask for them, and stay what they are."""

from __future__ import annotations

import mmap
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from embtables import Adam, EmbeddingTables, Feature, Vocabulary
from embtables.rows.pages import in_large_pages, large_zeros

SMAPS = Path("/proc/self/smaps")
ROWS, DIM = 100_000, 16

needs_large_pages = pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage/enabled").exists() or not SMAPS.exists(),
    reason="the kernel has no transparent large pages",
)


def asks(tensor: Tensor) -> bool:
    """Return whether the middle of a tensor lies in memory that asks for large pages."""
    place, inside = tensor.data_ptr() + tensor.nbytes // 2, False
    for line in SMAPS.read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(found[1], 16) <= place < int(found[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return "hg" in line.split()
    raise AssertionError("no mapping holds the tensor")


@needs_large_pages
def test_tables_and_their_optimizer_state_ask_for_large_pages():
    tables = EmbeddingTables(
        [Feature("item", DIM)], {"item": Vocabulary(ROWS)}, optimizer=Adam(), backend="native"
    )
    large = [t for t in tables.store.training_state().values() if t.nbytes > 2**20]
    assert len(large) == 3  # rows, mean, square
    assert all(map(asks, large))


@needs_large_pages
def test_memory_asks_only_once_it_is_told_to():
    fresh = mmap.mmap(-1, 2**24, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    tensor = torch.frombuffer(fresh, dtype=torch.float32)
    assert not asks(tensor)
    assert asks(in_large_pages(tensor))


@pytest.mark.parametrize("size", [0, 1, 5000, 3_000_000])
def test_tensors_stay_what_they_are(size: int):
    tensor = torch.arange(size)
    assert in_large_pages(tensor) is tensor
    assert torch.equal(tensor, torch.arange(size))
    zeros = large_zeros(torch.empty(0, dtype=torch.float16), size, 2)
    assert zeros.dtype == torch.float16
    assert zeros.shape == (size, 2)
    assert not zeros.any()
