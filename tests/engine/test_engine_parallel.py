"""Numba and torch share one pool of threads, of the size that torch is told."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import torch
torch.set_num_threads({threads})
from embtables import EmbeddingTables, Feature, SGD, Vocabulary, parallel
from embtables.torchrec_types import KeyedJaggedTensor
tables = EmbeddingTables([Feature("a", 8)], {{"a": Vocabulary(100)}}, optimizer=SGD())
ids = torch.arange(100)
batch = KeyedJaggedTensor(["a"], ids, lengths=torch.ones_like(ids))
tables.lookup(batch)[0].values().sum().backward()
tables.step()
print(torch.get_num_threads(), parallel.thread_count())
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_the_number_of_threads_stays(threads: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(threads=threads)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found, used = map(int, done.stdout.split())
    assert found == threads
    assert used <= threads
