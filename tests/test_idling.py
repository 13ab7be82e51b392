"""How a peer that exchanges seeds ends: it idles, it is one too many, it leaves; an event in, the exact effects out."""

from __future__ import annotations

import pytest

from murmurate.peer.lab.seeds_life import signed
from murmurate.peer.protocol.core import Peer
from murmurate.peer.protocol.events import (
    Audit,
    Audited,
    CrowdedOut,
    Effect,
    Folded,
    Goodbye,
    Have,
    Interrupt,
    Leave,
    LeaveRequested,
    LinkUp,
    PeerId,
    Report,
    Send,
    Sign,
    Signed,
    Started,
    Timer,
    TimerFired,
    Train,
    Turn,
)
from murmurate.peer.protocol.feeds import ORIGINS_PER_PEER_MAX
from murmurate.peer.protocol.probing import IDLE_DEADLINES_MAX
from murmurate.peer.protocol.records import Batch, Origin, Ruling
from murmurate.peer.protocol.rounds import Phase

from .scene import DEADLINE_S, B, C, D, goodbye, told
from .seeds_scene import (
    GOSSIP,
    NEXT_GOSSIP,
    RECORDS,
    batch,
    birth,
    done,
    feed,
    flooded,
    fold,
    fork,
    have,
    kept,
    key,
    linked,
    pace,
    publish,
    retraction,
    rumor,
    started,
    tell,
    trained,
    training,
    unsigned,
)

TIMEOUT = TimerFired(Timer("deadline", Turn(1)))

# The end ----------------------------------------------------------------------------------------------


def idle(**held: int) -> Peer:
    """A peer that has made its only round, with a neighbour."""
    others = [item for name, count in held.items() for item in feed(name, count)]
    peer = linked((B,), held=[*feed("me", 2), *others], rounds_max=1)
    assert peer.phase is Phase.IDLE
    return peer


def test_after_the_last_round_a_peer_is_idle() -> None:
    peer = training(rounds_max=1)
    publish(peer, 1, 1.0)
    assert peer.handle(Folded(1), 1.0) == [done(1)]
    assert (peer.phase, peer.rounds.complete) == (Phase.IDLE, 1)


def test_an_idle_peer_relays_and_folds_at_the_beat_of_gossip() -> None:
    peer = linked(held=[*feed("me", 2), birth("b")], rounds_max=1)
    one = batch("b", 1)
    assert peer.handle(rumor(B, one), 1.0) == [kept(one), *flooded((C, D), one)]
    assert pace(peer.handle(GOSSIP, 2.0)) == [NEXT_GOSSIP, fold(1, one)]
    assert pace(peer.handle(GOSSIP, 3.0)) == [NEXT_GOSSIP]  # one job at a time
    assert peer.handle(Folded(1), 3.5) == []
    assert peer.phase is Phase.IDLE
    assert peer.feeds is not None
    assert pace(peer.handle(GOSSIP, 4.0)) == [NEXT_GOSSIP, Audit(peer.feeds.digest)]
    assert peer.handle(Audited(peer.feeds.digest, b"w" * 32), 4.5) == []
    assert pace(peer.handle(GOSSIP, 5.0)) == [NEXT_GOSSIP]


def quiet(peer: Peer, now: float) -> list[Effect]:
    """A beat of gossip in which an audit is answered."""
    effects = pace(peer.handle(GOSSIP, now))
    if isinstance(effects[-1], Audit):
        peer.handle(Audited(effects[-1].digest, b"w" * 32), now)
    return effects


def test_an_idle_peer_leaves_when_all_agree_and_nothing_new_came_for_a_deadline() -> None:
    peer = idle(b=2)
    assert Leave() not in quiet(peer, 1.0)
    assert Leave() not in quiet(peer, 2.0)
    assert Leave() not in quiet(peer, DEADLINE_S - 1)
    assert peer.handle(GOSSIP, DEADLINE_S)[-2:] == [Send(B, Goodbye()), Leave()]
    assert peer.phase is Phase.LEFT
    assert peer.handle(GOSSIP, DEADLINE_S + 1) == []


def test_an_idle_peer_stays_for_who_holds_something_else() -> None:
    peer = idle(b=2)
    quiet(peer, 1.0)
    quiet(peer, 2.0)
    peer.handle(rumor(B, batch("b", 2)), 20.0)
    assert pace(peer.handle(GOSSIP, 21.0))[-1] == fold(1, batch("b", 2))
    peer.handle(Folded(1), 21.0)
    quiet(peer, 22.0)
    assert Leave() not in quiet(peer, 20.0 + DEADLINE_S + 1)  # B's newest digest is that of before
    peer.handle(told(B, have(peer)), 51.5)
    assert Leave() in quiet(peer, 52.0)


def test_news_make_an_idle_peer_stay_for_another_deadline() -> None:
    peer = idle(b=2)
    peer.handle(rumor(B, batch("b", 2)), 20.0)
    peer.handle(told(B, have(peer)), 20.5)
    assert quiet(peer, 21.0)[-1] == fold(1, batch("b", 2))
    peer.handle(Folded(1), 21.0)
    quiet(peer, 22.0)
    assert Leave() not in quiet(peer, 19.0 + DEADLINE_S)
    assert Leave() in quiet(peer, 20.0 + DEADLINE_S)


