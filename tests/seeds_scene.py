"""The stage for the `seeds` exchange: signed batches of a few origins in few words; a peer "me" among b, c and d."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypedDict, Unpack

from murmurate.peer.lab.seeds_life import retracted, signed, verify
from murmurate.peer.protocol.core import Peer, Seeds
from murmurate.peer.protocol.events import (
    Body,
    Effect,
    Fold,
    Folded,
    Have,
    Keep,
    LinkUp,
    PeerId,
    Received,
    Report,
    Restored,
    RoundDone,
    Rumor,
    Send,
    SetTimer,
    Sign,
    Signed,
    Started,
    Timer,
    TimerFired,
    Trained,
    Turn,
)
from murmurate.peer.protocol.feeds import Feeds, Judgement, Rules
from murmurate.peer.protocol.records import Batch, FeedState, Fork, Origin, Retraction, Ruling
from murmurate.peer.protocol.rounds import Pacing
from murmurate.peer.protocol.rumors import SIGN_BYTES

from .scene import DEADLINE_S, HEARTBEAT_S, NEXT_BEAT, PATIENCE, TIMEOUT_S, Around, B, C, D, changed, told

ME = PeerId("me")
ROSTER = ("me", "b", "c", "d", "far")
RECORDS = 4
GOSSIP_S = 1.0
AUTHORITY = b"A" * 32
RULES = Rules(roster=frozenset(ROSTER), records=RECORDS, codes=RECORDS, authorities=frozenset({AUTHORITY}))
GOSSIP = TimerFired(Timer("gossip", Turn(0)))
NEXT_GOSSIP = SetTimer(Timer("gossip", Turn(0)), GOSSIP_S)


class Constants(TypedDict, total=False):
    """What a scenario may change in `Pacing`."""

    rounds_max: int
    f: int
    deadline_s: float


# Batches ----------------------------------------------------------------------------------------------


def key(name: str, life: int = 1) -> Origin:
    """The origin of one life of a peer; later lives have larger ones, and so have later letters."""
    return Origin(f"{name}{life}".encode().ljust(32, b"."))


def birth(name: str, life: int = 1) -> Batch:
    """Batch 0 of a feed."""
    return signed(Batch(key(name, life), 0, 0, name.encode(), b""))


def batch(name: str, number: int, round: int | None = None, codes: str = "", life: int = 1) -> Batch:
    """A later one; its round is its number and its codes tell it, unless others are given."""
    content = (codes or f"{number:04}").encode()
    return signed(Batch(key(name, life), number, number if round is None else round, content, b""))


def feed(name: str, count: int, life: int = 1) -> list[Batch]:
    """The first batches of a feed, the birth among them."""
    return [birth(name, life), *(batch(name, number, life=life) for number in range(1, count))][:count]


def fork(name: str, number: int, one: str = "", other: str = "xxxx") -> Fork:
    """Proof that a peer signed two batches with one number."""
    return Fork(batch(name, number, codes=one), batch(name, number, codes=other))


def retraction(name: str, from_seq: int, life: int = 1) -> Retraction:
    """A decision of the one authority."""
    return retracted(key(name, life), from_seq, AUTHORITY)


def forged(value: Batch) -> Batch:
    """A batch that its origin never signed."""
    return replace(value, signature=b"")


# Sets -------------------------------------------------------------------------------------------------


def holding(*items: Batch | Ruling | Sequence[Batch | Ruling]) -> Feeds:
    """A set that heard these, in this order."""
    feeds = Feeds(RULES, verify)
    for item in items:
        hear(feeds, item)
    return feeds


def hear(feeds: Feeds, item: Batch | Ruling | Sequence[Batch | Ruling]) -> Judgement | None:
    """Tell a set; returns its judgement of a single item."""
    match item:
        case Batch():
            return feeds.accept(item)
        case Fork() | Retraction():
            return feeds.rule(item)
        case _:
            for one in item:
                hear(feeds, one)
            return None


def state(name: str, count: int) -> FeedState:
    """How a vector names so much of a feed."""
    return holding(feed(name, count)).state_of(key(name))


# A peer -----------------------------------------------------------------------------------------------


def fresh(
    links: Sequence[PeerId] = (B, C, D), shared: bool = False, rules: Rules = RULES, **pacing: Unpack[Constants]
) -> Peer:
    """A peer that knows nothing yet."""
    seeds = Seeds(me=ME, origin=key("me"), rules=rules, verify=verify, shared=shared, gossip_s=GOSSIP_S)
    return Peer(Around(links), Pacing(**pacing), HEARTBEAT_S, TIMEOUT_S, seeds)


def started(
    links: Sequence[PeerId] = (B, C, D),
    held: Sequence[Batch] = (),
    shared: bool = False,
    rules: Rules = RULES,
    **pacing: Unpack[Constants],
) -> Peer:
    """A peer that has started at time 0 with this log, and folded it; it waits for its neighbours."""
    peer = fresh(links, shared, rules, **pacing)
    assert peer.handle(Restored(tuple(held), ()), 0.0) == []
    round = max((one.round for one in held if one.origin == key("me")), default=0)
    effects = peer.handle(Started(round), 0.0)
    assert effects[:3] == [NEXT_BEAT, NEXT_GOSSIP, PATIENCE]
    if counting := tuple(one for one in held if one.number):
        assert effects[3:] == [Fold(round, counting, ())]
        assert peer.handle(Folded(round), 0.0) == []
    return peer


def linked(
    links: Sequence[PeerId] = (B, C, D),
    held: Sequence[Batch] = (),
    shared: bool = False,
    rules: Rules = RULES,
    **pacing: Unpack[Constants],
) -> Peer:
    """The same when all neighbours are linked and hold just what it holds: it has begun what comes next, at time 0."""
    peer = started(links, held, shared, rules, **pacing)
    for link in links:
        assert peer.handle(LinkUp(link, 1, Turn(0)), 0.0) == [changed(link, "alive"), Send(link, have(peer))]
    for link in links:
        peer.handle(told(link, have(peer)), 0.0)
    return peer


def training(
    links: Sequence[PeerId] = (B, C, D),
    others: str = "",
    shared: bool = False,
    rules: Rules = RULES,
    **pacing: Unpack[Constants],
) -> Peer:
    """A peer whose birth is published, with the births of these others; it trains round 1."""
    peer = linked(links, (birth("me"), *map(birth, others)), shared, rules, **pacing)
    assert (peer.phase, peer.round) == ("training", 1)
    return peer


def have(peer: Peer) -> Have:
    """What a peer says of its set, before any audit."""
    assert peer.feeds is not None
    return Have(peer.feeds.digest[:SIGN_BYTES])


def rumor(sender: PeerId, *items: Batch | Ruling, more: bool = False) -> Received:
    """A neighbour's rumor."""
    batches = tuple(item for item in items if isinstance(item, Batch))
    rulings = tuple(item for item in items if not isinstance(item, Batch))
    return told(sender, Rumor(batches, rulings, more))


