"""The compiled loops of `cpu`. Each takes parameters `begin` to `end` of all rows, a chunk at a time that stays in the
first caches; no row is read twice.

`mine_D` and `theirs_KD` are arrays of floats, or of the 16-bit integers that `networks.wide` reads. Everything else has
the float type that is calculated in; `out` begins with parameter `begin`, and rows of scratch are as long as a chunk.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from murmurate.kernels.compiled import jit
from murmurate.kernels.vectors import BYTE, prefetch

from .networks import MIXED, TILE, add_tile, mix_lanes, sort_lanes, turn_keys, wide, window_lanes

Rows = NDArray[Any]
Floats = NDArray[Any]
Ints = NDArray[Any]
F64 = NDArray[np.float64]

PRODUCTS = TILE[0] * TILE[1]
LINE = 64  # bytes of a cache line
SUMS = 64  # partial sums of a square, so that none waits for another


@jit
def lanes_of(values: Floats) -> Any:
    """Of one vector, as in `vectors`."""
    return 32 // values.itemsize


@jit
def fetch(row_D: Rows, start: int, count: int) -> None:
    """Have the next chunk of a row on its way while this one is dealt with.

    The hardware's own prefetchers follow one row, not 17 in turn. Measured (Zen 4, one thread, K = 16, D = 1e7): all
    rows are read in 53 ms instead of 79; one row of that length takes 41.
    """
    for p in range(start + count, start + 2 * count, LINE // row_D.itemsize):
        prefetch(row_D, p)


# Whole vectors ---------------------------------------------------------------------------------------


@jit
def combine(
    out: Floats, mine_D: Rows, theirs_KD: Rows, begin: int, end: int, own: Any, rows: Ints, shares: Floats, chunk: int
) -> None:
    """See `reference.combine`; `rows` are those with a share."""
    for start in range(begin, end, chunk):
        stop = min(start + chunk, end)
        mixed, mine = out[start - begin : stop - begin], mine_D[start:stop]
        for p in range(len(mixed)):
            mixed[p] = wide(mine[p]) * own
        add_rows(mixed, theirs_KD, start, rows, shares)


@jit
def add_rows(into: Floats, rows_ND: Rows, start: int, rows: Ints, shares: Floats) -> None:
    """Add share x row for each of `rows` in their order; two at a time, which halves the traffic of the sums."""
    stop, paired = start + len(into), len(rows) - len(rows) % 2
    for k in range(0, paired, 2):
        fetch(rows_ND[rows[k]], start, len(into))
        fetch(rows_ND[rows[k + 1]], start, len(into))
        a, b = rows_ND[rows[k], start:stop], rows_ND[rows[k + 1], start:stop]
        s, t = shares[k], shares[k + 1]
        for p in range(len(into)):
            into[p] = (into[p] + wide(a[p]) * s) + wide(b[p]) * t
    if paired < len(rows):
        fetch(rows_ND[rows[paired]], start, len(into))
        a, s = rows_ND[rows[paired], start:stop], shares[paired]
        for p in range(len(into)):
            into[p] += wide(a[p]) * s


@jit
def squares(totals_K: F64, mine_D: Rows, theirs_KD: Rows, begin: int, end: int, mine: Floats, sums: Floats) -> None:
    """Add the squared distances of these parameters; `mine` is as long as a chunk, and `sums` [SUMS] says how precise
    the sum of a chunk is."""
    for start in range(begin, end, len(mine)):
        stop = min(start + len(mine), end)
        load(mine[: stop - start], mine_D, start)
        for k in range(len(theirs_KD)):
            theirs = theirs_KD[k, start:stop]
            fetch(theirs, 0, len(theirs))
            add_square(totals_K, k, mine, theirs, sums)


@jit
def add_square(totals_K: F64, k: int, mine: Floats, theirs: Rows, sums: Floats) -> None:
    """Add one chunk's squared distance to one total; as many partial sums as `sums` is long.

    A difference that the models' type cannot hold is infinite whatever the sums' type, as in `gram`.
    """
    whole = len(theirs) // SUMS * SUMS
    sums[:] = 0
    for first in range(0, whole, SUMS):
        for p in range(SUMS):
            difference = sums.dtype.type(wide(theirs[first + p]) - mine[first + p])
            sums[p] += difference * difference
    for p in range(len(theirs) - whole):
        difference = sums.dtype.type(wide(theirs[whole + p]) - mine[whole + p])
        sums[p] += difference * difference
    for p in range(SUMS):
        totals_K[k] += np.float64(sums[p])


@jit
def dequantise(into: Floats, codes_D: Ints, scales_B: Floats, block: int, start: int) -> None:
    """Code x scale from parameter `start` on, where `block` codes share a scale."""
    fetch(codes_D, start, len(into))
    stop = start + len(into)
    for b in range(start // block, (stop - 1) // block + 1):
        first, scale = max(start, b * block), scales_B[b]
        codes = codes_D[first : min(stop, (b + 1) * block)]
        part = into[first - start :]
        for p in range(len(codes)):
            part[p] = np.float32(codes[p]) * scale


@jit
def combine_quantised(
    out: Floats,
    mine_D: Rows,
    codes_KD: Ints,
    scales_KB: Floats,
    block: int,
    begin: int,
    end: int,
    own: Any,
    rows: Ints,
    shares: Floats,
    row: Floats,
) -> None:
    """See `reference.combine_quantised`; `row` is as long as a chunk."""
    for start in range(begin, end, len(row)):
        stop = min(start + len(row), end)
        mixed, mine, theirs = out[start - begin : stop - begin], mine_D[start:stop], row[: stop - start]
        for p in range(len(mixed)):
            mixed[p] = wide(mine[p]) * own
        for k in range(len(rows)):
            dequantise(theirs, codes_KD[rows[k]], scales_KB[rows[k]], block, start)
            share = shares[k]
            for p in range(len(mixed)):
                mixed[p] += theirs[p] * share


@jit
def squares_quantised(
    totals_K: F64,
    mine_D: Rows,
    codes_KD: Ints,
    scales_KB: Floats,
    block: int,
    begin: int,
    end: int,
    mine: Floats,
    sums: Floats,
    row: Floats,
) -> None:
    """Add the squared distances of these parameters; `mine` and `sums` are as for `squares`, and `row` as `mine`."""
    for start in range(begin, end, len(row)):
        stop = min(start + len(row), end)
        load(mine[: stop - start], mine_D, start)
        theirs = row[: stop - start]
        for k in range(len(codes_KD)):
            dequantise(theirs, codes_KD[k], scales_KB[k], block, start)
            add_square(totals_K, k, mine, theirs, sums)


@jit
def gram(totals_KK: F64, mine_D: Rows, theirs_KD: Rows, begin: int, end: int, work: Floats, lanes: F64) -> None:
    """The inner products of the differences in these parameters: the triangle above the diagonal.

    `work` [K or a few more, chunk] says how precise the sum of a chunk is; `lanes` are the tiles' float64 sums.
    """
    chunk = work.shape[1]
    lanes[:] = 0
    work[len(theirs_KD) :] = 0
    for start in range(begin, end, chunk):
        stop = min(start + chunk, end)
        mine = mine_D[start:stop]
        for k in range(len(theirs_KD)):
            theirs, differences = theirs_KD[k, start:stop], work[k]
            fetch(theirs, 0, len(theirs))
            for p in range(len(mine)):
                differences[p] = wide(theirs[p]) - wide(mine[p])
            differences[len(mine) :] = 0
        place = 0
        for row in range(0, len(work), TILE[0]):
            for column in range(row, len(work), TILE[1]):
                add_tile(lanes, place, work, row, column, chunk)
                place += PRODUCTS * BYTE
    place = 0
    for row in range(0, len(work), TILE[0]):
        for column in range(row, len(work), TILE[1]):
            for product in range(PRODUCTS):
                i, j = row + product // TILE[1], column + product % TILE[1]
                if i <= j < len(theirs_KD):
                    for lane in range(place, place + BYTE):
                        totals_KK[i, j] += lanes[lane]
                place += BYTE


# Single parameters -----------------------------------------------------------------------------------


@jit
def places(
    out: Floats,
    mine_D: Rows,
    theirs_KD: Rows,
    begin: int,
    end: int,
    first: int,
    last: int,
    keep: int,
    raw: Floats,
    mixture: Any,
    work: Floats,
    keys: Ints,
    pairs: Ints,
    network: Any,
) -> None:
    """See `reference.around`, and for a `keep` of 0 `reference.ranks`.

    `raw` [N, chunk] takes the rows and `work` [M, chunk] what `mixture` makes of them; with no mixture they are the
    same. `keys` is `work` as integers. `network` is as for `sort`.
    """
    ends, columns, shares, scratch = mixture
    for start in range(begin, end, raw.shape[1]):
        stop = min(start + raw.shape[1], end)
        size = stop - start
        load(raw[0, :size], mine_D, start)
        for k in range(len(theirs_KD)):
            load(raw[k + 1, :size], theirs_KD[k], start)
        for m in range(len(ends) - 1):
            for lane in range(0, raw.shape[1], lanes_of(raw) * MIXED):
                at = m * raw.shape[1] + lane
                mix_lanes(work, at, raw, raw.shape[1], columns, shares, ends[m], ends[m + 1])
        sort(work, keys, pairs, network)
        if keep:
            nearest_mean(out[start - begin : stop - begin], work, first, last, keep, scratch)
        else:
            mean_of(out[start - begin : stop - begin], work, first, last)


@jit
def load(into: Floats, row_D: Rows, start: int) -> None:
    """Copy from `start` on, and widen."""
    source = row_D[start : start + len(into)]
    fetch(source, 0, len(into))
    for p in range(len(into)):
        into[p] = wide(source[p])


@jit
def sort(work: Floats, keys: Ints, pairs: Ints, network: Any) -> None:
    """Each column, ascending. `network` is a tuple as long as `work`, or None: then the table of `pairs` counts."""
    pitch = work.shape[1]
    if network is None:
        turn_keys(keys, 0, keys.size)
        for pair in range(len(pairs)):
            low, high = keys[pairs[pair, 0]], keys[pairs[pair, 1]]
            for p in range(pitch):
                a, b = low[p], high[p]
                low[p], high[p] = min(a, b), max(a, b)
        turn_keys(keys, 0, keys.size)
    else:
        for lane in range(0, pitch, lanes_of(work)):
            sort_lanes(work, lane, pitch, network)


@jit
def mean_of(into: Floats, work: Floats, first: int, last: int) -> None:
    """The mean of the rows `first` to `last`, summed in their order."""
    into[:] = work[first, : len(into)]
    for m in range(first + 1, last):
        row = work[m]
        for p in range(len(into)):
            into[p] += row[p]
    count = into.dtype.type(last - first)
    for p in range(len(into)):
        into[p] /= count


@jit
def nearest_mean(into: Floats, work: Floats, first: int, last: int, keep: int, scratch: Floats) -> None:
    """The mean of the `keep` rows, one below the other, that are nearest to the mean of rows `first` to `last`."""
    pitch = work.shape[1]
    mean_of(scratch, work, first, last)
    for lane in range(0, pitch, lanes_of(work)):
        window_lanes(scratch, lane, work, pitch, len(work), keep)
    for p in range(len(into)):
        into[p] = scratch[p] / into.dtype.type(keep)