def test_an_idle_peer_leaves_without_the_dead() -> None:
    peer = idle(b=2)
    peer.handle(rumor(B, batch("b", 2)), 1.0)
    peer.handle(goodbye(B), 1.0)
    assert quiet(peer, 2.0)[-1] == fold(1, batch("b", 2))
    peer.handle(Folded(1), 2.0)
    quiet(peer, 3.0)
    assert Leave() in quiet(peer, 1.0 + DEADLINE_S)


@pytest.mark.parametrize("ruling", [retraction("me", RECORDS), fork("me", 2)])
def test_a_peer_whose_feed_was_closed_makes_no_more_rounds(ruling: Ruling) -> None:
    peer = linked(held=feed("me", 3))
    tell(peer, ruling)
    assert peer.handle(trained(3), 2.0)[-1] == fold(3, closed=((key("me"), RECORDS),))
    assert peer.handle(Folded(3), 2.0) == []
    assert peer.phase is Phase.IDLE
    assert Leave() not in quiet(peer, 1000.0)


def test_a_peer_that_is_one_life_too_many_is_idle() -> None:
    earlier = [signed(Batch(Origin(bytes([life]) * 32), 0, 0, b"me", b"")) for life in range(ORIGINS_PER_PEER_MAX)]
    peer = started((B,), held=earlier)
    peer.handle(LinkUp(B, 1, Turn(0)), 0.0)
    assert peer.handle(told(B, have(peer)), 0.1) == [Sign(unsigned(birth("me")))]
    assert peer.handle(Signed(birth("me")), 0.2) == []
    assert peer.phase is Phase.IDLE


def test_a_peer_that_is_crowded_out_later_is_idle() -> None:
    peer = started((B,))
    peer.handle(LinkUp(B, 1, Turn(0)), 0.0)
    peer.handle(told(B, have(peer)), 0.1)
    assert peer.handle(Signed(birth("me")), 0.2)[-1] == Train(1)
    others = [signed(Batch(Origin(bytes([life]) * 32), 0, 0, b"me", b"")) for life in range(ORIGINS_PER_PEER_MAX)]
    assert tell(peer, *others) == [Report(CrowdedOut(key("me"), PeerId("me")))]
    assert peer.handle(trained(1), 1.0) == []
    assert peer.phase is Phase.IDLE


def test_a_birth_alone_is_audited_once_and_keeps_nobody() -> None:
    peer = idle()
    quiet(peer, 1.0)
    quiet(peer, 2.0)
    peer.handle(rumor(B, birth("far")), 3.0)
    peer.handle(told(B, have(peer)), 3.1)
    assert peer.feeds is not None
    assert isinstance(quiet(peer, 4.0)[-1], type(NEXT_GOSSIP))
    assert quiet(peer, 5.0)[-1] == Audit(peer.feeds.digest)
    assert quiet(peer, 6.0) == [NEXT_GOSSIP]
    assert peer.feeds.weights == b"w" * 32
    assert Leave() in quiet(peer, 3.0 + DEADLINE_S)


def test_a_neighbour_that_never_agrees_keeps_nobody_for_ever() -> None:
    peer = idle(b=2)
    quiet(peer, 1.0)
    quiet(peer, 2.0)
    peer.handle(told(B, Have(b"?" * 16)), 3.0)
    assert Leave() not in quiet(peer, IDLE_DEADLINES_MAX * DEADLINE_S - 1)
    assert Leave() in quiet(peer, IDLE_DEADLINES_MAX * DEADLINE_S)


def test_leaving_in_the_middle_of_a_training_interrupts_it() -> None:
    peer = training()
    assert peer.handle(LeaveRequested(), 1.0) == [Interrupt()]
    assert peer.handle(trained(1, complete=False), 1.1) == [*(Send(to, Goodbye()) for to in (B, C, D)), Leave()]


def test_a_round_that_is_done_when_we_leave_is_published() -> None:
    peer = training()
    peer.handle(LeaveRequested(), 1.0)
    assert peer.handle(trained(1), 1.1) == [Sign(unsigned(batch("me", 1)))]
    goodbyes = [Send(to, Goodbye()) for to in (B, C, D)]
    assert peer.handle(Signed(batch("me", 1)), 1.2) == [*flooded((B, C, D), batch("me", 1)), *goodbyes, Leave()]


def test_leaving_waits_for_a_job_and_for_nothing_else() -> None:
    folding = training((B,))
    publish(folding, 1, 1.0)
    assert folding.handle(LeaveRequested(), 1.0) == []
    assert folding.handle(Folded(1), 1.1) == [done(1), Send(B, Goodbye()), Leave()]
    waiting = training((B,), others="b", shared=True)
    publish(waiting, 1, 1.0)
    assert waiting.handle(LeaveRequested(), 1.0) == [Send(B, Goodbye()), Leave()]
    joining = started((B,))
    assert joining.handle(LeaveRequested(), 1.0) == [Leave()]
    resting = idle()
    assert resting.handle(LeaveRequested(), 1.0) == [Send(B, Goodbye()), Leave()]


def test_nothing_follows_the_leave() -> None:
    peer = training()
    peer.handle(LeaveRequested(), 1.0)
    peer.handle(trained(1, complete=False), 1.1)
    assert peer.phase is Phase.LEFT
    for event in (GOSSIP, rumor(B, birth("b")), LeaveRequested(), TIMEOUT, Started(0)):
        assert peer.handle(event, 2.0) == []
