"""Self-attention over the fields of a row, for CPUs: many tiny problems at once.

    out = D(softmax(Q K^T * scale)) V     for each row and head, D dropout

General attention kernels are made for long sequences; a row has ten to forty fields, and their time
goes into transposing and into calls on matrices of 10 x 32. These kernels take as many rows at a time as
a vector register has lanes, one in each, so that every product, maximum and exponential is a vector
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
from embtables.rows.kernels import mix32
from embtables.simd import LANES, exp, fill, load, maximum, store, transpose


class FieldAttention(torch.autograd.Function):
    """D(softmax(Q K^T * scale)) V of float32 CPU tensors."""

    @staticmethod
    def forward(
        ctx: Any, projected: Tensor, heads: int, scale: float, dropout: float, key: int
    ) -> Tensor:
        """Return [B, F, A] from [B, F, 3 A]."""
        batch, fields, width = projected.shape
        out = projected.new_empty(batch, fields, width // 3)
        dropped = np.uint32(dropout * 2.0**32), np.uint32(key), np.float32(1 / (1 - dropout))
        ctx.settings = heads, np.float32(scale), *dropped
        parallel.call(_forward, projected, *ctx.settings, out)
        ctx.save_for_backward(projected)
        return out

    @staticmethod
    @once_differentiable  # a second derivative would be wrong without a word
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor, None, None, None, None]:
        """Return the gradient [B, F, 3 A] of the projections."""
        (projected,) = ctx.saved_tensors
        out = torch.empty_like(projected)
        parallel.call(_backward, projected, grads[0], *ctx.settings, out)
        return out, None, None, None, None


def attend(
    projected: Tensor, heads: int, scale: float, dropout: float = 0.0, key: int = 0
) -> Tensor:
    """Return D(softmax(Q K^T * scale)) V, [B, F, A] float32, of projections [B, F, 3 A] on a CPU.

    D drops weights with probability `dropout`; `key`, from 0 to 2^32 - 1, says which.
    """
    found = FieldAttention.apply(projected.float(), heads, scale, dropout, key)
    return found  # pyright: ignore[reportReturnType]


@njit
def _pack(source, block, start, out):
    """Copy columns start .. start + a of a block's rows to out [F, a, L]; past the end, the last row."""
    fields, a, lanes = out.shape
    row = source.shape[1] * source.shape[2]
    whole = a - a % lanes if (block + 1) * lanes <= source.shape[0] else 0
    for i in range(fields):
        place = block * lanes * row + i * source.shape[2] + start
        for c in range(0, whole, lanes):
            transpose(source, place + c, row, out, (i * a + c) * lanes, lanes)
        for c in range(whole, a):
            for lane in range(lanes):
                b = min(block * lanes + lane, source.shape[0] - 1)
                out[i, c, lane] = source[b, i, start + c]


@njit
def _unpack(packed, block, start, out):
    """Copy [F, a, L] to columns start .. start + a of the rows of a block."""
    fields, a, lanes = packed.shape
    row = out.shape[1] * out.shape[2]
    whole = a - a % lanes if (block + 1) * lanes <= out.shape[0] else 0
    for i in range(fields):
        place = block * lanes * row + i * out.shape[2] + start
        for c in range(0, whole, lanes):
            transpose(packed, (i * a + c) * lanes, lanes, out, place + c, row)
        for c in range(whole, a):
            for lane in range(min(lanes, out.shape[0] - block * lanes)):
                out[block * lanes + lane, i, start + c] = packed[i, c, lane]


@njit
def _multiply(x, x_row, x_term, y, y_column, y_term, out, rows, columns, terms):
    """out[r, s] = sum_t x[r, t] * y[s, t] in each lane, in tiles of 2 x 4 that stay in registers.

    Strides are in vectors. Where rows or columns end within a tile, the last one is computed again.
    """
    for r in range(0, rows, 2):
        r1 = min(r + 1, rows - 1)
        x0, x1 = r * x_row * LANES, r1 * x_row * LANES
        for s in range(0, columns, 4):
            s1, s2, s3 = min(s + 1, columns - 1), min(s + 2, columns - 1), min(s + 3, columns - 1)
            y0, y1 = s * y_column * LANES, s1 * y_column * LANES
            y2, y3 = s2 * y_column * LANES, s3 * y_column * LANES
            z00 = z01 = z02 = z03 = z10 = z11 = z12 = z13 = fill(np.float32(0))
            for t in range(terms):
                u, v = t * x_term * LANES, t * y_term * LANES
                a0, a1 = load(x, x0 + u), load(x, x1 + u)
                b0, b1, b2, b3 = load(y, y0 + v), load(y, y1 + v), load(y, y2 + v), load(y, y3 + v)
                z00, z01, z02, z03 = z00 + a0 * b0, z01 + a0 * b1, z02 + a0 * b2, z03 + a0 * b3
                z10, z11, z12, z13 = z10 + a1 * b0, z11 + a1 * b1, z12 + a1 * b2, z13 + a1 * b3
            z0, z1 = r * columns * LANES, r1 * columns * LANES
            store(out, z0 + s * LANES, z00)
            store(out, z0 + s1 * LANES, z01)
            store(out, z0 + s2 * LANES, z02)
            store(out, z0 + s3 * LANES, z03)
            store(out, z1 + s * LANES, z10)
            store(out, z1 + s1 * LANES, z11)
            store(out, z1 + s2 * LANES, z12)
            store(out, z1 + s3 * LANES, z13)


