"""The Triton kernels of `cuda`. One program takes a tile of parameters through all rows. Each is read once, but for
`mixed_row`, which reads all that it is made of, and `gram_kernel`, which is launched once per two blocks of rows.

Values are calculated in `WIDE`, float32 or float64. Places in rows have 64 bits: K x D passes 2^31 soon. A row is
floats, or, with `PER_SCALE` not 0, int8 codes of which as many share one of `scales`.
"""

# Triton's language is compiled from the source, not run: its values have no Python types.
# pyright: basic, reportArgumentType=false, reportIndexIssue=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportOperatorIssue=false, reportAssignmentType=false, reportReturnType=false, reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

from murmurate.kernels.rounding import rounded


@triton.jit
def tile_of(size, TILE: tl.constexpr):
    """The places of this program's parameters, and which of them exist."""
    at = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    return at, at < size


@triton.jit
def values_of(rows_KD, scales_KB, row, at, inside, size, WIDE: tl.constexpr, PER_SCALE: tl.constexpr):
    """Parameters `at` of a row, 0 outside."""
    raw = tl.load(rows_KD + tl.cast(row, tl.int64) * size + at, mask=inside, other=0)
    if PER_SCALE:
        scales_B = scales_KB + tl.cast(row, tl.int64) * ((tl.cast(size, tl.int64) + PER_SCALE - 1) // PER_SCALE)
        scale = tl.load(scales_B + at // PER_SCALE, mask=inside, other=0)
        return (raw.to(tl.float32) * scale).to(WIDE)
    return raw.to(WIDE)


# Whole vectors ---------------------------------------------------------------------------------------


@triton.jit
def combine_kernel(
    out_D, mine_D, theirs_KD, scales_KB, size, rows, shares, count,
    WIDE: tl.constexpr, PER_SCALE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """`count` rows of `rows` with their shares, after ours with the first share."""
    at, inside = tile_of(size, TILE)
    mixed = tl.load(mine_D + at, mask=inside, other=0).to(WIDE) * tl.load(shares)
    for k in tl.range(0, count, loop_unroll_factor=4):  # so that the loads need not wait for each other
        row, share = tl.load(rows + k), tl.load(shares + 1 + k)
        mixed += values_of(theirs_KD, scales_KB, row, at, inside, size, WIDE, PER_SCALE) * share
    tl.store(out_D + at, rounded(mixed, out_D.dtype.element_ty), mask=inside)


@triton.jit
def squares_kernel(
    parts_KP, mine_D, theirs_KD, scales_KB, size, count,
    WIDE: tl.constexpr, SUMS: tl.constexpr, PER_SCALE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The squared distances in each tile, summed in `SUMS`."""
    at, inside = tile_of(size, TILE)
    mine = tl.load(mine_D + at, mask=inside, other=0).to(WIDE)
    for k in range(count):
        theirs = values_of(theirs_KD, scales_KB, k, at, inside, size, WIDE, PER_SCALE)
        difference = (theirs - mine).to(SUMS)
        place = tl.cast(k, tl.int64) * tl.num_programs(0) + tl.program_id(0)
        tl.store(parts_KP + place, tl.sum(difference * difference, 0))


@triton.jit
def differences(
    mine_D, theirs_KD, first, count, at, inside, size, WIDE: tl.constexpr, SUMS: tl.constexpr, ROWS: tl.constexpr
):
    """To ours, of the rows from `first` on; 0 for rows that do not exist."""
    row = first + tl.arange(0, ROWS)
    there = (row < count)[:, None] & inside[None, :]
    places = row.to(tl.int64)[:, None] * size + at[None, :]
    mine = tl.load(mine_D + at, mask=inside, other=0).to(WIDE)
    theirs = tl.load(theirs_KD + places, mask=there, other=0).to(WIDE)
    return tl.where(there, theirs - mine[None, :], 0.0).to(SUMS)


@triton.jit
def gram_kernel(
    parts_IJP, mine_D, theirs_KD, size, count, left_first, right_first, tiles,
    SAME: tl.constexpr, WIDE: tl.constexpr, SUMS: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr,
    TILES: tl.constexpr,
):  # fmt: skip
    """The inner products of `ROWS` rows from `left_first` on with as many from `right_first` on, maybe the `SAME`.

    Each program has `tiles` x `TILES` tiles in turn: summed in `SUMS`, and after `TILES` of them in float64.
    """
    total = tl.zeros([ROWS, ROWS], tl.float64)
    start = tl.program_id(0).to(tl.int64) * tiles * TILES * TILE
    for number in range(tiles):
        products = tl.zeros([ROWS, ROWS], SUMS)
        for part in range(TILES):
            at = start + tl.cast(number * TILES + part, tl.int64) * TILE + tl.arange(0, TILE)
            left = differences(mine_D, theirs_KD, left_first, count, at, at < size, size, WIDE, SUMS, ROWS)
            right = left
            if not SAME:
                right = differences(mine_D, theirs_KD, right_first, count, at, at < size, size, WIDE, SUMS, ROWS)
            products = tl.dot(left, tl.trans(right), products, input_precision="ieee", out_dtype=SUMS)
        total += products.to(tl.float64)
    i, j = tl.arange(0, ROWS)[:, None], tl.arange(0, ROWS)[None, :]
    place = (i * ROWS + j).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    tl.store(parts_IJP + place, total)


@triton.jit
def totals_kernel(totals, parts, lines, count, LINES: tl.constexpr, TILE: tl.constexpr):
    """The sum of each of the `lines` of `count` parts, in float64 and always in the same order."""
    line = tl.program_id(0) * LINES + tl.arange(0, LINES)
    total = tl.zeros([LINES, TILE], tl.float64)
    for start in range(0, count, TILE):
        at = start + tl.arange(0, TILE)
        there = (line < lines)[:, None] & (at < count)[None, :]
        places = line.to(tl.int64)[:, None] * count + at[None, :]
        total += tl.load(parts + places, mask=there, other=0).to(tl.float64)
    tl.store(totals + line, tl.sum(total, 1), mask=line < lines)


# Single parameters -----------------------------------------------------------------------------------


@triton.jit
def widened(raw, WIDE: tl.constexpr):
    """A conversion may take a NaN's sign away, which says at which end it stands: 16 bits are widened by hand."""
    wide = raw.to(WIDE)
    if raw.dtype.primitive_bitwidth == 16:
        bits = raw.to(tl.int16, bitcast=True).to(tl.int32)
        if raw.dtype == tl.bfloat16:
            wide = (bits << 16).to(tl.float32, bitcast=True)
        else:
            size = wide.to(tl.int32, bitcast=True) & 0x7FFFFFFF
            wide = (size | (bits & -0x80000000)).to(tl.float32, bitcast=True)
    return wide


@triton.jit
def turned(bits):
    """Integers in the order of the floats that they are the bits of, NaN at the ends; done twice, the bits again."""
    largest: tl.constexpr = 2 ** (bits.dtype.primitive_bitwidth - 1) - 1
    return bits ^ tl.where(bits < 0, largest, 0).to(bits.dtype)


@triton.jit
def mixed_row(mine_D, theirs_KD, size, at, inside, columns, shares, begin, end, WIDE: tl.constexpr):
    """One row of a matrix times all vectors."""
    total = tl.zeros(at.shape, WIDE)
    for place in range(begin, end):
        column, share = tl.load(columns + place), tl.load(shares + place)
        if column == 0:
            raw = tl.load(mine_D + at, mask=inside, other=0)
        else:
            raw = tl.load(theirs_KD + (column - 1) * size + at, mask=inside, other=0)
        total += raw.to(WIDE) * share
    return total


@triton.jit
def divided(total, count: tl.constexpr):
    """Rounded to nearest, which `/` in float32 is not: where two values are equally far, a last digit decides."""
    by = tl.full(total.shape, count, total.dtype)
    if total.dtype == tl.float32:
        return tl.div_rn(total, by)
    return total / by


@triton.jit
def mean_of(values, FIRST: tl.constexpr, LAST: tl.constexpr):
    """In their order."""
    total = values[FIRST]
    for m in tl.static_range(FIRST + 1, LAST):
        total += values[m]
    return divided(total, LAST - FIRST)


@triton.jit
def nearest_mean(values, centre, M: tl.constexpr, KEEP: tl.constexpr):
    """The mean of the window of `KEEP` values that `reference.nearest_mean` chooses."""
    begin = tl.zeros(centre.shape, tl.int32)
    for step in tl.static_range(1, M - KEEP + 1):
        lost, won = centre - values[step - 1], values[step + KEEP - 1] - centre
        stays = (lost <= won) | (won == float("inf")) | (won != won)
        begin = tl.where(stays, begin, step)
    total = tl.zeros(centre.shape, centre.dtype)
    for m in tl.static_range(M):
        total += tl.where((m >= begin) & (m < begin + KEEP), values[m], 0.0)
    return divided(total, KEEP)


@triton.jit
def places_kernel(
    out_D, mine_D, theirs_KD, size, ends, columns, shares,
    MIXED: tl.constexpr, NETWORK: tl.constexpr, M: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr,
    KEEP: tl.constexpr, WIDE: tl.constexpr, BITS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """`reference.around`, and for a `KEEP` of 0 `reference.ranks`: `M` values sorted in registers.

    `NETWORK` is its pairs one after the other. What no later place needs of it, the compiler leaves out.
    """
    at, inside = tile_of(size, TILE)
    keys = ()
    for m in tl.static_range(M):
        if MIXED:
            begin, end = tl.load(ends + m), tl.load(ends + m + 1)
            value = mixed_row(mine_D, theirs_KD, size, at, inside, columns, shares, begin, end, WIDE)
        else:
            if m == 0:
                raw = tl.load(mine_D + at, mask=inside, other=0)
            else:
                raw = tl.load(theirs_KD + tl.cast(size, tl.int64) * (m - 1) + at, mask=inside, other=0)
            value = widened(raw, WIDE)
        keys = keys + (turned(value.to(BITS, bitcast=True)),)  # noqa: RUF005 (Triton knows no star)
    for pair in tl.static_range(len(NETWORK) // 2):
        a, b = keys[NETWORK[2 * pair]], keys[NETWORK[2 * pair + 1]]
        below, between = keys[: NETWORK[2 * pair]], keys[NETWORK[2 * pair] + 1 : NETWORK[2 * pair + 1]]
        above = keys[NETWORK[2 * pair + 1] + 1 :]
        keys = below + (tl.minimum(a, b),) + between + (tl.maximum(a, b),) + above  # noqa: RUF005 (as above)
    values = ()
    for m in tl.static_range(M):
        values = values + (turned(keys[m]).to(WIDE, bitcast=True),)  # noqa: RUF005 (as above)
    out = mean_of(values, FIRST, LAST)
    if KEEP:
        out = nearest_mean(values, out, M, KEEP)
    tl.store(out_D + at, rounded(out, out_D.dtype.element_ty), mask=inside)
