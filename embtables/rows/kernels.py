"""CPU kernels of the native backend: addresses, gathers, and the fused backward with its optimizer.

Shape letters: S segments of a group, K rows read for an id, n ids of a group, N = n * K rows read,
O bags of a group, R rows of an arena, d numbers in a row, U distinct rows of a batch, T threads.

Backward without a sort: reads are cut into buckets of neighbouring rows (a stable counting sort by
the high bits of the row). Within a bucket the reads of a row are chained in the order of the batch,
then each distinct row is summed along its chain and updated at once. The sum of a row does not depend
on the number of threads, and nothing as large as the table is ever written.

Rows that will be needed soon are prefetched: a gather from a large table waits for memory alone.
"""

# Intrinsics take a typing context that callers do not give.
# pyright: reportCallIssue=false

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic, overload
from numba.np.arrayobj import make_array

SUM, MULT = 0, 1
SGD, ROWWISE_ADAGRAD, ADAGRAD, ADAM = 0, 1, 2, 3

AHEAD = 20
"""Reads between a prefetch and its use: enough to hide memory, few enough to stay in the L1 cache."""

BUCKET_BITS = 9
"""At most 2^9 buckets: their write positions stay in the L1 cache while reads are dealt out."""

_LINE = 64


@intrinsic
def _prefetch_line(typing_context, array, row, byte):
    """Prefetch the cache line at a byte of a row of a two-dimensional array."""

    def codegen(context, builder, signature, arguments):
        found = make_array(signature.args[0])(context, builder, arguments[0])
        stride = cgutils.unpack_tuple(builder, found.strides, 2)[0]
        row, byte = (
            context.cast(builder, arguments[i], signature.args[i], types.intp) for i in (1, 2)
        )
        pointer = ir.IntType(8).as_pointer()
        start = builder.bitcast(found.data, pointer)
        flag = ir.IntType(32)
        function = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [pointer, flag, flag, flag]),
            "llvm.prefetch.p0",
        )
        place = builder.gep(start, [builder.add(builder.mul(row, stride), byte)])
        builder.call(function, [place, flag(0), flag(3), flag(1)])
        return context.get_dummy_value()

    return types.void(array, row, byte), codegen


def _bitcast(source, target):
    """Return an intrinsic that reads the bits of one 32-bit type as another."""

    @intrinsic
    def cast(typing_context, value):
        def codegen(context, builder, signature, arguments):
            return builder.bitcast(arguments[0], context.get_value_type(target))

        return target(source), codegen

    return cast


_bits = _bitcast(types.float32, types.uint32)
_float = _bitcast(types.uint32, types.float32)


@njit(inline="always")
def _prefetch(rows, row):
    for byte in range(0, rows.shape[1] * rows.itemsize, _LINE):
        _prefetch_line(rows, row, byte)


# -- stored forms of a row -------------------------------------------------------------------------
# float32 as it is; float16 as its bits in int16; int8 with a float32 scale for each row.
# Rows are named by array and index throughout: a view of a row would count references atomically.


def _load(values, scale, row, out, at):
    """Read a row as float32 into out[at]."""


def _save(values, scale, row, new, key):
    """Write new[0] to a row of fewer bits, rounding stochastically."""


@overload(_load, inline="always")
def _load_any(values, scale, row, out, at):
    if values.dtype == types.float32:

        def load(values, scale, row, out, at):
            for j in range(out.shape[1]):
                out[at, j] = values[row, j]

    elif values.dtype == types.int16:

        def load(values, scale, row, out, at):
            for j in range(out.shape[1]):
                out[at, j] = _half_to_float(values[row, j])

    else:

        def load(values, scale, row, out, at):
            factor = scale[row, 0]
            for j in range(out.shape[1]):
                out[at, j] = np.float32(values[row, j]) * factor

    return load


