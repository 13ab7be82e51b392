"""Any interleaving, duplication, loss, partition and restart of the same records ends in one state: hypothesis tries.

Four peers gossip for real; what they say waits in mailboxes until a rule delivers, doubles or loses it. In the end all
links work, and then every peer must hold the union of what was published, and the weights that it gives from scratch.
"""

from __future__ import annotations

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from murmurate.peer.lab.seeds_life import signed, verify
from murmurate.peer.lab.tally import Ledger, Tally, weights_digest
from murmurate.peer.protocol.events import (
    Body,
    Effect,
    Envelope,
    Event,
    Fold,
    Keep,
    LinkUp,
    PeerId,
    Received,
    Restored,
    Ruled,
    Rumor,
    Send,
    Signed,
    Started,
    Turn,
)
from murmurate.peer.protocol.feeds import Feeds
from murmurate.peer.protocol.handover import Handover
from murmurate.peer.protocol.records import Batch, Origin, Retraction, Ruling
from murmurate.peer.protocol.rumors import Rumors

from .seeds_scene import GOSSIP, GOSSIP_S, RECORDS, ROSTER, RULES, batch, birth, key, retraction

NAMES = ROSTER[:4]
LINKS = {0: (1, 3), 1: (0, 2), 2: (1, 3), 3: (2, 0)}  # a ring: not everybody hears everybody
LEDGER = Ledger(RECORDS)
PEER = st.integers(0, len(NAMES) - 1)


