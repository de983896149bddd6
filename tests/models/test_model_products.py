"""Linear layers by oneDNN give what torch's do, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

from models import products

if not torch.backends.mkldnn.is_available():
    pytest.skip("this torch has no oneDNN", allow_module_level=True)


@pytest.fixture(autouse=True)
def onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """On every CPU."""
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)


def operands(shape: tuple[int, ...], outputs: int, bias: bool) -> list[torch.Tensor]:
    made = [torch.randn(*shape), torch.randn(outputs, shape[-1])] + [torch.randn(outputs)] * bias
    return [one.requires_grad_() for one in made]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("shape", "outputs"),
    [((300, 80), 70), ((7, 39, 16), 96), ((1, 3), 1), ((2, 100), 1), ((0, 5), 4)],
)
def test_as_torch(shape: tuple[int, ...], outputs: int, bias: bool) -> None:
    ours = operands(shape, outputs, bias)
    theirs = [one.detach().double().requires_grad_() for one in ours]
    found, expected = products.linear(*ours), functional.linear(*theirs)
    grad = torch.randn(expected.shape)
    found.backward(grad)
    expected.backward(grad.double())
    assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)
    for one, other in zip(ours, theirs, strict=True):
        assert one.grad is not None
        assert_close(one.grad.double(), other.grad, rtol=1e-5, atol=1e-4)


def test_strided_input() -> None:
    x, weight, _ = operands((64, 96), 70, True)
    half = x.detach()[:, ::2]
    assert_close(products.linear(half, weight[:, :48]), half @ weight[:, :48].T)


def test_onednn_gets_dense_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    # With room between rows it falls back to a product that is a hundred times slower.
    product, seen = products._product, []

    def spy(
        x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        seen.extend((x, weight))
        return product(x, weight, bias)

    monkeypatch.setattr(products, "_product", spy)
    x = torch.randn(100, 110).requires_grad_()
    weight = torch.randn(70, 100, requires_grad=True)
    products.linear(x[:, :100], weight).sum().backward()  # whose gradient is expanded
    assert len(seen) == 6
    assert all(one.is_contiguous() or one.t().is_contiguous() for one in seen)


def test_only_what_needs_a_gradient_gets_one() -> None:
    x, weight, bias = operands((64, 96), 70, True)
    x.requires_grad_(False)
    products.linear(x, weight, bias).sum().backward()
    assert x.grad is None
    assert_close(bias.grad, torch.full((70,), 64.0))


def test_other_numbers_are_torchs() -> None:
    x, weight, bias = (one.detach() for one in operands((3, 4), 5, True))
    with torch.autocast("cpu", torch.bfloat16):
        assert products.linear(x, weight, bias).dtype == torch.bfloat16
    assert products.linear(x.double(), weight.double()).dtype == torch.float64
