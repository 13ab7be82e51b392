"""What one neighbour has sent us and where it is: the judgement on every envelope happens here.

* An update of a turn that is here already is a duplicate; one that is not newer than the last folded, or older than
  `stale_max` rounds, is late. Neither has an effect: each payload is folded at most once, never an older after a newer.
* An early update waits for its turn. (Folding it at once would leave nothing for its own turn, and both peers would
  then wait a whole turn for each other.)
* A new incarnation starts afresh; what an earlier life sent is outdated.
"""

from __future__ import annotations

from .events import Payload, Turn, Verdict

# Payloads kept per neighbour. Two cover a neighbour that is one exchange ahead; the third keeps its newest while we
# are so slow that it ran further. (A bound on memory: so many models per neighbour.)
SLOTS_MAX = 3


class Neighbour:
    """The record of one neighbour."""

    __slots__ = ("folded", "incarnation", "missed", "payloads", "sent", "turn")

    def __init__(self) -> None:
        self.incarnation = 0
        self.reset(0)

    def reset(self, incarnation: int) -> None:
        """Forget an earlier life."""
        self.incarnation = incarnation
        self.turn = Turn(0)  # the newest it says it has begun
        self.sent = Turn(0)  # the newest whose update reached us
        self.folded = Turn(0)  # the newest we mixed
        self.missed = 0  # how many deadlines it let pass since its last update
        self.payloads: dict[Turn, Payload] = {}  # in order of turn

    def meet(self, incarnation: int) -> bool:
        """Notice in which life the neighbour speaks. False: in an earlier one than we know of."""
        if incarnation > self.incarnation:
            self.reset(incarnation)
        return incarnation == self.incarnation

    def keep(self, turn: Turn, payload: Payload, oldest_round: int) -> Verdict | None:
        """Store an update, or say why not."""
        self.turn = max(self.turn, turn)
        self.missed = 0
        if turn <= self.folded or turn.round < oldest_round:
            return Verdict.LATE
        if turn in self.payloads:
            return Verdict.DUPLICATE
        self.sent = max(self.sent, turn)
        self.payloads[turn] = payload
        # What grew too old goes first: else it would be "the oldest" below for ever.
        self.payloads = {t: p for t, p in sorted(self.payloads.items()) if t.round >= oldest_round}
        if len(self.payloads) > SLOTS_MAX:
            # The oldest is what we fold next and the newest where we are going; the one between is neither.
            del self.payloads[list(self.payloads)[1]]
        return None

    def fold(self, turn: Turn, oldest_round: int) -> Payload | None:
        """Hand out the newest update that is not from our future, once, and forget what it supersedes."""
        usable = [t for t in self.payloads if t <= turn and t.round >= oldest_round]
        if not usable:
            return None
        self.folded = usable[-1]
        payload = self.payloads[self.folded]
        self.payloads = {t: p for t, p in self.payloads.items() if t > self.folded}
        return payload
