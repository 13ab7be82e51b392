"""Vectors of 256 bits, as AVX2's, written down for LLVM: numba offers none. Where a machine's are shorter, LLVM splits.

What uses them is a numba intrinsic: a function of types that returns a signature and a generator of instructions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic as untyped_intrinsic

BYTE = 8
I32, I64 = ir.IntType(32), ir.IntType(64)
BYTES = ir.IntType(8).as_pointer()

Generate = Callable[[Any, Any, Any, Any], Any]


def intrinsic(function: Callable[..., Any]) -> Callable[..., Any]:
    """numba's decorator, typed."""
    decorated: Callable[..., Any] = untyped_intrinsic(function)
    return decorated


class Vectors:
    """An array argument, read and written a vector at a time."""

    def __init__(self, context: Any, builder: Any, kind: Any, value: Any, lanes: int = 0) -> None:
        self.builder = builder
        self.data = context.make_array(kind)(context, builder, value).data
        self.lanes = lanes or 256 // kind.dtype.bitwidth
        self.type = ir.VectorType(context.get_value_type(kind.dtype), self.lanes)
        self.align = kind.dtype.bitwidth // 8
        self.is_float = isinstance(kind.dtype, types.Float)

    def _at(self, index: Any) -> Any:
        return self.builder.bitcast(self.builder.gep(self.data, [index]), self.type.as_pointer())

    def load(self, index: Any) -> Any:
        """The vector that begins at entry `index`."""
        return self.builder.load(self._at(index), align=self.align)

    def store(self, vector: Any, index: Any) -> None:
        """Write it from entry `index` on."""
        self.builder.store(vector, self._at(index), align=self.align)

    def splat(self, scalar: Any) -> Any:
        """The scalar in every lane."""
        return splat(self.builder, scalar, self.type)


def splat(builder: Any, scalar: Any, kind: Any) -> Any:
    """The scalar in every lane of a vector of this type."""
    none = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(none, scalar, ir.Constant(I32, 0))
    return builder.shuffle_vector(first, none, lane_numbers([0] * kind.count))


def lane_numbers(numbers: list[int]) -> Any:
    """A constant vector that says which lanes a shuffle takes."""
    return ir.Constant(ir.VectorType(I32, len(numbers)), numbers)


def multiples(builder: Any, start: Any, stride: Any, count: int) -> list[Any]:
    """start, start + stride, ... as instructions."""
    places = [start]
    while len(places) < count:
        places.append(builder.add(places[-1], stride))
    return places


@intrinsic
def prefetch(_typing: Any, array: Any, index: Any) -> tuple[Any, Generate]:
    """(array, index): ask for the cache line of an entry, which need not exist."""
    del index

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        line = builder.bitcast(builder.gep(data, [arguments[1]]), BYTES)
        kind = ir.FunctionType(ir.VoidType(), [BYTES, I32, I32, I32])
        function = builder.module.declare_intrinsic("llvm.prefetch", [BYTES], kind)
        # To read it, into the second cache, as data.
        builder.call(function, [line, ir.Constant(I32, 0), ir.Constant(I32, 2), ir.Constant(I32, 1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate
