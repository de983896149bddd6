"""Linear layers in float32 on CPUs whose vectors torch's library of matrix products does not use.

torch multiplies float32 matrices by MKL, which on AMD's CPUs stays with AVX2 where they have AVX-512.
oneDNN, which torch brings for other number formats, uses it: on an EPYC of family 26 a product takes
half the time. On other CPUs both are alike and torch's choice stays.

Shape letters: C inputs of a layer, U outputs, [..] rows.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

_NARROW = 64
"""Gradients of weights with fewer rows or columns are sums over long columns, which MKL does better."""


@cache
def onednn_is_faster() -> bool:
    """Return whether this CPU multiplies float32 matrices faster by oneDNN than by torch's library."""
    if sys.platform != "linux" or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    return both and "AuthenticAMD" in Path("/proc/cpuinfo").read_text()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x W^T + b, [.., U], as `torch.nn.functional.linear` does; autocast holds as there.

    Args:
        x: [.., C].
        weight: W, [U, C].
        bias: b, [U].
    """
    if (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and x.numel()
        and onednn_is_faster()
    ):
        found = _Linear.apply(x.reshape(-1, x.shape[-1]), weight, bias)
        return found.view(*x.shape[:-1], len(weight))  # pyright: ignore[reportAttributeAccessIssue]
    return functional.linear(x, weight, bias)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x W^T + b, by oneDNN.

    Both matrices are contiguous or transposed views of contiguous ones: with room between rows it falls
    back to a product that is a hundred times slower.
    """
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    """x W^T + b of matrices."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x, weight = x.contiguous(), weight.contiguous()
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable  # a second derivative would be wrong without a word
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad = grads[0].contiguous()
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (
            _product(grad, weight.t()) if for_x else None,
            _weight_gradient(grad, x) if for_weight else None,
            grad.sum(0) if for_bias else None,
        )


def _weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """Return grad^T x, [U, C]."""
    if min(grad.shape[1], x.shape[1]) < _NARROW:
        return grad.t() @ x
    # oneDNN would copy a transposed first operand too, at half the speed.
    return _product(grad.t().contiguous(), x.t())
