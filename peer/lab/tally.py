"""A toy replica in exact integers: weights that are the sum of one pseudo-random vector per record. No torch.

A vector has ENTRIES entries of 32 bits side by side in one integer, so that adding vectors is one addition. The codes
of a round are a hash of who, when, and of how much was folded: a peer that forgot its log could not repeat them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from murmurate.peer.protocol.events import Audit, Audited, Capture, Captured, Fold, Folded, Install, Installed, Trained
from murmurate.peer.protocol.feeds import Feed
from murmurate.peer.protocol.records import Batch, Origin
from murmurate.peer.protocol.seams import Write

ENTRIES = 64
PIECE = 64  # bytes of a vector that are handed over at once
ENTRY_BYTES = 4  # each record adds a byte to every entry: room for 2^24 records

Key = tuple[Origin, int, bytes]


class Ledger:
    """What records weigh, for all replicas of one run."""

    def __init__(self, records: int) -> None:
        """`records`: of every batch but births."""
        self.records = records
        self._weights: dict[Key, tuple[int, ...]] = {}

    def prefix(self, batch: Batch, count: int) -> int:
        """The sum of the first `count` records of a batch."""
        key = (batch.origin, batch.number, batch.codes)
        sums = self._weights.get(key)
        if sums is None:
            first = (batch.number - 1) * self.records
            total, running = 0, [0]
            for place in range(self.records):
                total += _vector(batch.origin, first + place, batch.codes[place])
                running.append(total)
            sums = self._weights[key] = tuple(running)
        return sums[count]

    def counting(self, batch: Batch, closed: int | None) -> int:
        """The sum of those records of a batch that come before `closed`."""
        if closed is None:
            return self.prefix(batch, self.records)
        return self.prefix(batch, min(self.records, max(0, closed - (batch.number - 1) * self.records)))

    def from_scratch(self, feeds: Iterable[Feed]) -> int:
        """The weights of exactly these feeds, above their floors."""
        return sum(self.counting(batch, feed.closed) for feed in feeds for batch in feed.since(max(1, feed.floor)))


class Tally:
    """One peer's replica; see protocol.seams.Replica."""

    def __init__(self, ledger: Ledger, origin: Origin) -> None:
        self._ledger = ledger
        self._origin = origin
        self._feeds: dict[Origin, list[Batch]] = {}
        self._closed: dict[Origin, int] = {}
        self._floors: dict[Origin, int] = {}  # how many batches, births not counted, came as a state
        self.state_bytes: int | None = ENTRIES * ENTRY_BYTES
        self.weights = 0
        self.resting = False  # whether every training is interrupted

    @property
    def payload_bytes(self) -> int:
        return self._ledger.records

    def train(self, round: int) -> Trained:
        if self.resting:
            return Trained(round, b"", complete=False)
        seen = sum(map(len, self._feeds.values()))
        codes = hashlib.shake_128(b"%b %d %d" % (self._origin, round, seen)).digest(self._ledger.records)
        return Trained(round, codes)

    def fold(self, effect: Fold) -> Folded:
        """Whatever is asked for: a batch that comes twice counts twice, and the referee will see it."""
        for origin in effect.dropped:
            closed = self._closed.pop(origin, None)
            self.weights -= sum(self._ledger.counting(batch, closed) for batch in self._feeds.pop(origin, ()))
        for batch in effect.batches:
            feed = self._feeds.setdefault(batch.origin, [])
            feed.append(batch)
            self.weights += self._ledger.counting(batch, self._closed.get(batch.origin))
        for origin, closed in effect.closed:
            self._close(origin, closed)
        return Folded(effect.round)

    def _close(self, origin: Origin, closed: int) -> None:
        for batch in self._feeds.get(origin, ()):
            self.weights -= self._ledger.counting(batch, self._closed.get(origin))
            self.weights += self._ledger.counting(batch, closed)
        self._closed[origin] = closed
        first_void = 1 - -closed // self._ledger.records
        del self._feeds.get(origin, [])[max(0, first_void - 1 - self._floors.get(origin, 0)) :]

    def audit(self, effect: Audit) -> Audited:
        return Audited(effect.digest, weights_digest(self.weights))

    def capture(self, effect: Capture) -> Captured:
        """The vector without what is beyond the cut, in a few pieces."""
        cut = {state.origin: state.count for state in effect.cut}
        beyond = (b for origin, feed in self._feeds.items() for b in feed if b.number >= cut.get(origin, 0))
        weights = self.weights - sum(self._ledger.counting(batch, self._closed.get(batch.origin)) for batch in beyond)
        data = weights.to_bytes(ENTRIES * ENTRY_BYTES, "little")
        return Captured(effect.cut, tuple(data[at : at + PIECE] for at in range(0, len(data), PIECE)))

    def install(self, effect: Install) -> Installed:
        """Anything of the right length is a vector."""
        data = b"".join(effect.pieces)
        if len(data) != ENTRIES * ENTRY_BYTES:
            return Installed(effect.ground, sound=False)
        self.weights = int.from_bytes(data, "little")
        self._feeds.clear()
        self._floors = {state.origin: state.count - 1 for state in effect.ground.cut}
        self._closed = {state.origin: state.closed for state in effect.ground.cut if state.closed is not None}
        return Installed(effect.ground)

    def interrupt(self) -> None:
        """A round takes no time: there is nothing to interrupt."""

    def export(self, cut: Mapping[Origin, int] | None = None) -> Write:
        """The vector as it is, or of only so many batches of each feed, the birth counted."""
        weights = self.weights
        if cut is not None:
            held = ((origin, batch) for origin, feed in self._feeds.items() for batch in feed)
            weights = sum(
                self._ledger.counting(batch, self._closed.get(origin))
                for origin, batch in held
                if batch.number < cut.get(origin, 0)
            )
        content = weights.to_bytes(ENTRIES * ENTRY_BYTES, "little")
        return lambda path: path.write_bytes(content)

    def figures(self) -> Mapping[str, float]:
        return {"records": float(self._ledger.records * sum(map(len, self._feeds.values())))}


def weights_digest(weights: int) -> bytes:
    """SHA-256 of a vector."""
    return hashlib.sha256(weights.to_bytes(ENTRIES * ENTRY_BYTES, "little")).digest()


def _vector(origin: Origin, seq: int, code: int) -> int:
    entries = hashlib.shake_128(b"%b %d %d" % (origin, seq, code)).digest(ENTRIES)
    spread = bytearray(ENTRIES * ENTRY_BYTES)
    spread[::ENTRY_BYTES] = entries
    return int.from_bytes(spread, "little")
