"""Dropout whose mask on CPUs comes from a counter.

torch draws CPU masks one number after the other, which takes longer than the layer itself: of the
training step of DeepFM with three layers of 400 a quarter.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from embtables import parallel
from embtables.rows.kernels import mix32

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def masked(x: Tensor, key: int, p: float) -> Tensor:
    """Return a CPU tensor with each number zero with probability p, the others divided by 1 - p.

    Args:
        x: of any shape and any type of 2, 4 or 8 bytes.
        key: which mask, from 0 to 2^32 - 1.
        p: in [0, 1).
    """
    return _Masked.apply(x, key, p)  # pyright: ignore[reportReturnType]


class _Masked(torch.autograd.Function):
    """The input under a mask, which the way back makes again instead of keeping it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, key: int, p: float) -> Tensor:
        ctx.key, ctx.p = key, p
        x = x.contiguous()
        out = torch.empty_like(x)
        integers = (one.view(-1).view(_INTEGERS[x.element_size()]) for one in (x, out))
        parallel.call(_zero, *integers, np.uint32(key), np.uint32(p * 2.0**32))
        return out.mul_(1 / (1 - p))

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor, None, None]:
        return masked(grad, ctx.key, ctx.p), None, None


@njit(parallel=True, cache=True)
def _zero(x, out, key, bound, threads):
    """Copy numbers, as integers of the same bits, but those whose hash is below the bound."""
    for thread in prange(threads):
        begin, end = len(x) * thread // threads, len(x) * (thread + 1) // threads
        source, target = x[begin:end], out[begin:end]
        for i in range(len(source)):
            noise = mix32(mix32(np.uint32(begin + i)) ^ key)
            target[i] = source[i] * np.int16(noise >= bound)
