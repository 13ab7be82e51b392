"""What two neighbours that compared their feeds have to tell each other, and how much of it fits one answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from .events import Ask, Body, Have, Offer, Piece, Rumor, Vector
from .feeds import Feed, Feeds
from .records import Batch, FeedState, Fork, Origin, Ruling

RUMOR_BYTES_MAX = 2**16
"""An answer ends with the item that reaches this. (a guess)"""

ITEM_BYTES = 96
"""What a batch or a ruling costs beside its codes: a signature, and a share of an origin and numbers."""

ITEMS_MAX = RUMOR_BYTES_MAX // ITEM_BYTES + 1
"""Batches and rulings that an honest rumor can hold."""

RULINGS_MAX = 64
"""Of those, rulings: they are few, and each may cost two signatures to check. (a guess)"""

TRACE_POINTS = 16  # heads between two that are compared at once: 2^20 batches are searched in five answers (a guess)


@dataclass(slots=True)
class Difference:
    """What two peers that compared their feeds have to tell each other."""

    offers: list[tuple[Feed, int, int]] = field(default_factory=list[tuple[Feed, int, int]])
    """Feeds of which they lack the batches from the first number up to before the second."""
    rulings: list[Ruling] = field(default_factory=list[Ruling])
    """What they have not heard, as far as we can tell."""
    asks: list[FeedState] = field(default_factory=list[FeedState])
    """Our state of the feeds of which they hold more."""
    goals: dict[Origin, int] = field(default_factory=dict[Origin, int])
    """How long they say those are."""
    barred: set[Origin] = field(default_factory=set[Origin])
    """Feeds of which they hold more, but no longer what comes next for us."""
    traces: list[FeedState] = field(default_factory=list[FeedState])
    """Heads between the longest common part and the shortest uncommon one of forked feeds."""


def compare(feeds: Feeds, vector: Vector) -> Difference:
    """What the sender of `vector` lacks of what we hold, and the other way round. Never raises."""
    found = Difference()
    theirs: dict[Origin, list[FeedState]] = {}
    for state in vector.feeds:
        theirs.setdefault(state.origin, []).append(state)
    for origin, states in theirs.items():
        _compare(feeds, origin, states, found)
    if vector.whole:
        for feed in feeds.sorted():
            if feed.origin not in theirs and not feed.floor:
                found.offers.append((feed, 0, feed.count))
                if feed.ruling is not None:
                    found.rulings.append(feed.ruling)
    return found


def _compare(feeds: Feeds, origin: Origin, states: Sequence[FeedState], found: Difference) -> None:
    length = max(0, *(state.count for state in states))
    floor = max(0, *(state.floor for state in states))
    feed = feeds.get(origin)
    if feed is None:
        if floor:
            found.barred.add(origin)
        elif length > 0:
            found.asks.append(feeds.state_of(origin))
            found.goals[origin] = length
        return
    closed = min((state.closed for state in states if state.closed is not None), default=None)
    if feed.closed is not None and feed.ruling is not None and (closed is None or feed.closed < closed):
        found.rulings.append(feed.ruling)
    good, bad = _common(feed, states)
    if bad - good == 1:
        found.offers.append((feed, good, bad))  # this is where they part
    elif bad:
        start = max(good, feed.floor)
        step = max(1, (bad - start) // TRACE_POINTS)
        points = [*range(start, bad, step), bad]
        found.traces += [FeedState(origin, count, feed.head(count), feed.closed) for count in points]
    elif feed.floor <= length < (end := min(feed.count, feeds.limit(closed))):
        found.offers.append((feed, length, end))
    is_earlier = closed is not None and (feed.closed is None or closed < feed.closed)
    if not is_earlier and feed.count < min(floor, feeds.limit(feed.closed)):
        found.barred.add(origin)
    elif is_earlier or feed.count < min(length, feeds.limit(feed.closed)):
        found.asks.append(feed.state())
        found.goals[origin] = length


def _common(feed: Feed, states: Iterable[FeedState]) -> tuple[int, int]:
    """The longest beginning that we share for sure, and the shortest that we do not; 0 when there is none."""
    good, bad = 0, 0
    for state in states:
        if max(1, feed.floor) <= state.count <= feed.count:
            if feed.head(state.count) == state.head:
                good = max(good, state.count)
            else:
                bad = min(bad or state.count, state.count)
    return (good, bad) if good < bad else (good, 0)  # who contradicts himself is not followed


def size(body: Body) -> int:
    """About how many bytes a rumor, have or vector has on the wire."""
    match body:
        case Rumor(batches, rulings):
            return sum(map(_batch_bytes, batches)) + sum(map(_ruling_bytes, rulings))
        case Have(digest, weights):
            return len(digest) + len(weights)
        case Vector(feeds) | Ask(feeds):
            return sum(len(state.origin) + len(state.head) + 4 for state in feeds)
        case Offer(ground, digests):
            proofs = sum(map(_batch_bytes, ground.births)) + sum(map(_ruling_bytes, ground.rulings))
            return proofs + sum(len(state.origin) + len(state.head) + 12 for state in ground.cut) + 32 * len(digests)
        case Piece(data=data):
            return len(data)
        case _:
            return 0


def _batch_bytes(batch: Batch) -> int:
    return ITEM_BYTES + len(batch.codes)


def _ruling_bytes(ruling: Ruling) -> int:
    return _batch_bytes(ruling.one) + _batch_bytes(ruling.other) if isinstance(ruling, Fork) else 2 * ITEM_BYTES


def pack(found: Difference) -> Rumor:
    """As much of what they lack as fits: rulings first, they are few and save batches; each feed from its beginning."""
    room = RUMOR_BYTES_MAX
    rulings: list[Ruling] = []
    for ruling in found.rulings:
        if room <= 0 or len(rulings) == RULINGS_MAX:
            break
        rulings.append(ruling)
        room -= _ruling_bytes(ruling)
    batches: list[Batch] = []
    for feed, start, end in found.offers:
        room = _take(feed, start, end, room, batches)
    lacking = sum(end - start for _, start, end in found.offers)
    return Rumor(tuple(batches), tuple(rulings), more=len(batches) < lacking or len(rulings) < len(found.rulings))


def _take(feed: Feed, start: int, end: int, room: int, batches: list[Batch]) -> int:
    for batch in feed.batches[start - feed.floor : end - feed.floor]:
        if room <= 0:
            break
        batches.append(batch)
        room -= _batch_bytes(batch)
    return room