class Member:
    """A peer without a pace: its set, its gossip, its weights and its log."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.name = PeerId(NAMES[index])
        self.log: list[Batch | Ruling] = []
        self.synced = 0
        self.incarnation = 0
        self.up: set[int] = set()  # to whom links are open
        self.begin()

    def begin(self) -> None:
        """A life."""
        self.incarnation += 1
        self.up.clear()
        self.feeds = Feeds(RULES, verify)
        links = [PeerId(NAMES[j]) for j in LINKS[self.index]]

        def alive(peer: PeerId) -> bool:
            return NAMES.index(peer) in self.up

        handover = Handover(Origin(b""), self.feeds, links, alive, verify, None, 0, GOSSIP_S)
        self.rumors = Rumors(self.feeds, links, alive, GOSSIP_S, handover)
        self.tally = Tally(LEDGER, key(self.name))

    def fold(self) -> None:
        """Bring the weights up to the set."""
        batches, closed, dropped = self.feeds.take()
        self.tally.fold(Fold(0, batches, closed, dropped=dropped))

    @property
    def count(self) -> int:
        """Of our own batches."""
        return self.feeds.state_of(key(self.name)).count


class Gossip(RuleBasedStateMachine):
    """The peers and the mailboxes between them."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.mail: list[tuple[int, int, int, Body]] = []  # from, in which life, to, what
        self.published: list[Batch] = []
        self.retractions: list[Retraction] = []
        self.members = [Member(index) for index in range(len(NAMES))]
        for member in self.members:
            self.start(member)

    # How it works ---------------------------------------------------------------------------------------

    def start(self, member: Member) -> None:
        batches = tuple(entry for entry in member.log if isinstance(entry, Batch))
        rulings = tuple(entry for entry in member.log if not isinstance(entry, Batch))
        self.feed(member, Restored(batches, rulings))
        self.feed(member, Started(0))
        if not member.count:
            self.sign(member, birth(member.name))

    def sign(self, member: Member, one: Batch) -> None:
        member.log.append(one)
        member.synced = len(member.log)
        self.published.append(one)
        self.feed(member, Signed(one))

    def feed(self, member: Member, event: Event) -> None:
        self.now += 0.01
        self.perform(member, member.rumors.handle(event, self.now))

    def perform(self, member: Member, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(to, body):
                    self.mail.append((member.index, member.incarnation, NAMES.index(to), body))
                case Keep(batches, rulings):
                    member.log += [*batches, *rulings]
                case _:
                    pass

    def deliver(self, sender: int, incarnation: int, to: int, body: Body) -> None:
        envelope = Envelope(PeerId(NAMES[sender]), incarnation, body)
        self.feed(self.members[to], Received(envelope))

    def link(self, i: int, j: int) -> None:
        one, other = self.members[i], self.members[j]
        one.up.add(j)
        self.feed(one, LinkUp(other.name, other.incarnation, Turn(0)))

    # What may happen ------------------------------------------------------------------------------------

    @rule(i=PEER, codes=st.binary(min_size=RECORDS, max_size=RECORDS))
    def publish(self, i: int, codes: bytes) -> None:
        member = self.members[i]
        found = member.feeds.get(key(member.name))
        if found is not None and found.closed is None:
            one = batch(member.name, found.count, round=found.round + 1)
            self.sign(member, signed(replace(one, codes=codes)))

    @precondition(lambda self: self.mail)
    @rule(data=st.data(), twice=st.booleans())
    def letter_arrives(self, data: st.DataObject, twice: bool) -> None:
        place = data.draw(st.integers(0, len(self.mail) - 1))
        letter = self.mail[place] if twice else self.mail.pop(place)
        self.deliver(*letter)

    @precondition(lambda self: self.mail)
    @rule(data=st.data())
    def letter_is_lost(self, data: st.DataObject) -> None:
        del self.mail[data.draw(st.integers(0, len(self.mail) - 1))]

    @rule(i=PEER, left=st.booleans())
    def link_opens(self, i: int, left: bool) -> None:
        j = LINKS[i][left]
        self.link(i, j)
        self.link(j, i)

    @rule(i=PEER)
    def peer_is_cut_off(self, i: int) -> None:
        for j in LINKS[i]:
            self.members[i].up.discard(j)
            self.members[j].up.discard(i)

    @rule(i=PEER, data=st.data())
    def peer_restarts(self, i: int, data: st.DataObject) -> None:
        member = self.members[i]
        del member.log[data.draw(st.integers(member.synced, len(member.log))) :]
        member.begin()
        self.start(member)

    @rule(i=PEER)
    def gossip(self, i: int) -> None:
        self.now += GOSSIP_S
        self.feed(self.members[i], GOSSIP)

    @rule(i=PEER)
    def weights_follow(self, i: int) -> None:
        self.members[i].fold()

    @rule(i=PEER, of=PEER, from_seq=st.integers(0, 4 * RECORDS))
    def records_are_retracted(self, i: int, of: int, from_seq: int) -> None:
        member, ruling = self.members[i], retraction(NAMES[of], from_seq)
        if member.feeds.get(key(NAMES[of])) is not None:
            self.retractions.append(ruling)
            member.log.append(ruling)
            member.synced = len(member.log)
            self.feed(member, Ruled(ruling))

    @rule(i=PEER, to=PEER, back=st.integers(0, 3))
    def feed_is_forked(self, i: int, to: int, back: int) -> None:
        """The key of peer i is abused: somebody is told another batch with an old number."""
        held = self.members[i].feeds.get(key(NAMES[i]))
        if i != to and held is not None and held.count > back + 1:
            old = held.batches[-1 - back]
            twin = signed(replace(old, codes=bytes(code ^ 255 for code in old.codes)))
            sender = LINKS[to][0]
            self.deliver(sender, self.members[sender].incarnation, to, Rumor((twin,)))

    # What must hold -------------------------------------------------------------------------------------

    @invariant()
    def weights_are_a_function_of_the_set(self) -> None:
        for member in self.members:
            if not member.feeds.pending:
                assert member.tally.weights == LEDGER.from_scratch(member.feeds)

    def teardown(self) -> None:
        self.heal()
        first = self.members[0]
        for member in self.members:
            member.fold()
            assert member.feeds.digest == first.feeds.digest
            assert member.feeds.states() == first.feeds.states()
            assert weights_digest(member.tally.weights) == weights_digest(first.tally.weights)
            assert member.tally.weights == LEDGER.from_scratch(member.feeds)
        for one in self.published:
            held = first.feeds.get(one.origin)
            assert held is not None
            if held.closed is None:
                assert held.batches[one.number] == one
        for ruling in self.retractions:
            closed = first.feeds.state_of(ruling.origin).closed
            assert closed is not None
            assert closed <= ruling.from_seq

    def heal(self) -> None:
        """All links open, nothing is lost, and gossip goes on for a while."""
        self.mail.clear()
        for i, links in LINKS.items():
            for j in links:
                self.link(i, j)
        for _ in range(30):
            self.now += GOSSIP_S
            for member in self.members:
                self.feed(member, GOSSIP)
            for _ in range(2000):
                if not self.mail:
                    break
                self.deliver(*self.mail.pop(0))
            if len({member.feeds.digest for member in self.members}) == 1:
                break


TestGossip = Gossip.TestCase
TestGossip.settings = settings(max_examples=60, stateful_step_count=60)
