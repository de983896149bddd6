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
        kept = -(-batch // LANES) if ctx.needs_input_grad[0] else parallel.thread_count()
        weights = projected.new_empty(kept, heads, fields, fields, LANES)
        out = projected.new_empty(batch, fields, width // 3)
        dropped = np.uint32(dropout * 2.0**32), np.uint32(key), np.float32(1 / (1 - dropout))
        parallel.call(_forward, projected, np.float32(scale), *dropped, weights, out)
        ctx.save_for_backward(projected, weights)
        ctx.scale, ctx.dropped = scale, dropped
        return out

    @staticmethod
    @once_differentiable  # a second derivative would be wrong without a word
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor, None, None, None, None]:
        """Return the gradient [B, F, 3 A] of the projections."""
        projected, weights = ctx.saved_tensors
        out = torch.empty_like(projected)
        scale = np.float32(ctx.scale)
        parallel.call(_backward, projected, weights, grads[0], scale, *ctx.dropped, out)
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
def _multiply(x, at, x_row, x_term, y, y_column, y_term, out, into, rows, columns, terms):
    """out[r, s] = sum_t x[r, t] * y[s, t] in each lane, in tiles of 2 x 4 that stay in registers.

    Strides are in vectors; `at` and `into` say where x and out begin. Where rows or columns end within
    a tile, the last one is computed again.
    """
    for r in range(0, rows, 2):
        r1 = min(r + 1, rows - 1)
        x0, x1 = at + r * x_row * LANES, at + r1 * x_row * LANES
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
            z0, z1 = into + r * columns * LANES, into + r1 * columns * LANES
            store(out, z0 + s * LANES, z00)
            store(out, z0 + s1 * LANES, z01)
            store(out, z0 + s2 * LANES, z02)
            store(out, z0 + s3 * LANES, z03)
            store(out, z1 + s * LANES, z10)
            store(out, z1 + s1 * LANES, z11)
            store(out, z1 + s2 * LANES, z12)
            store(out, z1 + s3 * LANES, z13)


@njit
def _softmax(p, at, fields, scale):
    """Replace scores [F, F, L] from a place on by the softmax of scale * scores over the second F."""
    for i in range(fields):
        begin = at + i * fields * LANES
        end = begin + fields * LANES
        largest = load(p, begin)
        for place in range(begin + LANES, end, LANES):
            largest = maximum(largest, load(p, place))
        total = fill(np.float32(0))
        for place in range(begin, end, LANES):
            term = exp(fill(scale) * (load(p, place) - largest))
            total = total + term
            store(p, place, term)
        share = fill(np.float32(1)) / total
        for place in range(begin, end, LANES):
            store(p, place, share * load(p, place))


@njit
def _softmax_backward(p, at, ds, fields, scale):
    """Replace dP in `ds` by scale * P * (dP - sum_j P dP)."""
    for i in range(fields):
        begin, end = i * fields * LANES, (i + 1) * fields * LANES
        mean = fill(np.float32(0))
        for place in range(begin, end, LANES):
            mean = mean + load(p, at + place) * load(ds, place)
        for place in range(begin, end, LANES):
            change = load(p, at + place) * (load(ds, place) - mean)
            store(ds, place, fill(scale) * change)


@njit
def _drop(p, at, out, place, bound, key, share):
    """Write to `out` what dropout leaves of as many numbers, the first of which is number `place`."""
    for i in range(len(out)):
        noise = mix32(mix32(np.uint32(place + i)) ^ key)
        out[i] = p[at + i] * (share if noise >= bound else np.float32(0))


@njit(parallel=True, cache=True)
def _forward(projected, scale, bound, key, share, weights, out, threads):
    kept, heads, fields, _, lanes = weights.shape
    p, slab = weights.reshape(-1), fields * fields * lanes
    a = out.shape[2] // heads
    blocks = -(-out.shape[0] // lanes)
    for thread in prange(threads):
        q = np.empty((fields, a, lanes), np.float32)
        k, v, mixed = np.empty_like(q), np.empty_like(q), np.empty_like(q)
        left = np.empty(slab, np.float32)
        for block in range(blocks * thread // threads, blocks * (thread + 1) // threads):
            for h in range(heads):
                _pack(projected, block, h * a, q)
                _pack(projected, block, (heads + h) * a, k)
                _pack(projected, block, (2 * heads + h) * a, v)
                place = np.int64(block * heads + h) * slab
                at = place if kept == blocks else np.int64(thread * heads + h) * slab
                _multiply(q, 0, a, 1, k, a, 1, p, at, fields, fields, a)
                _softmax(p, at, fields, scale)
                if bound:
                    _drop(p, at, left, place, bound, key, share)
                    _multiply(left, 0, fields, 1, v, 1, a, mixed, 0, fields, a, fields)
                else:
                    _multiply(p, at, fields, 1, v, 1, a, mixed, 0, fields, a, fields)
                _unpack(mixed, block, h * a, out)


@njit(parallel=True, cache=True)
def _backward(projected, weights, grads, scale, bound, key, share, out, threads):
    """With G the gradient: dV = D(P)^T G, dS = softmax'(D(G V^T)), dQ = dS K, dK = dS^T Q."""
    blocks, heads, fields, _, lanes = weights.shape
    p, slab = weights.reshape(-1), fields * fields * lanes
    a = grads.shape[2] // heads
    for thread in prange(threads):
        x = np.empty((fields, a, lanes), np.float32)
        g, found = np.empty_like(x), np.empty_like(x)
        ds = np.empty(slab, np.float32)
        for block in range(blocks * thread // threads, blocks * (thread + 1) // threads):
            for h in range(heads):
                q, k, v = h * a, (heads + h) * a, (2 * heads + h) * a
                at = np.int64(block * heads + h) * slab
                _pack(grads, block, q, g)
                if bound:
                    _drop(p, at, ds, at, bound, key, share)
                    _multiply(ds, 0, 1, fields, g, 1, a, found, 0, fields, a, fields)
                else:
                    _multiply(p, at, 1, fields, g, 1, a, found, 0, fields, a, fields)
                _unpack(found, block, v, out)
                _pack(projected, block, v, x)
                _multiply(g, 0, a, 1, x, a, 1, ds, 0, fields, fields, a)
                if bound:
                    _drop(ds, 0, ds, at, bound, key, share)
                _softmax_backward(p, at, ds, fields, scale)
                _pack(projected, block, k, x)
                _multiply(ds, 0, fields, 1, x, 1, a, found, 0, fields, a, fields)
                _unpack(found, block, q, out)
                _pack(projected, block, q, x)
                _multiply(ds, 0, 1, fields, x, 1, a, found, 0, fields, a, fields)
                _unpack(found, block, k, out)
