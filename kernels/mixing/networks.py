"""What the loops of `cpu` have to tell LLVM: sorting networks and tiles of inner products that stay in registers, and
what 16 bits mean as a number.

`loops.py` is touched by who changes something here: see `murmurate.kernels.compiled`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from murmurate.kernels.vectors import BYTE, I32, I64, Generate, Vectors, intrinsic, multiples, splat

TILE = (4, 2)  # rows and columns of a tile: 8 sums and what they are made of fit the 16 registers of AVX2
MIXED = 8  # vectors that `mix_lanes` sums at a time, so that none waits for another
F32 = ir.FloatType()


def batcher(n: int) -> Iterator[tuple[int, int]]:
    """The pairs (lower, upper) that Batcher's merge exchange sort puts in order, for any n (Knuth 5.2.2, M)."""
    top = 1 << (n - 1).bit_length() if n > 1 else 0
    p = top // 2
    while p:
        q, r, d = top // 2, 0, p
        while True:
            yield from ((i, i + d) for i in range(n - d) if i & p == r)
            if q == p:
                break
            q, r, d = q // 2, p, q - p
        p //= 2


def to_key(builder: Any, bits: Any) -> Any:
    """Integers in the order of the floats that they are the bits of, NaN at the ends; done twice, the bits again.

    As integers, negative floats stand in the wrong order: turn it round.
    """
    width = (bits.type.element if isinstance(bits.type, ir.VectorType) else bits.type).width

    def constant(number: int) -> Any:
        count = bits.type.count if isinstance(bits.type, ir.VectorType) else 0
        return ir.Constant(bits.type, [number] * count if count else number)

    negative = builder.ashr(bits, constant(width - 1))
    return builder.xor(bits, builder.lshr(negative, constant(1)))


@intrinsic
def sort_lanes(_typing: Any, array: Any, start: Any, pitch: Any, rows: Any) -> tuple[Any, Generate]:
    """(array, start, pitch, rows): sort across the vectors at start, start + pitch, ... in place.

    As many as the tuple `rows` is long: the type says it, so each count has machine code of its own.
    """
    del start, pitch

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vectors = Vectors(context, builder, signature.args[0], arguments[0])
        bits = ir.VectorType(ir.IntType(8 * vectors.align), vectors.lanes)
        places = multiples(builder, arguments[1], arguments[2], rows.count)
        keys = [to_key(builder, builder.bitcast(vectors.load(place), bits)) for place in places]
        for low, high in batcher(rows.count):
            a, b = keys[low], keys[high]
            less = builder.icmp_signed("<", a, b)
            keys[low], keys[high] = builder.select(less, a, b), builder.select(less, b, a)
        for key, place in zip(keys, places, strict=True):
            vectors.store(builder.bitcast(to_key(builder, key), vectors.type), place)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, rows), generate


@intrinsic
def turn_keys(_typing: Any, array: Any, start: Any, count: Any) -> tuple[Any, Generate]:
    """(array, start, count): floats to keys and back, in place; the array is of the integers of their bits."""
    del start, count

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vectors = Vectors(context, builder, signature.args[0], arguments[0])
        stop = builder.add(arguments[1], arguments[2])
        step = ir.Constant(I64, vectors.lanes)
        with cgutils.for_range_slice(builder, arguments[1], stop, step) as (place, _):
            vectors.store(to_key(builder, vectors.load(place)), place)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp), generate


@intrinsic
def add_tile(_typing: Any, lanes: Any, place: Any, work: Any, row: Any, column: Any, pitch: Any) -> Any:
    """(lanes, place, work, row, column, pitch): products of 4 rows of `work` from `row` on with 2 from `column` on.

    Each lane sums for itself in the precision of `work`; then it is added to its float64 in `lanes`, 8 to a product.
    """
    del place, row, column, pitch

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, place, _, row, column, pitch = arguments
        vectors = Vectors(context, builder, signature.args[2], arguments[2])
        totals = Vectors(context, builder, signature.args[0], arguments[0], vectors.lanes)
        rows = multiples(builder, builder.mul(row, pitch), pitch, TILE[0])
        columns = multiples(builder, builder.mul(column, pitch), pitch, TILE[1])
        zero = ir.Constant(vectors.type, [0.0] * vectors.lanes)
        sums = [[cgutils.alloca_once(builder, vectors.type) for _ in columns] for _ in rows]
        for total in itertools.chain.from_iterable(sums):
            builder.store(zero, total)
        zero_place, step = ir.Constant(I64, 0), ir.Constant(I64, vectors.lanes)
        with cgutils.for_range_slice(builder, zero_place, pitch, step) as (at, _):
            right = [vectors.load(builder.add(start, at)) for start in columns]
            for start, line in zip(rows, sums, strict=True):
                left = vectors.load(builder.add(start, at))
                for other, total in zip(right, line, strict=True):
                    builder.store(builder.fadd(builder.load(total), builder.fmul(left, other)), total)
        places = iter(multiples(builder, place, ir.Constant(I64, BYTE), TILE[0] * TILE[1]))
        for line in sums:
            for total, into in zip(line, places, strict=False):
                wide = builder.load(total)
                if wide.type != totals.type:
                    wide = builder.fpext(wide, totals.type)
                totals.store(builder.fadd(totals.load(into), wide), into)
        return context.get_dummy_value()

    return types.void(lanes, types.intp, work, types.intp, types.intp, types.intp), generate


