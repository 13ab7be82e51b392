"""The compiled loops of `cpu`: numba without fast-math, so every float operation is one that is written here.

The 32768 entries of a block are 32 segments of 32 rows of 32. A record adds its coefficient times one row of H_32,
which settles the five levels within a row. Five levels run across the segments and five across a segment's rows, each
as one pass over 32 vectors that stay in registers. After the second pass a few segments meet their weights while they
are still in the first cache.

All take blocks `begin` to `end` of the whole model, of which `first_block` is the array's first.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from murmurate.kernels.compiled import jit

from .directions import BLOCK, BLOCK_LOG2, DOMAIN_ROWS, DOMAIN_SIGNS, GROUP, PHILOX_M, PHILOX_ROUNDS, PHILOX_W
from .reference import walsh
from .vectors import BYTE, ROW, add_row, spread, transform_lanes, transform_rows, transform_signed_rows

F32 = NDArray[np.float32]
Ints = NDArray[Any]
U8 = NDArray[np.uint8]
U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]

SEGMENT = ROW * ROW
PITCH = SEGMENT + ROW  # segments exactly 4 KiB apart would all fall into one set of the first cache
PADDED = ROW * PITCH
# Segments transformed before their weights are touched. Measured (Zen 4, d = 5e7, K = 64, one thread): 2 is 5 % slower
# (main memory's prefetcher starts anew each time), 32 is 3 to 10 % slower (the sums have left the first cache).
TOGETHER = 4
CHUNK = TOGETHER * SEGMENT

M0, M1, W0, W1 = (np.uint64(number) for number in (*PHILOX_M, *PHILOX_W))
LOW = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)
ROWS = np.concatenate([walsh(lane)[:ROW] for lane in range(ROW)]).astype(np.int16)
ROW_BITS = np.array([sum(1 << i for i in range(ROW) if walsh(lane)[i] < 0) for lane in range(ROW)], dtype=np.uint32)
ODD = walsh(ROW - 1)[:ROW] < 0  # of numbers below 32: whether the number of set bits is odd


# Random bits -----------------------------------------------------------------------------------------


@jit
def philox(x0: Any, x1: Any, x2: Any, x3: Any, key: Any) -> Any:
    """Philox4x32-10 of four 32-bit words, each in a uint64."""
    k0, k1 = key & LOW, key >> HALF
    for _ in range(PHILOX_ROUNDS):
        p0, p1 = x0 * M0, x2 * M1
        x0, x1, x2, x3 = (p1 >> HALF) ^ x1 ^ k0, p1 & LOW, (p0 >> HALF) ^ x3 ^ k1, p0 & LOW
        k0, k1 = (k0 + W0) & LOW, (k1 + W1) & LOW
    return x0, x1, x2, x3


@jit
def draw_signs(bits: U32, signs: Any, block: int) -> None:
    """The swarm's sign bits of a block [1024]."""
    first = np.uint64(block) * np.uint64(BLOCK // 128)
    low, high = first & LOW, first >> HALF  # a block's 256 calls share the high word
    for call in range(BLOCK // 128):
        words = philox(low + np.uint64(call), high, np.uint64(0), np.uint64(DOMAIN_SIGNS), signs)
        bits[4 * call], bits[4 * call + 1], bits[4 * call + 2], bits[4 * call + 3] = words


@jit
def draw_fields(words_4K: U32, keys: U64, indices: U64, group: int) -> None:
    """Rows and signs of all directions in 8 blocks, two to a word."""
    low = np.uint64(group) & LOW
    last = np.uint64(DOMAIN_ROWS) | np.uint64(group) >> HALF << np.uint64(8)
    for k in range(len(keys)):
        words = philox(low, indices[k] & LOW, indices[k] >> HALF, last, keys[k])
        words_4K[0, k], words_4K[1, k], words_4K[2, k], words_4K[3, k] = words


@jit
def field_of(words_4K: U32, k: int, block: int) -> Any:
    """Row and sign of direction k: 16 bits."""
    inside = block % GROUP
    return np.intp(words_4K[inside // 2, k] >> np.uint32(16 * (inside % 2)) & np.uint32(0xFFFF))


@jit
def place_of(row: int) -> int:
    """Where the row of the 1024 that an entry lies in begins, in the padded block."""
    return row * ROW + row // ROW * ROW


@jit
def lanes_of(values: Ints) -> Any:
    """Of one vector, as in `vectors`."""
    return max(BYTE, 32 // values.itemsize)


# Transforms ------------------------------------------------------------------------------------------


@jit
def gather(sums: Ints, words_4K: U32, block: int, coefficients: Ints) -> None:
    """Add the records of one block, then transform all levels but those across a segment's rows."""
    sums[:] = 0
    for k in range(len(coefficients)):
        field = field_of(words_4K, k, block)
        row = field & BLOCK - 1
        factor = -coefficients[k] if field >> BLOCK_LOG2 else coefficients[k]
        add_row(sums, place_of(row // ROW), ROWS, row % ROW * ROW, factor)
    for lane in range(0, SEGMENT, lanes_of(sums)):
        transform_rows(sums, lane, PITCH)


@jit
def finish(sums: Ints, segment: int, masks: U8) -> None:
    """The levels across the rows of TOGETHER segments, and the swarm's signs: now they are sums."""
    for number in range(segment, segment + TOGETHER):
        for lane in range(0, ROW, lanes_of(sums)):
            transform_signed_rows(sums, number * PITCH + lane, masks, (number * SEGMENT + lane) // BYTE)


@jit
def add_records(
    into_D: Ints,
    first_block: int,
    begin: int,
    end: int,
    keys: U64,
    indices: U64,
    coefficients: Ints,
    signs: Any,
    unit: Any,
) -> None:
    """See `reference.replay`, and for a unit of None `reference.accumulate`: that is decided when it is compiled."""
    sums = np.empty(PADDED, coefficients.dtype)
    words_4K, bits = np.empty((4, len(keys)), np.uint32), np.empty(BLOCK // ROW, np.uint32)
    for block in range(begin, end):
        if block == begin or block % GROUP == 0:
            draw_fields(words_4K, keys, indices, block // GROUP)
        draw_signs(bits, signs, block)
        gather(sums, words_4K, block, coefficients)
        for segment in range(0, ROW, TOGETHER):
            finish(sums, segment, bits.view(np.uint8))
            for number in range(segment, segment + TOGETHER):
                at = (block - first_block) * BLOCK + number * SEGMENT
                into = into_D[at : at + SEGMENT]
                change = sums[number * PITCH : number * PITCH + len(into)]
                if unit is None:
                    for t in range(len(into)):
                        into[t] += change[t]
                else:
                    for t in range(len(into)):
                        into[t] -= unit * np.float32(change[t])


# One direction, or none: no transform ----------------------------------------------------------------


@jit
def draw_direction(bits: U32, words_41: U32, signs: Any, block: int) -> None:
    """The sign bits of a whole direction in one block: a row of H_1024 says which rows of H_32 are negated."""
    draw_signs(bits, signs, block)
    field = field_of(words_41, 0, block)
    low = ROW_BITS[field % ROW]
    if field >> BLOCK_LOG2:
        low = ~low
    high = field // ROW % SEGMENT
    for row in range(SEGMENT):
        both = high & row
        odd = ODD[both % ROW] ^ ODD[both // ROW]
        bits[row] ^= ~low if odd else low


@jit
def fill(step: F32, value: Any, bits: U32, first: int) -> None:
    """value x direction for CHUNK entries, of which `first` is the first in the block."""
    masks = bits.view(np.uint8)
    for t in range(0, CHUNK, ROW):
        spread(step, t, value, masks, (first + t) // BYTE)


@jit
def subtract(out: F32, base: F32, sums: Ints, unit: Any, in_place: bool) -> None:
    """out = base - unit x f32(sums). In place is a loop of its own: with one array LLVM need not fear an overlap."""
    if in_place:
        for t in range(len(out)):
            out[t] -= unit * np.float32(sums[t])
    else:
        for t in range(len(out)):
            out[t] = base[t] - unit * np.float32(sums[t])


@jit
def add(out: F32, base: F32, step: F32, in_place: bool) -> None:
    """out = base + step."""
    if in_place:
        for t in range(len(out)):
            out[t] += step[t]
    else:
        for t in range(len(out)):
            out[t] = base[t] + step[t]


@jit
def materialise(
    out_D: F32, base_D: F32, sums_D: Ints, unit: Any, in_place: bool, first_block: int, begin: int, end: int
) -> None:
    """See `reference.materialise`, without a direction."""
    part = slice((begin - first_block) * BLOCK, (end - first_block) * BLOCK)
    subtract(out_D[part], base_D[part], sums_D[part], unit, in_place)


@jit
def perturb(
    out_D: F32,
    base_D: F32,
    sums_D: Any,
    unit: Any,
    in_place: bool,
    first_block: int,
    begin: int,
    end: int,
    keys: U64,
    indices: U64,
    epsilon: Any,
    signs: Any,
) -> None:
    """See `reference.materialise`, with a direction, and for sums of None `reference.perturb`."""
    step = np.empty(CHUNK, np.float32)
    words_41, bits = np.empty((4, 1), np.uint32), np.empty(BLOCK // ROW, np.uint32)
    for block in range(begin, end):
        draw_fields(words_41, keys, indices, block // GROUP)
        draw_direction(bits, words_41, signs, block)
        for first in range(0, BLOCK, CHUNK):
            at = (block - first_block) * BLOCK + first
            out, base = out_D[at : at + CHUNK], base_D[at : at + CHUNK]
            fill(step, epsilon, bits, first)
            if sums_D is None:
                add(out, base, step, in_place)
            else:
                subtract(out, base, sums_D[at : at + CHUNK], unit, in_place)
                add(out, out, step, True)


# Projections -----------------------------------------------------------------------------------------


@jit
def project(
    totals_GK: NDArray[np.float64],
    update_D: F32,
    first_block: int,
    begin: int,
    end: int,
    keys: U64,
    indices: U64,
    signs: Any,
) -> None:
    """Add to row 0 of `totals_GK` what the group of `begin` contributes, to row 1 the next group's, ..."""
    values, short = np.empty(PADDED, np.float32), np.empty(SEGMENT, np.float32)
    words_4K, bits = np.empty((4, len(keys)), np.uint32), np.empty(BLOCK // ROW, np.uint32)
    masks = bits.view(np.uint8)
    for block in range(begin, end):
        if block == begin or block % GROUP == 0:
            draw_fields(words_4K, keys, indices, block // GROUP)
        draw_signs(bits, signs, block)
        for segment in range(ROW):
            at = (block - first_block) * BLOCK + segment * SEGMENT
            source = update_D[at : at + SEGMENT]
            if len(source) < SEGMENT:
                short[:] = 0
                short[: len(source)] = source
                source = short
            for row in range(ROW):
                here = segment * SEGMENT + row * ROW
                transform_lanes(values, segment * PITCH + row * ROW, source, row * ROW, masks, here // BYTE)
            for lane in range(0, ROW, lanes_of(values)):
                transform_rows(values, segment * PITCH + lane, ROW)
        for lane in range(0, SEGMENT, lanes_of(values)):
            transform_rows(values, lane, PITCH)
        totals_K = totals_GK[block // GROUP - begin // GROUP]
        for k in range(len(keys)):
            field = field_of(words_4K, k, block)
            row = field & BLOCK - 1
            value = np.float64(values[place_of(row // ROW) + row % ROW])
            totals_K[k] += -value if field >> BLOCK_LOG2 else value
