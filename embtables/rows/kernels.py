"""CPU kernels of the native backend: addresses, gathers, and the fused backward with its optimizer.

Shape letters: S segments of a group, K rows read for an id, n ids of a group, N = n * K rows read,
O bags of a group, R rows of an arena, d numbers in a row, U distinct rows of a batch, T threads.

Backward without a sort: reads are cut into buckets of neighbouring rows (a stable counting sort by
the high bits of the row). The gradients of a bucket's distinct rows are summed side by side, in the
order of the batch, then each row is updated. The sum of a row does not depend on the number of
threads, and nothing as large as the table is ever written.

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

AHEAD = 20
"""Reads between a prefetch and its use: enough to hide memory, few enough to stay in the L1 cache."""

BUCKET_BITS = 9
"""At most 2^9 buckets: their write positions stay in the L1 cache while reads are dealt out."""

_LINE = 64


@intrinsic
def prefetch_line(typing_context, array, row, byte):
    """Prefetch the cache line at a byte of a row of an array."""

    def codegen(context, builder, signature, arguments):
        found = make_array(signature.args[0])(context, builder, arguments[0])
        stride = cgutils.unpack_tuple(builder, found.strides, signature.args[0].ndim)[0]
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


def _lanes(count, onto=None):
    """Return an intrinsic that sets `count` numbers out[i, j:] to factor * x[k, j:].

    With `onto`, "fadd" or "fmul", it adds that or multiplies by it instead. x may be int8.
    LLVM unrolls its own loops for rows longer than those of most tables, and then runs the scalar rest.
    """

    @intrinsic
    def lanes(typing_context, out, i, j, factor, x, k):
        floats = ir.VectorType(ir.FloatType(), count)
        small = x.dtype == types.int8

        def codegen(context, builder, signature, arguments):
            def pointer(array, row, vector, size):
                found = make_array(signature.args[array])(context, builder, arguments[array])
                stride = cgutils.unpack_tuple(builder, found.strides, 2)[0]
                row, column = (
                    context.cast(builder, arguments[n], signature.args[n], types.intp)
                    for n in (row, 2)
                )
                byte = builder.mul(column, column.type(size))
                byte = builder.add(builder.mul(row, stride), byte)
                start = builder.bitcast(found.data, ir.IntType(8).as_pointer())
                return builder.bitcast(builder.gep(start, [byte]), vector.as_pointer())

            target = pointer(0, 1, floats, 4)
            index = ir.IntType(32)
            one = builder.insert_element(ir.Constant(floats, ir.Undefined), arguments[3], index(0))
            first = ir.Constant(ir.VectorType(index, count), [0] * count)
            factors = builder.shuffle_vector(one, one, first)
            if small:
                bytes_ = ir.VectorType(ir.IntType(8), count)
                found = builder.sitofp(builder.load(pointer(4, 5, bytes_, 1), align=1), floats)
            else:
                found = builder.load(pointer(4, 5, floats, 4), align=4)
            found = builder.fmul(factors, found, flags=("contract",))
            if onto:
                held = builder.load(target, align=4)
                found = getattr(builder, onto)(held, found, flags=("contract",))
            builder.store(found, target, align=4)
            return context.get_dummy_value()

        return types.void(out, i, j, factor, x, k), codegen

    return lanes


_set16, _set4 = _lanes(16), _lanes(4)
_add16, _add4 = _lanes(16, "fadd"), _lanes(4, "fadd")
_mul16, _mul4 = _lanes(16, "fmul"), _lanes(4, "fmul")


@njit(inline="always")
def _set_row(out, i, factor, x, k):
    """Set out[i] to factor * x[k]."""
    set_first(out, i, out.shape[1], factor, x, k)


@njit(inline="always")
def set_first(out, i, d, factor, x, k):
    """Set the first d numbers of out[i] to factor * x[k]."""
    for j in range(0, d - 15, 16):
        _set16(out, i, j, factor, x, k)
    for j in range(d & ~15, d - 3, 4):
        _set4(out, i, j, factor, x, k)
    for j in range(d & ~3, d):
        out[i, j] = factor * np.float32(x[k, j])


@njit(inline="always")
def _add_row(out, i, factor, x, k):
    """Add factor * x[k] to out[i]."""
    d = out.shape[1]
    for j in range(0, d - 15, 16):
        _add16(out, i, j, factor, x, k)
    for j in range(d & ~15, d - 3, 4):
        _add4(out, i, j, factor, x, k)
    for j in range(d & ~3, d):
        out[i, j] += factor * x[k, j]


@njit(inline="always")
def _multiply_row(out, i, x, k):
    """Multiply out[i] by x[k]."""
    d = out.shape[1]
    for j in range(0, d - 15, 16):
        _mul16(out, i, j, np.float32(1), x, k)
    for j in range(d & ~15, d - 3, 4):
        _mul4(out, i, j, np.float32(1), x, k)
    for j in range(d & ~3, d):
        out[i, j] *= x[k, j]


@njit(inline="always")
def _prefetch(rows, row):
    for byte in range(0, rows.shape[1] * rows.itemsize, _LINE):
        prefetch_line(rows, row, byte)


# -- stored forms of a row -------------------------------------------------------------------------
# float32 as it is; float16 as its bits in int16; int8 with a float32 scale for each row.
# Rows are named by array and index throughout: a view of a row would count references atomically.


def _prefetch_stored(values, scale, row):
    """Prefetch a row and its scale."""


def _load(values, scale, row, out, at):
    """Read a row as float32 into out[at]."""


def _add(values, scale, row, weight, out, at, buffer):
    """Add weight * row to out[at]; `buffer` [1, d] is scratch."""


def _multiply(values, scale, row, out, at, buffer):
    """Multiply out[at] by a row; `buffer` [1, d] is scratch."""


def _save(values, scale, row, new, key):
    """Write new[0] to a row of fewer bits, rounding stochastically."""


@overload(_prefetch_stored, inline="always")
def _prefetch_any_stored(values, scale, row):
    if values.dtype == types.int8:

        def prefetch(values, scale, row):
            _prefetch(values, row)
            prefetch_line(scale, row, 0)

        return prefetch
    return lambda values, scale, row: _prefetch(values, row)


@overload(_load, inline="always")
def _load_any(values, scale, row, out, at):
    if values.dtype == types.float32:

        def load(values, scale, row, out, at):
            _set_row(out, at, np.float32(1), values, row)

    elif values.dtype == types.int16:

        def load(values, scale, row, out, at):
            for j in range(out.shape[1]):
                out[at, j] = half_to_float(values[row, j])

    else:

        def load(values, scale, row, out, at):
            _set_row(out, at, scale[row, 0], values, row)

    return load


@overload(_add, inline="always")
def _add_any(values, scale, row, weight, out, at, buffer):
    if values.dtype == types.float32:

        def add(values, scale, row, weight, out, at, buffer):
            _add_row(out, at, weight, values, row)

    else:

        def add(values, scale, row, weight, out, at, buffer):
            _load(values, scale, row, buffer, 0)
            _add_row(out, at, weight, buffer, 0)

    return add


@overload(_multiply, inline="always")
def _multiply_any(values, scale, row, out, at, buffer):
    if values.dtype == types.float32:

        def multiply(values, scale, row, out, at, buffer):
            _multiply_row(out, at, values, row)

    else:

        def multiply(values, scale, row, out, at, buffer):
            _load(values, scale, row, buffer, 0)
            _multiply_row(out, at, buffer, 0)

    return multiply


@overload(_save)
def _save_any(values, scale, row, new, key):
    if values.dtype == types.int16:

        def save(values, scale, row, new, key):
            start = mix32(np.uint32(row) ^ key)
            for j in range(new.shape[1]):
                values[row, j] = _float_to_half(new[0, j], mix32(start + np.uint32(j)))

    else:

        def save(values, scale, row, new, key):
            start = mix32(np.uint32(row) ^ key)
            largest = np.float32(0)
            for j in range(new.shape[1]):
                largest = max(largest, abs(new[0, j]))
            step = largest / np.float32(127)
            scale[row, 0] = step
            inverse = np.float32(1) / max(step, np.float32(1.1754944e-38))
            for j in range(new.shape[1]):
                unit = np.float32(mix32(start + np.uint32(j)) >> 8) * np.float32(2.0**-24)
                scaled = np.floor(new[0, j] * inverse + unit)
                values[row, j] = np.int8(min(max(scaled, np.float32(-127)), np.float32(127)))

    return save


@njit
def mix32(x):
    """Return 32 well-mixed bits (Wellons' lowbias32)."""
    x = np.uint32(x)
    x = np.uint32((x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D))
    x = np.uint32((x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B))
    return np.uint32(x ^ (x >> np.uint32(16)))


@njit
def half_to_float(bits):
    """Return the float32 that the bits of a float16 mean."""
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


def _absent(skips, row):
    """Return whether there is no row: it is -1. Where `skips` is None all are there."""


@overload(_absent, inline="always")
def _absent_any(skips, row):
    if isinstance(skips, types.NoneType):
        return lambda skips, row: False
    return lambda skips, row: row < 0


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
def map_rows(ids, packed, starts, widths, bounds, threads):
    """Return rows [n] of ids [n] from maps of `widths` [S] bytes an id, which begin at `starts` [S]."""
    out = np.empty(len(ids), np.int64)
    for t in prange(threads):
        for s in range(len(starts)):
            first, last = _within(bounds, s, threads, t)
            for j in range(first, last):
                at = starts[s] + ids[j] * widths[s]
                row = np.int64(0)
                for digit in range(widths[s]):
                    row |= np.int64(packed[at + digit]) << (8 * digit)
                out[j] = row
    return out


@intrinsic
def ones(typing_context, bits):
    """Return the number of ones in 64 bits."""

    def codegen(context, builder, signature, arguments):
        return builder.ctpop(arguments[0])

    return types.int64(types.uint64), codegen


@njit(inline="always")
def place_among(words, ranks, word, block, x):
    """Return the place of id x among the kept ones (`sharing._kept`), or -1.

    The words and ranks of its table begin at `word` and `block`.
    """
    own, bit = np.uint64(words[word + (x >> 6)]), np.uint64(x & 63)
    if not (own >> bit) & np.uint64(1):
        return np.int64(-1)
    place = np.int64(ranks[block + (x >> 9)]) + ones(own & ((np.uint64(1) << bit) - np.uint64(1)))
    for before in range(word + (x >> 9 << 3), word + (x >> 6)):
        place += ones(np.uint64(words[before]))
    return place


@njit(parallel=True, cache=True)
def put_kept(rows, ids, words, ranks, layout, bounds, threads):
    """Set the rows [K, n] of kept ids [n] to their own and then -1, leave the others; return rows.

    Args:
        rows: [K, n].
        ids: [n].
        words, ranks: the maps of all tables (`sharing._kept`).
        layout: [4, S] number of kept ids, row of the first, and where the table's words and ranks
            begin; -1 where the kept ids are the first ones.
        bounds: [S + 1] first position of each segment.
        threads: T.
    """
    for t in prange(threads):
        for s in range(layout.shape[1]):
            first, last = _within(bounds, s, threads, t)
            kept, base, word, block = layout[0, s], layout[1, s], layout[2, s], layout[3, s]
            for j in range(first, last):
                x = np.int64(ids[j])
                place = x if x < kept else np.int64(-1)
                if word >= 0:
                    place = place_among(words, ranks, word, block, x)
                if place >= 0:
                    rows[0, j] = base + place
                    for k in range(1, len(rows)):
                        rows[k, j] = -1
    return rows


@njit(parallel=True, cache=True)
def places(rows, base, bounds, by_row, skips, out, threads):
    """Write the arena rows [N] of table rows [K, n], those of an id side by side.

    Args:
        rows: [K, n], segment after segment; -1 stays -1.
        base: [K, S] first arena row of each table.
        bounds: [S + 1] first position of each segment.
        by_row: every segment holds one id for each row of the batch, and the ids of a row come
            together: id (s, b) goes to b * S + s.
        skips: as in `_absent`.
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
                        row = rows[k, s * batch + b]
                        found = row if _absent(skips, row) else row + base[k, s]
                        out[(b * segments + s) * probes + k] = found
        else:
            for s in range(segments):
                first, last = _within(bounds, s, threads, t)
                for k in range(probes):
                    for j in range(first, last):
                        row = rows[k, j]
                        out[j * probes + k] = row if _absent(skips, row) else row + base[k, s]


# -- forward ---------------------------------------------------------------------------------------
# Zeros are read where there is no row.


@njit(inline="always")
def _read(values, scale, skips, row, out, at):
    """Read a row as float32 into out[at]."""
    if _absent(skips, row):
        for j in range(out.shape[1]):
            out[at, j] = 0
    else:
        _load(values, scale, row, out, at)


@njit(inline="always")
def _prefetch_read(values, scale, skips, row):
    """Prefetch a row that will be read; an address without memory behind it would cost more."""
    _prefetch_stored(values, scale, 0 if _absent(skips, row) else row)


@njit(inline="always")
def _multiply_read(values, scale, skips, row, out, at, buffer):
    """Multiply out[at] by a row, or by zeros."""
    if _absent(skips, row):
        for j in range(out.shape[1]):
            out[at, j] = 0
    else:
        _multiply(values, scale, row, out, at, buffer)


@njit(parallel=True, cache=True)
def gather(values, scale, place, skips, out, threads):
    """Write the rows [N, d] at places [N]."""
    n = len(place)
    for t in prange(threads):
        for i in range(n * t // threads, n * (t + 1) // threads):
            if i + AHEAD < n:
                _prefetch_read(values, scale, skips, place[i + AHEAD])
            _read(values, scale, skips, place[i], out, i)


@njit(parallel=True, cache=True)
def gather_combined(values, scale, place, skips, product, out, threads):
    """Write the sum or the product [n, d] of the K rows of each id.

    Args:
        values: stored rows [R, d].
        scale: [R, 1] of int8 rows, else empty.
        place: [n * K].
        skips: as in `_absent`.
        product: multiply instead of adding up.
        out: [n, d].
        threads: T.
    """
    n = len(out)
    probes = len(place) // max(n, 1)
    for t in prange(threads):
        buffer = np.empty((1, values.shape[1]), np.float32)
        for i in range(n * t // threads, n * (t + 1) // threads):
            first = i * probes
            for p in range(first + AHEAD, min(first + AHEAD + probes, len(place))):
                _prefetch_read(values, scale, skips, place[p])
            _read(values, scale, skips, place[first], out, i)
            for p in range(first + 1, first + probes):
                if product:
                    _multiply_read(values, scale, skips, place[p], out, i, buffer)
                elif not _absent(skips, place[p]):
                    _add(values, scale, place[p], np.float32(1), out, i, buffer)


@njit(parallel=True, cache=True)
def gather_bags(
    values, scale, place, skips, columns, offsets, divisors, weights, segments, sources, factors,
    out, threads,
):  # fmt: skip
    """Write the sums of the rows of bags, and what each read adds to.

    Args:
        values: stored rows [R, d].
        scale: [R, 1] of int8 rows, else empty.
        place: [n * K].
        skips: as in `_absent`.
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
                        _prefetch_read(values, scale, skips, place[p + AHEAD])
                    at = start + (k if columns > 1 else 0)
                    sources[p] = at
                    if not _absent(skips, place[p]):
                        _add(values, scale, place[p], weight, out, at, row)
            if len(divisors):
                for c in range(columns):
                    for j in range(d):
                        out[start + c, j] /= divisors[o]


# -- backward --------------------------------------------------------------------------------------
# An entry is (row << 32 | row of the gradients).

_SOURCE = 0xFFFFFFFF


@njit(parallel=True, cache=True)
def deal(place, repeat, sources, factors, shift, counts, entries, dealt, starts, threads):
    """Deal reads [N] into buckets of 2^shift rows, keeping their order within a bucket.

    Args:
        place: [N] arena rows; reads of -1, no row, go to the last bucket, which is theirs alone.
        repeat: reads of an id that share one gradient or one factor (rows that were summed).
        sources: [N] row of the gradients for each read; empty: read i has that of i // repeat.
        factors: [N / repeat] on the gradient of each read, or empty.
        shift: log2 of the rows of a bucket.
        counts: [T, buckets] scratch.
        entries: [N] written.
        dealt: [N] written if there are factors: those of the entries.
        starts: [buckets + 1] written.
        threads: T.
    """
    n, buckets = len(place), counts.shape[1]
    for t in prange(threads):
        mine = counts[t]
        mine[:] = 0
        for i in range(n * t // threads, n * (t + 1) // threads):
            mine[place[i] >> shift] += 1  # -1 is the last
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
            source = np.int64(sources[i]) if len(sources) else i if repeat == 1 else i // repeat
            entries[mine[b]] = (place[i] << 32) | source
            if len(factors):
                dealt[mine[b]] = factors[i // repeat]
            mine[b] += 1


@njit(inline="always", fastmath={"contract"})
def _sum_bucket(grads, mask, entries, factors, first, last, head, rows, sums):
    """Sum the gradients of each row of a bucket, reads in order.

    Writes the distinct rows, in order of their first reads, and their sums, and returns their number;
    head[row & mask] is the place of a row among them, -1 before.
    """
    count = 0
    for i in range(first, last):
        if i + AHEAD < len(entries):
            _prefetch(grads, entries[i + AHEAD] & _SOURCE)
        row, source = entries[i] >> 32, entries[i] & _SOURCE
        factor = factors[i] if len(factors) else np.float32(1)
        at = head[row & mask]
        if at < 0:
            head[row & mask] = count
            rows[count] = row
            _set_row(sums, count, factor, grads, source)
            count += 1
        else:
            _add_row(sums, at, factor, grads, source)
    return count


@njit(parallel=True, cache=True)
def sum_products(
    values, scale, skips, place, grads, shift, entries, starts, heads, ends, rows, sources, sums,
    threads,
):  # fmt: skip
    """Sum the gradients of the factors of products by row, reads in order; return the number U.

    The gradient of a row read for an id is the id's times the other rows read for it, which are read
    again: they are what they were, for rows change only when all gradients are summed.

    Args:
        values, scale, skips, place: as in `gather_combined`.
        grads: [n, d] of the ids.
        shift, entries, starts, heads: as in `step`, of reads that have a gradient each.
        ends: [buckets] scratch.
        rows: [N] written: the distinct rows are the first U.
        sources: [N] written: where in `sums` the sum of each of them is.
        sums: [N, d] written, those of a bucket from its first read on.
        threads: T.
    """
    mask, probes = (1 << shift) - 1, np.uint32(len(place) // max(len(grads), 1))
    for t in prange(threads):
        head = heads[t]
        one = np.empty((1, values.shape[1]), np.float32)
        buffer = np.empty((1, values.shape[1]), np.float32)
        first, last = _share(starts, threads, t)
        for b in range(first, last):
            start = count = starts[b]
            for i in range(start, starts[b + 1]):
                if i + AHEAD < len(entries):
                    later = entries[i + AHEAD] & _SOURCE
                    source = np.int64(np.uint32(later) // probes)
                    _prefetch(grads, source)
                    for p in range(source * probes, (source + 1) * probes):
                        if p != later:
                            _prefetch_read(values, scale, skips, place[p])
                row, read = entries[i] >> 32, entries[i] & _SOURCE
                source = np.int64(np.uint32(read) // probes)
                _set_row(one, 0, np.float32(1), grads, source)
                for p in range(source * probes, (source + 1) * probes):
                    if p != read:
                        _multiply_read(values, scale, skips, place[p], one, 0, buffer)
                at = head[row & mask]
                if at < 0:
                    head[row & mask] = count - start
                    rows[count] = row
                    _set_row(sums, count, np.float32(1), one, 0)
                    count += 1
                else:
                    _add_row(sums, start + at, np.float32(1), one, 0)
            for i in range(start, count):
                head[rows[i] & mask] = -1
            ends[b] = count
    total = 0
    for b in range(len(ends)):
        for i in range(starts[b], ends[b]):
            rows[total], sources[total] = rows[i], i
            total += 1
    return total


@njit(parallel=True, cache=True)
def square_sum(
    grads, shift, entries, factors, starts, heads, rows, sums, threads
):  # fmt: skip
    """Return the sum of squares of the summed gradients of the distinct rows."""
    totals = np.zeros(len(starts) - 1)
    mask = (1 << shift) - 1
    for t in prange(threads):
        head, row, mine = heads[t], rows[t], sums[t]
        first, last = _share(starts, threads, t)
        for b in range(first, last):
            count = _sum_bucket(
                grads, mask, entries, factors, starts[b], starts[b + 1], head, row, mine
            )
            for i in range(count):
                head[row[i] & mask] = -1
                totals[b] += _square_sum(mine, i)
    return totals.sum()


@njit(inline="always", fastmath={"reassoc", "contract", "nsz"})
def _square_sum(x, i):
    total = np.float32(0)
    for j in range(x.shape[1]):
        total += x[i, j] * x[i, j]
    return total


# The types of an optimizer's state say which it is, so that a kernel holds one update rule:
#     SGD             None, None
#     row-wise Adagrad  [R], None
#     Adagrad         [R, d], None
#     Adam            [R, d], [R, d]


def _prefetch_state(state, row):
    """Prefetch the optimizer state of a row."""


@overload(_prefetch_state, inline="always")
def _prefetch_any_state(state, row):
    if isinstance(state, types.NoneType):
        return lambda state, row: None
    if state.ndim == 1:
        return lambda state, row: prefetch_line(state, row, 0)
    return lambda state, row: _prefetch(state, row)


def _update(rows, at, grads, i, state, state2, row, rates):
    """Step the float32 row rows[at] by grads[i]; its optimizer state is in `row` of the states."""


@overload(_update, inline="always")
def _update_any(rows, at, grads, i, state, state2, row, rates):
    if isinstance(state, types.NoneType):

        def update(rows, at, grads, i, state, state2, row, rates):
            _decay(rows, at, rates[1])
            _add_row(rows, at, -rates[0], grads, i)

    elif state.ndim == 1:

        def update(rows, at, grads, i, state, state2, row, rates):
            _decay(rows, at, rates[1])
            state[row] += _square_sum(grads, i) / np.float32(grads.shape[1])
            _add_row(rows, at, -rates[0] / (np.sqrt(state[row]) + rates[2]), grads, i)

    elif isinstance(state2, types.NoneType):

        def update(rows, at, grads, i, state, state2, row, rates):
            _decay(rows, at, rates[1])
            lr, eps = rates[0], rates[2]
            for j in range(grads.shape[1]):
                state[row, j] += grads[i, j] * grads[i, j]
                rows[at, j] -= lr * grads[i, j] / (np.sqrt(state[row, j]) + eps)

    else:

        def update(rows, at, grads, i, state, state2, row, rates):
            _decay(rows, at, rates[1])
            rate, eps, gain, keep2, gain2 = (
                rates[0] * rates[6],
                rates[2],
                rates[3],
                rates[4],
                rates[5],
            )
            root = rates[7]
            for j in range(grads.shape[1]):
                mean = state[row, j] + gain * (grads[i, j] - state[row, j])
                square = keep2 * state2[row, j] + gain2 * grads[i, j] * grads[i, j]
                state[row, j], state2[row, j] = mean, square
                rows[at, j] -= rate * mean / (np.sqrt(square) * root + eps)

    return update


@njit(inline="always")
def _decay(rows, at, factor):
    if factor != 1:
        for j in range(rows.shape[1]):
            rows[at, j] *= factor


def _update_stored(values, scale, buffer, grads, i, state, state2, row, rates, key):
    """Step a row in its stored form; `buffer` [1, d] is scratch."""


@overload(_update_stored, inline="always")
def _update_stored_any(values, scale, buffer, grads, i, state, state2, row, rates, key):
    if values.dtype == types.float32:

        def update(values, scale, buffer, grads, i, state, state2, row, rates, key):
            _update(values, row, grads, i, state, state2, row, rates)

    else:

        def update(values, scale, buffer, grads, i, state, state2, row, rates, key):
            _load(values, scale, row, buffer, 0)
            _update(buffer, 0, grads, i, state, state2, row, rates)
            _save(values, scale, row, buffer, key)

    return update


@njit(parallel=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})
def step(
    values, scale, state, state2, factor, rates, key,
    grads, shift, entries, factors, starts, heads, rows, sums, threads,
):  # fmt: skip
    """Sum the gradients of every distinct row and update it.

    Args:
        values, scale: stored rows [R, d], and [R, 1] of int8 rows, else empty.
        state, state2: of the optimizer, as in the table above.
        factor: on all gradients (clipping).
        rates: float32: lr, 1 - lr * weight_decay, eps, and for Adam 1 - beta1, beta2,
            1 - beta2, 1 / (1 - beta1^t), 1 / sqrt(1 - beta2^t).
        key: of the stochastic rounding in this step.
        grads: [.., d].
        shift, entries, factors, starts: from `deal`.
        heads: [T, 2^shift], all -1 before and after.
        rows: [T, most distinct rows of a bucket] scratch.
        sums: [T, most distinct rows of a bucket, d] scratch.
        threads: T.
    """
    mask = (1 << shift) - 1
    for t in prange(threads):
        head, row, mine = heads[t], rows[t], sums[t]
        buffer = np.empty((1, values.shape[1]), np.float32)
        first, last = _share(starts, threads, t)
        for b in range(first, last):
            count = _sum_bucket(
                grads, mask, entries, factors, starts[b], starts[b + 1], head, row, mine
            )
            for i in range(count):
                if i + AHEAD < count:
                    _prefetch_stored(values, scale, row[i + AHEAD])
                    _prefetch_state(state, row[i + AHEAD])
                head[row[i] & mask] = -1
                if factor != 1:
                    for j in range(mine.shape[1]):
                        mine[i, j] *= factor
                _update_stored(values, scale, buffer, mine, i, state, state2, row[i], rates, key)


@njit(parallel=True, cache=True, error_model="numpy")
def dense_step(
    measure, values, state, state2, l2, factor, rates,
    grads, shift, entries, factors, starts, heads, rows, sums, threads,
):  # fmt: skip
    """Take an Adam step on every row, whose gradient is l2 * row + what the batch adds to it.

    Args:
        measure: change nothing and return the sum of squares of all gradients.
        values, state, state2: float32 [R, d].
        l2: coupled L2.
        factor, rates, grads and what follows: as in `step`.
    """
    totals = np.zeros(len(starts) - 1)
    mask = (1 << shift) - 1
    for t in prange(threads):
        head, row, mine = heads[t], rows[t], sums[t]
        total = np.empty((1, values.shape[1]), np.float32)
        for b in range((len(starts) - 1) * t // threads, (len(starts) - 1) * (t + 1) // threads):
            _sum_bucket(grads, mask, entries, factors, starts[b], starts[b + 1], head, row, mine)
            for r in range(b << shift, min((b + 1) << shift, len(values))):
                at = head[r & mask]
                head[r & mask] = -1
                for j in range(total.shape[1]):
                    total[0, j] = l2 * values[r, j]
                    if at >= 0:
                        total[0, j] += mine[at, j]
                if measure:
                    totals[b] += _square_sum(total, 0)
                    continue
                for j in range(total.shape[1]):
                    total[0, j] *= factor
                _update(values, r, total, 0, state, state2, r, rates)
    return totals.sum()


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
                out[entries[i] & _SOURCE] = head[(entries[i] >> 32) & mask] + 1
            for i in range(starts[b], starts[b + 1]):
                head[(entries[i] >> 32) & mask] = -1
