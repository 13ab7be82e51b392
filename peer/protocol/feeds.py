"""All feeds that a peer holds: a set that only grows, a pure function of what was heard in whatever order.

Rules
* A feed is held from its birth on, without gaps. A batch belongs into one when its origin signed it, its round is above
  the round before, and it has exactly as many codes as the swarm's batches have.
* `closed` is the first sequence number of a feed that is void: the least over its forks (the first record of the forked
  batch) and its valid retractions. Batches that begin there or later are dropped, and never taken again. Of all rulings
  on a feed only the one that closes it first is kept: it proves all that the others would.
* A name has at most ORIGINS_PER_PEER_MAX feeds: those whose origins are the smallest, so that all peers keep the same
  ones. Of a forked birth the smaller one is held, for the same reason.
* Two peers hold the same set if and only if their digests are equal. Feeds of one length with two heads are a fork:
  difference.py finds the batch with a few heads in between, wherever it is, and that batch is the proof.
"""

from __future__ import annotations

import hashlib
import struct
from bisect import insort
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import Enum

from .events import PeerId
from .records import HEAD_BYTES, Batch, FeedState, Fork, Origin, Retraction, Ruling
from .seams import Verify

ORIGINS_PER_PEER_MAX = 8
"""Feeds of one name: each is a life between two wipes of a peer's folder. (a guess)"""

BATCHES_MAX = 2**22
"""Longest feed: 48 days of a round each second. A bound on memory, about 300 bytes and the codes for each. (a guess)"""

ROUND_MAX = 2**40
"""The highest round that is believed: a jump there still leaves room in every counter. (a guess)"""

ORIGIN_BYTES = 32  # an Ed25519 public key (RFC 8032)

_ROUND = struct.Struct("<Q")
_LINE = struct.Struct(f"<{ORIGIN_BYTES}sQ{HEAD_BYTES}sQ")  # origin, count, head, closed
_OPEN = 2**64 - 1


class Judgement(Enum):
    """What became of a batch or a ruling."""

    NEW = "new"
    KNOWN = "known"  # it says nothing that is not held already
    FORKED = "forked"  # the batch differs from the one held: its feed is closed, and its `ruling` the proof
    GAP = "gap"  # what comes before it is not here
    VOID = "void"  # it is of a part of its feed that counts nowhere
    MALFORMED = "malformed"
    FORGED = "forged"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What all peers of a swarm agree on."""

    roster: frozenset[str]
    records: int
    """Of every batch but births."""
    codes: int
    """Bytes of every batch but births; at least one for each record."""
    authorities: frozenset[bytes] = frozenset()
    """Public keys whose holders may retract."""


class Feed:
    """One origin's batches, as far as they are held."""

    __slots__ = ("batches", "closed", "folded", "heads", "line", "name", "origin", "ruling")

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        self.name = PeerId("")
        self.batches: list[Batch] = []
        self.heads: list[bytes] = []  # after each batch
        self.closed: int | None = None
        self.ruling: Ruling | None = None  # why it is closed
        self.folded = 0  # how many batches the weights contain, or will when the running fold is done
        self.line = b""  # its part of the digest's input; empty: not computed

    @property
    def count(self) -> int:
        """Batches held, the birth included."""
        return len(self.batches)

    @property
    def round(self) -> int:
        """Of the newest batch; 0 when there is none but the birth."""
        return self.batches[-1].round if self.batches else 0

    def head(self, count: int) -> bytes:
        """The hash over the first `count` batches; b"" for none."""
        return self.heads[count - 1] if count else b""

    def append(self, batch: Batch) -> None:
        """At the end."""
        before = self.heads[-1] if self.heads else self.origin
        content = b"".join((before, _ROUND.pack(batch.round), batch.codes))
        self.batches.append(batch)
        self.heads.append(hashlib.sha256(content).digest()[:HEAD_BYTES])
        self.line = b""

    def cut(self, count: int) -> None:
        """Keep no more than the first `count` batches."""
        del self.batches[count:], self.heads[count:]
        self.folded = min(self.folded, count)
        self.line = b""

    def state(self) -> FeedState:
        """For a `Vector`."""
        return FeedState(self.origin, self.count, self.head(self.count), self.closed)


