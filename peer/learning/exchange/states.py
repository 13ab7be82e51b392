"""States of the `seeds` exchange as bytes: what a peer hands to a joiner instead of millions of records.

* pool: the table of the ledger, row by row, as zigzag varints (protobuf's encoding): two or three bytes for each
  direction of the pool.
* private: the sum of all that was applied to each weight, or in lean memory the weight itself in units: 4 bytes each,
  little-endian, in the order of the flat vector.

Both are cut into pieces of ground.PIECE_BYTES. What comes from others may be anything: `NoState` says that it is none.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from murmurate.peer.protocol.ground import PIECE_BYTES, PIECES_MAX

from .votes import Integers

GROUP = np.uint64(7)  # bits in each byte of a varint
GROUPS_MAX = 10  # bytes of a varint of 64 bits
SUM_MAX = 2.0**60  # of |entry| in a row: what it replaces and what comes later still fit beside it into 64 bits


class NoState(Exception):  # noqa: N818 - the verdict on what somebody else sent
    """These bytes are no state of this swarm."""


def cut_up(data: bytes) -> tuple[bytes, ...]:
    """Pieces; none when they would be too many."""
    pieces = tuple(data[start : start + PIECE_BYTES] for start in range(0, len(data), PIECE_BYTES))
    return pieces if len(pieces) <= PIECES_MAX else ()


def pack_table(table_CK: Integers) -> bytes:
    """Zigzag varints of int64 entries, row by row."""
    flat = table_CK.reshape(-1)
    left = ((flat << 1) ^ (flat >> 63)).view(np.uint64)
    columns: list[NDArray[np.uint64]] = []
    kept: list[NDArray[np.bool_]] = [np.ones(len(left), dtype=np.bool_)]
    for _ in range(GROUPS_MAX):
        rest = left >> GROUP
        columns.append((left & np.uint64(0x7F)) | (np.minimum(rest, np.uint64(1)) << GROUP))
        kept.append(kept[-1] & (rest > 0))
        left = rest
    bytes_EG = np.stack(columns, axis=1).astype(np.uint8)
    return bytes_EG[np.stack(kept[:-1], axis=1)].tobytes()


def read_table(pieces: Sequence[bytes], columns: int, pool: int) -> Integers:
    """What `pack_table` packed [columns, pool], byte for byte. Raises NoState."""
    count = columns * pool
    if sum(map(len, pieces)) > count * GROUPS_MAX:
        raise NoState("too long")
    data = np.frombuffer(b"".join(pieces), dtype=np.uint8)
    ends = np.flatnonzero(data < 0x80)
    if len(ends) != count or (len(data) and ends[-1] != len(data) - 1):
        raise NoState("another number of entries")
    starts = np.concatenate(([0], ends[:-1] + 1))
    sizes = ends - starts + 1
    if sizes.max(initial=0) > GROUPS_MAX:
        raise NoState("an entry beyond 64 bits")
    within = np.arange(len(data)) - np.repeat(starts, sizes)
    groups = (data & 0x7F).astype(np.uint64) << (within.astype(np.uint64) * GROUP)
    zigzag = np.add.reduceat(groups, starts)
    found = (zigzag >> np.uint64(1)).astype(np.int64) ^ -(zigzag & np.uint64(1)).astype(np.int64)
    found = found.reshape(columns, pool)
    if pack_table(found) != data.tobytes():
        raise NoState("not as it is written")
    return found


def check_table(table_CK: Integers) -> None:
    """Raises NoState for what no records add up to: sizes or uses below zero, or more than can be reckoned with."""
    if (table_CK[1:] < 0).any():
        raise NoState("sizes or uses below zero")
    if np.abs(table_CK.astype(np.float64)).sum(axis=1).max(initial=0) >= SUM_MAX:
        raise NoState("too large")


def pack_steps(steps_D: NDArray[np.int64]) -> bytes:
    """Four bytes for each weight; nothing when one needs more."""
    if len(steps_D) and max(-int(steps_D.min()), int(steps_D.max())) >= 2**31:
        return b""
    return steps_D.astype("<i4").tobytes()


def read_steps(pieces: Sequence[bytes], size: int) -> NDArray[np.int32]:
    """What `pack_steps` packed [size]. Raises NoState."""
    data = b"".join(pieces)
    if len(data) != 4 * size:
        raise NoState("another number of weights")
    return np.frombuffer(data, "<i4").astype(np.int32)
