"""The `seeds` exchange: from the records that were heard to the integer coefficient of every direction.

The coefficients are a pure function of the set of records and of what is closed. A `Ledger` keeps that set and says
after every fold what changed, so the sum of all it ever said is that function, whatever the order and the divisions.

* `private` and `pool`: a record adds its decoded scalar to its direction; pool ids of several records add up.
* `shared`: in a round all peers measured the same directions; a rule (`votes`) makes one vote per peer's name one
  scalar per direction, and a vote that comes late corrects what was applied.
* Momentum spreads a record over its origin's rounds: a rounds later it has contributed 1 - momentum^(a+1) of its
  scalar, in steps of 1/256, and all of it once less than half a step is left (ZO-SGD-MMT of ZO-Bench, normalised).
* A ledger can stand on a state instead of the batches below a cut (states.py): it then knows their sum alone. Not with
  shared directions or momentum, where a late vote or an age may change what an old record does.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from murmurate.kernels import noise
from murmurate.peer.errors import LocalError
from murmurate.peer.protocol.records import ROUND_MAX, Batch, FeedState, Origin

from .votes import Integers, combine, divide

STEPS = 256  # momentum multiplies in units of 1/256 (a guess: a code has three digits of mantissa)
WINDOW_MAX = 1024  # rounds over which a record may be spread: enough for a momentum of 0.99, the most we allow


@dataclass(frozen=True, slots=True)
class Terms:
    """What all peers agreed on. `records`: codes per batch; `sent_ids`: two bytes of pool id per record follow them."""

    directions: str
    records: int
    pool: int = 0
    sent_ids: bool = False
    rule: str = "mean"
    f: int = 0
    momentum: float = 0.0

    @property
    def batch_bytes(self) -> int:
        """The length of every batch but the birth."""
        return self.records * (3 if self.sent_ids else 1)

    @property
    def has_states(self) -> bool:
        """Whether a state can stand for old batches."""
        return self.directions != "shared" and self.momentum == 0


class Changes(NamedTuple):
    """By how much coefficients changed: direction (key, index) [K] and difference [K]. No direction is named twice."""

    keys: NDArray[np.uint64]
    indices: NDArray[np.uint64]
    deltas: Integers

    @property
    def directions(self) -> noise.Directions:
        """As the kernels take them."""
        return noise.Directions(self.keys, self.indices)

    def undone(self) -> Changes:
        """What takes it back."""
        return self._replace(deltas=-self.deltas)


def changes_of(key: int, indices_K: NDArray[np.uint64], deltas_K: Integers) -> Changes:
    """Changes of directions that share a key; those of zero are left out."""
    moved = np.flatnonzero(deltas_K)
    return Changes(np.full(len(moved), key, dtype=np.uint64), indices_K[moved], deltas_K[moved])


def sum_of(parts: Iterable[Changes]) -> Changes:
    """All of them in one: what is named several times is added up, and left out when it comes to nothing."""
    found = [part for part in parts if len(part.deltas)]
    if not found:
        return NONE
    keys_K, indices_K, deltas_K = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.lexsort((indices_K, keys_K))
    keys_K, indices_K, deltas_K = keys_K[order], indices_K[order], deltas_K[order]
    first = np.ones(len(order), dtype=np.bool_)
    first[1:] = (keys_K[1:] != keys_K[:-1]) | (indices_K[1:] != indices_K[:-1])
    starts = np.flatnonzero(first)
    total = np.add.reduceat(deltas_K, starts)
    kept = starts[total != 0]
    return Changes(keys_K[kept], indices_K[kept], total[total != 0])


NONE = Changes(np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int64))


def multipliers(momentum: float) -> Integers:
    """By age in rounds: how many 256ths of a record have been applied. The last one is 256."""
    grown = [round(STEPS * (1 - momentum ** (age + 1))) for age in range(WINDOW_MAX)]
    whole = grown.index(STEPS) if STEPS in grown else WINDOW_MAX - 1
    return np.array([*grown[:whole], STEPS], dtype=np.int64)


@dataclass(slots=True)
class _Feed:
    """One origin's batches: a byte per record, two more for a sent id, eight per batch for its round."""

    key: int  # of its private directions
    name: str = ""  # whose life it is; empty: nobody said
    codes: bytearray = field(default_factory=bytearray)
    ids: bytearray = field(default_factory=bytearray)
    rounds: array[int] = field(default_factory=lambda: array("Q"))
    closed: int | None = None
    floor: int = 0  # so many batches, births not counted, came as a state
    floor_round: int = 0  # of the last of them

    @property
    def newest(self) -> int:
        """Its newest round, 0 before the first."""
        return self.rounds[-1] if self.rounds else self.floor_round

    def ends(self, records: int) -> int | None:
        """`closed`, counted from the floor."""
        return None if self.closed is None else max(0, self.closed - self.floor * records)


