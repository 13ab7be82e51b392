"""Vector instructions for the loops of `cpu`, written down for LLVM: numba offers none, and LLVM does not find them.

Each is a numba intrinsic: a function of types that returns a signature and a generator of instructions. A vector has
256 bits, as AVX2's have; where a machine has shorter ones, LLVM splits it. (int64 is twice as wide: no fewer
than 8 lanes, for a mask is whole bytes.) Lane order and masks are little endian, as every platform of numba is.

numba keeps machine code by the date of the file with the loops: who changes something here touches `loops.py`.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from murmurate.kernels.vectors import BYTE, I64, Generate, Vectors, intrinsic, lane_numbers, multiples

ROW = 32  # of lanes in a row, and of vectors in a network: as many as AVX-512 has registers


class _Vectors(Vectors):
    """With at least 8 lanes, and transforms."""

    def __init__(self, context: Any, builder: Any, kind: Any, value: Any, lanes: int = 0) -> None:
        super().__init__(context, builder, kind, value, lanes or max(BYTE, 256 // kind.dtype.bitwidth))

    def negated_where(self, mask: Any, vector: Any) -> Any:
        """-vector in the lanes whose bit is set."""
        if self.is_float:
            negative = self.builder.fneg(vector)
        else:
            negative = self.builder.sub(ir.Constant(self.type, [0] * self.lanes), vector)
        return self.builder.select(mask, negative, vector)

    def sum_and_difference(self, a: Any, b: Any) -> tuple[Any, Any]:
        if self.is_float:
            return self.builder.fadd(a, b), self.builder.fsub(a, b)
        return self.builder.add(a, b), self.builder.sub(a, b)

    def transform(self, vectors: list[Any]) -> None:
        """Walsh-Hadamard across the vectors, ascending levels, in place."""
        h = 1
        while h < len(vectors):
            for i in range(len(vectors)):
                if not i & h:
                    vectors[i], vectors[i | h] = self.sum_and_difference(vectors[i], vectors[i | h])
            h *= 2

    def transform_lanes(self, vector: Any) -> Any:
        """Walsh-Hadamard across the lanes of one vector, ascending levels."""
        h = 1
        while h < self.lanes:
            other = self.builder.shuffle_vector(vector, vector, lane_numbers([lane ^ h for lane in range(self.lanes)]))
            # In a lower lane the other is b, in an upper one it is a, and what is wanted there is a - b.
            total, _ = self.sum_and_difference(vector, other)
            _, difference = self.sum_and_difference(other, vector)
            chosen = [lane + self.lanes if lane & h else lane for lane in range(self.lanes)]
            vector = self.builder.shuffle_vector(total, difference, lane_numbers(chosen))
            h *= 2
        return vector


def _masks(vectors: _Vectors, context: Any, kind: Any, value: Any, start: Any, step: int, count: int) -> list[Any]:
    """One bit per lane from a uint8 array at bytes start, start + step, ..."""
    builder = vectors.builder
    data = context.make_array(kind)(context, builder, value).data
    bits, flags = ir.IntType(vectors.lanes), ir.VectorType(ir.IntType(1), vectors.lanes)
    places = multiples(builder, start, ir.Constant(I64, step), count)
    pointers = [builder.bitcast(builder.gep(data, [place]), bits.as_pointer()) for place in places]
    return [builder.bitcast(builder.load(pointer, align=1), flags) for pointer in pointers]


@intrinsic
def transform_rows(_typing: Any, array: Any, start: Any, stride: Any) -> tuple[Any, Generate]:
    """(array, start, stride): transform across 32 vectors at start, start + stride, ... in place."""
    del start, stride

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vectors = _Vectors(context, builder, signature.args[0], arguments[0])
        places = multiples(builder, arguments[1], arguments[2], ROW)
        values = [vectors.load(place) for place in places]
        vectors.transform(values)
        for value, place in zip(values, places, strict=True):
            vectors.store(value, place)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp), generate


@intrinsic
def transform_signed_rows(_typing: Any, array: Any, start: Any, masks: Any, first: Any) -> tuple[Any, Generate]:
    """(array, start, masks, first): the same with stride 32, then each negated where its bits say."""
    del start, first

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vectors = _Vectors(context, builder, signature.args[0], arguments[0])
        places = multiples(builder, arguments[1], ir.Constant(I64, ROW), ROW)
        values = [vectors.load(place) for place in places]
        vectors.transform(values)
        flips = _masks(vectors, context, signature.args[2], arguments[2], arguments[3], ROW // BYTE, ROW)
        for flip, value, place in zip(flips, values, places, strict=True):
            vectors.store(vectors.negated_where(flip, value), place)
        return context.get_dummy_value()

    return types.void(array, types.intp, masks, types.intp), generate


@intrinsic
def transform_lanes(_typing: Any, into: Any, at: Any, source: Any, start: Any, masks: Any, first: Any) -> Any:
    """(into, at, source, start, masks, first): 32 entries, negated where 4 masks say, then their five lower levels."""
    del at, start, first

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target = _Vectors(context, builder, signature.args[0], arguments[0])
        read = _Vectors(context, builder, signature.args[2], arguments[2])
        eight = ir.Constant(I64, BYTE)
        sources = multiples(builder, arguments[3], eight, ROW // BYTE)
        flips = _masks(read, context, signature.args[4], arguments[4], arguments[5], 1, ROW // BYTE)
        signed = [read.negated_where(f, read.load(place)) for f, place in zip(flips, sources, strict=True)]
        values = [read.transform_lanes(vector) for vector in signed]
        read.transform(values)
        for value, place in zip(values, multiples(builder, arguments[1], eight, ROW // BYTE), strict=True):
            target.store(value, place)
        return context.get_dummy_value()

    return types.void(into, types.intp, source, types.intp, masks, types.intp), generate


@intrinsic
def add_row(_typing: Any, array: Any, start: Any, rows: Any, row: Any, factor: Any) -> tuple[Any, Generate]:
    """(array, start, rows, row, factor): add factor x 32 entries of `rows` from `row` on to 32 of the array."""
    del start, row, factor

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vectors = _Vectors(context, builder, signature.args[0], arguments[0])
        table = _Vectors(context, builder, signature.args[2], arguments[2], vectors.lanes)
        factors = vectors.splat(arguments[4])
        lanes = ir.Constant(I64, vectors.lanes)
        places = multiples(builder, arguments[1], lanes, ROW // vectors.lanes)
        entries = multiples(builder, arguments[3], lanes, ROW // vectors.lanes)
        for place, entry in zip(places, entries, strict=True):
            ones = table.load(entry)
            wide = ones if ones.type == vectors.type else builder.sext(ones, vectors.type)
            vectors.store(builder.add(vectors.load(place), builder.mul(wide, factors)), place)
        return context.get_dummy_value()

    return types.void(array, types.intp, rows, types.intp, array.dtype), generate


@intrinsic
def spread(_typing: Any, array: Any, start: Any, value: Any, masks: Any, first: Any) -> tuple[Any, Generate]:
    """(array, start, value, masks, first): 32 times the float value, negated where 4 masks say."""
    del start, value, first

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vectors = _Vectors(context, builder, signature.args[0], arguments[0])
        values = vectors.splat(arguments[2])
        places = multiples(builder, arguments[1], ir.Constant(I64, BYTE), ROW // BYTE)
        flips = _masks(vectors, context, signature.args[3], arguments[3], arguments[4], 1, ROW // BYTE)
        for flip, place in zip(flips, places, strict=True):
            vectors.store(vectors.negated_where(flip, values), place)
        return context.get_dummy_value()

    return types.void(array, types.intp, array.dtype, masks, types.intp), generate
