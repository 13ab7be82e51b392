"""Audits of neighbours, as BTARD's validators make them (Gorbunov et al. 2022, section 3), on a graph. Pure.

Theory of operation
* A payload carries a digest of what its round began with: weights, optimizer, and what came in between (opaque here).
* After each mix a peer draws, with a chance of `rate`, one of the neighbours whose models it mixed, and asks how the
  round of that model began. All is committed to by then, and nobody knows the lots beforehand.
* The evidence is what the neighbour's last round began with, what it sent then, what it mixed, and what this round
  began with. Whether one follows from the other is computed by whoever has the model (`Examine`).
* There is no broadcast, so nobody believes an accusation: each peer bans for itself, by name, for its own life.

Who is bound to what
* A peer shows evidence of the two newest rounds that it trained, but for the first of its life, and goes on showing
  what it has begun to show. So "I hold none" is no fault of one whose update of two rounds later is here. But where it
  must still have held it when we asked, it evaded: that is allowed now and then (doubts.py). So is the bare word of one
  that may well be so far. A new life knows nothing of an earlier one.
* A neighbour that is alive and does not answer ASKS_MAX times is guilty; one that cannot be reached is not.
* What the neighbour sent before, and we did not hear, cannot be held against it: then nothing is decided.
* Of the models that it mixed it names the sender, its life and the round, bound by the same commitment. One of ours
  must be one that we sent. One of a neighbour that is alive to us we should have heard too, but for losses: doubts.py.
* A model that a neighbour mixed, and that is another one than we heard of its sender: one of the two lied, we cannot
  know which. With f liars among us f others may do this to an honest peer, so more than f of them convict it; up to f
  forged models are no more than what the mixing rule bears anyway. With f = 0 a single liar could make honest peers ban
  each other, so nothing is decided.

Bounds: one open question, whose answer has one exact size and SHOWN_ROUNDS_MAX rounds of time; for each neighbour the
digests of DIGESTS_MAX models. What it takes to answer: see showing.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from .doubts import Doubts
from .events import (
    Adopt,
    AuditDone,
    Banned,
    Effect,
    Envelope,
    Event,
    Evidence,
    Examine,
    Examined,
    Mix,
    Mixed,
    Payload,
    PeerId,
    Question,
    Received,
    Report,
    Send,
    SetTimer,
    Source,
    Started,
    Timer,
    TimerFired,
    Trained,
    Turn,
    Update,
)
from .inbox import Neighbour
from .neighbourhood import Neighbourhood
from .showing import PIECE_BYTES, SHOWN_ROUNDS_MAX, Showing

ASKS_MAX = 5
"""How often a piece is asked for, `deadline_s` / 5 apart: of messages that get lost one in ten, two in a million
such rows."""

DIGESTS_MAX = 16
"""Models of each neighbour of which we remember the digests: peers are a few rounds apart at most. (a guess)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Auditing:
    """The constants of a peer's audits; see config.Audit."""

    rate: float
    deadline_s: float
    f: int
    secret: bytes
    """What our lots are drawn from; nobody else may know it."""
    start_bytes: int
    """Exact size of what a round begins with."""
    payload_bytes: int
    """Exact size of a payload."""


