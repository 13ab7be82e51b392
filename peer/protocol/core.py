"""One peer's protocol, composed: who is live, and the rounds.

**Every call of `handle` must be followed by performing all returned effects, in order, before the next call.**

The caller's duties
1. Feed `Started` first, then whatever happens, with `now` from one monotonic clock (seconds; never a wall clock).
2. Answer every `Train` with one `Trained`, every `Mix` or `Adopt` with one `Mixed`; never feed from inside an effect.
3. `Send` is best effort: no answer, no error. Drop what cannot be delivered.
4. Perform `Save` before a `Train` that follows it: the snapshot must not contain half of the next round.
5. After `Leave`, stop feeding.
"""

from __future__ import annotations

from .events import Effect, Event, PeerId, PeerState, Send
from .membership import Heartbeats, Membership
from .neighbourhood import Neighbourhood
from .rounds import Pacing, Phase, Rounds


class Peer:
    """The whole protocol of one peer."""

    def __init__(self, neighbourhood: Neighbourhood, pacing: Pacing, heartbeat_s: float, timeout_s: float) -> None:
        self.membership: Membership = Heartbeats(
            neighbourhood.links, heartbeat_s, timeout_s, where=lambda: self.rounds.turn
        )
        self.rounds = Rounds(neighbourhood, pacing, self.membership.alive)

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event at time `now` (seconds), return what is to be done, in order."""
        if self.phase is Phase.LEFT:
            return []
        effects = self.membership.handle(event, now)  # first: the rounds ask who is alive
        asked = self.rounds.handle(event, now)
        for effect in asked:
            if isinstance(effect, Send):
                self.membership.told(effect.to, now)
        return effects + asked

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
