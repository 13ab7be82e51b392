"""Laws that hold for one peer whatever happens to it, in any order.

A second peer, the twin, is told the same: the protocol has no clock and no randomness of its own.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from murmurate.peer.protocol.core import Peer
from murmurate.peer.protocol.events import (
    Adopt,
    Audit,
    Capture,
    Effect,
    Envelope,
    Event,
    Examine,
    Fold,
    Goodbye,
    Heartbeat,
    Install,
    Interrupt,
    Joined,
    Keep,
    Leave,
    LeaveRequested,
    LinkDown,
    LinkUp,
    Mix,
    Mixed,
    PeerId,
    PeerState,
    Received,
    Report,
    RoundDone,
    Save,
    Send,
    SetTimer,
    Sign,
    Skipped,
    Started,
    Timer,
    TimerFired,
    Train,
    Trained,
    Turn,
    Update,
)
from murmurate.peer.protocol.inbox import SLOTS_MAX
from murmurate.peer.protocol.neighbourhood import Edges, Neighbourhood
from murmurate.peer.protocol.rounds import Pacing, Phase

PEERS = tuple(PeerId(name) for name in "bcde")
STRANGER = PeerId("z")
TIMEOUT_S = 3.0
NEVER = Turn(0)


class Changing(Neighbourhood):
    """Links that are used in turns: in some rounds a peer is sent to, or heard, or both, or neither."""

    def __init__(self, links: tuple[PeerId, ...], varying: bool) -> None:
        self.links = links
        self._varying = varying

    def edges(self, round: int) -> Edges:
        outs, ins = self.links, self.links
        if self._varying:
            outs, ins = outs[round % len(outs) :], ins[: 1 + round % len(ins)]
        return Edges(outs, {peer: (1 + self.links.index(peer)) / 16 for peer in ins})


class Blob(bytearray):
    """A payload whose life can be watched."""


@dataclass
class Heard:
    """What a neighbour's newest life has sent, as far as it can still be folded."""

    incarnation: int = 0
    folded: Turn = NEVER
    here: set[Turn] = field(default_factory=set[Turn])
    left: bool = False
    crowded: bool = False  # more than there are slots: something was thrown away


