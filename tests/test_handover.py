"""A state instead of the log, as pure protocol: exact effects, who is believed, and what ends an attempt."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from murmurate.peer.lab.seeds_life import verify
from murmurate.peer.lab.tally import Ledger, Tally
from murmurate.peer.protocol.core import Peer, Seeds
from murmurate.peer.protocol.events import (
    Ask,
    Capture,
    Captured,
    Dropped,
    Effect,
    Fetch,
    Fold,
    Folded,
    Install,
    Installed,
    LinkUp,
    Offer,
    PeerId,
    Piece,
    Report,
    Restored,
    Send,
    SetTimer,
    Started,
    Took,
    Turn,
    Unreached,
    Vector,
    Verdict,
)
from murmurate.peer.protocol.feeds import Feeds
from murmurate.peer.protocol.ground import is_sound, name_of
from murmurate.peer.protocol.handover import FETCHES_MAX, PATIENCE_S, SHORT_S
from murmurate.peer.protocol.records import Batch, Ground, Ruling
from murmurate.peer.protocol.rounds import Pacing

from .scene import HEARTBEAT_S, PATIENCE, TIMEOUT_S, Around, B, C, D, told
from .seeds_scene import (
    GOSSIP,
    GOSSIP_S,
    ME,
    RECORDS,
    RULES,
    batch,
    bodies,
    feed,
    fork,
    have,
    holding,
    kept,
    key,
    pace,
    retraction,
    rumor,
)

PIECES = (b"one", b"two", b"three")
DIGESTS = tuple(hashlib.sha256(piece).digest() for piece in PIECES)


def newcomer(
    links: Sequence[PeerId] = (B, C, D),
    vouchers: int = 1,
    state_bytes: int | None = 100,
    linked: Sequence[PeerId] | None = None,
) -> Peer:
    """A peer that has just started, without a log."""
    seeds = Seeds(
        me=ME,
        origin=key("me"),
        rules=RULES,
        verify=verify,
        shared=False,
        gossip_s=GOSSIP_S,
        state_bytes=state_bytes,
        vouchers=vouchers,
    )
    peer = Peer(Around(links), Pacing(), HEARTBEAT_S, TIMEOUT_S, seeds)
    assert peer.handle(Restored((), ()), 0.0) == []
    peer.handle(Started(0), 0.0)
    for link in links if linked is None else linked:
        peer.handle(LinkUp(link, 1, Turn(0)), 0.0)
    return peer


def veterans(*more: Batch | Ruling) -> Feeds:
    """What the others hold: feeds of b and c, all folded."""
    feeds = holding(feed("b", 30), feed("c", 20), *more)
    feeds.take()
    return feeds


def ground(feeds: Feeds) -> Ground:
    found = feeds.ground()
    assert found is not None
    return found


def asking(vouchers: int = 1) -> tuple[Peer, Ground]:
    """A newcomer that has asked b for its state."""
    peer, feeds = newcomer(vouchers=vouchers), veterans()
    assert bodies(peer.handle(told(B, Vector(feeds.states())), 0.5), B) == [Ask()]
    return peer, ground(feeds)


def dropped(peer: PeerId) -> Report:
    return Report(Dropped(peer, Verdict.MALFORMED))


# Joining by a state -------------------------------------------------------------------------------------


def test_a_joiner_takes_the_state_and_asks_for_what_is_newer() -> None:
    peer, base = asking()
    name = name_of(base, DIGESTS)
    effects = peer.handle(told(B, Offer(base, DIGESTS)), 1.0)
    cut = base.cut
    assert effects == [Send(C, Ask(cut)), Send(D, Ask(cut)), Send(B, Fetch(name, 0)), Send(B, Fetch(name, 1))]
    # Another source shares the work.
    assert peer.handle(told(C, Offer(base, DIGESTS)), 1.1) == [Send(C, Fetch(name, 2))]
    assert peer.handle(told(B, Piece(name, 1, PIECES[1])), 1.2) == []
    assert peer.handle(told(C, Piece(name, 2, PIECES[2])), 1.2) == []
    assert peer.handle(told(B, Piece(name, 0, PIECES[0])), 1.3) == [Install(base, PIECES)]
    effects = peer.handle(Installed(base), 1.4)
    assert effects[0] == Report(Took((B, C), 29 + 19, len(b"".join(PIECES))))
    assert peer.feeds is not None
    assert peer.feeds.digest == veterans().digest
    assert [bodies(effects, link) for link in (B, C, D)] == [[Vector(peer.feeds.states())]] * 3
    assert [state.floor for state in peer.feeds.states()] == [30, 20]
    # The next batch follows, and only it is folded.
    effects = peer.handle(rumor(B, batch("b", 30)), 1.5)
    assert kept(batch("b", 30)) in effects
    assert peer.feeds.digest == holding(feed("b", 31), feed("c", 20)).digest
    assert peer.feeds.take()[0] == (batch("b", 30),)


def test_a_joiner_holds_its_vector_back_for_a_while() -> None:
    peer, feeds = newcomer(), veterans()
    theirs = replace(have(peer), digest=feeds.digest[:16])
    assert peer.handle(told(B, theirs), 0.5) == []
    assert bodies(peer.handle(told(B, theirs), 1.5), B) == [Vector(())], "it may wait for ours in the same way"


def test_while_its_links_open_a_joiner_does_without_the_log() -> None:
    peer, feeds = newcomer(vouchers=2, linked=(B,)), veterans()
    theirs = Vector(feeds.states())
    assert bodies(peer.handle(told(B, theirs), 0.5), B) == []
    peer.handle(LinkUp(C, 1, Turn(0)), 2.0)
    assert bodies(peer.handle(told(C, theirs), 2.1), C) == [Ask()]


def test_too_few_neighbours_to_believe_end_in_the_log() -> None:
    peer, feeds = newcomer(vouchers=2, linked=(B,)), veterans()
    theirs = Vector(feeds.states())
    assert bodies(peer.handle(told(B, theirs), 0.5), B) == []
    assert bodies(peer.handle(told(B, theirs), 0.4 + SHORT_S), B) == []
    (asked,) = bodies(peer.handle(told(B, theirs), 0.5 + SHORT_S), B)
    assert isinstance(asked, Vector)


@pytest.mark.parametrize("state_bytes", [None, 10_000])
def test_the_log_is_asked_for_when_it_is_cheaper_or_there_is_no_state(state_bytes: int | None) -> None:
    peer, feeds = newcomer(state_bytes=state_bytes), veterans()
    (asked,) = bodies(peer.handle(told(B, Vector(feeds.states())), 0.5), B)
    assert isinstance(asked, Vector)


def test_nothing_is_asked_of_the_log_meanwhile() -> None:
    peer, _ = asking()
    assert bodies(peer.handle(told(C, Vector(veterans().states())), 0.6), C) == []
    assert bodies(peer.handle(rumor(C, batch("b", 7)), 0.7), C) == []


def test_one_that_holds_records_of_others_takes_the_log() -> None:
    peer, feeds = newcomer(), veterans()
    peer.handle(rumor(C, *feed("c", 3)), 0.2)
    (asked,) = bodies(peer.handle(told(B, Vector(feeds.states())), 0.5), B)
    assert isinstance(asked, Vector)


# Who is believed ----------------------------------------------------------------------------------------


def test_as_many_as_are_needed_must_say_the_same() -> None:
    peer, base = asking(vouchers=2)
    lie = (hashlib.sha256(b"lie").digest(),)
    assert Ask(base.cut) in bodies(peer.handle(told(B, Offer(base, lie)), 1.0), C)
    assert peer.handle(told(C, Offer(base, DIGESTS)), 1.1) == []
    name = name_of(base, DIGESTS)
    assert peer.handle(told(D, Offer(base, DIGESTS)), 1.2) == [
        dropped(B),
        Send(C, Fetch(name, 0)),
        Send(D, Fetch(name, 1)),
        Send(C, Fetch(name, 2)),
    ]


def test_a_wrong_piece_is_asked_of_another() -> None:
    peer, base = asking()
    name = name_of(base, DIGESTS)
    peer.handle(told(B, Offer(base, DIGESTS)), 1.0)
    peer.handle(told(C, Offer(base, DIGESTS)), 1.0)
    assert peer.handle(told(B, Piece(name, 0, b"wrong")), 1.1) == [dropped(B), Send(C, Fetch(name, 0))]
    assert peer.handle(told(B, Piece(name, 0, PIECES[0])), 1.2) != [], "what is right is welcome, however late"


def test_a_source_that_dies_is_replaced() -> None:
    peer, base = asking()
    name = name_of(base, DIGESTS)
    peer.handle(told(B, Offer(base, DIGESTS)), 1.0)
    peer.handle(told(C, Offer(base, DIGESTS)), 1.0)
    assert peer.handle(told(C, Piece(name, 2, PIECES[2])), 1.1) == []
    effects = peer.handle(GOSSIP, 2.5)  # more than a wait later
    assert Fetch(name, 0) in bodies(effects, C), "what was lost is asked of one that gave something"


HARMS: list[Callable[[Ground], Ground]] = [
    lambda base: replace(base, births=base.births[::-1]),
    lambda base: replace(base, births=(replace(base.births[0], signature=b""), base.births[1])),
    lambda base: replace(base, rounds=(3, *base.rounds[1:])),
    lambda base: replace(base, cut=(replace(base.cut[0], closed=8), base.cut[1])),
    lambda base: replace(base, cut=base.cut[::-1]),
    lambda base: replace(base, rulings=(retraction("b", 4),)),
    lambda base: replace(base, cut=(replace(base.cut[0], head=b""), base.cut[1])),
    lambda base: replace(base, cut=base.cut[:1]),
    lambda base: replace(base, cut=(replace(base.cut[0], count=0), base.cut[1])),
]


@pytest.mark.parametrize("harm", HARMS)
def test_what_no_honest_peer_offers_ends_in_the_log(harm: Callable[[Ground], Ground]) -> None:
    peer, base = asking()
    wrong = harm(base)
    assert not is_sound(wrong, RULES, verify)
    assert is_sound(base, RULES, verify)
    effects = peer.handle(told(B, Offer(wrong, DIGESTS)), 1.0)
    assert effects == [dropped(B), PATIENCE], "the log gets as much time as it would have had"
    assert peer.feeds is not None
    (asked,) = bodies(peer.handle(told(C, Vector(veterans().states())), 1.5), C)
    assert isinstance(asked, Vector)


def test_pieces_that_are_no_state_end_in_the_log() -> None:
    peer, base = asking()
    peer.handle(told(B, Offer(base, DIGESTS[:1])), 1.0)
    assert peer.handle(told(B, Piece(name_of(base, DIGESTS[:1]), 0, PIECES[0])), 1.1) == [Install(base, PIECES[:1])]
    effects = peer.handle(Installed(base, sound=False), 1.2)
    assert effects[0] == dropped(B)
    assert peer.feeds is not None
    assert list(peer.feeds) == []


def test_silence_ends_in_the_log() -> None:
    peer, base = asking(vouchers=2)
    peer.handle(told(B, Offer(base, DIGESTS)), 1.0)
    now = 1.0
    while now < PATIENCE_S:
        for link in (B, C, D):
            peer.handle(told(link, have(peer)), now)
        effects = peer.handle(GOSSIP, now)
        assert Ask(base.cut) in bodies(effects, C)
        now += GOSSIP_S
    for link in (B, C, D):
        peer.handle(told(link, have(peer)), now + 2)
    effects = peer.handle(GOSSIP, now + 2)
    assert any(isinstance(effect, SetTimer) and effect.timer.kind == "join" for effect in effects)
    (asked,) = bodies(peer.handle(told(C, Vector(veterans().states())), now + 3), C)
    assert isinstance(asked, Vector)


# Giving -------------------------------------------------------------------------------------------------


def veteran() -> Peer:
    """A peer that holds and has folded feeds of b and c, and trains."""
    peer = newcomer()
    peer.handle(rumor(B, *feed("b", 3), *feed("c", 2)), 0.1)
    for link in (B, C, D):
        peer.handle(told(link, have(peer)), 0.2)
    assert peer.handle(Folded(0), 0.3)
    return peer


def test_a_state_is_captured_once_and_offered_to_all() -> None:
    peer = veteran()
    assert peer.feeds is not None
    base = ground(peer.feeds)
    assert peer.handle(told(D, Ask()), 1.0) == [Capture(base.cut)]
    assert peer.handle(told(C, Ask(base.cut)), 1.1) == []
    offer = Offer(base, DIGESTS)
    assert peer.handle(Captured(base.cut, PIECES), 1.2) == [Send(C, offer), Send(D, offer)]
    assert peer.handle(told(B, Ask()), 1.3) == [Send(B, offer)]
    name = name_of(base, DIGESTS)
    for _ in range(FETCHES_MAX):
        assert peer.handle(told(D, Fetch(name, 1)), 1.4) == [Send(D, Piece(name, 1, PIECES[1]))]
    assert peer.handle(told(D, Fetch(name, 1)), 1.4) == [], "that is enough until the next beat"
    assert peer.handle(told(C, Fetch(name, 3)), 1.4) == []
    assert peer.handle(told(C, Fetch(b"?" * 32, 0)), 1.4) == []


def test_what_is_not_held_is_not_captured() -> None:
    peer = veteran()
    other = ground(veterans())
    assert peer.handle(told(D, Ask(other.cut)), 1.0) == []
    assert peer.handle(told(D, Ask(other.cut * 30)), 1.0) == [dropped(D)]


def test_a_state_that_cannot_be_written_is_not_offered() -> None:
    peer = veteran()
    (capture,) = peer.handle(told(D, Ask()), 1.0)
    assert isinstance(capture, Capture)
    assert peer.handle(Captured(capture.cut, ()), 1.1) == []


# Below a floor ------------------------------------------------------------------------------------------


def standing(peer: Peer, base: Ground) -> list[Effect]:
    """Let it take this state from b."""
    name = name_of(base, DIGESTS)
    peer.handle(told(B, Offer(base, DIGESTS)), 1.0)
    for number, piece in enumerate(PIECES):
        peer.handle(told(B, Piece(name, number, piece)), 1.0)
    return peer.handle(Installed(base), 1.1)


def test_a_ruling_below_a_floor_needs_another_state() -> None:
    peer, base = asking()
    standing(peer, base)
    assert peer.feeds is not None
    before = peer.feeds.digest
    ruling = retraction("b", 10)
    effects = peer.handle(rumor(C, ruling), 2.0)
    assert kept(ruling) in effects
    assert Report(Unreached(key("b"), PeerId("b"), 10)) in effects
    assert peer.feeds.digest == before, "it cannot take out what it never had"
    # A state with these records is no help; one without them is.
    others = veterans(ruling)
    others.take()
    vector = Vector(others.states())
    effects = peer.handle(told(C, vector), 40.0)
    assert Ask() in bodies(effects, C)
    after, name = ground(others), name_of(ground(others), DIGESTS)
    peer.handle(told(C, Offer(after, DIGESTS)), 40.1)
    for number, piece in enumerate(PIECES):
        effects = peer.handle(told(C, Piece(name, number, piece)), 40.2)
    while not any(isinstance(effect, Install) for effect in effects):
        assert pace(effects), "it waits for something of its own"
        effects = peer.handle(GOSSIP, 41.0)
    peer.handle(Installed(after), 42.0)
    assert peer.feeds.digest == others.digest
    assert not peer.feeds.deep


def test_a_fork_below_a_floor_is_noted_and_a_batch_there_is_known() -> None:
    feeds = holding(feed("c", 1))
    feeds.install(ground(veterans()))
    assert feeds.accept(batch("b", 3, codes="????")).name == "KNOWN"
    assert feeds.rule(fork("b", 3)).name == "DEEP"
    assert feeds.rule(fork("b", 3)).name == "KNOWN"
    assert feeds.rule(retraction("b", 2)).name == "DEEP"
    assert not feeds.admits(ground(veterans()).cut)
    assert feeds.rule(retraction("b", 29 * RECORDS)).name == "KNOWN"


def test_a_ruling_above_a_floor_is_followed() -> None:
    feeds = holding()
    feeds.install(ground(veterans()))
    feeds.accept(batch("b", 30))
    assert feeds.rule(retraction("b", 29 * RECORDS + 1)).name == "NEW"
    assert feeds.take()[:2] == ((batch("b", 30),), ((key("b"), 29 * RECORDS + 1),))


# A state or the log: the same ---------------------------------------------------------------------------

CUTS = st.tuples(st.integers(1, 8), st.integers(1, 8))


@settings(deadline=None)
@given(at=CUTS, more=CUTS, seq=st.none() | st.integers(0, 60), early=st.booleans())
def test_a_joiner_by_state_and_one_by_log_are_equal(
    at: tuple[int, int], more: tuple[int, int], seq: int | None, early: bool
) -> None:
    ends = [one + other for one, other in zip(at, more, strict=True)]
    ledger = Ledger(RECORDS)
    by_log, giver = _replica(ledger), _replica(ledger)
    held = holding(feed("b", ends[0]), feed("c", ends[1]))
    given = holding(feed("b", at[0]), feed("c", at[1]))
    if seq is not None and early:
        given.rule(retraction("b", seq))
    _fold(giver, given)
    base = ground(given)
    captured = giver.capture(Capture(base.cut))
    # The joiner holds something that its giver does not: it stays.
    joined, by_state = holding(feed("d", 3)), _replica(ledger)
    for one in feed("d", 3):
        held.accept(one)
    _fold(by_state, joined)
    assert by_state.install(Install(base, captured.pieces)).sound
    joined.install(base)
    rest = [*feed("b", ends[0])[at[0] :], *feed("c", ends[1])[at[1] :]]
    for one in rest:
        joined.accept(one)
    if seq is not None:
        held.rule(retraction("b", seq))
        if joined.rule(retraction("b", seq)).name == "DEEP":
            assert seq < (at[0] - 1) * RECORDS
            assert not early
            return
    _fold(by_log, held)
    _fold(by_state, joined)
    assert joined.digest == held.digest
    assert by_state.weights == by_log.weights


def _replica(ledger: Ledger) -> Tally:
    return Tally(ledger, key("me"))


def _fold(replica: Tally, feeds: Feeds) -> None:
    batches, closed, dropped = feeds.take()
    replica.fold(Fold(0, batches, closed, dropped=dropped))