class Lots:
    """Numbers that nobody can foretell who does not know the secret."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._drawn = 0

    def draw(self) -> float:
        """From [0, 1)."""
        self._drawn += 1
        digest = hashlib.sha256(self._secret + self._drawn.to_bytes(8, "little")).digest()
        return int.from_bytes(digest[:6], "little") / 2**48


@dataclass(slots=True)
class _Open:
    """Our question."""

    peer: PeerId
    incarnation: int
    round: int
    payload: Payload
    due: bool  # whether it must hold the evidence
    asked_in: int  # our round
    waits: int = 0  # timers that ran out since the last piece
    reached: int = 0  # at how many of them it was alive
    declined: bool = False
    head: Evidence | None = None
    unheard: list[PeerId] = field(default_factory=list[PeerId])  # whose models it mixed, and we should have heard
    data: bytearray = field(default_factory=bytearray)
    examining: bool = False


class Audits:
    """One peer's audits: what it asks, what it answers, whom it banned."""

    def __init__(
        self,
        rule: Auditing,
        neighbourhood: Neighbourhood,
        neighbours: Mapping[PeerId, Neighbour],
        alive: Callable[[PeerId], bool],
    ) -> None:
        self.banned: dict[PeerId, str] = {}
        """Whom, and why."""
        self._rule = rule
        self._neighbourhood = neighbourhood
        self._neighbours = neighbours
        self._alive = alive
        self._lots = Lots(rule.secret)
        self._incarnation = 0
        self._round = 0  # of the newest mix
        self._showing = Showing()
        self._inbox: dict[Source, Payload] = {}  # of the running mix
        self._digests: dict[PeerId, dict[Source, bytes]] = {peer: {} for peer in (neighbourhood.me, *neighbours)}
        self._differs: dict[PeerId, set[PeerId]] = {peer: set() for peer in neighbours}
        self._doubts = {peer: Doubts(0) for peer in neighbours}
        self._open: _Open | None = None

    @property
    def is_examining(self) -> bool:
        """Whether evidence is being recomputed."""
        return self._open is not None and self._open.examining

    def bars(self, event: Event) -> bool:
        """Whether this is an update of somebody whom we banned."""
        return isinstance(event, Received) and event.envelope.sender in self.banned and _is_update(event.envelope)

    def watch(self, effects: Sequence[Effect]) -> None:
        """Note what the rounds ask for, before anything else happens."""
        for effect in effects:
            if isinstance(effect, Mix | Adopt):
                self._round = effect.turn.round
                self._inbox = {self._source(peer): payload for peer, payload in sorted(effect.inbox.items())}
                self._showing.mixes(self._round, self._inbox)

    def handle(self, event: Event, asked: Sequence[Effect]) -> list[Effect]:
        """See core.Peer.handle; the rounds were told already, and asked for this."""
        if isinstance(event, Trained):
            self._on_trained(event)
        self.watch(asked)  # behind it: who heard everybody already mixes at once
        match event:
            case Received(envelope) if envelope.sender in self._neighbours:
                return self._on_body(envelope)
            case Mixed():
                return self._on_mixed(event)
            case Examined():
                return self._on_examined(event)
            case TimerFired(Timer("audit", turn)):
                return self._on_waited(turn)
            case Started(_, incarnation):
                self._incarnation = incarnation
                return []
            case _:
                return []

    def _on_body(self, envelope: Envelope) -> list[Effect]:
        peer = envelope.sender
        if envelope.incarnation != self._neighbours[peer].incarnation:
            return []
        match envelope.body:
            case Question(round, number):  # of a banned one as well: else one error becomes two
                shown = self._showing.answer(peer, round, number)
                return [] if shown is None else [Send(peer, shown)]
            case Evidence() as evidence:
                question = self._open
                if question is None or question.examining or peer in self.banned:
                    return []
                is_ours = (peer, envelope.incarnation) == (question.peer, question.incarnation)
                return self._on_evidence(question, evidence) if is_ours else []
            case _:
                return []

    def _on_trained(self, trained: Trained) -> None:
        if (proof := trained.proof) is not None:
            self._showing.add(trained.round, trained.payload, proof.start, proof.undone)
            self._remember(Source(self._neighbourhood.me, self._incarnation, trained.round), proof.digest)

    def _source(self, peer: PeerId) -> Source:
        neighbour = self._neighbours[peer]
        return Source(peer, neighbour.incarnation, neighbour.folded.round)

    def _remember(self, source: Source, digest: bytes) -> None:
        digests = self._digests[source.peer]
        digests[source] = digest
        while len(digests) > DIGESTS_MAX:
            del digests[min(digests)]

    # Asking -------------------------------------------------------------------------------------------

    def _on_mixed(self, mixed: Mixed) -> list[Effect]:
        digests = dict(mixed.digests)
        for source in list(self._inbox):
            if source.peer in digests:
                self._remember(source, digests[source.peer])
            else:
                del self._inbox[source]  # malformed; also gone from what is shown, which is the same
        known = [source for source in self._inbox if self._may_ask(source)]
        inbox, self._inbox = self._inbox, {}
        if self._open is not None or not known or self._lots.draw() >= self._rule.rate:
            return []
        source = known[int(self._lots.draw() * len(known))]
        self._open = _Open(*source, inbox[source], self._is_due(source), self._round)
        return self._ask(self._open)

    def _may_ask(self, source: Source) -> bool:
        """Whether it is bound to answer: it is there, and this is not the first round of its life."""
        if source.peer in self.banned or not self._alive(source.peer):
            return False
        return source.incarnation == self._neighbours[source.peer].incarnation and self._last(source) > 0

    def _is_due(self, source: Source) -> bool:
        """Whether it must hold the evidence when our question comes, as far as one can know: it waits for our next
        model, unless that is late; then others are ahead of us too."""
        two_later = source.round + 2
        others = (one for peer, one in self._neighbours.items() if peer != source.peer and self._alive(peer))
        ahead = sum(one.turn.round >= two_later for one in others)
        is_here = self._neighbours[source.peer].sent.round >= two_later
        return not is_here and ahead <= self._rule.f and self._round < two_later

    def _last(self, source: Source) -> int:
        """The newest earlier round of this life that we heard; 0: none."""
        peer, incarnation, round = source
        heard = (other.round for other in self._digests[peer] if other.incarnation == incarnation)
        return max((other for other in heard if other < round), default=0)

    def _ask(self, question: _Open) -> list[Effect]:
        number = len(question.data) // PIECE_BYTES
        timer = Timer("audit", Turn(question.round))
        return [
            Send(question.peer, Question(question.round, number)),
            SetTimer(timer, self._rule.deadline_s / ASKS_MAX),
        ]

    def _on_waited(self, turn: Turn) -> list[Effect]:
        question = self._open
        if question is None or question.examining or turn.round != question.round:
            return []
        neighbour = self._neighbours[question.peer]
        if neighbour.incarnation != question.incarnation:
            return self._close("it began a new life")
        question.waits += 1
        question.reached += self._alive(question.peer)
        if question.declined and question.head is None and self._is_beyond(question):
            return self._on_beyond(question)
        if self._round > question.asked_in + SHOWN_ROUNDS_MAX:
            return self._evaded(question, "it takes too long to show it")
        if question.waits < ASKS_MAX:
            return self._ask(question)
        if question.reached < ASKS_MAX:
            return self._close("it could not be reached")
        if question.declined and neighbour.turn.round >= question.round + 2:
            return self._evaded(question, "it says that it is two rounds further")
        times = f"asked {ASKS_MAX} times in {self._rule.deadline_s:g} s"
        return self._ban(question.peer, question.round, f"it does not show how its round began ({times})")

    def _on_evidence(self, question: _Open, evidence: Evidence) -> list[Effect]:
        number = len(question.data) // PIECE_BYTES
        if evidence.round != question.round or evidence.number != number:
            return []
        if not evidence.size:
            return self._on_none(question)
        if question.head is None:
            if why := self._unheard(question, evidence):
                return self._close(why)
            if fault := self._fault_of(question, evidence) or self._compare(question, evidence):
                return self._ban(question.peer, question.round, fault)
            question.head = evidence
        size = question.head.size
        if evidence.size != size or len(evidence.data) != min(PIECE_BYTES, size - len(question.data)):
            return self._ban(question.peer, question.round, "its evidence has a wrong size")
        question.data += evidence.data
        question.waits = question.reached = 0
        question.declined = False
        if len(question.data) < size:
            if self._round > question.asked_in + SHOWN_ROUNDS_MAX:  # whoever dawdles must not keep us from others
                return self._evaded(question, "it takes too long to show it")
            return self._ask(question)
        question.examining = True
        return [self._examine(question, question.head)]

    def _on_none(self, question: _Open) -> list[Effect]:
        if question.head is None and self._is_beyond(question):
            return self._on_beyond(question)
        question.declined = True  # its next updates will tell
        return []

    def _on_beyond(self, question: _Open) -> list[Effect]:
        why = "it was two rounds further"
        return self._evaded(question, why) if question.due else self._close(why)

    def _evaded(self, question: _Open, why: str) -> list[Effect]:
        doubts, sent = self._doubts_of(question.peer), self._neighbours[question.peer].sent.round
        is_due = question.due or question.head is not None
        if doubts.evade() if is_due else doubts.claim(question.round, sent):
            return self._ban(question.peer, question.round, f"it shows too seldom how its rounds began: {why}")
        return self._close(why)

    def _doubts_of(self, peer: PeerId) -> Doubts:
        incarnation = self._neighbours[peer].incarnation
        if self._doubts[peer].incarnation != incarnation:
            self._doubts[peer] = Doubts(incarnation)
        return self._doubts[peer]

    def _is_beyond(self, question: _Open) -> bool:
        """Whether it is not bound to this round any more: it sent one that is two later."""
        return self._neighbours[question.peer].sent.round >= question.round + 2

    def _unheard(self, question: _Open, evidence: Evidence) -> str:
        """Why nothing can be decided: it may be that we missed its last model."""
        asked = Source(question.peer, question.incarnation, question.round)
        return "we did not hear what it sent before" if self._last(asked) < evidence.before < question.round else ""

    def _fault_of(self, question: _Open, evidence: Evidence) -> str:
        """What is wrong with the first piece, beyond what it holds."""
        asked = Source(question.peer, question.incarnation, question.round)
        if evidence.before != self._last(asked):
            return "it leaves out a round that we heard"
        mixed = [source.peer for source in evidence.sources]
        row = self._neighbourhood.weights_of(question.peer, evidence.before)
        if mixed != sorted(set(mixed)) or not row.keys() >= set(mixed):
            return "it mixed models of peers that are no neighbours"
        if any(source.round > evidence.before for source in evidence.sources):
            return "it mixed models of rounds to come"
        if any(source.peer == self._neighbourhood.me and self._is_invented(source) for source in evidence.sources):
            return "it mixed a model of ours that we never sent"
        rule = self._rule
        exact = 2 * rule.start_bytes + (1 + len(mixed)) * rule.payload_bytes
        return "" if evidence.size == exact else "its evidence has a wrong size"

    def _is_invented(self, source: Source) -> bool:
        """Whether we know that we never sent this: not what we know of an earlier life, or of a round long ago."""
        mine = self._digests[source.peer]
        if source.incarnation != self._incarnation or source in mine:
            return source.incarnation > self._incarnation
        return len(mine) < DIGESTS_MAX or source.round > min(mine).round

    def _compare(self, question: _Open, evidence: Evidence) -> str:
        """What is wrong with the names of what it mixed: too much that we should have heard and did not."""
        known = [source for source in evidence.sources if self._should_know(source)]
        question.unheard = [source.peer for source in known if source not in self._digests[source.peer]]
        ours = question.unheard.count(self._neighbourhood.me)
        # As with contradictions: up to f liars may have kept from us what they sent to it, and with f = 0 any one.
        f = self._rule.f or len(known)
        unheard = ours + max(0, len(question.unheard) - ours - f)
        if not self._doubts_of(question.peer).compare(len(known) - unheard, unheard):
            return ""
        return f"it mixed too many models that nobody else heard, now of {', '.join(question.unheard)}"

    def _should_know(self, source: Source) -> bool:
        """Whether it is ours, or of one who is alive to us and whose later models we heard."""
        if source.peer == self._neighbourhood.me:
            return True
        return self._alive(source.peer) and self._neighbours[source.peer].sent.round >= source.round

    def _examine(self, question: _Open, head: Evidence) -> Examine:
        row = self._neighbourhood.weights_of(question.peer, head.before)
        heard = {source.peer: self._digests.get(source.peer, {}).get(source, b"") for source in head.sources}
        sent = self._digests[question.peer][Source(question.peer, question.incarnation, head.before)]
        return Examine(
            question.peer,
            question.round,
            question.payload,
            head.before,
            sent,
            {source.peer: row[source.peer] for source in head.sources},
            {peer: digest for peer, digest in heard.items() if digest},
            head.sources,
            question.data,
        )

    def _on_examined(self, examined: Examined) -> list[Effect]:
        question, peer, round = self._open, examined.peer, examined.round
        assert question is not None
        if examined.fault:
            return self._ban(peer, round, examined.fault)
        if examined.hindered:
            return self._evaded(question, examined.hindered) if examined.theirs else self._close(examined.hindered)
        if self._neighbourhood.me in examined.differs:
            return self._ban(peer, round, "it mixed another model of ours than we sent")
        self._doubts_of(peer).passed()
        self._differs[peer].update(examined.differs)
        if len(self._differs[peer]) > self._rule.f > 0:
            others = ", ".join(sorted(self._differs[peer]))
            return self._ban(peer, round, f"it mixed models of {others} that we heard otherwise")
        if examined.differs:
            return self._close(f"it mixed models of {', '.join(examined.differs)} that we heard otherwise")
        return self._close(f"we did not hear its models of {', '.join(question.unheard)}" if question.unheard else "")

    def _close(self, why: str) -> list[Effect]:
        question, self._open = self._open, None
        assert question is not None
        return [Report(AuditDone(question.peer, question.round, why))]

    def _ban(self, peer: PeerId, round: int, reason: str) -> list[Effect]:
        self._open = None
        self.banned[peer] = reason
        return [Report(Banned(peer, round, reason))]


def _is_update(envelope: Envelope) -> bool:
    return isinstance(envelope.body, Update)