class Life:
    """One peer and a world of any events in any order; only, a shell answers what it is asked, and once.

    Every step checks every law.
    """

    def __init__(self, random: Random) -> None:
        self.random = random
        links = PEERS[: random.choice((3, 4))]
        self.around = Changing(links, varying=random.random() < 0.3)
        self.pacing = Pacing(
            rounds_max=random.choice((0, 0, 0, 12)),
            f=random.choice((0, 0, 1, 2)),
            gossip_steps=random.choice((1, 1, 2, 3)),
            stale_max=random.choice((0, 1, 3)),
            save_s=5.0,
        )
        self.peer, self.twin = (Peer(self.around, self.pacing, 0.5, TIMEOUT_S) for _ in range(2))
        self.now = 100.0
        self.job: Train | Mix | Adopt | None = None
        self.timers: dict[str, Timer] = {}
        self.heard = {peer: Heard() for peer in links}
        self.blobs: list[weakref.ref[Blob]] = []
        self.consumed: set[bytes] = set()  # every payload that was mixed or adopted from
        self.in_round: set[PeerId] = set()  # whose payloads went into the running round
        self.leaving = self.left = False
        round = random.choice((0, 0, 7))
        self.turn, self.complete, self.begun = Turn(round), round, round
        self.feed(Started(round))
        if random.random() < 0.5:
            self.open_all_links()

    def step(self) -> None:
        """One thing happens."""
        weights = {
            self.answer: 20,
            self.receive_all_updates: 9,
            self.receive_update: 20,
            self.receive_heartbeat: 6,
            self.receive_goodbye: 1,
            self.open_link: 4,
            self.open_all_links: 2,
            self.break_link: 2,
            self.pause: 5,
            self.fire: 8,
            self.leave: 0.2,
        }
        (act,) = self.random.choices(list(weights), list(weights.values()))
        act()
        self.check_phase()
        self.check_memory()

    # What may happen ------------------------------------------------------------------------------------

    def sender(self) -> PeerId:
        return self.random.choice((*self.around.links * 3, STRANGER))

    def life(self, peer: PeerId) -> int:
        newest = self.heard[peer].incarnation if peer in self.heard else 1
        return newest + self.random.choice((*[0] * 20, 1, -1))

    def near(self) -> Turn:
        ahead = self.random.choice((-9, -3, -2, -1, -1, 0, 0, 0, 0, 1, 1, 2, 3, 10**6))
        return Turn(max(0, self.peer.round + ahead), self.random.randrange(self.pacing.gossip_steps))

    def receive_update(self) -> None:
        sender = self.sender()
        self.tell_update(sender, self.life(sender), self.near())

    def receive_all_updates(self) -> None:
        turn, silent = self.peer.rounds.turn, self.sender()
        for sender in self.around.links:
            if sender != silent:
                self.tell_update(sender, self.heard[sender].incarnation, turn)

    def receive_heartbeat(self) -> None:
        sender = self.sender()
        self.feed(Received(Envelope(sender, self.life(sender), Heartbeat(self.near()))))

    def receive_goodbye(self) -> None:
        sender = self.sender()
        self.feed(Received(Envelope(sender, self.life(sender), Goodbye())))

    def open_link(self) -> None:
        peer = self.sender()
        self.feed(LinkUp(peer, self.life(peer), self.near()))

    def open_all_links(self) -> None:
        ahead = self.random.choice((0, 0, 1, 3, 5))
        for peer in self.around.links:
            self.feed(LinkUp(peer, self.heard[peer].incarnation, Turn(self.peer.round + ahead)))

    def break_link(self) -> None:
        self.feed(LinkDown(self.sender()))

    def pause(self) -> None:
        self.now += self.random.choice((0.25, 0.25, 1.0, 4.0))

    def answer(self) -> None:
        job, self.job = self.job, None
        match job:
            case Train(round):
                self.feed(Trained(round, b"ours", complete=not self.leaving or self.random.random() < 0.5))
            case Mix(turn, inbox) | Adopt(turn, inbox):
                refused = tuple(peer for peer in inbox if self.random.random() < 0.1)
                self.in_round |= set(inbox) - set(refused)
                del job, inbox
                self.feed(Mixed(turn, b"ours", refused))
            case None:
                pass

    def fire(self) -> None:
        if self.timers:
            kind = self.random.choice(sorted(self.timers))
            self.feed(TimerFired(self.timers.pop(kind)))

    def leave(self) -> None:
        self.leaving = True
        self.feed(LeaveRequested())

    def fall_silent(self) -> None:
        """All others die. The peer goes on alone, or has left."""
        self.now += 2 * TIMEOUT_S
        self.feed(TimerFired(self.timers.pop("heartbeat")))
        begun = self.begun
        for _ in range(4 * self.pacing.gossip_steps):
            self.answer()
            for kind in sorted(self.timers.keys() - {"heartbeat"}):
                self.feed(TimerFired(self.timers.pop(kind)))
        assert self.left or self.begun > begun

    # What must hold ---------------------------------------------------------------------------------------

    def tell_update(self, sender: PeerId, life: int, turn: Turn) -> None:
        blob = Blob(f"{sender} {life} {turn.round} {turn.hop}".encode())
        self.blobs.append(weakref.ref(blob))
        oldest = self.peer.round - self.pacing.stale_max
        self.feed(Received(Envelope(sender, life, Update(turn, blob))), (turn, oldest))

    def feed(self, event: Event, news: tuple[Turn, int] | None = None) -> None:
        self.note(event, news)
        was_left = self.left
        effects = self.peer.handle(event, self.now)
        assert effects == self.twin.handle(event, self.now)
        for effect in effects:
            assert not self.left  # nothing after Leave
            self.perform(effect)
        if not was_left:
            assert all(self.peer.state(peer) is PeerState.LEFT for peer in self.heard if self.heard[peer].left)
        assert self.peer.rounds.turn >= self.turn
        self.turn = self.peer.rounds.turn

    def note(self, event: Event, news: tuple[Turn, int] | None) -> None:
        """Keep our own record of what can be folded."""
        match event:
            case LinkUp(peer, life, _) | Received(Envelope(peer, life, _)) if peer in self.heard:
                heard = self.heard[peer]
                if life > heard.incarnation:
                    heard = self.heard[peer] = Heard(life)
                if isinstance(event, Received) and isinstance(event.envelope.body, Goodbye):
                    heard.left |= life == heard.incarnation
                if news is not None and life == heard.incarnation:
                    turn, oldest = news
                    if turn > heard.folded and turn.round >= oldest:
                        heard.here.add(turn)
                        heard.crowded |= len(heard.here) > SLOTS_MAX
            case _:
                pass

    def perform(self, effect: Effect) -> None:
        match effect:
            case Send(to):
                assert to in self.around.links
            case SetTimer(timer, delay_s):
                assert delay_s > 0
                self.timers[timer.kind] = timer
            case Train(round):
                assert self.job is None
                assert round > max(self.begun, self.complete)
                assert not self.pacing.rounds_max or round <= self.pacing.rounds_max
                self.job, self.begun = effect, round
                self.in_round.clear()
            case Mix() | Adopt():
                assert self.job is None
                self.job = effect
                self.check_inbox(effect)
            case Save():
                assert self.job is None  # never in the middle of a round
            case Interrupt():
                assert isinstance(self.job, Train)
                assert self.leaving
            case Leave():
                assert self.job is None
                self.left = True
            case Report(fact):
                self.check_fact(fact)
            case Sign() | Keep() | Fold() | Audit() | Capture() | Install() | Examine():
                raise AssertionError("of the other exchange, or of audits, which are off")

    def check_fact(self, fact: object) -> None:
        match fact:
            case RoundDone(round, waited_s, folded, missing):
                assert self.complete < round == self.begun
                assert waited_s >= 0
                assert set(folded) == self.in_round
                assert not set(missing) & set(folded)
                self.complete = round
            case Joined(round, sources):
                assert round >= self.complete
                assert set(sources) == self.in_round
                self.complete = self.begun = round
            case Skipped(from_round, to_round):
                assert self.complete + 1 == from_round < to_round == self.begun
            case _:
                pass

    def check_inbox(self, effect: Mix | Adopt) -> None:
        joining = self.peer.phase is Phase.ADOPTING
        found: dict[PeerId, Turn] = {}
        for peer, payload in effect.inbox.items():
            assert bytes(payload) not in self.consumed  # at most once
            self.consumed.add(bytes(payload))
            sender, life, round, hop = bytes(payload).decode().split()
            assert (sender, int(life)) == (peer, self.heard[peer].incarnation)
            found[peer] = Turn(int(round), int(hop))
            assert found[peer] > self.heard[peer].folded  # never an older after a newer
        if joining:
            assert len(found) > self.pacing.f
            assert all(turn == max(self.heard[peer].here) for peer, turn in found.items())
        else:
            self.check_choice(effect.turn, found)
        if isinstance(effect, Mix):
            assert sum(effect.weights.values()) < 1
            assert effect.weights.keys() == found.keys()
            assert effect.pack == (not joining and effect.turn.hop + 1 < self.pacing.gossip_steps)
        for peer, turn in found.items():
            heard = self.heard[peer]
            heard.folded = turn
            heard.here = {t for t in heard.here if t > turn}
            heard.crowded &= bool(heard.here)

    def check_choice(self, now: Turn, found: dict[PeerId, Turn]) -> None:
        """A mix has the newest usable update of everybody who is heard in this round, and nothing else."""
        weights = self.around.edges(now.round).weights
        assert found.keys() <= weights.keys()
        for peer in weights:
            heard = self.heard[peer]
            usable = [t for t in heard.here if t <= now and t.round >= now.round - self.pacing.stale_max]
            if heard.crowded:
                assert peer not in found or found[peer] in usable
            else:
                assert found.get(peer) == max(usable, default=None)

    def check_phase(self) -> None:
        """Every phase waits for an answer or for a timer: nothing waits for ever."""
        assert self.left == (self.peer.phase is Phase.LEFT)
        match self.peer.phase:
            case Phase.TRAINING:
                assert isinstance(self.job, Train)
            case Phase.MIXING | Phase.ADOPTING:
                assert isinstance(self.job, Mix | Adopt)
            case Phase.WAITING:
                assert self.timers.get("deadline") == Timer("deadline", self.turn)
            case Phase.JOINING:
                assert self.timers.keys() & {"join", "settle"}
            case Phase.LEFT:
                return
            case Phase.SIGNING | Phase.FOLDING | Phase.IDLE:
                raise AssertionError("of the other exchange")
        assert "heartbeat" in self.timers

    def check_memory(self) -> None:
        self.blobs = [blob for blob in self.blobs if blob() is not None]
        handed_out = len(self.job.inbox) if isinstance(self.job, Mix | Adopt) else 0
        assert len(self.blobs) - handed_out <= SLOTS_MAX * len(self.around.links)


def live(random: Random, steps: int) -> Life:
    life = Life(random)
    for _ in range(steps):
        life.step()
        if life.left and random.random() < 0.1:  # some events after Leave, not many
            return life
    if not life.left:
        life.fall_silent()
    return life


@given(st.randoms(use_true_random=False))
@settings(max_examples=25)
def test_every_law_holds_in_a_short_life(random: Random) -> None:
    live(random, 30)


@pytest.mark.parametrize("seed", range(40))
def test_every_law_holds_in_a_long_life(seed: int) -> None:
    for number in range(5):
        live(Random(f"{seed} {number}"), 200)
