"""Directions in the plainest numpy: the specification of `noise = 1` in code, as docs/noise.md is in words.

Shapes: D parameters, K directions. Block by block on the host, whatever the tensors' device: memory stays bounded, and
the sums of f32 are numpy's, which never fuses a multiplication with an addition. Arguments are checked in `__init__`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .directions import (
    BLOCK,
    BLOCK_LOG2,
    DOMAIN_DRAWS,
    DOMAIN_ROWS,
    DOMAIN_SIGNS,
    GROUP,
    PHILOX_M,
    PHILOX_ROUNDS,
    PHILOX_W,
    Direction,
    Directions,
)

U64 = NDArray[np.uint64]
Words = tuple[U64, U64, U64, U64]

LOW = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)


# Random bits -----------------------------------------------------------------------------------------


def philox(counter: Words, key: U64) -> Words:
    """Philox4x32-10: four 32-bit words of counter and a 64-bit key, all in uint64 arrays, to four 32-bit words."""
    x0, x1, x2, x3 = counter
    k0, k1 = key & LOW, key >> HALF
    for _ in range(PHILOX_ROUNDS):
        p0, p1 = x0 * np.uint64(PHILOX_M[0]), x2 * np.uint64(PHILOX_M[1])
        x0, x1, x2, x3 = (p1 >> HALF) ^ x1 ^ k0, p1 & LOW, (p0 >> HALF) ^ x3 ^ k1, p0 & LOW
        k0, k1 = (k0 + np.uint64(PHILOX_W[0])) & LOW, (k1 + np.uint64(PHILOX_W[1])) & LOW
    return x0, x1, x2, x3


def signs_of(signs: int, block: int) -> NDArray[np.int8]:
    """The swarm's +1 and -1 of one block [BLOCK]: 128 parameters per call, lowest bit first, a set bit is -1."""
    call = np.uint64(block * (BLOCK // 128)) + np.arange(BLOCK // 128, dtype=np.uint64)
    zero = np.zeros_like(call)
    words = philox((call & LOW, call >> HALF, zero, zero + np.uint64(DOMAIN_SIGNS)), np.full_like(call, signs))
    bits = (np.stack(words, axis=1)[:, :, None] >> np.arange(32, dtype=np.uint64)) & np.uint64(1)
    return (1 - 2 * bits.astype(np.int8)).reshape(-1)


def rows_of(directions: Directions, block: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each direction's row of the Walsh-Hadamard matrix [K] and its sign [K] in one block."""
    group, field = divmod(block, GROUP)
    index = directions.indices
    first = np.full_like(index, group & 0xFFFFFFFF)
    last = np.full_like(index, DOMAIN_ROWS | group >> 32 << 8)
    word = philox((first, index & LOW, index >> HALF, last), directions.keys)[field // 2]
    bits = (word >> np.uint64(16 * (field % 2))).astype(np.int64) & 0xFFFF
    return bits & (BLOCK - 1), 1 - 2 * (bits >> BLOCK_LOG2)


def draws(key: int, indices_K: U64, bound: int) -> U64:
    """One number below `bound` per index [K]: the first 64 bits of a call of their own, modulo `bound`."""
    zero = np.zeros_like(indices_K)
    counter = (zero, indices_K & LOW, indices_K >> HALF, zero + np.uint64(DOMAIN_DRAWS))
    low, high, _, _ = philox(counter, np.full_like(indices_K, key))
    return (low | high << HALF) % np.uint64(bound)


def _parities() -> NDArray[np.int8]:
    parity = np.zeros(1, dtype=np.int8)
    while len(parity) < BLOCK:
        parity = np.concatenate([parity, 1 - parity])
    return parity


_WALSH = (1 - 2 * _parities()).astype(np.int64)  # (-1)^popcount(i) for i below BLOCK


def walsh(row: int) -> NDArray[np.int64]:
    """One row of the Walsh-Hadamard matrix in natural order [BLOCK]: (-1)^popcount(row & t)."""
    return _WALSH[row & np.arange(BLOCK)]


def direction_of(direction: Direction, signs: int, block: int) -> NDArray[np.int64]:
    """z [BLOCK], of +1 and -1."""
    one = Directions(np.array([direction.key], dtype=np.uint64), np.array([direction.index], dtype=np.uint64))
    rows, sigmas = rows_of(one, block)
    return signs_of(signs, block) * sigmas[0] * walsh(int(rows[0]))


def _sum_of(directions: Directions, coefficients_K: NDArray[np.int64], signs: int, block: int) -> NDArray[np.int64]:
    """Sum of coefficient x direction [BLOCK], exact."""
    sums = np.zeros(BLOCK, dtype=np.int64)
    for row, sigma, coefficient in zip(*rows_of(directions, block), coefficients_K, strict=True):
        sums += sigma * coefficient * walsh(int(row))
    return sums * signs_of(signs, block)


def _blocks(size: int, first_block: int) -> Iterator[tuple[int, slice, slice]]:
    """(block, its place in the vector, what of the block is in the vector); the last one may be cut."""
    for number, start in enumerate(range(0, size, BLOCK)):
        length = min(BLOCK, size - start)
        yield first_block + number, slice(start, start + length), slice(0, length)


def _f32(piece: Tensor) -> NDArray[np.float32]:
    return piece.detach().to("cpu", torch.float32).numpy()


def _put(piece: Tensor, values: NDArray[np.generic]) -> None:
    piece.copy_(torch.from_numpy(values))  # to a narrower float: nearest, ties to even


# The operations --------------------------------------------------------------------------------------


def accumulate(
    sums_D: Tensor, directions: Directions, coefficients_K: NDArray[np.int64], signs: int, first_block: int = 0
) -> None:
    """sums += sum of coefficient x direction, in int32 or int64."""
    for block, place, part in _blocks(sums_D.numel(), first_block):
        sums = _sum_of(directions, coefficients_K, signs, block)[part]
        _put(sums_D[place], sums_D[place].cpu().numpy() + sums.astype(str(sums_D.dtype).removeprefix("torch.")))


def replay(
    weights_D: Tensor,
    directions: Directions,
    coefficients_K: NDArray[np.int64],
    signs: int,
    unit_log2: int,
    first_block: int = 0,
) -> None:
    """weights -= unit x f32(sum of coefficient x direction): the sum is exact, its conversion and the minus round."""
    unit = np.float32(2.0**unit_log2)
    for block, place, part in _blocks(weights_D.numel(), first_block):
        sums = _sum_of(directions, coefficients_K, signs, block)[part]
        _put(weights_D[place], _f32(weights_D[place]) - unit * sums.astype(np.float32))


def materialise(
    out_D: Tensor,
    base_D: Tensor,
    sums_D: Tensor,
    unit_log2: int,
    signs: int,
    direction: Direction | None = None,
    epsilon: float = 0.0,
    first_block: int = 0,
) -> None:
    """out = base - unit x f32(sums), and then + epsilon x direction if there is one; rounded to out's dtype last."""
    unit = np.float32(2.0**unit_log2)
    for block, place, part in _blocks(out_D.numel(), first_block):
        weights = _f32(base_D[place]) - unit * sums_D[place].cpu().numpy().astype(np.float32)
        if direction is not None:
            weights = weights + np.float32(epsilon) * direction_of(direction, signs, block)[part].astype(np.float32)
        _put(out_D[place], weights)


def perturb(
    out_D: Tensor, weights_D: Tensor, direction: Direction, epsilon: float, signs: int, first_block: int = 0
) -> None:
    """out = weights + f32(epsilon) x direction, in f32, then rounded to out's dtype; out may be weights."""
    for block, place, part in _blocks(out_D.numel(), first_block):
        step = np.float32(epsilon) * direction_of(direction, signs, block)[part].astype(np.float32)
        _put(out_D[place], _f32(weights_D[place]) + step)


def project(update_D: Tensor, directions: Directions, signs: int, first_block: int = 0) -> NDArray[np.float64]:
    """<update, direction> [K]: a transform in f32 per block, levels in ascending order; float64 across blocks.

    Blocks are summed in order within their group of 8, then groups in order: so it does not depend on threads.
    """
    total_K = np.zeros(len(directions), dtype=np.float64)
    group_K = np.zeros_like(total_K)
    for block, place, part in _blocks(update_D.numel(), first_block):
        if block % GROUP == 0:
            total_K += group_K
            group_K[:] = 0
        signed = np.zeros(BLOCK, dtype=np.float32)
        signed[part] = _f32(update_D[place]) * signs_of(signs, block)[part]
        rows_K, sigmas_K = rows_of(directions, block)
        group_K += sigmas_K * hadamard(signed)[rows_K].astype(np.float64)
    return total_K + group_K


def hadamard(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Walsh-Hadamard transform [BLOCK] in natural order: at each level a + b and a - b of entries h apart."""
    h = 1
    while h < len(values):
        pairs = values.reshape(-1, 2, h)
        values = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1).reshape(-1)
        h *= 2
    return values