@intrinsic
def window_lanes(_typing: Any, into: Any, at: Any, work: Any, pitch: Any, rows: Any, keep: Any) -> Any:
    """(into, at, work, pitch, rows, keep): replace a vector of means by the sums of the windows around each.

    A window is `keep` of the `rows` of `work`, one below the other. From the lowest on it moves up while the value that
    it loses is farther below the mean than the one that it wins is above; NaN at the low end is lost, at the high end
    it is not won.
    """
    del at, pitch, rows, keep

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, at, _, pitch, rows, keep = arguments
        target, source = (Vectors(context, builder, signature.args[i], arguments[i]) for i in (0, 2))
        numbers = ir.VectorType(ir.IntType(8 * source.align), source.lanes)
        one, place = ir.Constant(I64, 1), builder.srem(at, pitch)

        def row(number: Any) -> Any:
            return source.load(builder.add(builder.mul(number, pitch), place))

        def in_all_lanes(number: Any) -> Any:
            return splat(builder, builder.trunc(number, numbers.element), numbers)

        centre = target.load(at)
        lost, begin = cgutils.alloca_once(builder, source.type), cgutils.alloca_once(builder, numbers)
        infinite = ir.Constant(source.type, [math.inf] * source.lanes)
        builder.store(builder.fsub(centre, row(ir.Constant(I64, 0))), lost)
        builder.store(ir.Constant(numbers, [0] * source.lanes), begin)
        with cgutils.for_range_slice(builder, one, builder.sub(rows, builder.sub(keep, one)), one) as (low, _):
            won = builder.fsub(row(builder.add(low, builder.sub(keep, one))), centre)
            nearer = builder.fcmp_unordered("<", won, builder.load(lost))
            closer = builder.and_(builder.fcmp_ordered("<", won, infinite), nearer)
            builder.store(builder.fsub(centre, row(low)), lost)
            builder.store(builder.select(closer, in_all_lanes(low), builder.load(begin)), begin)
        zero = ir.Constant(source.type, [0.0] * source.lanes)
        total = cgutils.alloca_once(builder, source.type)
        builder.store(zero, total)
        first = builder.load(begin)
        last = builder.add(first, in_all_lanes(keep))
        with cgutils.for_range_slice(builder, ir.Constant(I64, 0), rows, one) as (number, _):
            here = in_all_lanes(number)
            inside = builder.and_(builder.icmp_signed(">=", here, first), builder.icmp_signed("<", here, last))
            builder.store(builder.fadd(builder.load(total), builder.select(inside, row(number), zero)), total)
        target.store(builder.load(total), at)
        return context.get_dummy_value()

    return types.void(into, types.intp, work, types.intp, types.intp, types.intp), generate


@intrinsic
def mix_lanes(
    _typing: Any, into: Any, at: Any, raw: Any, pitch: Any, columns: Any, shares: Any, begin: Any, end: Any
) -> Any:
    """(into, at, raw, pitch, columns, shares, begin, end): 8 vectors of a mean of rows of `raw`, written at `at`.

    The rows are `columns` begin to end with their `shares`, in that order; what is read lies at `at` modulo pitch.
    """
    del at, pitch, begin, end

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, at, _, pitch, _, _, begin, end = arguments
        target, source, numbers, factors = (
            Vectors(context, builder, signature.args[place], arguments[place]) for place in (0, 2, 4, 5)
        )
        lanes = ir.Constant(I64, source.lanes)
        zero = ir.Constant(source.type, [0.0] * source.lanes)
        sums = [cgutils.alloca_once(builder, source.type) for _ in range(MIXED)]
        for total in sums:
            builder.store(zero, total)
        first = builder.srem(at, pitch)
        with cgutils.for_range_slice(builder, begin, end, ir.Constant(I64, 1)) as (place, _):
            row = builder.load(builder.gep(numbers.data, [place]))
            share = source.splat(builder.load(builder.gep(factors.data, [place])))
            start = builder.add(builder.mul(row, pitch), first)
            for total, here in zip(sums, multiples(builder, start, lanes, MIXED), strict=True):
                product = builder.fmul(source.load(here), share)
                builder.store(builder.fadd(builder.load(total), product), total)
        for total, here in zip(sums, multiples(builder, at, lanes, MIXED), strict=True):
            target.store(builder.load(total), here)
        return context.get_dummy_value()

    return types.void(into, types.intp, raw, types.intp, columns, shares, types.intp, types.intp), generate


@intrinsic
def wide(_typing: Any, value: Any) -> tuple[Any, Generate]:
    """(value): a float as it is; of a uint16 the float32 that it is as a bfloat16, of an int16 as a float16."""
    if isinstance(value, types.Float):
        return value(value), lambda _context, _builder, _signature, arguments: arguments[0]

    def from_bfloat16(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        bits = builder.shl(builder.zext(arguments[0], I32), ir.Constant(I32, 16))
        return builder.bitcast(bits, F32)

    def from_float16(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        bits = builder.zext(arguments[0], I32)
        sign = builder.shl(builder.and_(bits, ir.Constant(I32, 0x8000)), ir.Constant(I32, 16))
        size = builder.shl(builder.and_(bits, ir.Constant(I32, 0x7FFF)), ir.Constant(I32, 13))
        # The exponents count from -15 there and from -127 here: 2^112, exact for subnormal numbers too.
        finite = builder.fmul(builder.bitcast(size, F32), ir.Constant(F32, 2.0**112))
        endless = builder.or_(size, ir.Constant(I32, 0x7F800000))
        is_endless = builder.icmp_unsigned(">=", size, ir.Constant(I32, 0x7C00 << 13))
        chosen = builder.select(is_endless, endless, builder.bitcast(finite, I32))
        return builder.bitcast(builder.or_(chosen, sign), F32)

    return types.float32(value), from_bfloat16 if value == types.uint16 else from_float16
