"""One peer's protocol, composed: who is live, and the rounds of its exchange.

**Every call of `handle` must be followed by performing all returned effects, in order, before the next call.**

The caller's duties
1. Feed `Started` first (with `seeds`, `Restored` before it), then whatever happens, with `now` from one monotonic clock
   (seconds; never a wall clock).
2. Answer every `Train` with one `Trained`, every `Mix` or `Adopt` with one `Mixed`, every `Sign` with one `Signed`,
   every `Fold` with one `Folded`, every `Audit` with one `Audited`, every `Capture` with one `Captured`, every
   `Install` with one `Installed`, every `Examine` with one `Examined`; never feed from inside an effect.
3. `Send` is best effort: no answer, no error. Drop what cannot be delivered.
4. Perform `Save` before a `Train` that follows it: the snapshot must not contain half of the next round.
5. After `Leave`, stop feeding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from .audits import Auditing, Audits
from .events import Effect, Event, Interrupt, LeaveRequested, PeerId, PeerState, Send, Turn
from .feeds import Feeds, Rules
from .handover import Handover
from .membership import Heartbeats, Membership
from .neighbourhood import Neighbourhood
from .probing import Probing
from .records import Origin
from .rounds import Pacing, Phase, Rounds
from .rumors import Rumors
from .seams import Verify


@dataclass(frozen=True, slots=True, kw_only=True)
class Seeds:
    """What the `seeds` exchange needs to know."""

    me: PeerId
    origin: Origin
    """Ours."""
    rules: Rules
    verify: Verify
    shared: bool
    """Whether all peers probe the same directions in a round, and wait for each other's votes."""
    gossip_s: float
    state_bytes: int | None = None
    """About what a state costs that is handed to a joiner instead of the log; None: this exchange has none."""
    vouchers: int = 1
    """How many neighbours must offer the same state, or all where there are fewer."""


class Pace(Protocol):
    """The rounds of one peer, in either exchange."""

    phase: Phase
    turn: Turn
    complete: int

    def handle(self, event: Event, now: float) -> list[Effect]:
        """See Peer.handle."""
        ...

    def round_of(self, peer: PeerId) -> int:
        """The newest round we know `peer` to be in."""
        ...


class Peer:
    """The whole protocol of one peer."""

    def __init__(
        self,
        neighbourhood: Neighbourhood,
        pacing: Pacing,
        heartbeat_s: float,
        timeout_s: float,
        seeds: Seeds | None = None,
        auditing: Auditing | None = None,
    ) -> None:
        """Without `seeds`, models are exchanged, and neighbours audited if `auditing` says how."""
        links = neighbourhood.links
        self.membership: Membership = Heartbeats(links, heartbeat_s, timeout_s, where=lambda: self.rounds.turn)
        self.feeds: Feeds | None = None
        self.audits: Audits | None = None
        self._rumors: Rumors | None = None
        if seeds is None:
            rounds = Rounds(neighbourhood, pacing, self._counts if auditing else self.membership.alive)
            self.rounds: Pace = rounds
            if auditing is not None:
                self.audits = Audits(auditing, neighbourhood, rounds.neighbours, self._counts)
            return
        self.feeds = Feeds(seeds.rules, seeds.verify)
        alive, state, vouchers = self.membership.alive, self.membership.state, seeds.vouchers
        self._handover = Handover(
            seeds.origin, self.feeds, links, alive, seeds.verify, seeds.state_bytes, vouchers, seeds.gossip_s
        )
        self._rumors = Rumors(self.feeds, links, alive, seeds.gossip_s, self._handover)
        self._probing = Probing(
            seeds.me, seeds.origin, seeds.shared, links, pacing, state, self.feeds, self._rumors, self._handover
        )
        self.rounds = self._probing

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event at time `now` (seconds), return what is to be done, in order."""
        if self.phase is Phase.LEFT:
            return []
        effects = self.membership.handle(event, now)  # first: the rounds ask who is alive
        asked = self._exchange(event, now)
        for effect in asked:
            if isinstance(effect, Send):
                self.membership.told(effect.to, now)
        return effects + asked

    def _exchange(self, event: Event, now: float) -> list[Effect]:
        if self._rumors is not None:
            return self._gossip(self._rumors, event, now)
        if self.audits is not None:
            return self._audited(self.audits, event, now)
        return self.rounds.handle(event, now)

    def _audited(self, audits: Audits, event: Event, now: float) -> list[Effect]:
        assert isinstance(self.rounds, Rounds)
        if audits.bars(event):
            return []
        ends = isinstance(event, LeaveRequested) and audits.is_examining
        effects: list[Effect] = [Interrupt()] if ends else []  # what would come out of it concerns nobody any more
        effects += self.rounds.handle(event, now)
        if self.phase is Phase.LEFT:
            return effects
        before = len(audits.banned)
        effects += audits.handle(event, effects)
        for peer in list(audits.banned)[before:]:
            effects += (further := self.rounds.forget(peer, now))
            audits.watch(further)
        return effects

    def _counts(self, peer: PeerId) -> bool:
        """Whether it is worth waiting for `peer`."""
        return self.membership.alive(peer) and (self.audits is None or peer not in self.audits.banned)

    def _gossip(self, rumors: Rumors, event: Event, now: float) -> list[Effect]:
        handed = self._handover.handle(event, now)  # first: gossip goes on from what was installed
        spread = rumors.handle(event, now)  # before the rounds: they ask what has come
        asked = self._probing.handle(event, now)
        # A capture is of what the weights contain, so none is asked for while a fold or an installation runs.
        captured = [] if self._probing.is_folding or self.phase is Phase.LEFT else self._handover.next_capture()
        return handed + spread + asked + captured

    @property
    def phase(self) -> Phase:
        """What this peer is doing."""
        return self.rounds.phase

    @property
    def round(self) -> int:
        """The newest round this peer has begun."""
        return self.rounds.turn.round

    def state(self, peer: PeerId) -> PeerState:
        """What we believe of another peer."""
        return self.membership.state(peer)