@overload(_save)
def _save_any(values, scale, row, new, key):
    if values.dtype == types.int16:

        def save(values, scale, row, new, key):
            start = _mix32(np.uint32(row) ^ key)
            for j in range(new.shape[1]):
                values[row, j] = _float_to_half(new[0, j], _mix32(start + np.uint32(j)))

    else:

        def save(values, scale, row, new, key):
            start = _mix32(np.uint32(row) ^ key)
            largest = np.float32(0)
            for j in range(new.shape[1]):
                largest = max(largest, abs(new[0, j]))
            step = largest / np.float32(127)
            scale[row, 0] = step
            inverse = np.float32(1) / max(step, np.float32(1.1754944e-38))
            for j in range(new.shape[1]):
                unit = np.float32(_mix32(start + np.uint32(j)) >> 8) * np.float32(2.0**-24)
                scaled = np.floor(new[0, j] * inverse + unit)
                values[row, j] = np.int8(min(max(scaled, np.float32(-127)), np.float32(127)))

    return save


@njit
def _mix32(x):
    """Return 32 well-mixed bits (Wellons' lowbias32)."""
    x = np.uint32(x)
    x = np.uint32((x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D))
    x = np.uint32((x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B))
    return np.uint32(x ^ (x >> np.uint32(16)))


@njit
def _half_to_float(bits):
    size = np.uint32(bits) & np.uint32(0x7FFF)
    sign = (np.uint32(bits) & np.uint32(0x8000)) << np.uint32(16)
    if size < np.uint32(0x0400):  # below the smallest normal float16: a number of steps of 2^-24
        found = _bits(np.float32(size) * np.float32(2.0**-24))
    else:
        found = np.uint32((size << np.uint32(13)) + np.uint32(0x38000000))
    return _float(np.uint32(found | sign))


@njit
def _float_to_half(value, noise):
    """Return float16 bits, rounded up or down with the probability that keeps the mean."""
    bits = _bits(np.float32(value))
    sign = np.uint32((bits >> np.uint32(16)) & np.uint32(0x8000))
    size = np.uint32(bits & np.uint32(0x7FFFFFFF))
    if size < np.uint32(0x38800000):  # below the smallest normal float16 the step is 2^-24
        unit = np.float32(noise >> np.uint32(8)) * np.float32(2.0**-24)
        half = np.uint32(np.floor(abs(np.float32(value)) * np.float32(2.0**24) + unit))
    else:
        up = np.uint32(size + (noise & np.uint32(0x1FFF)))
        half = min(np.uint32(up - np.uint32(0x38000000)) >> np.uint32(13), np.uint32(0x7BFF))
    return np.int16(np.uint32(half | sign))


# -- addresses -------------------------------------------------------------------------------------


