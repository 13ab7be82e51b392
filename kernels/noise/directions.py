"""What a direction is named by, and the constants of `noise = 1`. docs/noise.md is the specification in words."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NOISE = 1  # version of everything in this package that decides a bit

BLOCK_LOG2 = 15
# Parameters. A row number and a sign fill a 16-bit field, and the sums, 128 KiB in int32, stay in the second cache.
# Measured (C++ with AVX-512, two cores, d = 1e8, K = 16,384): 0.11 s, and 0.56 s with blocks of 4096, for what a record
# costs is paid per block.
BLOCK = 1 << BLOCK_LOG2
GROUP = 8  # blocks whose fields come from one Philox call: 128 bits / 16

# Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
PHILOX_M = (0xD2511F53, 0xCD9E8D57)
PHILOX_W = (0x9E3779B9, 0xBB67AE85)
PHILOX_ROUNDS = 10

# Low byte of the counter's last word: two uses of one key never meet.
DOMAIN_SIGNS = 0
DOMAIN_ROWS = 1
DOMAIN_DRAWS = 2

LIMIT = 1 << 64  # of keys and indices


@dataclass(frozen=True, slots=True)
class Direction:
    """One direction z: 64-bit key and index. Raises ValueError if they are anything else."""

    key: int
    index: int

    def __post_init__(self) -> None:
        """Refuse what has no 64 bits."""
        if not (0 <= self.key < LIMIT and 0 <= self.index < LIMIT):
            raise ValueError(f"key {self.key}, index {self.index}: each should be from 0 to 2^64 - 1")


@dataclass(frozen=True, eq=False)
class Directions:
    """K directions: uint64 [K] and uint64 [K]. Raises ValueError if they are anything else. Compared by identity."""

    keys: NDArray[np.uint64]
    indices: NDArray[np.uint64]

    def __post_init__(self) -> None:
        """Refuse what a kernel would read wrongly."""
        for name, array in (("keys", self.keys), ("indices", self.indices)):
            if array.dtype != np.uint64 or array.ndim != 1:
                raise ValueError(f"{name}: should be uint64 [K], is {array.dtype} {list(array.shape)}")
        if len(self.keys) != len(self.indices):
            raise ValueError(f"{len(self.keys)} keys for {len(self.indices)} indices")

    def __len__(self) -> int:
        """K."""
        return len(self.keys)

    def __getitem__(self, k: int) -> Direction:
        """The k-th."""
        return Direction(int(self.keys[k]), int(self.indices[k]))

    def __iter__(self) -> Iterator[Direction]:
        """All, in order."""
        return (self[k] for k in range(len(self)))

    @classmethod
    def of_key(cls, key: int, indices_K: NDArray[np.uint64]) -> Directions:
        """All with the same key."""
        return cls(np.full(len(indices_K), key, dtype=np.uint64), indices_K)


def derive_key(swarm_id: bytes, kind: bytes, origin: bytes = b"") -> int:
    """64-bit key of a swarm's `kind`: b"signs", b"private" (with the origin's public key), b"pool" or b"shared"."""
    return int.from_bytes(hashlib.sha256(swarm_id + kind + origin).digest()[:8], "little")
