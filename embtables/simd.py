"""Explicit vectors for Numba kernels: what LLVM's loop vectoriser does not find by itself.

A value of type `vector` is one register of `LANES` float32. Kernels keep as many of them in local
variables as there are registers, so that a sum over an inner loop never goes through memory. Places in
arrays are counted in elements from their first one; arrays must be C-contiguous.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import binding, ir
from numba import extending
from numba.core import types
from numba.core.cgutils import get_or_insert_function
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import models, register_model

LANES = 16 if binding.get_host_cpu_features().get("avx512f") else 8
"""float32 numbers of a register: 16 with AVX-512, else 8."""

# What it returns takes the parameters of kernels, without the typing context.
intrinsic: Any = extending.intrinsic

_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_INTS = ir.VectorType(ir.IntType(32), LANES)
_INDEX = ir.IntType(32)
_FLAGS = ("contract", "nsz")
"""A product and a sum may become one operation."""


class Vector(types.Type):
    """Type of `LANES` float32 in a register."""

    def __init__(self) -> None:
        super().__init__(name=f"Vector(float32, {LANES})")


vector = Vector()


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, _FLOATS)


def _address(context: Any, builder: Any, array_type: Any, array: Any, place: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [place]), _FLOATS.as_pointer())


def _constant(value: float) -> ir.Constant:
    return ir.Constant(_FLOATS, [value] * LANES)


@intrinsic
def load(typingctx: Any, array: Any, place: Any) -> Any:
    """Return the `LANES` numbers from a place on."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(
            _address(context, builder, signature.args[0], args[0], args[1]), align=4
        )

    return vector(array, types.intp), generate


@intrinsic
def store(typingctx: Any, array: Any, place: Any, value: Any) -> Any:
    """Write `LANES` numbers from a place on."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(
            args[2], _address(context, builder, signature.args[0], args[0], args[1]), align=4
        )
        return context.get_dummy_value()

    return types.none(array, types.intp, vector), generate


@intrinsic
def fill(typingctx: Any, value: Any) -> Any:
    """Return a vector of one number."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        one = builder.insert_element(ir.Constant(_FLOATS, ir.Undefined), args[0], _INDEX(0))
        return builder.shuffle_vector(one, one, ir.Constant(_INTS, [0] * LANES))

    return vector(types.float32), generate


@intrinsic
def exp(typingctx: Any, x: Any) -> Any:
    """Return e^x of x <= 0 to float32 precision (Cephes' polynomial); of less than -87, e^-87."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        name = f"llvm.floor.v{LANES}f32"
        floor = get_or_insert_function(builder.module, ir.FunctionType(_FLOATS, [_FLOATS]), name)
        x = _larger(builder, args[0], _constant(-87.0))
        n = _madd(builder, x, _constant(1.44269504), _constant(0.5))
        n = builder.call(floor, [n])
        r = _madd(builder, n, _constant(-0.693359375), x)
        r = _madd(builder, n, _constant(2.12194440e-4), r)
        p = _constant(1.9875691500e-4)
        for factor in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5):
            p = _madd(builder, p, r, _constant(factor))
        p = _madd(builder, builder.fmul(p, r), r, builder.fadd(r, _constant(1.0)))
        power = builder.add(builder.fptosi(n, _INTS), ir.Constant(_INTS, [127] * LANES))
        power = builder.shl(power, ir.Constant(_INTS, [23] * LANES))
        return builder.fmul(p, builder.bitcast(power, _FLOATS))

    return vector(vector), generate


@intrinsic
def maximum(typingctx: Any, x: Any, y: Any) -> Any:
    """Return the larger number in each lane."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _larger(builder, *args)

    return vector(vector, vector), generate


@intrinsic
def transpose(
    typingctx: Any, source: Any, start: Any, step: Any, out: Any, first: Any, stride: Any
) -> Any:
    """Copy `LANES` vectors to as many, the first numbers of all to the first: out[i][j] = source[j][i].

    Vector i lies at start + i * step of the source, and goes to first + i * stride.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def addresses(types_: Any, given: Any) -> list[Any]:
            array, place, step = given
            found = []
            for _ in range(LANES):
                found.append(_address(context, builder, types_, array, place))
                place = builder.add(place, step)
            return found

        rows = [builder.load(p, align=4) for p in addresses(signature.args[0], args[:3])]
        # The blocks off the diagonal change places, in ever smaller blocks.
        distance = LANES // 2
        while distance:
            for i in range(LANES):
                if not i & distance:
                    upper, lower = rows[i], rows[i + distance]
                    for place, row in ((0, i), (distance, i + distance)):
                        lanes = [
                            lane + place if not lane & distance else LANES + lane - distance + place
                            for lane in range(LANES)
                        ]
                        mask = ir.Constant(_INTS, lanes)
                        rows[row] = builder.shuffle_vector(upper, lower, mask)
            distance //= 2
        for row, place in zip(rows, addresses(signature.args[3], args[3:]), strict=True):
            builder.store(row, place, align=4)
        return context.get_dummy_value()

    integer = types.intp
    return types.none(source, integer, integer, out, integer, integer), generate


def _madd(builder: Any, x: Any, y: Any, z: Any) -> Any:
    return builder.fadd(builder.fmul(x, y, flags=_FLAGS), z, flags=_FLAGS)


def _larger(builder: Any, x: Any, y: Any) -> Any:
    return builder.select(
        builder.fcmp_unordered(">", x, y), x, y
    )  # keeps an x that is not a number


def _define(symbol: Callable[..., Any], method: str) -> None:
    """Let Python's operator work on vectors."""

    @infer_global(symbol)  # pyright: ignore[reportOptionalCall]
    class _Typed(ConcreteTemplate):  # pyright: ignore[reportUnusedClass]
        cases = [signature(vector, vector, vector)]  # noqa: RUF012

    @lower_builtin(symbol, vector, vector)
    def _lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:  # pyright: ignore[reportUnusedFunction]
        return getattr(builder, method)(*args, flags=_FLAGS)


for _symbol, _method in {
    operator.add: "fadd",
    operator.sub: "fsub",
    operator.mul: "fmul",
    operator.truediv: "fdiv",
}.items():
    _define(_symbol, _method)
