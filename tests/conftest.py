"""What all suites share: one compute thread, repeatable hypothesis runs, small batches."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from embtables.torchrec_types import KeyedJaggedTensor

Bags = Mapping[str, Sequence[Sequence[int]]]

settings.register_profile("embtables", deadline=None, derandomize=True, database=None)
settings.load_profile("embtables")


@pytest.fixture(scope="session")
def kjt() -> Callable[[Bags], KeyedJaggedTensor]:
    """Return the maker of a KeyedJaggedTensor from key -> bags of ids, one bag a row."""
    import torch

    from embtables.torchrec_types import KeyedJaggedTensor

    def make(bags: Bags) -> KeyedJaggedTensor:
        ids = [i for rows in bags.values() for bag in rows for i in bag]
        lengths = [len(bag) for rows in bags.values() for bag in rows]
        return KeyedJaggedTensor(
            keys=list(bags),
            values=torch.tensor(ids, dtype=torch.long),
            lengths=torch.tensor(lengths, dtype=torch.long),
        )

    return make
