"""Precision: error bounds, unbiased rounding, the edges of float16, and training in few bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from embtables import SGD, Adagrad, DenseAdam, EmbeddingTables, Feature, PackedTables, Vocabulary
from embtables.compressor import Precision, precisions
from embtables.torchrec_types import KeyedJaggedTensor

Kjt = Callable[..., KeyedJaggedTensor]


def _precision(kind: str) -> Precision:
    cls = precisions.get(kind)
    return cls(cls.Config())


def _rows(count: int = 500, dim: int = 16) -> Tensor:
    """Return rows whose sizes span 12 orders of magnitude, with a row of zeros."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(count, dim, generator=generator) * torch.logspace(-8, 4, count).unsqueeze(1)
    rows[3] = 0
    return rows


def test_int8_is_within_half_a_scale() -> None:
    rows = _rows()
    parts = _precision("int8").encode(rows)
    values, scale = parts["values"].numpy(), parts["scale"].numpy()
    assert values.dtype == np.int8
    assert scale.dtype == np.float32
    assert np.abs(values.astype(int)).max() == 127
    exact = rows.double().numpy()
    np.testing.assert_allclose(scale[:, 0], np.abs(exact).max(axis=1) / 127, rtol=1e-6)
    error = np.abs(values * scale.astype(np.float64) - exact)
    assert (error <= scale / 2 * (1 + 1e-5)).all()
    assert (values[3] == 0).all()
    decoded = _precision("int8").decode(parts)
    assert decoded.dtype == torch.float32
    np.testing.assert_allclose(decoded.numpy(), values * scale, rtol=1e-6)


def test_int8_again_is_the_same() -> None:
    """Rows that int8 holds come back bit for bit: packing a file twice loses nothing."""
    precision = _precision("int8")
    once = precision.encode(_rows())
    twice = precision.encode(precision.decode(once))
    assert torch.equal(once["values"], twice["values"])
    torch.testing.assert_close(once["scale"], twice["scale"], rtol=1e-6, atol=0)


def test_fp16_is_the_nearest() -> None:
    rows = _rows()
    parts = _precision("fp16").encode(rows)
    assert parts["values"].dtype == torch.float16
    expected = rows.numpy().astype(np.float16)
    assert np.array_equal(parts["values"].numpy(), expected)
    normal = (rows.abs() > 6.2e-5) & (rows.abs() < 65504)
    error = (_precision("fp16").decode(parts) - rows).abs()
    assert (error[normal] <= rows.abs()[normal] * 2.0**-11).all()


@pytest.mark.parametrize("stochastic", [False, True])
def test_fp16_clamps(stochastic: bool) -> None:
    noise = torch.Generator().manual_seed(0) if stochastic else None
    rows = torch.tensor([[1e30, -1e30, 65504.0, 65519.0, 65535.0, -65535.0, 0.0, -0.0]] * 50)
    found = _precision("fp16").decode(_precision("fp16").encode(rows, noise))
    assert torch.equal(found, rows.clamp(-65504, 65504))


