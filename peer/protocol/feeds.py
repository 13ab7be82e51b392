"""All feeds that a peer holds: a set that only grows, a pure function of what was heard in whatever order.

Rules
* A feed is held from its birth on, without gaps. A batch belongs into one when its origin signed it, its round is above
  the round before, and it has exactly as many codes as the swarm's batches have.
* `closed` is the first sequence number of a feed that is void: the least over its forks (the first record of the forked
  batch) and its valid retractions. Batches that begin there or later are dropped, and never taken again. Of all rulings
  on a feed only the one that closes it first is kept: it proves all that the others would.
* A name has at most ORIGINS_PER_PEER_MAX feeds: those whose origins are the smallest, so that all peers keep the same
  ones. Of a forked birth the smaller one is held, for the same reason. What is crowded out is forgotten, not closed:
  when a fork of a birth makes room again, it may come back, and is folded anew.
* A feed may have a floor: a state was taken instead of the batches below it, of which only the birth is held. What
  reaches below a floor cannot be followed here; it is noted in `deep` and `crowded`, and another state is needed.
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
from .feed import Feed
from .records import (
    HEAD_BYTES,
    ORIGIN_BYTES,
    ROUND_MAX,
    Batch,
    FeedState,
    Fork,
    Ground,
    Origin,
    Retraction,
    Ruling,
)
from .seams import Verify

ORIGINS_PER_PEER_MAX = 8
"""Feeds of one name: each is a life between two wipes of a peer's folder. (a guess)"""

BATCHES_MAX = 2**22
"""Longest feed: 48 days of a round each second. A bound on memory, about 300 bytes and the codes for each. (a guess)"""

_LINE = struct.Struct(f"<{ORIGIN_BYTES}sQ{HEAD_BYTES}sQ")  # origin, count, head, closed
_OPEN = 2**64 - 1


