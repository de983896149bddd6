"""Dropout by counter against its definition."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from models.dropout import masked
from models.layers import Dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9])
def test_a_share_p_is_zero_and_the_rest_is_scaled(p: float, dtype: torch.dtype) -> None:
    x = torch.full((1000, 400), 3.0, dtype=dtype)
    found = masked(x, 7, p)
    assert found.dtype == dtype
    zero = found == 0
    torch.testing.assert_close(found[~zero], (x / (1 - p))[~zero])
    for share, count in ((zero.double().mean(), 400_000), (zero[:, 5].double().mean(), 1000)):
        assert abs(float(share) - p) <= 5 * math.sqrt(p * (1 - p) / count)


def test_masks_of_keys_and_of_places_are_independent() -> None:
    zeros = [masked(torch.ones(2**18), key, 0.5) == 0 for key in (0, 1, 2, 2**31)]
    pairs = [(a, b) for i, a in enumerate(zeros) for b in zeros[:i]]
    for lag in (1, 2, 64, 400):
        pairs += [(zero[lag:], zero[:-lag]) for zero in zeros]
    for one, other in pairs:
        assert abs(float((one == other).double().mean()) - 0.5) < 5 * 0.5 / math.sqrt(len(one))


def test_the_gradient_has_the_mask_of_the_values() -> None:
    x = torch.randn(300, 7, requires_grad=True)
    found = masked(x, 3, 0.4)
    (grad,) = torch.autograd.grad(found.sum(), x)
    assert torch.equal(grad == 0, found == 0)
    wide = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda one: masked(one, 3, 0.4), (wide,))
    assert torch.autograd.gradgradcheck(lambda one: masked(one, 3, 0.4), (wide,))


def _drawn(x: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    layer = Dropout(0.5)
    return layer(x), layer(x)


def test_masks_follow_torchs_generator_and_its_threads_do_not_matter() -> None:
    x = torch.randn(64, 64)
    first, second = _drawn(x, 0)
    assert not torch.equal(first, second)
    assert not torch.equal(first, _drawn(x, 1)[0])
    torch.set_num_threads(2)
    try:
        again = _drawn(x.t().contiguous().t(), 0)
    finally:
        torch.set_num_threads(1)
    assert torch.equal(first, again[0])
    assert torch.equal(second, again[1])


def test_nothing_is_dropped_in_evaluation() -> None:
    x = torch.randn(4, 4)
    assert torch.equal(Dropout(0.5).eval()(x), x)