class Ledger:
    """The records of a swarm.

    Memory: one byte per record (three with sent ids) and eight per batch; `pool`: 8 bytes per pool id (24 with sent
    ids); `shared`: 8 bytes per direction of every round, that is 8/n per record of n peers.
    """

    def __init__(self, terms: Terms, swarm_id: bytes) -> None:
        self._terms, self._swarm_id = terms, swarm_id
        self._multipliers = multipliers(terms.momentum)
        self._feeds: dict[Origin, _Feed] = {}
        self._combined: dict[int, Integers] = {}  # shared: the scalars of a round, before momentum
        self._newest = 0  # shared: the round from which ages count
        pool = terms.pool if terms.directions == "pool" else 0
        self._sizes_K = np.zeros(pool if terms.sent_ids else 0, dtype=np.int64)  # sum of |scalar| by pool id
        self._uses_K = np.zeros_like(self._sizes_K)  # and how many there are
        columns = 3 if terms.sent_ids else 1
        self._base_CK = np.zeros((columns, pool), dtype=np.int64)  # pool: below the floors, like a state
        self._shared_key = noise.derive_key(swarm_id, terms.directions.encode()) if terms.directions != "private" else 0

    # What it holds ------------------------------------------------------------------------------------

    def count(self, origin: Origin) -> int:
        """How many batches of this origin count, its birth among them (which we are not told)."""
        feed = self._feeds.get(origin)
        return 1 + feed.floor + len(feed.rounds) if feed else 0

    @property
    def counts(self) -> Mapping[Origin, int]:
        """`count` of every origin: a cut."""
        return {origin: self.count(origin) for origin in sorted(self._feeds)}

    @property
    def records(self) -> int:
        """How many records count. Of those that came as a state it is not known which were measured as void."""
        return sum(map(self._counting, self._feeds.values()))

    def _counting(self, feed: _Feed) -> int:
        below = feed.floor * self._terms.records
        if feed.closed is not None:
            below = min(below, feed.closed)
        return below + len(feed.codes) - feed.codes.count(noise.VOID)

    @property
    def first_multiplier(self) -> int:
        """How many 256ths of a record are applied in its own round."""
        return int(self._multipliers[0])

    def importance(self) -> NDArray[np.float64]:
        """Mean |scalar| by pool id, 0 where there is none (FedKSeed-Pro); with sent ids only."""
        return self._sizes_K / np.maximum(self._uses_K, 1)

    def private_key(self, origin: Origin) -> int:
        """The key of an origin's own directions."""
        feed = self._feeds.get(origin)
        return feed.key if feed else noise.derive_key(self._swarm_id, b"private", origin)

    def draw(self, key: int, seqs_K: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """The pool ids of records whose ids are not sent."""
        return noise.draws(key, seqs_K, self._terms.pool)

    # Folding ------------------------------------------------------------------------------------------

    def fold(
        self,
        batches: Sequence[Batch],
        closed: Iterable[tuple[Origin, int]] = (),
        names: Iterable[tuple[Origin, str]] = (),
        dropped: Iterable[Origin] = (),
    ) -> Changes:
        """Add batches (no births, each feed's in order and once) and void records; returns what that changes.

        What is `dropped` is forgotten first, its closing as well: its feed may begin anew, even in the same fold.

        A batch that begins at or after `closed` of its feed is ignored. One of a wrong length, or whose round does not
        grow within its feed or is beyond `ROUND_MAX`, counts as void from its first to its last record. `names`: of the
        batches' origins, for shared directions; who has none has a vote of its own.
        """
        found: list[Changes] = []
        touched: set[int] = set()
        for origin in dropped:
            touched |= self._drop(origin, found)
        for origin, name in names:
            feed = self._feed(origin)
            touched |= set(feed.rounds) if name != feed.name else set()  # they were somebody else's votes
            feed.name = name
        groups: dict[Origin, list[Batch]] = defaultdict(list)
        for batch in batches:
            groups[batch.origin].append(batch)
        limits: dict[Origin, int] = {}
        for origin, seq in closed:
            limits[origin] = min(seq, limits.get(origin, seq))
        for origin in sorted(groups.keys() | limits.keys()):
            feed = self._feed(origin)
            limit = limits.get(origin)
            if limit is not None and (feed.closed is None or limit < feed.closed):
                feed.closed = limit
            touched |= self._renew(feed, groups[origin], found)
        return sum_of(self._revote(touched)) if self._terms.directions == "shared" else self._gathered(found)

    def _drop(self, origin: Origin, found: list[Changes]) -> set[int]:
        """Forget one feed; adds to `found` what that changes, and returns the rounds it touches."""
        feed = self._feeds.pop(origin, None)
        if feed is None:
            return set()
        assert not feed.floor, "what came as a state cannot be taken out of it"
        if self._terms.directions != "shared":
            found += [part.undone() for part in self._since(feed, 0)]
        self._weigh(feed, 0, -1)
        return set(feed.rounds)

    def _feed(self, origin: Origin) -> _Feed:
        if origin not in self._feeds:
            self._feeds[origin] = _Feed(noise.derive_key(self._swarm_id, b"private", origin))
        return self._feeds[origin]

    def coefficients(self, cut: Mapping[Origin, int] | None = None) -> Changes:
        """All coefficients beside those of the state it stands on, from scratch; with only the first `cut[origin]`
        batches of each feed, if given. Raises LocalError for a cut below that state.
        """
        return self._fresh(cut)._applied()

    def _fresh(self, cut: Mapping[Origin, int] | None) -> Ledger:
        fresh = Ledger(self._terms, self._swarm_id)
        for origin, feed in self._feeds.items():
            if cut is not None and feed.floor and cut.get(origin, 0) <= feed.floor:
                raise LocalError("this peer took a state instead of old records, and the cut is below it")
            other = fresh._feed(origin)
            other.name, other.floor, other.floor_round = feed.name, feed.floor, feed.floor_round
        fresh.fold([batch for origin in self._feeds for batch in self._batches_of(origin, cut)])
        return fresh

    # States -------------------------------------------------------------------------------------------

    def table(self, cut: Mapping[Origin, int]) -> Integers:
        """Pool: what a state at a cut holds [columns, pool]: coefficients; with sent ids also sizes and uses."""
        fresh = self._fresh(cut)
        found_CK = self._base_CK.copy()
        changes = fresh._applied()
        found_CK[0, changes.indices.astype(np.int64)] += changes.deltas
        if self._terms.sent_ids:
            found_CK[1] += fresh._sizes_K
            found_CK[2] += fresh._uses_K
        return found_CK

    @property
    def base(self) -> Changes:
        """Pool: the coefficients of the state it stands on."""
        return changes_of(self._shared_key, np.arange(self._base_CK.shape[1], dtype=np.uint64), self._base_CK[0])

    def install(self, cut: Iterable[FeedState], rounds: Iterable[int], table_CK: Integers) -> None:
        """Forget all records, and stand on a state at this cut instead, whose last rounds are these. `table_CK`: its
        `table`, of the pool.
        """
        assert self._terms.has_states
        self._feeds.clear()
        self._base_CK = table_CK
        for state, round in zip(cut, rounds, strict=True):
            feed = self._feed(state.origin)
            feed.floor, feed.floor_round, feed.closed = state.count - 1, round, state.closed
        if self._terms.sent_ids:
            self._sizes_K, self._uses_K = table_CK[1].copy(), table_CK[2].copy()

    # One feed -----------------------------------------------------------------------------------------

    def _applied(self) -> Changes:
        """All coefficients as they are."""
        if self._terms.directions == "shared":
            return sum_of(self._of_round(round, self._newest, scalars) for round, scalars in self._combined.items())
        found: list[Changes] = []
        for feed in self._feeds.values():
            found += self._since(feed, 0)
        return self._gathered(found)

    def _gathered(self, found: list[Changes]) -> Changes:
        """All of them in one; those of the pool still name an id as often as it was drawn."""
        if self._terms.directions == "private":
            return sum_of(found)
        deltas_K = np.zeros(self._terms.pool, dtype=np.int64)
        for part in found:
            np.add.at(deltas_K, part.indices.astype(np.int64), part.deltas)
        return changes_of(self._shared_key, np.arange(self._terms.pool, dtype=np.uint64), deltas_K)

    def _batches_of(self, origin: Origin, cut: Mapping[Origin, int] | None) -> list[Batch]:
        """A feed as batches again; what was voided inside them stays void."""
        feed, records = self._feeds[origin], self._terms.records
        found: list[Batch] = []
        for place, round in enumerate(feed.rounds):
            span = slice(place * records, (place + 1) * records)
            ids = feed.ids[2 * span.start : 2 * span.stop]
            found.append(Batch(origin, feed.floor + place + 1, round, bytes(feed.codes[span] + ids), b""))
        return found if cut is None else found[: max(0, cut.get(origin, 0) - 1 - feed.floor)]  # a cut counts the birth

    def _renew(self, feed: _Feed, batches: Sequence[Batch], found: list[Changes]) -> set[int]:
        """Bring one feed up to date; adds to `found` what that changes, and returns the rounds it touches."""
        records = self._terms.records
        whole = voided = len(feed.rounds)
        if (end := feed.ends(records)) is not None:
            whole = min(whole, -(-end // records))
            voided = min(whole, end // records)
        # Only what is young enough to gain from momentum, before or after, and what is voided now, can change.
        newest = feed.rounds[whole - 1] if whole else 0
        start = bisect_left(feed.rounds, max(0, newest - len(self._multipliers) + 2), 0, whole)
        start = min(start, voided)
        private = self._terms.directions != "shared"
        found += [part.undone() for part in self._since(feed, start)] if private else []
        self._weigh(feed, start, -1)
        touched = set(feed.rounds[voided:])
        self._void(feed, whole)
        known = len(feed.rounds)
        for batch in batches:
            self._append(feed, batch)
        found += self._since(feed, start) if private else []
        self._weigh(feed, start, 1)
        return touched | set(feed.rounds[known:])

    def _void(self, feed: _Feed, whole: int) -> None:
        """Forget what is closed: whole batches go, and of the one that is cut the rest becomes void."""
        records = self._terms.records
        if (end := feed.ends(records)) is None:
            return
        del feed.rounds[whole:], feed.codes[whole * records :], feed.ids[2 * whole * records :]
        feed.codes[end:] = bytes([noise.VOID]) * max(0, len(feed.codes) - end)

    def _append(self, feed: _Feed, batch: Batch) -> None:
        records = self._terms.records
        if feed.closed is not None and (batch.number - 1) * records >= feed.closed:
            return
        assert batch.number == feed.floor + len(feed.rounds) + 1, "the batches of a feed come in order, each once"
        sound = len(batch.codes) == self._terms.batch_bytes and feed.newest < batch.round <= ROUND_MAX
        feed.codes += batch.codes[:records] if sound else bytes([noise.VOID]) * records
        if self._terms.sent_ids:
            feed.ids += batch.codes[records:] if sound else bytes(2 * records)
        feed.rounds.append(batch.round if sound else feed.newest)
        if (end := feed.ends(records)) is not None:
            feed.codes[end:] = bytes([noise.VOID]) * max(0, len(feed.codes) - end)

    # Coefficients of private directions and of the pool -----------------------------------------------

    def _since(self, feed: _Feed, start: int) -> list[Changes]:
        """The coefficients of a feed's records from batch number `start` + 1 on; pool ids may come several times."""
        codes = bytes(feed.codes[start * self._terms.records :])
        if not codes:
            return []
        ages = feed.newest - np.frombuffer(feed.rounds, dtype=np.uint64)[start:].astype(np.int64)
        scale = np.repeat(self._by_age(ages), self._terms.records)
        scalars = divide(noise.decode(codes) * scale, STEPS)
        if self._terms.directions == "private":
            return [changes_of(feed.key, self._seqs(feed, start, len(codes)), scalars)]
        return [changes_of(self._shared_key, self._ids(feed, start), scalars)]

    def _by_age(self, ages: Integers) -> Integers:
        return self._multipliers[np.clip(ages, 0, len(self._multipliers) - 1)]

    def _seqs(self, feed: _Feed, start: int, count: int) -> NDArray[np.uint64]:
        return np.uint64((feed.floor + start) * self._terms.records) + np.arange(count, dtype=np.uint64)

    def _ids(self, feed: _Feed, start: int) -> NDArray[np.uint64]:
        first = start * self._terms.records
        if self._terms.sent_ids:
            return np.frombuffer(bytes(feed.ids[2 * first :]), "<u2").astype(np.uint64) % np.uint64(self._terms.pool)
        return self.draw(feed.key, self._seqs(feed, start, len(feed.codes) - first))

    def _weigh(self, feed: _Feed, start: int, sign: int) -> None:
        """Count a feed's records from batch `start` on in (or, with sign -1, out of) the importance of pool ids."""
        codes = bytes(feed.codes[start * self._terms.records :])
        if not self._terms.sent_ids or not codes:
            return
        ids = self._ids(feed, start).astype(np.int64)
        np.add.at(self._sizes_K, ids, sign * np.abs(noise.decode(codes)).astype(np.int64))
        np.add.at(self._uses_K, ids, sign * (np.frombuffer(codes, np.uint8) != noise.VOID).astype(np.int64))

    # Coefficients of shared directions ----------------------------------------------------------------

    def _revote(self, touched: set[int]) -> list[Changes]:
        """What changes when the votes of these rounds did."""
        before, now = self._newest, self._newest_round()
        self._newest = now
        affected = set(touched)
        if before != now and len(self._multipliers) > 1:
            oldest = min(before, now) - len(self._multipliers) + 1
            affected |= {round for round in self._combined if round > oldest}
        found: list[Changes] = []
        for round in sorted(affected):
            if round in self._combined:
                found.append(self._of_round(round, before, self._combined[round]).undone())
            if round in touched:
                self._vote(round)
            if round in self._combined:
                found.append(self._of_round(round, now, self._combined[round]))
        return found

    def _of_round(self, round: int, newest: int, scalars_P: Integers) -> Changes:
        indices_P = np.uint64(round * self._terms.records) + np.arange(self._terms.records, dtype=np.uint64)
        scale = self._by_age(np.array([newest - round]))
        return changes_of(self._shared_key, indices_P, divide(scalars_P * scale, STEPS))

    def _vote(self, round: int) -> None:
        """Combine the votes of a round: one per name, of several lives the one with the smallest key."""
        codes: dict[str | Origin, bytes] = {}
        for origin, feed in sorted(self._feeds.items()):
            place, voter = bisect_left(feed.rounds, round), feed.name or origin
            if place < len(feed.rounds) and feed.rounds[place] == round and voter not in codes:
                codes[voter] = bytes(feed.codes[place * self._terms.records :][: self._terms.records])
        self._combined.pop(round, None)
        if codes:
            votes_NP = np.frombuffer(b"".join(codes.values()), np.uint8).reshape(len(codes), -1)
            given_NP = votes_NP != noise.VOID
            scalars = noise.decode(votes_NP).astype(np.int64)
            self._combined[round] = combine(self._terms.rule, scalars, given_NP, self._terms.f)

    def _newest_round(self) -> int:
        """The newest round that more than f names have reached: f liars cannot age the others' records."""
        reached: dict[str | Origin, int] = {}
        for origin, feed in self._feeds.items():
            reached[feed.name or origin] = max(feed.newest, reached.get(feed.name or origin, 0))
        ordered = sorted(reached.values(), reverse=True)
        return ordered[self._terms.f] if len(ordered) > self._terms.f else 0