SMALL = [3e-8, 1e-7, 5.9e-6, 6.0e-5, 6.2e-5, 1e-3, 0.3, 1.0, 1000.3, 65000.0]


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("value", SMALL)
def test_fp16_stochastic_rounding_is_unbiased(value: float, sign: int) -> None:
    count = 40_000
    rows = torch.full((count // 4, 4), sign * value)
    found = _precision("fp16").encode(rows, torch.Generator().manual_seed(5))["values"].double()
    exact = rows[0, 0].double()
    half = np.float16(float(exact))
    assert len(found.unique()) <= 2
    low, high = float(found.min()), float(found.max())
    assert low <= float(exact) <= high
    if low < high:
        # The two are neighbours: no float16 lies between them.
        assert np.nextafter(np.float16(low), np.float16(np.inf)) == np.float16(high)
        spread = (high - low) / 2 / count**0.5
        assert abs(float(found.mean() - exact)) < 4 * spread
    else:
        assert float(half) == float(exact)


def test_int8_stochastic_rounding_is_unbiased_and_independent() -> None:
    count = 20_000
    row = torch.tensor([1.0, 0.5034, -0.5034, 0.0011, -0.999, 0.0])
    precision = _precision("int8")
    parts = precision.encode(row.repeat(count, 1), torch.Generator().manual_seed(6))
    found = precision.decode(parts).double()
    step = 1 / 127
    assert float((found - row.double()).abs().max()) < step * (1 + 1e-5)
    error = (found.mean(dim=0) - row.double()).abs()
    assert (error <= 4 * step / 2 / count**0.5).all()
    assert len(found[:, 0].unique()) == len(found[:, 5].unique()) == 1
    # Every number has a draw of its own.
    correlation = torch.corrcoef(found[:, 1:4].T)
    assert float((correlation - torch.eye(3)).abs().max()) < 0.05


def test_rounding_repeats_under_a_seed() -> None:
    for kind in ("fp16", "int8"):
        first, second, third = (
            _precision(kind).encode(_rows(), torch.Generator().manual_seed(seed))["values"]
            for seed in (1, 1, 2)
        )
        assert torch.equal(first, second)
        assert not torch.equal(first, third)


@pytest.mark.parametrize(
    ("kind", "dim", "size"), [("fp32", 8, 32), ("fp16", 8, 16), ("int8", 8, 12)]
)
def test_row_bytes_are_those_of_the_parts(kind: str, dim: int, size: int) -> None:
    parts = _precision(kind).encode(torch.randn(5, dim))
    assert sum(part.nbytes for part in parts.values()) == 5 * size
    assert _precision(kind).row_bytes(dim) == size


@pytest.mark.parametrize("method", ["int8(train=true)", "fp16(train=true)"])
def test_updates_below_half_a_step_are_not_lost(kjt: Kjt, method: str) -> None:
    """A step of a twentieth of the rounding step: lost to nearest, kept on average."""
    features, vocabularies = [Feature("a", 8)], {"a": Vocabulary(400)}
    tables = EmbeddingTables(features, vocabularies, table=method, optimizer=SGD(lr=1.0), seed=3)
    start = torch.ones(400, 8)
    tables.store.load("a", start)
    size = 1 / 127 / 20 if "int8" in method else 2.0**-11 / 20
    batch = kjt({"a": [[i] for i in range(400)]})
    weight = torch.full((8,), size)
    weight[0] = 0  # holds the scale of int8 in place
    for _ in range(20):
        (tables.lookup(batch)[0].values() * weight).sum().backward()
        tables.step()
    found = tables.eval().lookup(batch)[0].values()
    assert torch.equal(found[:, 0], start[:, 0])
    assert float(found[:, 1:].mean()) == pytest.approx(1 - 20 * size, abs=size)


@pytest.mark.parametrize("method", ["int8(train=true)", "fp16(train=true)"])
def test_training_in_few_bits_learns_and_packs_exactly(kjt: Kjt, method: str) -> None:
    features, vocabularies = [Feature("a", 8)], {"a": Vocabulary(50)}
    tables = EmbeddingTables(features, vocabularies, table=method, optimizer=Adagrad(lr=0.3))
    target = torch.randn(50, generator=torch.Generator().manual_seed(1))
    batch = kjt({"a": [[i] for i in range(50)]})
    losses = []
    for _ in range(60):
        loss = (tables.lookup(batch)[0].values().sum(dim=1) - target).square().mean()
        loss.backward()
        tables.step()
        losses.append(loss.item())
    assert losses[-1] < 0.02 * losses[0]
    held = tables.store.export("a")
    assert held["values"].dtype == (torch.int8 if "int8" in method else torch.float16)
    packed = PackedTables.from_tensors(*tables.pack_tensors())
    found = tables.eval().lookup(batch)[0].values()
    assert torch.equal(packed.lookup(batch)[0].values(), found)
    row_bytes = 12 if "int8" in method else 16
    # Rows, and Adagrad's float32 sums of squares.
    assert tables.bytes().training == 50 * (row_bytes + 32)


def test_few_bits_are_refused_where_gradients_do_not_reach() -> None:
    def build(**options: Any) -> None:
        vocabularies = {"a": Vocabulary(9)}
        EmbeddingTables([Feature("a", 8)], vocabularies, table="int8(train=true)", **options)

    build(optimizer=SGD())
    with pytest.raises(ValueError, match=r"int8\(train=true\).*rows.kind=adagrad"):
        build()
    with pytest.raises(ValueError, match=r"dense_adam would round every row"):
        build(optimizer=DenseAdam())
    with pytest.raises(ValueError, match=r"computes in float32, not torch.float64"):
        build(optimizer=SGD(), dtype=torch.float64)
