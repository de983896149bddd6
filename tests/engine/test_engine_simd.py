"""Explicit vectors of kernels against NumPy."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numba import njit

from embtables.simd import LANES, exp, fill, load, maximum, store, transpose

lanes = arrays(np.float32, LANES, elements=st.floats(-1000, 1000, width=16))


@njit
def _arithmetic(x, y, out):
    a, b = load(x, 0), load(y, 0)
    for i, value in enumerate((a + b, a - b, a * b, a / b, maximum(a, b), fill(np.float32(2)))):
        store(out, i * LANES, value)


@njit
def _exp(x, out):
    for i in range(0, len(x), LANES):
        store(out, i, exp(load(x, i)))


@njit
def _transpose(x, start, step, out, first, stride):
    transpose(x, start, step, out, first, stride)


@given(lanes, lanes)
def test_arithmetic(x: np.ndarray, y: np.ndarray) -> None:
    y = np.where(abs(y) < 1e-3, np.float32(1), y)
    out = np.empty((6, LANES), np.float32)
    _arithmetic(x, y, out)
    expected = [x + y, x - y, x * y, x / y, np.maximum(x, y), np.full(LANES, 2)]
    np.testing.assert_array_equal(out, np.stack(expected).astype(np.float32))


def test_maximum_and_exp_keep_what_is_not_a_number() -> None:
    x, out = np.full(LANES, np.nan, np.float32), np.zeros((6, LANES), np.float32)
    _arithmetic(x, np.ones(LANES, np.float32), out)
    assert np.isnan(out[4]).all()
    _exp(x, out[0])
    assert np.isnan(out[0]).all()


def test_exp_is_float32_exact_from_minus_87_to_0() -> None:
    x = np.linspace(-87, 0, 1 << 16, dtype=np.float32)
    out = np.empty_like(x)
    _exp(x, out)
    np.testing.assert_allclose(out, np.exp(x.astype(np.float64)), rtol=2e-7)
    far = np.full(LANES, -1e30, np.float32)
    _exp(far, out)
    np.testing.assert_allclose(out[:LANES], np.exp(-87.0), rtol=2e-7)


@given(
    step=st.integers(LANES, LANES + 3),
    stride=st.integers(LANES, LANES + 3),
    start=st.integers(0, 5),
)
def test_transpose_moves_every_number_and_no_other(step: int, stride: int, start: int) -> None:
    x = np.arange(start + LANES * step, dtype=np.float32)
    out = np.full(3 + LANES * stride, -1, np.float32)
    _transpose(x, start, step, out, 3, stride)
    source = x[start:].reshape(LANES, step)[:, :LANES]
    expected = np.full((LANES, stride), -1, np.float32)
    expected[:, :LANES] = source.T
    np.testing.assert_array_equal(out[3:].reshape(LANES, stride), expected)
    assert (out[:3] == -1).all()