def flooded(to: Sequence[PeerId], *items: Batch | Ruling) -> list[Effect]:
    """A rumor of ours to each of these."""
    batches = tuple(item for item in items if isinstance(item, Batch))
    rulings = tuple(item for item in items if not isinstance(item, Batch))
    return [Send(peer, Rumor(batches, rulings)) for peer in to]


def kept(*items: Batch | Ruling) -> Keep:
    """New items go into the log."""
    batches = tuple(item for item in items if isinstance(item, Batch))
    return Keep(batches, tuple(item for item in items if not isinstance(item, Batch)))


def bodies(effects: Sequence[Effect], to: PeerId) -> list[Body]:
    """What is said to one neighbour."""
    return [effect.body for effect in effects if isinstance(effect, Send) and effect.to == to]


def unsigned(one: Batch) -> Batch:
    """A batch as `Sign` asks for it."""
    return replace(one, signature=b"")


def trained(round: int, codes: str = "", complete: bool = True) -> Trained:
    """Our codes are those of `batch("me", round)` unless others are given."""
    return Trained(round, (codes or f"{round:04}").encode(), complete)


def publish(peer: Peer, number: int, now: float, round: int | None = None) -> list[Effect]:
    """Train and sign; returns what the signature brought about."""
    ours = batch("me", number, round)
    at = number if round is None else round
    assert peer.handle(Trained(at, ours.codes), now) == [Sign(unsigned(ours))]
    return peer.handle(Signed(ours), now)


def done(round: int, waited_s: float = 0.0, folded: str = "", missing: str = "") -> Report:
    """A round is complete; peers are named by their letters."""
    return Report(RoundDone(round, waited_s, tuple(map(PeerId, folded)), tuple(map(PeerId, missing))))


def fold(round: int, *batches: Batch, closed: tuple[tuple[Origin, int], ...] = ()) -> Fold:
    """The weights are to contain these."""
    return Fold(round, batches, closed)


def deadline(round: int) -> SetTimer:
    """A wait for votes begins."""
    return SetTimer(Timer("deadline", Turn(round)), DEADLINE_S)


def pace(effects: list[Effect]) -> list[Effect]:
    """Without what is said to neighbours."""
    return [effect for effect in effects if not isinstance(effect, Send)]


def tell(peer: Peer, *items: Batch | Ruling, now: float = 1.0) -> list[Effect]:
    """B tells this; returns what we do beside passing it on."""
    effects = peer.handle(rumor(B, *items), now)
    return [effect for effect in effects if not isinstance(effect, Send) and effect != kept(*items)]
