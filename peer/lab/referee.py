"""Safety, judged from outside: the invariants every life of every peer must keep, whatever the weather.

Rules
* The core never sees this. Payloads carry their origin as bytes with a label, which passes through it unnoticed.
* A violation is a sentence; a run collects them and goes on.
* Judged: each payload is folded at most once, never an older one after a newer one of the same neighbour, none from
  the future or too old, none of a stranger; rounds grow; weights are a sub-stochastic row over exactly the inbox;
  inboxes are bounded; one job at a time; after `Leave`, nothing.
"""

from __future__ import annotations

from murmurate.peer.protocol.core import Peer
from murmurate.peer.protocol.events import Adopt, Effect, Leave, Mix, PeerId, Save, Send, Train, Turn
from murmurate.peer.protocol.inbox import SLOTS_MAX
from murmurate.peer.protocol.rounds import Phase, Rounds

# A broken invariant tends to break on every round; the first few tell the story.
VIOLATIONS_MAX = 100


class Parcel(bytes):
    """A payload that knows where it comes from."""

    origin: PeerId
    incarnation: int
    turn: Turn

    @classmethod
    def of(cls, payload: bytes | bytearray | memoryview, origin: PeerId, incarnation: int, turn: Turn) -> Parcel:
        """Label a payload."""
        parcel = cls(payload)
        parcel.origin, parcel.incarnation, parcel.turn = origin, incarnation, turn
        return parcel


class Referee:
    """Watches one life of one peer."""

    def __init__(self, name: str, core: Peer, links: frozenset[PeerId], stale_max: int, violations: list[str]) -> None:
        self._name = name
        self._core = core
        self._links = links
        self._stale_max = stale_max
        self._violations = violations
        self._folded: dict[PeerId, tuple[int, Turn]] = {}
        self._trained = 0  # the newest round begun, at first that of the snapshot
        self._turn = Turn(0)
        self._busy = False
        self._left = False

    def started(self, round: int) -> None:
        """The life begins with a snapshot of `round`."""
        self._trained, self._turn = round, Turn(round)

    def answered(self) -> None:
        """The running job is over."""
        self._busy = False

    def received(self, sender: PeerId) -> None:
        """After an envelope of `sender` was handled: its inbox is bounded."""
        rounds = self._core.rounds
        assert isinstance(rounds, Rounds)
        if (kept := rounds.kept(sender)) > SLOTS_MAX:
            self._object(f"keeps {kept} payloads of {sender}")

    def asked(self, effect: Effect) -> None:
        """Judge one effect."""
        if self._left:
            self._object(f"asks for {type(effect).__name__} after Leave")
        match effect:
            case Send(to):
                if to not in self._links:
                    self._object(f"sends to {to}, no neighbour")
            case Train(round):
                if round <= self._trained:
                    self._object(f"trains round {round} after round {self._trained}")
                self._trained, self._turn = round, max(self._turn, Turn(round, -1))
                self._begin_job()
            case Mix(turn, inbox, weights):
                self._begin_job()
                joining = self._core.phase is Phase.ADOPTING
                self._on_turn(turn, joining)
                for peer, payload in inbox.items():
                    self._on_fold(peer, payload, turn, joining)
                total = sum(weights.values())
                if list(weights) != list(inbox) or min(weights.values(), default=0) < 0 or total > 1 + 1e-9:
                    self._object(f"mixes {list(inbox)} with weights {dict(weights)}")
            case Adopt(turn, inbox):
                self._begin_job()
                self._on_turn(turn, joining=True)
                for peer, payload in inbox.items():
                    self._on_fold(peer, payload, turn, joining=True)
            case Save():
                if self._busy:
                    self._object("asks for a snapshot while a job is running")
            case Leave():
                self._left = True
            case _:
                pass

    def _begin_job(self) -> None:
        if self._busy:
            self._object("asks for a job while another one is running")
        self._busy = True

    def _on_turn(self, turn: Turn, joining: bool) -> None:
        if turn.round < self._turn.round if joining else turn <= self._turn:  # a joiner may mix at its own round
            self._object(f"mixes turn {tuple(turn)} after turn {tuple(self._turn)}")
        self._turn = max(self._turn, turn)
        self._trained = max(self._trained, turn.round)

    def _on_fold(self, peer: PeerId, payload: object, turn: Turn, joining: bool) -> None:
        assert isinstance(payload, Parcel)
        last = self._folded.get(peer)
        now = self._folded[peer] = (payload.incarnation, payload.turn)
        faults: list[str] = []
        if payload.origin != peer or peer not in self._links:
            faults.append(f" as {peer}'s")
        if not joining and payload.turn > turn:
            faults.append(", from the future")
        if not joining and payload.turn.round < turn.round - self._stale_max:
            faults.append(", stale")
        if last is not None and now <= last:
            faults.append(f" after {last[0]}:{tuple(last[1])}")
        for fault in faults:
            which = f"{payload.origin}'s payload {payload.incarnation}:{tuple(payload.turn)}"
            self._object(f"folds {which} in {tuple(turn)}{fault}")

    def _object(self, sentence: str) -> None:
        if len(self._violations) < VIOLATIONS_MAX:
            self._violations.append(f"{self._name} {sentence}")
