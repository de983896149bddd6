"""The address kernels compute what the tensor code does on other devices."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from embtables import parallel
from embtables.compressor import Segments
from embtables.hashing import hash_rows
from embtables.rows import kernels

LENGTHS = st.lists(st.integers(0, 40), min_size=1, max_size=6)


@pytest.fixture(autouse=True, params=[1, 2])
def _threads(request: pytest.FixtureRequest):
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(1)


def _ids(segments: Segments, seed: int, low: int, high: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, (segments.total,), generator=generator)


@given(lengths=LENGTHS, seed=st.integers(0, 99))
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_hashes(lengths: list[int], seed: int, dtype: torch.dtype) -> None:
    segments = Segments(lengths)
    wide = 2**31 if dtype == torch.int32 else 2**63
    ids = _ids(segments, seed, -wide, wide - 1).to(dtype)
    salts = torch.arange(2 * len(lengths)).view(2, -1) * 0x9E3779B97F4A7 - 2**60
    rows = torch.arange(1, 2 * len(lengths) + 1).view(2, -1) * 997
    found = parallel.call(kernels.hash_rows, ids, salts, rows, segments.bounds)
    expected = hash_rows(ids, segments.spread(salts), segments.spread(rows))
    assert torch.equal(found, expected)


@given(lengths=LENGTHS, seed=st.integers(0, 99))
def test_quotients_and_remainders(lengths: list[int], seed: int) -> None:
    segments = Segments(lengths)
    ids, divisors = _ids(segments, seed, 0, 2**62), torch.arange(1, len(lengths) + 1) * 13
    found = parallel.call(kernels.divide, ids, divisors, segments.bounds)
    spread = segments.spread(divisors)
    assert torch.equal(found[0], torch.div(ids, spread, rounding_mode="floor"))
    assert torch.equal(found[1], ids % spread)


@given(lengths=LENGTHS, seed=st.integers(0, 99), low=st.integers(-3, 0), high=st.integers(1, 60))
def test_the_first_id_outside(lengths: list[int], seed: int, low: int, high: int) -> None:
    segments = Segments(lengths)
    ids, limits = _ids(segments, seed, low, high), torch.arange(len(lengths)) * 25
    spread = segments.spread(limits)
    outside = (((ids < 0) | (ids >= spread)) & (spread > 0)).nonzero().flatten().tolist()
    found = parallel.call(kernels.first_outside, ids, limits, segments.bounds)
    assert found == (outside[0] if outside else -1)