@njit(inline="always")
def _within(bounds, s, threads, t):
    """Return the positions [first, last) of a segment that are in a thread's share of all."""
    n = bounds[-1]
    return max(n * t // threads, bounds[s]), min(n * (t + 1) // threads, bounds[s + 1])


@njit(inline="always")
def _share(starts, threads, t):
    """Return the buckets or bags [first, last) of a thread: about as many reads for each."""
    n = starts[-1]
    first = np.searchsorted(starts[:-1], n * t // threads) if t else 0
    last = np.searchsorted(starts[:-1], n * (t + 1) // threads)
    return first, last if t + 1 < threads else len(starts) - 1


@njit(parallel=True, cache=True)
def first_outside(ids, limits, bounds, threads):
    """Return the first position [n] whose id is outside 0 .. limit - 1 (limit 0: none is), or -1."""
    found = np.full(threads, len(ids), np.int64)
    for t in prange(threads):
        for s in range(len(limits)):
            first, last = _within(bounds, s, threads, t)
            bad = 0
            if limits[s] > 0:
                for j in range(first, last):
                    bad += np.int64((ids[j] < 0) | (ids[j] >= limits[s]))
            if bad:
                while 0 <= ids[first] < limits[s]:
                    first += 1
                found[t] = first
                break
    earliest = found.min()
    return earliest if earliest < len(ids) else -1


@njit(parallel=True, cache=True)
def hash_rows(ids, salts, rows, bounds, threads):
    """Return [K, n] rows in 0 .. rows - 1 of ids [n]; salts and rows are [K, S]."""
    probes, segments = salts.shape
    out = np.empty((probes, len(ids)), np.int64)
    for t in prange(threads):
        for s in range(segments):
            first, last = _within(bounds, s, threads, t)
            for k in range(probes):
                salt, count = np.uint64(salts[k, s]), np.uint64(rows[k, s])
                for j in range(first, last):
                    x = np.uint64(np.int64(ids[j])) + salt
                    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
                    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
                    x = (x ^ (x >> np.uint64(31))) >> np.uint64(32)
                    out[k, j] = np.int64((x * count) >> np.uint64(32))
    return out


@njit(parallel=True, cache=True)
def divide(ids, divisors, bounds, threads):
    """Return [2, n], quotients and remainders of ids [n] by the divisor [S] of their segment."""
    out = np.empty((2, len(ids)), np.int64)
    for t in prange(threads):
        for s in range(len(divisors)):
            first, last = _within(bounds, s, threads, t)
            divisor = np.uint64(divisors[s])
            for j in range(first, last):
                whole = np.uint64(ids[j]) // divisor
                out[0, j] = whole
                out[1, j] = np.uint64(ids[j]) - whole * divisor
    return out


@njit(parallel=True, cache=True)
def places(rows, base, bounds, by_row, out, threads):
    """Write the arena rows [N] of table rows [K, n], those of an id side by side.

    Args:
        rows: [K, n], segment after segment.
        base: [K, S] first arena row of each table.
        bounds: [S + 1] first position of each segment.
        by_row: every segment holds one id for each row of the batch, and the ids of a row come
            together: id (s, b) goes to b * S + s.
        out: [n * K].
        threads: T.
    """
    probes, segments = base.shape
    for t in prange(threads):
        if by_row:
            batch = rows.shape[1] // segments
            for b in range(batch * t // threads, batch * (t + 1) // threads):
                for s in range(segments):
                    for k in range(probes):
                        out[(b * segments + s) * probes + k] = rows[k, s * batch + b] + base[k, s]
        else:
            for s in range(segments):
                first, last = _within(bounds, s, threads, t)
                for k in range(probes):
                    for j in range(first, last):
                        out[j * probes + k] = rows[k, j] + base[k, s]


# -- forward ---------------------------------------------------------------------------------------


@njit(parallel=True, cache=True)
def gather(values, scale, place, out, threads):
    """Write the rows [N, d] at places [N]."""
    n = len(place)
    for t in prange(threads):
        for i in range(n * t // threads, n * (t + 1) // threads):
            if i + AHEAD < n:
                _prefetch(values, place[i + AHEAD])
            _load(values, scale, place[i], out, i)


@njit(parallel=True, cache=True)
def gather_combined(values, scale, place, combine, factors, out, threads):
    """Write the sum or product [n, d] of the K rows of each id.

    Args:
        values: stored rows [R, d].
        scale: [R, 1] of int8 rows, else empty.
        place: [n * K].
        combine: SUM or MULT.
        factors: [n * K, d] where the rows themselves are kept too, or empty.
        out: [n, d].
        threads: T.
    """
    n = len(out)
    probes = len(place) // max(n, 1)
    for t in prange(threads):
        row = np.empty((1, values.shape[1]), np.float32)
        for i in range(n * t // threads, n * (t + 1) // threads):
            for k in range(probes):
                p = i * probes + k
                if p + AHEAD < len(place):
                    _prefetch(values, place[p + AHEAD])
                _load(values, scale, place[p], row, 0)
                if len(factors):
                    for j in range(out.shape[1]):
                        factors[p, j] = row[0, j]
                if k == 0:
                    for j in range(out.shape[1]):
                        out[i, j] = row[0, j]
                elif combine == SUM:
                    for j in range(out.shape[1]):
                        out[i, j] += row[0, j]
                else:
                    for j in range(out.shape[1]):
                        out[i, j] *= row[0, j]


@njit(parallel=True, cache=True)
def gather_bags(
    values, scale, place, columns, offsets, divisors, weights, segments, sources, factors, out,
    threads,
):  # fmt: skip
    """Write the sums of the rows of bags, and what each read adds to.

    Args:
        values: stored rows [R, d].
        scale: [R, 1] of int8 rows, else empty.
        place: [n * K].
        columns: rows of `out` that a bag has: K if the rows of an id are side by side, 1 if they too
            are added up.
        offsets: [O + 1] first id of each bag.
        divisors: [O] what each sum is divided by, or empty.
        weights: [n] factor of each id, or empty.
        segments: S where bag (s, b) goes to b * S + s; 0 leaves bags in order.
        sources: [n * K] written: the row of `out`.
        factors: [n] written unless empty: of the gradients.
        out: [O * columns, d].
        threads: T.
    """
    bags, d = len(offsets) - 1, values.shape[1]
    probes = len(place) // max(offsets[-1], 1)
    batch = bags // max(segments, 1)
    for t in prange(threads):
        row = np.empty((1, d), np.float32)
        first, last = _share(offsets, threads, t)
        for o in range(first, last):
            start = ((o % batch) * segments + o // batch if segments else o) * columns
            for c in range(columns):
                for j in range(d):
                    out[start + c, j] = 0
            for i in range(offsets[o], offsets[o + 1]):
                weight = weights[i] if len(weights) else np.float32(1)
                if len(factors):
                    factors[i] = weight / divisors[o] if len(divisors) else weight
                for k in range(probes):
                    p = i * probes + k
                    if p + AHEAD < len(place):
                        _prefetch(values, place[p + AHEAD])
                    _load(values, scale, place[p], row, 0)
                    at = start + k % columns
                    sources[p] = at
                    for j in range(d):
                        out[at, j] += weight * row[0, j]
            if len(divisors):
                for c in range(columns):
                    for j in range(d):
                        out[start + c, j] /= divisors[o]


@njit(parallel=True, cache=True)
def factor_gradients(grads, factors, out, threads):
    """Write the gradients [n * K, d] of the factors of products with gradients [n, d]."""
    n, d = grads.shape
    probes = len(factors) // max(n, 1)
    for t in prange(threads):
        for i in range(n * t // threads, n * (t + 1) // threads):
            for k in range(probes):
                for j in range(d):
                    out[i * probes + k, j] = grads[i, j]
                for other in range(probes):
                    if other != k:
                        for j in range(d):
                            out[i * probes + k, j] *= factors[i * probes + other, j]


# -- backward --------------------------------------------------------------------------------------
# An entry is (row << 32 | position of the read).

_POSITION = 0xFFFFFFFF


@njit(parallel=True, cache=True)
def deal(place, shift, counts, entries, starts, threads):
    """Deal reads [N] into buckets of 2^shift rows, keeping their order within a bucket.

    Args:
        place: [N] arena rows.
        shift: log2 of the rows of a bucket.
        counts: [T, buckets] scratch.
        entries: [N] written.
        starts: [buckets + 1] written.
        threads: T.
    """
    n, buckets = len(place), counts.shape[1]
    for t in prange(threads):
        mine = counts[t]
        mine[:] = 0
        for i in range(n * t // threads, n * (t + 1) // threads):
            mine[place[i] >> shift] += 1
    total = 0
    for b in range(buckets):
        starts[b] = total
        for t in range(threads):
            mine = counts[t, b]
            counts[t, b] = total
            total += mine
    starts[buckets] = total
    for t in prange(threads):
        mine = counts[t]
        for i in range(n * t // threads, n * (t + 1) // threads):
            b = place[i] >> shift
            entries[mine[b]] = (place[i] << 32) | i
            mine[b] += 1


@njit(inline="always")
def _chain(entries, first, last, mask, head, following):
    """Chain the reads of each row of a bucket in order; head[row] is its first read."""
    for i in range(last - 1, first - 1, -1):
        row = (entries[i] >> 32) & mask
        following[i] = head[row]
        head[row] = i


@njit(inline="always")
def _source(entry, repeat, sources):
    """Return the row of the gradients that an entry reads."""
    position = entry & _POSITION
    if len(sources):
        return np.int64(sources[position])
    return position if repeat == 1 else position // repeat


@njit(inline="always")
def _sum_chain(entries, i, following, grads, repeat, sources, factors, total):
    """Write the sum of the gradients along a chain."""
    total[:] = 0
    while i >= 0:
        p = _source(entries[i], repeat, sources)
        factor = factors[(entries[i] & _POSITION) // repeat] if len(factors) else np.float32(1)
        for j in range(len(total)):
            total[j] += factor * grads[p, j]
        i = following[i]


@njit(parallel=True, cache=True)
def square_sum(
    grads, repeat, sources, factors, shift, entries, starts, following, heads, threads
):  # fmt: skip
    """Return the sum of squares of the summed gradients of the distinct rows."""
    sums = np.zeros(len(starts) - 1)
    mask = (1 << shift) - 1
    for t in prange(threads):
        head = heads[t]
        total = np.empty(grads.shape[1], np.float32)
        first, last = _share(starts, threads, t)
        for b in range(first, last):
            _chain(entries, starts[b], starts[b + 1], mask, head, following)
            for i in range(starts[b], starts[b + 1]):
                row = (entries[i] >> 32) & mask
                if head[row] != i:
                    continue
                head[row] = -1
                _sum_chain(entries, i, following, grads, repeat, sources, factors, total)
                sums[b] += _square_sum(total)
    return sums.sum()


@njit(inline="always", fastmath={"reassoc", "contract", "nsz"})
def _square_sum(x):
    total = np.float32(0)
    for j in range(len(x)):
        total += x[j] * x[j]
    return total


@njit(inline="always")
def _update(kind, rows, at, grad, state, state2, row, rates):
    """Step the float32 row rows[at], whose optimizer state is in `row` of the states."""
    lr, decay, eps = rates[0], rates[1], rates[2]
    if decay != 1:
        for j in range(len(grad)):
            rows[at, j] *= decay
    if kind == SGD:
        for j in range(len(grad)):
            rows[at, j] -= lr * grad[j]
    elif kind == ROWWISE_ADAGRAD:
        state[row, 0] += _square_sum(grad) / np.float32(len(grad))
        factor = lr / (np.sqrt(state[row, 0]) + eps)
        for j in range(len(grad)):
            rows[at, j] -= factor * grad[j]
    elif kind == ADAGRAD:
        for j in range(len(grad)):
            state[row, j] += grad[j] * grad[j]
            rows[at, j] -= lr * grad[j] / (np.sqrt(state[row, j]) + eps)
    else:
        gain, keep2, gain2, correction, root = rates[3], rates[4], rates[5], rates[6], rates[7]
        for j in range(len(grad)):
            mean = state[row, j] + gain * (grad[j] - state[row, j])
            square = keep2 * state2[row, j] + gain2 * grad[j] * grad[j]
            state[row, j], state2[row, j] = mean, square
            rows[at, j] -= lr * correction * mean / (np.sqrt(square) * root + eps)


def _update_stored(kind, values, scale, buffer, grad, state, state2, row, rates, key):
    """Step a row in its stored form; `buffer` [1, d] is scratch."""


@overload(_update_stored, inline="always")
def _update_stored_any(kind, values, scale, buffer, grad, state, state2, row, rates, key):
    if values.dtype == types.float32:

        def update(kind, values, scale, buffer, grad, state, state2, row, rates, key):
            _update(kind, values, row, grad, state, state2, row, rates)

    else:

        def update(kind, values, scale, buffer, grad, state, state2, row, rates, key):
            _load(values, scale, row, buffer, 0)
            _update(kind, buffer, 0, grad, state, state2, row, rates)
            _save(values, scale, row, buffer, key)

    return update


@njit(parallel=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})
def step(
    kind, values, scale, state, state2, factor, rates, key,
    grads, repeat, sources, factors, shift, entries, starts, following, heads, threads,
):  # fmt: skip
    """Sum the gradients of every distinct row and update it.

    Args:
        kind: SGD, ROWWISE_ADAGRAD, ADAGRAD or ADAM.
        values, scale: stored rows [R, d], and [R, 1] of int8 rows, else empty.
        state, state2: of the optimizer, [R, 1] or [R, d]; what it does not use is empty.
        factor: on all gradients (clipping).
        rates: float32: lr, 1 - lr * weight_decay, eps, and for Adam 1 - beta1, beta2,
            1 - beta2, 1 / (1 - beta1^t), 1 / sqrt(1 - beta2^t).
        key: of the stochastic rounding in this step.
        grads: [.., d]; read i has the gradient i // repeat, or that of its source.
        repeat: reads of an id that share one gradient or one factor (rows that were summed).
        sources: [N] row of the gradients for each read, or empty.
        factors: [N / repeat] on the gradient of each read, or empty.
        shift, entries, starts: from `deal`.
        following: [N] scratch.
        heads: [T, 2^shift], all -1 before and after.
        threads: T.
    """
    n = len(following)
    mask = (1 << shift) - 1
    for t in prange(threads):
        head = heads[t]
        total = np.empty(values.shape[1], np.float32)
        buffer = np.empty((1, values.shape[1]), np.float32)
        first, last = _share(starts, threads, t)
        for b in range(first, last):
            _chain(entries, starts[b], starts[b + 1], mask, head, following)
            for i in range(starts[b], starts[b + 1]):
                if i + AHEAD < n:
                    soon = entries[i + AHEAD]
                    _prefetch(grads, _source(soon, repeat, sources))
                    _prefetch(values, soon >> 32)
                    if len(state):
                        _prefetch(state, soon >> 32)
                row = entries[i] >> 32
                if head[row & mask] != i:
                    continue
                head[row & mask] = -1
                _sum_chain(entries, i, following, grads, repeat, sources, factors, total)
                if factor != 1:
                    for j in range(len(total)):
                        total[j] *= factor
                _update_stored(kind, values, scale, buffer, total, state, state2, row, rates, key)


@njit(parallel=True, cache=True, error_model="numpy")
def dense_step(
    measure, values, state, state2, l2, factor, rates,
    grads, repeat, sources, factors, shift, entries, starts, following, heads, threads,
):  # fmt: skip
    """Take an Adam step on every row, whose gradient is l2 * row + what the batch adds to it.

    Args:
        measure: change nothing and return the sum of squares of all gradients.
        values, state, state2: float32 [R, d].
        l2: coupled L2.
        factor, rates, grads and what follows: as in `step`.
    """
    sums = np.zeros(len(starts) - 1)
    for t in prange(threads):
        head = heads[t]
        total = np.empty(values.shape[1], np.float32)
        for b in range((len(starts) - 1) * t // threads, (len(starts) - 1) * (t + 1) // threads):
            base = b << shift
            _chain(entries, starts[b], starts[b + 1], (1 << shift) - 1, head, following)
            for row in range(base, min(base + (1 << shift), len(values))):
                total[:] = 0
                if head[row - base] >= 0:
                    i = head[row - base]
                    _sum_chain(entries, i, following, grads, repeat, sources, factors, total)
                    head[row - base] = -1
                for j in range(len(total)):
                    total[j] += l2 * values[row, j]
                if measure:
                    sums[b] += _square_sum(total)
                    continue
                total *= factor
                _update(ADAM, values, row, total, state, state2, row, rates)
    return sums.sum()


@njit(parallel=True, cache=True)
def count_equal(shift, entries, starts, heads, out, threads):
    """Write how often the row of each read occurs in the batch, [N] from the entries of `deal`."""
    mask = (1 << shift) - 1
    for t in prange(threads):
        head = heads[t]
        first, last = _share(starts, threads, t)
        for b in range(first, last):
            for i in range(starts[b], starts[b + 1]):
                head[(entries[i] >> 32) & mask] += 1
            for i in range(starts[b], starts[b + 1]):
                out[entries[i] & _POSITION] = head[(entries[i] >> 32) & mask] + 1
            for i in range(starts[b], starts[b + 1]):
                head[(entries[i] >> 32) & mask] = -1
