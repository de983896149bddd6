"""Self-attention over the fields of a row, for CPUs: many tiny problems at once.

    out = softmax(Q K^T * scale) V     for each row and head

General attention kernels are made for long sequences; a row has ten to forty fields, and their time
goes into transposing and into calls on matrices of 10 x 32. These kernels take sixteen rows at a time,
one in each lane of a vector register, so that every product, maximum and exponential is a vector
operation without a single reduction across lanes.

Shape letters: B rows of a batch, F fields, H heads, A attention width of all heads, a = A / H,
L lanes, N = ceil(B / L) blocks of rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor
from torch.autograd.function import once_differentiable

from embtables import parallel

LANES = 64
_FAST = {"reassoc", "contract", "nsz", "arcp"}


class FieldAttention(torch.autograd.Function):
    """softmax(Q K^T * scale) V of float32 CPU tensors."""

    @staticmethod
    def forward(ctx: Any, projected: Tensor, heads: int, scale: float) -> Tensor:
        """Return [B, F, A] from [B, F, 3 A]."""
        batch, fields, width = projected.shape
        weights = projected.new_empty(-(-batch // LANES), heads, fields, fields, LANES)
        out = projected.new_empty(batch, fields, width // 3)
        parallel.call(_forward, projected, np.float32(scale), weights, out)
        ctx.save_for_backward(projected, weights)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable  # a second derivative would be wrong without a word
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor, None, None]:
        """Return the gradient [B, F, 3 A] of the projections."""
        projected, weights = ctx.saved_tensors
        out = torch.empty_like(projected)
        parallel.call(_backward, projected, weights, grads[0], np.float32(ctx.scale), out)
        return out, None, None


def attend(projected: Tensor, heads: int, scale: float) -> Tensor:
    """Return softmax(Q K^T * scale) V, [B, F, A] float32, of projections [B, F, 3 A] on a CPU."""
    return FieldAttention.apply(projected.float(), heads, scale)  # pyright: ignore[reportReturnType]


@njit(inline="always", fastmath=_FAST)
def _exp(x):
    """Return e^x for x <= 0 to float32 precision, in a form that vectorises (Cephes' polynomial)."""
    x = max(x, np.float32(-87.0))
    n = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1)
    return p * np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)


@njit(inline="always")
def _pack(source, block, start, out):
    """Copy columns start .. start + a of sixteen rows to out [F, a, L]; past the end, the last row."""
    lanes = out.shape[2]
    for lane in range(lanes):
        b = min(block * lanes + lane, source.shape[0] - 1)
        for i in range(out.shape[0]):
            for c in range(out.shape[1]):
                out[i, c, lane] = source[b, i, start + c]


@njit(inline="always")
def _unpack(packed, block, start, out):
    """Copy [F, a, L] to columns start .. start + a of sixteen rows."""
    lanes = packed.shape[2]
    for lane in range(min(lanes, out.shape[0] - block * lanes)):
        b = block * lanes + lane
        for i in range(packed.shape[0]):
            for c in range(packed.shape[1]):
                out[b, i, start + c] = packed[i, c, lane]


@njit(inline="always", fastmath=_FAST)
def _products(x, y, out):
    """out[i, j] = sum_c x[i, c] * y[j, c], lane by lane."""
    lanes = x.shape[2]
    for i in range(x.shape[0]):
        for j in range(y.shape[0]):
            for lane in range(lanes):
                out[i, j, lane] = 0
        for c in range(x.shape[1]):
            for j in range(y.shape[0]):
                for lane in range(lanes):
                    out[i, j, lane] += x[i, c, lane] * y[j, c, lane]


@njit(inline="always", fastmath=_FAST)
def _mix(p, x, out):
    """out[i, c] = sum_j p[i, j] * x[j, c], lane by lane."""
    lanes = x.shape[2]
    for i in range(out.shape[0]):
        for c in range(out.shape[1]):
            for lane in range(lanes):
                out[i, c, lane] = 0
        for j in range(x.shape[0]):
            for c in range(out.shape[1]):
                for lane in range(lanes):
                    out[i, c, lane] += p[i, j, lane] * x[j, c, lane]


