"""The attention kernels over fields against PyTorch's."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from models.attention import attend
from models.autoint import AutoIntConfig, InteractingLayer


def _reference(
    projected: Tensor, heads: int, scale: float, factors: Tensor | float = 1.0
) -> Tensor:
    q, k, v = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in projected.chunk(3, 2))
    weights = functional.softmax(q @ k.transpose(2, 3) * scale, -1) * factors
    return (weights @ v).transpose(1, 2).flatten(2)


def _factors(batch: int, fields: int, heads: int, dropout: float, key: int) -> Tensor:
    """Return what attention weights [B, H, F, F] are multiplied with, by one field at a time."""
    columns = []
    for field in range(fields):
        projected = torch.zeros(batch, fields, 3 * heads)
        projected[:, field, 2 * heads :] = fields  # equal scores: each weight is 1 / F
        columns.append(attend(projected, heads, 1.0, dropout, key))
    return torch.stack(columns, -1).transpose(1, 2)


@given(
    batch=st.integers(1, 150),
    fields=st.integers(1, 12),
    heads=st.integers(1, 3),
    width=st.integers(1, 35),
    scale=st.floats(0.1, 2.0),
    spread=st.sampled_from([0.1, 1.0, 3.0]),
    dropout=st.sampled_from([0.0, 0.3]),
)
def test_agrees_with_torch(
    batch: int, fields: int, heads: int, width: int, scale: float, spread: float, dropout: float
) -> None:
    scale /= math.sqrt(width)
    generator = torch.Generator().manual_seed(batch)
    projected = spread * torch.randn(batch, fields, 3 * heads * width, generator=generator)
    gradient = torch.randn(batch, fields, heads * width, generator=generator)
    mine, exact = projected.clone().requires_grad_(), projected.double().requires_grad_()
    factors = _factors(batch, fields, heads, dropout, 5)
    found = attend(mine, heads, scale, dropout, 5)
    expected = _reference(exact, heads, scale, factors.double())
    found.backward(gradient)
    expected.backward(gradient.double())
    assert mine.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5 * spread)
    largest = float(exact.grad.abs().max())
    torch.testing.assert_close(mine.grad, exact.grad.float(), rtol=1e-5, atol=2e-5 * largest + 1e-5)


def test_dropout_drops_a_share_and_scales_the_rest() -> None:
    factors = _factors(500, 9, 2, 0.3, 1)
    assert set(factors.mul(1000).round().unique().tolist()) == {0.0, 1429.0}
    count = factors.numel()
    assert abs(float((factors == 0).double().mean()) - 0.3) < 5 * math.sqrt(0.21 / count)
    assert not torch.equal(factors, _factors(500, 9, 2, 0.3, 2))
    assert torch.equal(_factors(20, 3, 2, 0.0, 1), torch.ones(20, 2, 3, 3))


@pytest.mark.parametrize("part", ["query", "key", "value"])
def test_what_is_not_a_number_stays_so(part: str) -> None:
    projected = torch.randn(3, 4, 6)
    projected[1, 2, 2 * ["query", "key", "value"].index(part)] = math.nan
    found = attend(projected, 1, 1.0).isnan().any(2).any(1)
    assert found.tolist() == [False, True, False]


def test_threads_change_nothing() -> None:
    projected = torch.randn(300, 7, 24)
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            found.append(attend(projected, 2, 0.5))
        finally:
            torch.set_num_threads(1)
    assert torch.equal(*found)


@pytest.mark.parametrize("scale", [True, False])
def test_a_layer_is_the_same_in_float32_and_float64(scale: bool) -> None:
    """Float64 takes PyTorch's attention, float32 the kernels."""
    options = {"attention_dim": 12, "heads": 3, "scale": scale}
    layer = InteractingLayer(6, AutoIntConfig.model_validate(options))
    x = torch.randn(70, 5, 6)
    torch.testing.assert_close(layer(x).double(), layer.double()(x.double()), rtol=1e-5, atol=1e-5)