class Judgement(Enum):
    """What became of a batch or a ruling."""

    NEW = "new"
    KNOWN = "known"  # it says nothing that is not held already
    DEEP = "deep"  # a ruling that reaches below the floor of its feed, and was not heard before
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
        self._dropped: dict[Origin, None] = {}  # of which the weights still contain something
        self._crowded_out: list[tuple[Origin, PeerId]] = []  # not told to the people yet
        self.deep: dict[Origin, tuple[int, Ruling]] = {}  # what reaches below a floor: its first void record
        self.crowded = False  # whether a feed with a floor should have gone

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

    def ruling(self, origin: Origin) -> Ruling | None:
        """The one that closes a feed first, whether we can follow it or not."""
        feed, deep = self._feeds.get(origin), self.deep.get(origin)
        return deep[1] if deep is not None else None if feed is None else feed.ruling

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
            return self._accept_birth(batch, trusted)
        if batch.number >= self.limit(feed.closed):
            return Judgement.VOID
        if batch.number > feed.count:
            return Judgement.GAP
        if batch.number == feed.count:
            if not (trusted or self._verify(batch)):
                return Judgement.FORGED
            if batch.round <= feed.round:
                return Judgement.GAP  # of another history, that its teller believes: where they part is to be found
            self._append(feed, batch)
            return Judgement.NEW
        if 0 < batch.number < feed.floor:
            return Judgement.KNOWN  # or a fork, which those will prove who have its twin
        held = feed.since(batch.number)[0] if batch.number else feed.birth
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

    def _accept_birth(self, birth: Batch, trusted: bool) -> Judgement:
        lives = self._lives[self._names[birth.codes]]
        is_full = len(lives) >= ORIGINS_PER_PEER_MAX
        if is_full and birth.origin > lives[-1]:
            return Judgement.VOID
        if not (trusted or self._verify(birth)):
            return Judgement.FORGED
        if is_full and self._feeds[lives[-1]].floor:
            self.crowded = True  # what it has to make room for cannot be taken out of our weights
            return Judgement.VOID
        feed = Feed(birth)
        self._append(feed, birth)
        self._enter(feed)
        return Judgement.NEW

    def _enter(self, feed: Feed) -> None:
        self._feeds[feed.origin] = feed
        insort(self._order, feed.origin)
        self._name(feed)

    def _name(self, feed: Feed) -> None:
        """Count a feed among those of its name; the largest goes when they are too many."""
        feed.name = self._names[feed.birth.codes]
        lives = self._lives[feed.name]
        insort(lives, feed.origin)
        if len(lives) > ORIGINS_PER_PEER_MAX:
            self._crowd_out(lives)

    def _crowd_out(self, lives: list[Origin]) -> None:
        if self._feeds[lives[-1]].floor:
            self.crowded = True  # as in `_accept_birth`; the next one goes until there is another state
        origin = next(origin for origin in reversed(lives) if not self._feeds[origin].floor)
        lives.remove(origin)
        self._order.remove(origin)
        feed = self._feeds.pop(origin)
        self._unfolded.pop(origin, None)
        self._closings.pop(origin, None)
        if feed.told:
            self._dropped[origin] = None
        self._crowded_out.append((origin, feed.name))

    def take_crowded_out(self) -> list[tuple[Origin, PeerId]]:
        """Which feeds of whom went, since the last call, because there were too many of a name."""
        taken, self._crowded_out = self._crowded_out, []
        return taken

    def _append(self, feed: Feed, batch: Batch) -> None:
        feed.append(batch)
        self._changed()
        if batch.number:
            self._unfolded[feed.origin] = None

    def _changed(self) -> None:
        self._digest = self.weights = b""

    def _fork(self, feed: Feed, held: Batch, batch: Batch) -> Judgement:
        """Two batches of one number, both signed."""
        if batch.number or feed.floor:
            closed = max(0, batch.number - 1) * self.rules.records
            if (ours := self.ends_at(feed)) is not None and ours <= closed:
                return Judgement.KNOWN
            is_deep = self._close(feed, closed, Fork(held, batch)) is Judgement.DEEP
            return Judgement.DEEP if is_deep else Judgement.FORKED
        was_closed = feed.closed == 0
        if not was_closed:
            self._close(feed, 0, Fork(held, batch))
        if _content(batch) < _content(held):
            self._lives[feed.name].remove(feed.origin)
            feed.cut(0)
            feed.birth = batch
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
        if (ours := self.ends_at(feed)) is not None and ours <= closed:
            return Judgement.KNOWN
        if not (trusted or (self._verify(one) and self._verify(other))):
            return Judgement.FORGED
        return self._close(feed, closed, fork)

    def _on_forked_birth(self, fork: Fork, trusted: bool) -> Judgement:
        """The two births tell all, whatever is held of the feed."""
        judgements = [self.accept(birth, trusted) for birth in (fork.one, fork.other)]
        for judgement in (Judgement.FORGED, Judgement.VOID, Judgement.DEEP):
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
        if (ours := self.ends_at(feed)) is not None and ours <= retraction.from_seq:
            return Judgement.KNOWN
        if not (trusted or self._verify(retraction)):
            return Judgement.FORGED
        return self._close(feed, retraction.from_seq, retraction)

    def ends_at(self, feed: Feed) -> int | None:
        """The first record of which we know that it is void, whether we can follow that or not."""
        deep = self.deep.get(feed.origin)
        return feed.closed if deep is None else deep[0]

    def _close(self, feed: Feed, closed: int, ruling: Ruling) -> Judgement:
        if closed < (feed.floor - 1) * self.rules.records:
            self.deep[feed.origin] = (closed, ruling)
            return Judgement.DEEP
        feed.closed, feed.ruling = closed, ruling
        feed.cut(self.limit(closed))
        self._closings[feed.origin] = closed
        self._changed()
        return Judgement.NEW

    # Folding ------------------------------------------------------------------------------------------

    @property
    def pending(self) -> bool:
        """Whether there is anything that the weights were not told."""
        return bool(self._unfolded or self._closings or self._dropped)

    def take(self) -> tuple[tuple[Batch, ...], tuple[tuple[Origin, int], ...], tuple[Origin, ...]]:
        """What the weights were not told: each batch but births once, in the order of its feed; what is closed; and
        what is to be forgotten before all that.
        """
        batches: list[Batch] = []
        for feed in map(self._feeds.__getitem__, self._unfolded):
            batches += feed.since(max(1, feed.folded))
            feed.folded, feed.told = feed.count, True
        for origin in self._closings:
            self._feeds[origin].told = True
        closings, dropped = tuple(self._closings.items()), tuple(self._dropped)
        self._unfolded.clear()
        self._closings.clear()
        self._dropped.clear()
        return tuple(batches), closings, dropped

    # Standing on a state ------------------------------------------------------------------------------

    def ground(self, cut: Collection[FeedState] = ()) -> Ground | None:
        """What the state at `cut` stands on, or, if that is empty, the state of all that is folded; None when what is
        folded does not contain exactly this beginning of every feed.
        """
        if self._closings or self._dropped:
            return None  # the weights are about to change
        states = tuple(cut) or tuple(feed.at(max(1, feed.folded)) for feed in self.sorted())
        feeds = [feed for state in states if (feed := self._feeds.get(state.origin)) is not None]
        if len(feeds) < len(states) or {feed.origin for feed in self if feed.floor} - {feed.origin for feed in feeds}:
            return None
        for feed, state in zip(feeds, states, strict=True):
            if not max(1, feed.floor) <= state.count <= max(1, feed.folded) or feed.at(state.count) != state:
                return None
        return Ground(
            states,
            tuple(feed.round_at(state.count) for feed, state in zip(feeds, states, strict=True)),
            tuple(feed.birth for feed in feeds),
            tuple(feed.ruling for feed in feeds if feed.ruling is not None),
        )

    def admits(self, cut: Collection[FeedState]) -> bool:
        """Whether such a state contains nothing of which we know that it is void."""
        for state in cut:
            feed = self._feeds.get(state.origin)
            ours = None if feed is None else self.ends_at(feed)
            is_news = ours is not None and (state.closed is None or ours < state.closed)
            if ours is not None and is_news and ours < (state.count - 1) * self.rules.records:
                return False
        return True

    def install(self, ground: Ground) -> None:
        """The weights contain exactly this state now: begin anew from it. What we hold beyond it stays, and is to be
        folded again. `ground` was checked (ground.py), or is our own.
        """
        before, deep = self._feeds, self.deep
        self._feeds, self._order, self.deep, self.crowded = {}, [], {}, False
        self._lives = {name: [] for name in self._lives}
        self._unfolded, self._closings, self._dropped = {}, {}, {}
        self._changed()
        rulings = {ruling.origin: ruling for ruling in ground.rulings}
        for state, round, birth in zip(ground.cut, ground.rounds, ground.births, strict=True):
            feed = Feed(birth, state, round)
            if not feed.floor:
                feed.append(birth)
            feed.folded, feed.closed, feed.ruling = state.count, state.closed, rulings.get(state.origin)
            feed.told = True
            held = before.get(state.origin)
            if held is not None and held.follows(state):
                for batch in held.since(state.count):
                    self._append(feed, batch)
            self._enter(feed)
        for held in before.values():
            if held.origin not in self._feeds and not held.floor:
                held.folded, held.told = 0, False
                if held.count > 1:
                    self._unfolded[held.origin] = None
                if held.closed is not None:
                    self._closings[held.origin] = held.closed
                self._enter(held)
        for ruling in (*(held.ruling for held in before.values()), *(ruling for _, ruling in deep.values())):
            if ruling is not None:
                self.rule(ruling, trusted=True)

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