@njit
def _weights(q, k, scale, p):
    """Write softmax(scale * Q K^T) over the second F of [F, F, L] to `p`."""
    fields, a, _ = q.shape
    _multiply(q, a, 1, k, a, 1, p, fields, fields, a)
    for i in range(fields):
        begin, end = i * fields * LANES, (i + 1) * fields * LANES
        largest = load(p, begin)
        for place in range(begin + LANES, end, LANES):
            largest = maximum(largest, load(p, place))
        total = fill(np.float32(0))
        for place in range(begin, end, LANES):
            term = exp(fill(scale) * (load(p, place) - largest))
            total = total + term
            store(p, place, term)
        part = fill(np.float32(1)) / total
        for place in range(begin, end, LANES):
            store(p, place, part * load(p, place))


@njit
def _softmax_backward(p, ds, fields, scale):
    """Replace dP in `ds` by scale * P * (dP - sum_j P dP)."""
    for i in range(fields):
        begin, end = i * fields * LANES, (i + 1) * fields * LANES
        mean = fill(np.float32(0))
        for place in range(begin, end, LANES):
            mean = mean + load(p, place) * load(ds, place)
        for place in range(begin, end, LANES):
            store(ds, place, fill(scale) * (load(p, place) * (load(ds, place) - mean)))


@njit
def _drop(p, out, place, bound, key, share):
    """Write to `out` what dropout leaves of as many numbers, the first of which is number `place`."""
    for i in range(len(out)):
        noise = mix32(mix32(np.uint32(place + i)) ^ key)
        out[i] = p[i] * (share if noise >= bound else np.float32(0))


@njit(parallel=True, cache=True)
def _forward(projected, heads, scale, bound, key, share, out, threads):
    batch, fields, width = out.shape
    a, lanes = width // heads, LANES
    slab, blocks = fields * fields * lanes, -(-batch // lanes)
    for thread in prange(threads):
        q = np.empty((fields, a, lanes), np.float32)
        k, v, mixed = np.empty_like(q), np.empty_like(q), np.empty_like(q)
        p = np.empty(slab, np.float32)
        for block in range(blocks * thread // threads, blocks * (thread + 1) // threads):
            for h in range(heads):
                _pack(projected, block, h * a, q)
                _pack(projected, block, (heads + h) * a, k)
                _pack(projected, block, (2 * heads + h) * a, v)
                _weights(q, k, scale, p)
                if bound:
                    _drop(p, p, np.int64(block * heads + h) * slab, bound, key, share)
                _multiply(p, fields, 1, v, 1, a, mixed, fields, a, fields)
                _unpack(mixed, block, h * a, out)


@njit(parallel=True, cache=True)
def _backward(projected, grads, heads, scale, bound, key, share, out, threads):
    """With G the gradient: dV = D(P)^T G, dS = softmax'(D(G V^T)), dQ = dS K, dK = dS^T Q.

    P is computed again: it is larger than a cache, and slower to read than to make.
    """
    batch, fields, width = grads.shape
    a, lanes = width // heads, LANES
    slab, blocks = fields * fields * lanes, -(-batch // lanes)
    for thread in prange(threads):
        q = np.empty((fields, a, lanes), np.float32)
        k, v, g, found = np.empty_like(q), np.empty_like(q), np.empty_like(q), np.empty_like(q)
        p, ds = np.empty(slab, np.float32), np.empty(slab, np.float32)
        for block in range(blocks * thread // threads, blocks * (thread + 1) // threads):
            for h in range(heads):
                at = h * a, (heads + h) * a, (2 * heads + h) * a
                place = np.int64(block * heads + h) * slab
                _pack(projected, block, at[0], q)
                _pack(projected, block, at[1], k)
                _pack(projected, block, at[2], v)
                _pack(grads, block, at[0], g)
                _weights(q, k, scale, p)
                if bound:
                    _drop(p, ds, place, bound, key, share)
                    _multiply(ds, 1, fields, g, 1, a, found, fields, a, fields)
                else:
                    _multiply(p, 1, fields, g, 1, a, found, fields, a, fields)
                _unpack(found, block, at[2], out)
                _multiply(g, a, 1, v, a, 1, ds, fields, fields, a)
                if bound:
                    _drop(ds, ds, place, bound, key, share)
                _softmax_backward(p, ds, fields, scale)
                _multiply(ds, fields, 1, k, 1, a, found, fields, a, fields)
                _unpack(found, block, at[0], out)
                _multiply(ds, 1, fields, q, 1, a, found, fields, a, fields)
                _unpack(found, block, at[1], out)