@njit(inline="always", fastmath=_FAST)
def _mix_transposed(p, x, out):
    """out[j, c] = sum_i p[i, j] * x[i, c], lane by lane."""
    lanes = x.shape[2]
    for j in range(out.shape[0]):
        for c in range(out.shape[1]):
            for lane in range(lanes):
                out[j, c, lane] = 0
        for i in range(x.shape[0]):
            for c in range(out.shape[1]):
                for lane in range(lanes):
                    out[j, c, lane] += p[i, j, lane] * x[i, c, lane]


@njit(inline="always", fastmath=_FAST)
def _softmax(scores, scale, largest, total):
    """Replace scores [F, F, L] by their softmax over the second dimension."""
    lanes = scores.shape[2]
    fields = scores.shape[0]
    for i in range(fields):
        for lane in range(lanes):
            largest[lane] = scores[i, 0, lane]
            total[lane] = 0
        for j in range(1, fields):
            for lane in range(lanes):
                largest[lane] = max(largest[lane], scores[i, j, lane])
        for j in range(fields):
            for lane in range(lanes):
                scores[i, j, lane] = _exp(scale * (scores[i, j, lane] - largest[lane]))
                total[lane] += scores[i, j, lane]
        for lane in range(lanes):
            total[lane] = np.float32(1) / total[lane]
        for j in range(fields):
            for lane in range(lanes):
                scores[i, j, lane] *= total[lane]


@njit(inline="always", fastmath=_FAST)
def _softmax_backward(p, ds, scale, mean):
    """Replace dP in `ds` by scale * P * (dP - sum_j P dP)."""
    lanes = p.shape[2]
    fields = p.shape[0]
    for i in range(fields):
        for lane in range(lanes):
            mean[lane] = 0
        for j in range(fields):
            for lane in range(lanes):
                mean[lane] += p[i, j, lane] * ds[i, j, lane]
        for j in range(fields):
            for lane in range(lanes):
                ds[i, j, lane] = scale * p[i, j, lane] * (ds[i, j, lane] - mean[lane])


@njit(parallel=True, cache=True, fastmath=_FAST)
def _forward(projected, scale, weights, out, threads):
    blocks, heads, fields, _, lanes = weights.shape
    width = out.shape[2]
    a = width // heads
    for t in prange(threads):
        q = np.empty((fields, a, lanes), np.float32)
        k, v, mixed = np.empty_like(q), np.empty_like(q), np.empty_like(q)
        scores = np.empty((fields, fields, lanes), np.float32)
        largest, total = np.empty(lanes, np.float32), np.empty(lanes, np.float32)
        for block in range(blocks * t // threads, blocks * (t + 1) // threads):
            for h in range(heads):
                _pack(projected, block, h * a, q)
                _pack(projected, block, width + h * a, k)
                _pack(projected, block, 2 * width + h * a, v)
                _products(q, k, scores)
                _softmax(scores, scale, largest, total)
                _mix(scores, v, mixed)
                _unpack(mixed, block, h * a, out)
                for i in range(fields):
                    for j in range(fields):
                        for lane in range(lanes):
                            weights[block, h, i, j, lane] = scores[i, j, lane]


@njit(parallel=True, cache=True, fastmath=_FAST)
def _backward(projected, weights, grads, scale, out, threads):
    """With G the gradient: dV = P^T G, dS = softmax'(G V^T), dQ = dS K, dK = dS^T Q."""
    blocks, heads, fields, _, lanes = weights.shape
    width = grads.shape[2]
    a = width // heads
    for t in prange(threads):
        x = np.empty((fields, a, lanes), np.float32)
        g, found = np.empty_like(x), np.empty_like(x)
        p = np.empty((fields, fields, lanes), np.float32)
        ds, mean = np.empty_like(p), np.empty(lanes, np.float32)
        for block in range(blocks * t // threads, blocks * (t + 1) // threads):
            for h in range(heads):
                q, k, v = h * a, width + h * a, 2 * width + h * a
                for i in range(fields):
                    for j in range(fields):
                        for lane in range(lanes):
                            p[i, j, lane] = weights[block, h, i, j, lane]
                _pack(grads, block, q, g)
                _mix_transposed(p, g, found)
                _unpack(found, block, v, out)
                _pack(projected, block, v, x)
                _products(g, x, ds)
                _softmax_backward(p, ds, scale, mean)
                _pack(projected, block, k, x)
                _mix(ds, x, found)
                _unpack(found, block, q, out)
                _pack(projected, block, q, x)
                _mix_transposed(ds, x, found)
                _unpack(found, block, k, out)
