"""Records of the `seeds` exchange, as values: what peers learn, in the form in which it spreads.

A record is `(origin, seq, code)`: along direction number `seq` of `origin`, one step of the length that the byte `code`
stands for. Records travel in batches, all batches of one origin are its feed, and a feed only grows at its end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NewType

Origin = NewType("Origin", bytes)
"""Who made a record: an Ed25519 public key (32 bytes), made once per state folder, so a wiped folder is another one."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A run of an origin's records, signed together: the unit of gossip in `seeds`.

    `number` counts an origin's batches without gaps from 0, and all of them in order are its feed. Batch 0 is its birth
    and its `codes` are the peer's name; every later one holds one byte for each of the round's records. `round` grows
    with `number`, but may skip rounds that its origin was away.
    """

    origin: Origin
    number: int
    round: int
    codes: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class Fork:
    """Proof that an origin signed two batches with one number: its records from there on are void at every peer."""

    one: Batch
    other: Batch

    @property
    def origin(self) -> Origin:
        """Whose feed it closes."""
        return self.one.origin


@dataclass(frozen=True, slots=True)
class Retraction:
    """A signed decision that the records of `origin` from sequence number `from_seq` on are void at every peer."""

    origin: Origin
    from_seq: int
    authority: bytes  # the public key that decided; the manifest names those that may
    signature: bytes


Ruling = Fork | Retraction


ORIGIN_BYTES = 32  # an Ed25519 public key (RFC 8032)

ROUND_MAX = 2**40
"""The highest round that is believed: a jump there still leaves room in every counter, and indices of shared directions
are below 2^64. (a guess)"""

HEAD_BYTES = 16
"""Of SHA-256: an origin that wants to hide a fork of its feed needs two batches of one hash, so 2^64 trials."""


@dataclass(frozen=True, slots=True)
class FeedState:
    """How much of one feed the sender holds."""

    origin: Origin
    count: int  # its batches 0, ..., count - 1
    head: bytes  # the first HEAD_BYTES of a running hash over them, b"" for none: one length, two hashes is a fork
    closed: int | None = None  # the first sequence number that is void; None: none is
    floor: int = 0  # its sender does not hold the batches below this: it took a state instead of them


@dataclass(frozen=True, slots=True)
class Ground:
    """All feeds at a cut without their batches: what a state that is handed over stands on.

    `cut` is sorted by origin, and each of its feeds has a birth, so a count of 1 at least.
    """

    cut: tuple[FeedState, ...]
    rounds: tuple[int, ...]  # of the last batch of each feed
    births: tuple[Batch, ...]  # of each feed
    rulings: tuple[Ruling, ...]  # one for each feed that is closed
