"""Directions on CUDA tensors, in Triton. Compiled for sm_80 and sm_90 and run in Triton's interpreter by the tests;
never yet timed, nor run on a GPU: the design below aims at 60 % of copy bandwidth on an H200 and is UNMEASURED.

One program walks over whole blocks. It adds its records into a slot of its own, 128 KiB of global memory that stay in
the second cache (a GPU has far fewer programs at once than 50 MB / 128 KiB), loads the slot into registers, takes the
records out of the slot again (K stores, not 32768), transforms, and reads and writes its weights once. A transform is
five steps of radix 8: three bits of the index lie within a thread, and going on to the next three is one exchange
through shared memory. So main memory sees 8 bytes per parameter for any K, and the caches 4 more.

That exchange needs 128 KiB of shared memory: an A100 and an H100 have them, cards for desks do not. There, and for sums
beyond 32 bits, whatever needs a transform is done by `cpu` on the host, piece by piece.

No multiplication may be fused with an addition: every launch says `enable_fp_fusion=False`. Arguments are checked in
`__init__`.
"""

# Triton's language is compiled from the source, not run: its values have no Python types.
# pyright: basic, reportArgumentType=false, reportIndexIssue=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportOperatorIssue=false, reportAssignmentType=false, reportReturnType=false, reportGeneralTypeIssues=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import cpu
from .directions import BLOCK, BLOCK_LOG2, DOMAIN_ROWS, DOMAIN_SIGNS, GROUP, PHILOX_M, PHILOX_W, Direction, Directions

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise RuntimeError("directions on a CUDA tensor need the package triton: pip install triton") from error

from murmurate.kernels.rounding import rounded

PARTIALS = 2**20  # float64 in the groups' partial sums of `project`: 8 MiB
OPTIONS = {"enable_fp_fusion": False}
TRANSFORM_OPTIONS = {**OPTIONS, "num_warps": 16}
TRANSFORM_BYTES = 4 * BLOCK  # shared memory of a block's transform (the compiler says so: tests/triton_noise.py)
HOST_PIECE = 2**11 * BLOCK  # entries that go through the host at once: 256 MiB (a guess)
SLOTS_PER_PROCESSOR = 1  # a block's 32768 sums fill the registers of a streaming multiprocessor

N: tl.constexpr = tl.constexpr(BLOCK)
LOG2: tl.constexpr = tl.constexpr(BLOCK_LOG2)
PER_GROUP: tl.constexpr = tl.constexpr(GROUP)
KS: tl.constexpr = tl.constexpr(1024)  # records at a time
TILE: tl.constexpr = tl.constexpr(4096)  # entries of a program that needs no transform
ROWS: tl.constexpr = tl.constexpr(DOMAIN_ROWS)
SIGNS: tl.constexpr = tl.constexpr(DOMAIN_SIGNS)
M0: tl.constexpr = tl.constexpr(PHILOX_M[0])
M1: tl.constexpr = tl.constexpr(PHILOX_M[1])
W0: tl.constexpr = tl.constexpr(PHILOX_W[0])
W1: tl.constexpr = tl.constexpr(PHILOX_W[1])


@triton.jit
def philox(x0, x1, x2, x3, k0, k1):
    """Philox4x32-10 on uint32."""
    m0 = tl.full(x0.shape, M0, tl.uint32)
    m1 = tl.full(x0.shape, M1, tl.uint32)
    for _ in tl.static_range(10):
        high0, high1 = tl.umulhi(x0, m0), tl.umulhi(x2, m1)
        x0, x1, x2, x3 = high1 ^ x1 ^ k0, x2 * m1, high0 ^ x3 ^ k1, x0 * m0
        k0 = (k0.to(tl.uint64) + W0).to(tl.uint32)
        k1 = (k1.to(tl.uint64) + W1).to(tl.uint32)
    return x0, x1, x2, x3


@triton.jit
def halves(wide):
    """Low and high 32 bits of an int64."""
    bits = wide.to(tl.uint64, bitcast=True)
    return (bits & 0xFFFFFFFF).to(tl.uint32), (bits >> 32).to(tl.uint32)


