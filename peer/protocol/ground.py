"""Whether what somebody offers as the ground of a state could be one, and what names a state."""

from __future__ import annotations

import hashlib
import struct
from collections import Counter
from itertools import pairwise

from .feeds import BATCHES_MAX, ORIGIN_BYTES, ORIGINS_PER_PEER_MAX, ROUND_MAX, Rules
from .records import HEAD_BYTES, Batch, FeedState, Fork, Ground, Origin, Ruling
from .seams import Verify

PIECE_BYTES = 2**18
"""A state is cut into pieces of so many bytes; the last may be shorter. A heartbeat never waits long behind one."""

PIECES_MAX = 2**12
"""Of one state: 1 GiB. A larger one is not handed over. (a guess)"""

DIGEST_BYTES = 32  # SHA-256

_LINE = struct.Struct(f"<{ORIGIN_BYTES}sQ{HEAD_BYTES}sQQ")  # origin, count, head, closed, round
_OPEN = 2**64 - 1


def name_of(ground: Ground, digests: tuple[bytes, ...]) -> bytes:
    """SHA-256 of all that makes two states on one cut different: those of equal names are the same."""
    lines = [
        _LINE.pack(state.origin, state.count, state.head, _OPEN if state.closed is None else state.closed, round)
        for state, round in zip(ground.cut, ground.rounds, strict=True)
    ]
    return hashlib.sha256(b"".join((*lines, *digests))).digest()


def is_sound(ground: Ground, rules: Rules, verify: Verify) -> bool:
    """Whether an honest peer could stand on it: its form, the signatures of births and rulings. Heads and counts are
    not proved by it; they are believed when more peers say so than can lie.
    """
    count = len(ground.cut)
    if not (0 < count == len(ground.rounds) == len(ground.births)):
        return False
    origins = [state.origin for state in ground.cut]
    if any(one >= other for one, other in pairwise(origins)):
        return False
    if max(Counter(birth.codes for birth in ground.births).values()) > ORIGINS_PER_PEER_MAX:
        return False
    names = {name.encode() for name in rules.roster}
    for state, round, birth in zip(ground.cut, ground.rounds, ground.births, strict=True):
        if not _is_state(state, round) or not _is_birth(birth, state.origin, names) or not verify(birth):
            return False
    closed = {state.origin: state for state in ground.cut if state.closed is not None}
    if len(ground.rulings) != len(closed) or {ruling.origin for ruling in ground.rulings} != closed.keys():
        return False
    return all(_closes(ruling, closed[ruling.origin], rules, verify) for ruling in ground.rulings)


def _is_state(state: FeedState, round: int) -> bool:
    if len(state.origin) != ORIGIN_BYTES or len(state.head) != HEAD_BYTES or state.floor:
        return False
    return 0 < state.count <= BATCHES_MAX and state.count - 1 <= round <= ROUND_MAX and (state.count > 1 or round == 0)


def _is_birth(birth: Batch, origin: Origin, names: set[bytes]) -> bool:
    return (birth.origin, birth.number, birth.round) == (origin, 0, 0) and birth.codes in names


def _closes(ruling: Ruling, state: FeedState, rules: Rules, verify: Verify) -> bool:
    """Whether it proves that the feed ends where the cut says."""
    if isinstance(ruling, Fork):
        one, other = ruling.one, ruling.other
        if (one.origin, one.number) != (other.origin, other.number):
            return False
        if (one.round, one.codes) == (other.round, other.codes) or not (verify(one) and verify(other)):
            return False
        closed = max(0, one.number - 1) * rules.records
    else:
        if ruling.authority not in rules.authorities or not verify(ruling):
            return False
        closed = ruling.from_seq
    return closed == state.closed and state.count <= 1 - -closed // rules.records
