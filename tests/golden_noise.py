"""Golden vectors of docs/noise.md: what every implementation of `noise = 1` must give."""

import hashlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from murmurate.kernels import noise

SWARM, ORIGIN = bytes(range(32)), bytes(range(32, 64))
SIGNS, PRIVATE, POOL, SHARED = 0xB9EDA22F06DAABF1, 0x25EA8CB513610762, 0x7DBD132AD41BE22B, 0xF72BD1BC2A0FB038
DIRECTIONS = noise.Directions(
    np.array([PRIVATE, PRIVATE, POOL, SHARED], dtype=np.uint64), np.array([0, 1, 4095, 2**40 + 3], dtype=np.uint64)
)
COEFFICIENTS = np.array([127, -5, 64, -245_760])
LARGE = np.array([2**24 + 1, -6, 64, -245_760])  # sums are odd, and half of them above 2^24: a tie each
D, FIRST_BLOCK, UNIT_LOG2, EPSILON = 100_000, 7, -21, 1e-3

BLOCKS = {  # first signs, SHA-256 of all signs, rows, row signs
    0: (
        "--++--+-----+++-",
        "eca653e581689289835de3fd8d57174bb36fa4f907e153eb16e65f65a9264787",
        [20598, 31485, 30083, 1542],
        "-++-",
    ),
    1: (
        "---+-+--+-+-++-+",
        "3a3f800912bff0aeac1e8ba80a7eb182af7c4b53d72be39385964f5816be23f7",
        [24425, 11714, 9051, 2166],
        "+++-",
    ),
    2**35 + 1: (
        "+-+++-++--+-+-++",
        "5b20514edd980523d5402280207db22a0cc49af648f6dd2e8ce218d41dd5a7b9",
        [9650, 9929, 7574, 16186],
        "----",
    ),
}
SUMS = [-245956, 245956, -245818, -245818, -245564, -245564, 245702, 245702]
REPLAYED = ["-0x1.87e7800000000p-2", "-0x1.3c0af00000000p-1", "-0x1.87f3820000000p-2", "-0x1.87f0e20000000p-2"]
REPLAYED_LARGE = ["0x1.e780900000000p+2", "-0x1.13c0340000000p+3", "0x1.e77fcc0000000p+2", "0x1.e77ff60000000p+2"]
PERTURBED = ["-0x1.0083120000000p-1", "-0x1.fef73c0000000p-2", "-0x1.0080740000000p-1", "-0x1.007f240000000p-1"]
PROJECTED = ["0x1.8b215be000000p+6", "-0x1.96634d0000000p+5", "-0x1.4eae85c000000p+5", "0x1.c942080000000p+5"]
SHA256 = {
    "sums": "a520500b750b6117ebf65da1f3a17b67a1ad013fb3a885360d8890c1f4d1db9b",
    "replayed": "7834f85eaa3566120cecd12c192569815f4a0c3bda1f5ab3a676cf0b453ccd0e",
    "replayed_large": "1bfe5cb7a13f1ee7c8b8a095912b112cfa3dd6f92fb8cff6dd154c2eb3aef74c",
    "perturbed": "240f4dc5bf35658fbb6182dacbd89d434397d41877f0c042008d43aa870c6fa2",
    "materialised": "63b9336fc2a8036af776380068093e601d07354be57873901115c0ee4126831f",
}


def sha256(vector: NDArray[Any]) -> str:
    """Of the entries' bytes, little endian."""
    return hashlib.sha256(vector.astype(vector.dtype.newbyteorder("<")).tobytes()).hexdigest()


def ramp() -> Tensor:
    """-0.5, -0.49999, ...: one division and one subtraction in float32."""
    return torch.from_numpy(np.arange(D, dtype=np.float32) / np.float32(D) - np.float32(0.5))


def check(form: Any, device: str = "cpu") -> None:
    """`form` is an implementation: a module with the five operations."""
    check_blocks(form, device)
    sums_D = torch.zeros(D, dtype=torch.int32, device=device)
    form.accumulate(sums_D, DIRECTIONS, COEFFICIENTS, SIGNS, FIRST_BLOCK)
    assert sums_D[:8].tolist() == SUMS
    assert sha256(sums_D.cpu().numpy()) == SHA256["sums"]

    weights_D = ramp().to(device)
    form.replay(weights_D, DIRECTIONS, COEFFICIENTS, SIGNS, UNIT_LOG2, FIRST_BLOCK)
    assert [x.hex() for x in weights_D[:4].tolist()] == REPLAYED
    assert sha256(weights_D.cpu().numpy()) == SHA256["replayed"]
    weights_D = ramp().to(device)
    form.replay(weights_D, DIRECTIONS, LARGE, SIGNS, UNIT_LOG2, FIRST_BLOCK)
    assert [x.hex() for x in weights_D[:4].tolist()] == REPLAYED_LARGE
    assert sha256(weights_D.cpu().numpy()) == SHA256["replayed_large"]

    base_D = ramp().to(device)
    out_D = torch.empty_like(base_D)
    form.perturb(out_D, base_D, DIRECTIONS[0], EPSILON, SIGNS, FIRST_BLOCK)
    assert [x.hex() for x in out_D[:4].tolist()] == PERTURBED
    assert sha256(out_D.cpu().numpy()) == SHA256["perturbed"]

    half_D = base_D.bfloat16()
    form.materialise(half_D, half_D, sums_D, UNIT_LOG2, SIGNS, DIRECTIONS[3], EPSILON, FIRST_BLOCK)
    assert sha256(half_D.view(torch.int16).cpu().numpy()) == SHA256["materialised"]

    projected_K = form.project(base_D, DIRECTIONS, SIGNS, FIRST_BLOCK)
    assert [x.hex() for x in projected_K.tolist()] == PROJECTED


def check_blocks(form: Any, device: str) -> None:
    """Each direction in each block of the table, its row and its sign divided out: the swarm's signs stay."""
    for block, (first, digest, rows, sigmas) in BLOCKS.items():
        for direction, row, sigma in zip(DIRECTIONS, rows, sigmas, strict=True):
            z_D = torch.zeros(noise.BLOCK, device=device)
            form.perturb(z_D, z_D, direction, 1.0, SIGNS, block)
            walsh = np.array([(-1) ** (row & t).bit_count() for t in range(noise.BLOCK)], dtype=np.int8)
            signs = z_D.cpu().numpy().astype(np.int8) * walsh * np.int8(1 if sigma == "+" else -1)
            assert "".join("+" if sign > 0 else "-" for sign in signs[:16]) == first
            assert sha256(signs) == digest