@triton.jit
def sign_bits(signs, first, COUNT: tl.constexpr):
    """The swarm's sign bits of entries [first, first + COUNT) of the whole model: 0 or 1, int32 [COUNT]."""
    call = (first >> 7) + tl.arange(0, COUNT // 128).to(tl.int64)
    low, high = halves(call)
    key_low, key_high = halves(tl.load(signs + tl.zeros_like(call)))
    none = tl.zeros_like(low)
    x0, x1, x2, x3 = philox(low, high, none, none + SIGNS, key_low, key_high)
    words = tl.reshape(tl.join(tl.join(x0, x2), tl.join(x1, x3)), [COUNT // 32])
    bits = (words[:, None] >> tl.arange(0, 32).to(tl.uint32)[None, :]) & 1
    return tl.reshape(bits, [COUNT]).to(tl.int32)


@triton.jit
def fields(keys, indices, block, start, count, COUNT: tl.constexpr):
    """Rows and sign bits of records [start, start + COUNT) in a block; the caller masks what is beyond `count`."""
    k = start + tl.arange(0, COUNT)
    inside = k < count
    key_low, key_high = halves(tl.load(keys + k, mask=inside, other=0))
    low, high = halves(tl.load(indices + k, mask=inside, other=0))
    group = (block // PER_GROUP) + tl.zeros_like(k).to(tl.int64)
    group_low, group_high = halves(group)
    x0, x1, x2, x3 = philox(group_low, low, high, (group_high << 8) | ROWS, key_low, key_high)
    which = (block % PER_GROUP) // 2
    word = tl.where(which == 0, x0, tl.where(which == 1, x1, tl.where(which == 2, x2, x3)))
    field = ((word >> (16 * (block % 2)).to(tl.uint32)) & 0xFFFF).to(tl.int32)
    return field & (N - 1), field >> LOG2, k, inside


@triton.jit
def both(a, b):
    return a + b, a - b


@triton.jit
def radix8(x):
    """Three levels on the three lowest bits of the index, which then become the highest."""
    a, b = tl.split(tl.reshape(x, [N // 8, 2, 2, 2]))
    a, b = both(a, b)
    a0, a1 = tl.split(a)
    b0, b1 = tl.split(b)
    a0, a1 = both(a0, a1)
    b0, b1 = both(b0, b1)
    a00, a01 = tl.split(a0)
    a10, a11 = tl.split(a1)
    b00, b01 = tl.split(b0)
    b10, b11 = tl.split(b1)
    a00, a01 = both(a00, a01)
    a10, a11 = both(a10, a11)
    b00, b01 = both(b00, b01)
    b10, b11 = both(b10, b11)
    a = tl.join(tl.join(a00, a01), tl.join(a10, a11))
    b = tl.join(tl.join(b00, b01), tl.join(b10, b11))
    return tl.reshape(tl.permute(tl.join(a, b), [1, 2, 3, 0]), [N])


@triton.jit
def hadamard(x):
    """Walsh-Hadamard transform in natural order, levels ascending; after five steps each bit is back in its place."""
    for _ in tl.static_range(5):
        x = radix8(x)
    return x


@triton.jit
def sums_of(slot, keys, indices, coefficients, count, signs, block):
    """Sum of coefficient x direction in a block [N]. The slot is zero before and after."""
    for start in range(0, count, KS):
        row, sign, k, inside = fields(keys, indices, block, start, count, KS)
        coefficient = tl.load(coefficients + k, mask=inside, other=0)
        tl.atomic_add(slot + row, tl.where(sign == 1, -coefficient, coefficient), mask=inside)
    tl.debug_barrier()
    x = tl.load(slot + tl.arange(0, N), cache_modifier=".cg")  # the first cache does not see the atomics
    tl.debug_barrier()
    for start in range(0, count, KS):
        row, sign, k, inside = fields(keys, indices, block, start, count, KS)
        tl.store(slot + row, tl.zeros_like(row).to(slot.dtype.element_ty), mask=inside)
    tl.debug_barrier()
    x = hadamard(x)
    return tl.where(sign_bits(signs, block * N, N) == 1, -x, x)


@triton.jit
def blocks_of(size):
    return (tl.cast(size, tl.int64) + N - 1) // N  # Triton gives an argument 32 bits if it fits: no sum of it need fit


@triton.jit
def records_kernel(
    into_D, size, first_block, slots, keys, indices, coefficients, count, signs, unit, REPLAYED: tl.constexpr
):
    """`accumulate` into integers, or `replay` into float32."""
    slot = slots + tl.program_id(0).to(tl.int64) * N
    for number in range(tl.program_id(0), blocks_of(size), tl.num_programs(0)):
        at = tl.cast(number, tl.int64) * N + tl.arange(0, N)
        old = tl.load(into_D + at, mask=at < size, other=0)
        x = sums_of(slot, keys, indices, coefficients, count, signs, first_block + tl.cast(number, tl.int64))
        new = old - unit * x.to(tl.float32) if REPLAYED else old + x.to(old.dtype)
        tl.store(into_D + at, new, mask=at < size)


@triton.jit
def step_of(keys, indices, signs, first, epsilon):
    """epsilon x direction for entries [first, first + TILE) of the whole model."""
    row, sign, _, _ = fields(keys, indices, first // N, 0, 1, 1)
    field = tl.sum(row | (sign << LOG2), 0)  # the only record's
    t = (first % N).to(tl.int32) + tl.arange(0, TILE)
    odd = field & t
    odd = odd ^ (odd >> 8)
    odd = odd ^ (odd >> 4)
    odd = odd ^ (odd >> 2)
    odd = odd ^ (odd >> 1)
    odd = (odd ^ sign_bits(signs, first, TILE) ^ (field >> LOG2)) & 1
    return tl.where(odd == 1, -epsilon, epsilon)


@triton.jit
def perturb_kernel(out_D, weights_D, size, first_block, keys, indices, signs, epsilon):
    start = tl.program_id(0).to(tl.int64) * TILE
    at = start + tl.arange(0, TILE)
    weights = tl.load(weights_D + at, mask=at < size, other=0.0).to(tl.float32)
    out = weights + step_of(keys, indices, signs, tl.cast(first_block, tl.int64) * N + start, epsilon)
    tl.store(out_D + at, rounded(out, out_D.dtype.element_ty), mask=at < size)


@triton.jit
def materialise_kernel(
    out_D, base_D, sums_D, size, first_block, keys, indices, signs, unit, epsilon, PERTURBED: tl.constexpr
):
    start = tl.program_id(0).to(tl.int64) * TILE
    at = start + tl.arange(0, TILE)
    base = tl.load(base_D + at, mask=at < size, other=0.0).to(tl.float32)
    out = base - unit * tl.load(sums_D + at, mask=at < size, other=0).to(tl.float32)
    if PERTURBED:
        out = out + step_of(keys, indices, signs, tl.cast(first_block, tl.int64) * N + start, epsilon)
    tl.store(out_D + at, rounded(out, out_D.dtype.element_ty), mask=at < size)


@triton.jit
def project_kernel(totals_GK, update_D, size, first_block, first_group, slots, keys, indices, count, signs):
    """One program per group of 8 blocks; its row of `totals_GK` is zero before."""
    slot = slots + tl.program_id(0).to(tl.int64) * N
    totals_K = totals_GK + tl.program_id(0).to(tl.int64) * count
    for number in range(PER_GROUP):
        block = (tl.cast(first_group, tl.int64) + tl.program_id(0)) * PER_GROUP + number
        at = (block - first_block) * N + tl.arange(0, N)
        there = (at >= 0) & (at < size)
        if (block >= first_block) & ((block - first_block) * N < size):
            update = tl.load(update_D + at, mask=there, other=0.0)
            x = hadamard(tl.where(sign_bits(signs, block * N, N) == 1, -update, update))
            tl.store(slot + tl.arange(0, N), x)
            tl.debug_barrier()
            for start in range(0, count, KS):
                row, sign, k, inside = fields(keys, indices, block, start, count, KS)
                value = tl.load(slot + row, mask=inside, other=0.0, cache_modifier=".cg").to(tl.float64)
                total = tl.load(totals_K + k, mask=inside, other=0.0)
                tl.store(totals_K + k, total + tl.where(sign == 1, -value, value), mask=inside)
            tl.debug_barrier()


# The operations --------------------------------------------------------------------------------------


def accumulate(
    sums_D: Tensor, directions: Directions, coefficients_K: NDArray[np.int64], signs: int, first_block: int = 0
) -> None:
    """As `reference.accumulate`."""
    if not _fits(sums_D, coefficients_K):
        _through_host(sums_D, first_block, lambda x, at: cpu.accumulate(x, directions, coefficients_K, signs, at))
        return
    _add_records(sums_D, directions, coefficients_K, signs, first_block, 0.0, False)


def replay(
    weights_D: Tensor,
    directions: Directions,
    coefficients_K: NDArray[np.int64],
    signs: int,
    unit_log2: int,
    first_block: int = 0,
) -> None:
    """As `reference.replay`."""
    if not _fits(weights_D, coefficients_K):
        _through_host(
            weights_D, first_block, lambda x, at: cpu.replay(x, directions, coefficients_K, signs, unit_log2, at)
        )
        return
    _add_records(weights_D, directions, coefficients_K, signs, first_block, 2.0**unit_log2, True)


def _add_records(
    into_D: Tensor,
    directions: Directions,
    coefficients_K: NDArray[np.int64],
    signs: int,
    first_block: int,
    unit: float,
    replayed: bool,
) -> None:
    records = _records(into_D, directions, coefficients_K)
    slots = records[2].new_zeros(_slots(into_D) * BLOCK)
    key, size = _long(into_D, signs), into_D.numel()
    with torch.cuda.device_of(into_D):
        records_kernel[(_slots(into_D),)](
            into_D, size, first_block, slots, *records, len(directions), key, unit, replayed, **TRANSFORM_OPTIONS
        )


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
    """As `reference.materialise`."""
    along = _one(out_D, direction or Direction(0, 0), signs)
    scalars = (2.0**unit_log2, float(np.float32(epsilon)), direction is not None)
    with torch.cuda.device_of(out_D):
        materialise_kernel[(triton.cdiv(out_D.numel(), TILE.value),)](
            out_D, base_D, sums_D, out_D.numel(), first_block, *along, *scalars, **OPTIONS
        )


def perturb(
    out_D: Tensor, weights_D: Tensor, direction: Direction, epsilon: float, signs: int, first_block: int = 0
) -> None:
    """As `reference.perturb`."""
    along = (*_one(out_D, direction, signs), float(np.float32(epsilon)))
    with torch.cuda.device_of(out_D):
        perturb_kernel[(triton.cdiv(out_D.numel(), TILE.value),)](
            out_D, weights_D, out_D.numel(), first_block, *along, **OPTIONS
        )


def project(update_D: Tensor, directions: Directions, signs: int, first_block: int = 0) -> NDArray[np.float64]:
    """As `reference.project`."""
    count = len(directions)
    none_K = np.zeros(count, dtype=np.int64)
    if not _fits(update_D, none_K):
        return cpu.project(update_D.cpu(), directions, signs, first_block)  # whole: the order of its sums matters
    keys, indices, _ = _records(update_D, directions, none_K)
    key = _long(update_D, signs)
    groups = range(first_block // GROUP, -(-(first_block - (-update_D.numel() // BLOCK)) // GROUP))
    at_once = max(1, min(len(groups), _processors(update_D), PARTIALS // count))
    slots = update_D.new_empty(at_once * BLOCK)
    total_K = torch.zeros(count, dtype=torch.float64, device=update_D.device)
    with torch.cuda.device_of(update_D):
        for first in groups[::at_once]:
            totals_GK = torch.zeros(at_once, count, dtype=torch.float64, device=update_D.device)
            project_kernel[(min(at_once, groups.stop - first),)](
                totals_GK,
                update_D,
                update_D.numel(),
                first_block,
                first,
                slots,
                keys,
                indices,
                count,
                key,
                **TRANSFORM_OPTIONS,
            )
            for row_K in totals_GK:  # in order, as everywhere
                total_K += row_K
    return total_K.cpu().numpy()


def _is_narrow(coefficients_K: NDArray[np.int64]) -> bool:
    """Whether no sum of them can leave int32."""
    return int(np.abs(coefficients_K).sum()) < 2**31


def _fits(like: Tensor, coefficients_K: NDArray[np.int64]) -> bool:
    """Whether this device can transform a block of such sums."""
    if not like.is_cuda:
        return True  # the interpreter
    found = triton.runtime.driver.active.utils.get_device_properties(like.device.index)
    return _is_narrow(coefficients_K) and found["max_shared_mem"] >= TRANSFORM_BYTES


def _through_host(vector_D: Tensor, first_block: int, update: Callable[[Tensor, int], None]) -> None:
    """Update it in place on the CPU, some blocks at a time; `update` gets them and the number of the first."""
    for start in range(0, vector_D.numel(), HOST_PIECE):
        piece_D = vector_D[start : start + HOST_PIECE]
        host_D = piece_D.cpu()
        update(host_D, first_block + start // BLOCK)
        piece_D.copy_(host_D)


def _records(like: Tensor, directions: Directions, coefficients_K: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
    """Keys, indices and coefficients on the device; int32 where no sum can leave it."""
    narrow = _is_narrow(coefficients_K)
    coefficients = torch.from_numpy(coefficients_K.astype(np.int32) if narrow else coefficients_K)
    keys, indices = (torch.from_numpy(array.view(np.int64)) for array in (directions.keys, directions.indices))
    return keys.to(like.device), indices.to(like.device), coefficients.to(like.device)


def _one(like: Tensor, direction: Direction, signs: int) -> tuple[Tensor, Tensor, Tensor]:
    return _long(like, direction.key), _long(like, direction.index), _long(like, signs)


def _long(like: Tensor, number: int) -> Tensor:
    """64 bits on the device: as an argument, Triton would choose a type by its size."""
    return torch.tensor([number - (number >> 63 << 64)], dtype=torch.int64, device=like.device)


def _processors(like: Tensor) -> int:
    return torch.cuda.get_device_properties(like.device).multi_processor_count if like.is_cuda else 2


def _slots(like: Tensor) -> int:
    """Programs at once, each with a slot of its own."""
    return min(triton.cdiv(like.numel(), BLOCK), SLOTS_PER_PROCESSOR * _processors(like))


LAUNCHED: dict[Any, dict[str, Any]] = {  # with which options
    records_kernel: TRANSFORM_OPTIONS,
    project_kernel: TRANSFORM_OPTIONS,
    materialise_kernel: OPTIONS,
    perturb_kernel: OPTIONS,
}