class Feeds:
    """The replicated set."""

    def __init__(self, rules: Rules, verify: Verify) -> None:
        self.rules = rules
        self.weights = b""  # the digest of the weights for exactly this set; empty: not known
        self._verify = verify
        self._names = {name.encode(): PeerId(name) for name in rules.roster}
        self._feeds: dict[Origin, Feed] = {}
        self._order: list[Origin] = []
        self._lives: dict[PeerId, list[Origin]] = {PeerId(name): [] for name in rules.roster}
        self._digest = b""  # empty: not computed since the last change
        self._unfolded: dict[Origin, None] = {}
        self._closings: dict[Origin, int] = {}  # not told to the weights yet

    def __iter__(self) -> Iterator[Feed]:
        return iter(self._feeds.values())

    def get(self, origin: Origin) -> Feed | None:
        """The feed of `origin`; None when nothing is known of it."""
        return self._feeds.get(origin)

    def lives(self, peer: PeerId) -> list[Feed]:
        """All feeds of one name, most often one."""
        return [self._feeds[origin] for origin in self._lives.get(peer, ())]

    @property
    def digest(self) -> bytes:
        """SHA-256 of the set: sorted by origin, each feed's origin, count, head and closed."""
        if not self._digest:
            lines = [feed.line or self._line(feed) for feed in self.sorted()]
            self._digest = hashlib.sha256(b"".join(lines)).digest()
        return self._digest

    def is_ended(self, feed: Feed) -> bool:
        """Whether no further batch of `feed` could ever be taken."""
        return feed.closed is not None or feed.count >= BATCHES_MAX or feed.round >= ROUND_MAX

    @property
    def records(self) -> int:
        """How many records count."""
        return sum(self.counting(feed) for feed in self._feeds.values())

    def cut(self) -> dict[Origin, int]:
        """The set as numbers of batches, sorted by origin: the argument of an export."""
        return {feed.origin: feed.count for feed in self.sorted()}

    def sorted(self) -> Iterator[Feed]:
        """All feeds, in the order of their origins."""
        return map(self._feeds.__getitem__, self._order)

    def states(self) -> tuple[FeedState, ...]:
        """All feeds, for a whole `Vector`."""
        return tuple(feed.state() for feed in self.sorted())

    def state_of(self, origin: Origin) -> FeedState:
        """One feed, perhaps one that is not here."""
        feed = self._feeds.get(origin)
        return FeedState(origin, 0, b"") if feed is None else feed.state()

    def _line(self, feed: Feed) -> bytes:
        closed = _OPEN if feed.closed is None else feed.closed
        feed.line = _LINE.pack(feed.origin, feed.count, feed.head(feed.count), closed)
        return feed.line

    def counting(self, feed: Feed) -> int:
        """How many records of `feed` count."""
        held = max(0, feed.count - 1) * self.rules.records
        return held if feed.closed is None else min(held, feed.closed)

    def limit(self, closed: int | None) -> int:
        """How many batches begin before `closed`; births begin before everything."""
        return BATCHES_MAX if closed is None else 1 - -closed // self.rules.records

    # Growing ------------------------------------------------------------------------------------------

    def accept(self, batch: Batch, trusted: bool = False) -> Judgement:
        """Take a batch. `trusted`: its signature was checked before."""
        if not self._is_well_formed(batch):
            return Judgement.MALFORMED
        feed = self._feeds.get(batch.origin)
        if feed is None:
            if batch.number:
                return Judgement.GAP
            if self._is_crowded_out(batch):
                return Judgement.VOID
            return self._admit(batch) if trusted or self._verify(batch) else Judgement.FORGED
        if batch.number >= self.limit(feed.closed):
            return Judgement.VOID
        if batch.number > feed.count:
            return Judgement.GAP
        if batch.number == feed.count:
            if feed.batches and batch.round <= feed.round:
                return Judgement.MALFORMED
            if not (trusted or self._verify(batch)):
                return Judgement.FORGED
            self._append(feed, batch)
            return Judgement.NEW
        held = feed.batches[batch.number]
        if _content(held) == _content(batch):
            return Judgement.KNOWN
        if not (trusted or self._verify(batch)):
            return Judgement.FORGED
        return self._fork(feed, held, batch)

    def rule(self, ruling: Ruling, trusted: bool = False) -> Judgement:
        """Take a ruling. NEW: its feed is closed now, or earlier than before."""
        match ruling:
            case Fork():
                return self._on_fork(ruling, trusted)
            case Retraction():
                return self._on_retraction(ruling, trusted)

    def _is_well_formed(self, batch: Batch) -> bool:
        if len(batch.origin) != ORIGIN_BYTES:
            return False
        if batch.number == 0:
            return batch.round == 0 and batch.codes in self._names
        in_range = 0 < batch.number < BATCHES_MAX and batch.number <= batch.round <= ROUND_MAX
        return in_range and len(batch.codes) == self.rules.codes

    def _is_crowded_out(self, birth: Batch) -> bool:
        lives = self._lives[self._names[birth.codes]]
        return len(lives) >= ORIGINS_PER_PEER_MAX and birth.origin > lives[-1]

    def _admit(self, birth: Batch) -> Judgement:
        feed = self._feeds[birth.origin] = Feed(birth.origin)
        insort(self._order, birth.origin)
        self._append(feed, birth)
        self._name(feed)
        return Judgement.NEW

    def _name(self, feed: Feed) -> None:
        """Count a feed among those of its name; the largest goes when they are too many."""
        feed.name = self._names[feed.batches[0].codes]
        lives = self._lives[feed.name]
        insort(lives, feed.origin)
        if len(lives) > ORIGINS_PER_PEER_MAX:
            crowded_out = lives.pop()
            del self._feeds[crowded_out]
            self._order.remove(crowded_out)
            self._unfolded.pop(crowded_out, None)
            self._closings[crowded_out] = 0

    def _append(self, feed: Feed, batch: Batch) -> None:
        feed.append(batch)
        self._changed()
        if batch.number:
            self._unfolded[feed.origin] = None

    def _changed(self) -> None:
        self._digest = self.weights = b""

    def _fork(self, feed: Feed, held: Batch, batch: Batch) -> Judgement:
        """Two batches of one number, both signed."""
        if batch.number:
            self._close(feed, (batch.number - 1) * self.rules.records, Fork(held, batch))
            return Judgement.FORKED
        was_closed = feed.closed == 0
        if not was_closed:
            self._close(feed, 0, Fork(held, batch))
        if _content(batch) < _content(held):
            self._lives[feed.name].remove(feed.origin)
            feed.cut(0)
            self._append(feed, batch)
            self._name(feed)
        elif was_closed:
            return Judgement.KNOWN
        return Judgement.NEW if was_closed else Judgement.FORKED

    def _on_fork(self, fork: Fork, trusted: bool) -> Judgement:
        one, other = fork.one, fork.other
        if (one.origin, one.number) != (other.origin, other.number) or _content(one) == _content(other):
            return Judgement.MALFORMED
        if not (self._is_well_formed(one) and self._is_well_formed(other)):
            return Judgement.MALFORMED
        if one.number == 0:
            return self._on_forked_birth(fork, trusted)
        feed = self._feeds.get(one.origin)
        if feed is None:
            return Judgement.GAP
        closed = (one.number - 1) * self.rules.records
        if feed.closed is not None and feed.closed <= closed:
            return Judgement.KNOWN
        if not (trusted or (self._verify(one) and self._verify(other))):
            return Judgement.FORGED
        self._close(feed, closed, fork)
        return Judgement.NEW

    def _on_forked_birth(self, fork: Fork, trusted: bool) -> Judgement:
        """The two births tell all, whatever is held of the feed."""
        judgements = [self.accept(birth, trusted) for birth in (fork.one, fork.other)]
        for judgement in (Judgement.FORGED, Judgement.VOID):
            if judgement in judgements:
                return judgement
        known = all(judgement is Judgement.KNOWN for judgement in judgements)
        return Judgement.KNOWN if known else Judgement.NEW

    def _on_retraction(self, retraction: Retraction, trusted: bool) -> Judgement:
        if retraction.from_seq < 0 or retraction.from_seq >= BATCHES_MAX * self.rules.records:
            return Judgement.MALFORMED
        if retraction.authority not in self.rules.authorities:
            return Judgement.FORGED
        feed = self._feeds.get(retraction.origin)
        if feed is None:
            return Judgement.GAP
        if feed.closed is not None and feed.closed <= retraction.from_seq:
            return Judgement.KNOWN
        if not (trusted or self._verify(retraction)):
            return Judgement.FORGED
        self._close(feed, retraction.from_seq, retraction)
        return Judgement.NEW

    def _close(self, feed: Feed, closed: int, ruling: Ruling) -> None:
        feed.closed, feed.ruling = closed, ruling
        feed.cut(self.limit(closed))
        self._closings[feed.origin] = closed
        self._changed()

    # Folding ------------------------------------------------------------------------------------------

    @property
    def pending(self) -> bool:
        """Whether there is anything that the weights were not told."""
        return bool(self._unfolded or self._closings)

    def take(self) -> tuple[tuple[Batch, ...], tuple[tuple[Origin, int], ...]]:
        """What the weights were not told: each batch but births once, in the order of its feed; and what is closed."""
        batches: list[Batch] = []
        for feed in map(self._feeds.__getitem__, self._unfolded):
            batches += feed.batches[max(1, feed.folded) :]
            feed.folded = feed.count
        closings = tuple(self._closings.items())
        self._unfolded.clear()
        self._closings.clear()
        return tuple(batches), closings

    # Comparing ----------------------------------------------------------------------------------------

    def reached(self, goals: Collection[tuple[Origin, int]]) -> list[Origin]:
        """Which of these feeds are held up to the lengths given, or as far as they count."""
        done: list[Origin] = []
        for origin, length in goals:
            feed = self._feeds.get(origin)
            if feed is not None and feed.count >= min(length, self.limit(feed.closed)):
                done.append(origin)
        return done


def _content(batch: Batch) -> tuple[int, bytes]:
    """What makes two batches of one number different; a second signature under the same content does not."""
    return batch.round, batch.codes
