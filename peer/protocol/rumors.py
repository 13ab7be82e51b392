"""Gossip of feeds with the neighbours: every batch and every ruling reaches every peer, whatever gets lost.

Theory of operation
* Flood: what is new goes at once to every live neighbour that is not known to hold it, in one `Rumor` per neighbour
  and event. What a neighbour holds is remembered from its vectors, from what it sent and from what we sent.
* Repair: in every `gossip_s`, and when a link opens, each peer says in a `Have` what it holds, as a digest. Whoever
  finds another digest there answers with its `Vector`, and is told in a `Rumor` what it lacks; `more` makes it ask
  again. A digest that was ours a moment ago only means that our latest batches are on their way.
* A batch with a gap before it is dropped, and its sender is asked for the feed at once.
* Bounds: an answer has at most RUMOR_BYTES_MAX and one item; a neighbour gets at most ANSWERS_MAX of them in each
  `gossip_s`, and is asked at most twice in it unless its answers bring something new, about a feed's gap no more often
  either. So a neighbour that lies about what it holds costs some answers, and delays nobody else's.
* While a state is taken instead of the log (handover.py), nobody is asked for the log.
* A batch that was not signed by its origin, or that no honest peer makes, ends the rumor it came in, and is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from .difference import ITEMS_MAX, RULINGS_MAX, TRACE_POINTS, Difference, compare, pack
from .events import (
    Ask,
    Audited,
    CrowdedOut,
    Diverged,
    Dropped,
    Effect,
    Envelope,
    Event,
    Evidence,
    Fetch,
    Goodbye,
    Have,
    Heartbeat,
    Installed,
    Keep,
    LinkUp,
    Offer,
    PeerId,
    Piece,
    Question,
    Received,
    Report,
    Restored,
    Ruled,
    Rumor,
    Send,
    SetTimer,
    Signed,
    Started,
    Timer,
    TimerFired,
    Turn,
    Unreached,
    Update,
    Vector,
    Verdict,
    Voided,
)
from .feeds import ORIGINS_PER_PEER_MAX, Feeds, Judgement
from .handover import Handover
from .neighbour import Neighbour
from .records import Batch, FeedState, Fork, Origin, Ruling

ANSWERS_MAX = 64
"""Answers to one neighbour in each gossip_s: 4 MiB, which is 10,000 batches of 300 codes. (a guess)"""

DIGESTS_KEPT_MAX = 64
"""Our latest digests, by which a neighbour that is only a moment behind is known. (a guess)"""

ASK_S_MAX = 0.5
"""The longest pause between two questions that have the same answer: above most round trips. (a guess)"""

SIGN_BYTES = 16
"""How much of a digest a `Have` shows."""


@dataclass(slots=True)
class _News:
    """What one event brought."""

    batches: list[Batch] = field(default_factory=list[Batch])
    rulings: list[Ruling] = field(default_factory=list[Ruling])


class Rumors:
    """The gossip of one peer."""

    def __init__(
        self,
        feeds: Feeds,
        links: Sequence[PeerId],
        alive: Callable[[PeerId], bool],
        gossip_s: float,
        handover: Handover,
    ) -> None:
        self._feeds = feeds
        self._handover = handover
        self._alive = alive
        self._neighbours = {peer: Neighbour() for peer in links}
        self._next_gossip = SetTimer(Timer("gossip", Turn(0)), gossip_s)
        self._ask_s = min(gossip_s / 2, ASK_S_MAX)
        self._vector_max = ORIGINS_PER_PEER_MAX * len(feeds.rules.roster) + TRACE_POINTS + 2
        self._signs: dict[bytes, float] = {}  # our latest digests, and until when they were ours
        self._sign = b""
        self.changed_at = 0.0  # when the set last grew

    # What the pace asks -------------------------------------------------------------------------------

    def level(self, peer: PeerId) -> bool:
        """Whether `peer` told what it holds, and we hold it too."""
        neighbour = self._neighbours[peer]
        return neighbour.heard and not neighbour.goals and not neighbour.barred

    def agrees(self, peer: PeerId) -> bool:
        """Whether the newest that `peer` told is exactly what we hold."""
        return self._neighbours[peer].sign == self._feeds.digest[:SIGN_BYTES]

    # Events -------------------------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Effect]:
        """See core.Peer.handle."""
        match event:
            case Received(envelope):
                return self._on_received(envelope, now)
            case Signed(batch):
                return self._on_signed(batch, now)
            case LinkUp(peer, incarnation, _):
                neighbour = self._neighbours.get(peer)
                if neighbour is None or incarnation < neighbour.incarnation:
                    return []
                neighbour.forget()
                neighbour.incarnation = incarnation
                return [Send(peer, self._have())]
            case TimerFired(Timer("gossip")):
                return self._on_gossip()
            case Started():
                self._note_digest(now)
                return [self._next_gossip]
            case Restored(batches, rulings, ground):
                if ground is not None:
                    self._feeds.install(ground)
                return self._on_restored(batches, rulings)
            case Installed(_, sound):
                return self._on_installed(now) if sound else []
            case Ruled(retraction):
                news = _News()
                self._rule(retraction, news)
                return self._spread(news, now, kept=True)
            case Audited(digest, weights):
                if digest == self._feeds.digest:
                    self._feeds.weights = weights
                return []
            case _:
                return []

    def _on_restored(self, batches: Iterable[Batch], rulings: Iterable[Ruling]) -> list[Effect]:
        for batch in batches:
            # What forks a feed is kept as a ruling. A second batch of one number is one of ours that was signed while
            # others told us of its forgotten twin: it was never shown, and must not convict us now.
            if batch.number == self._feeds.state_of(batch.origin).count:
                self._feeds.accept(batch, trusted=True)
        for ruling in rulings:
            self._feeds.rule(ruling, trusted=True)
        return []

    def _on_installed(self, now: float) -> list[Effect]:
        """The feeds stand on a state now: ask for what is newer."""
        self.changed_at = now
        self._note_digest(now)
        effects: list[Effect] = []
        for peer, neighbour in self._neighbours.items():
            for origin in self._feeds.reached(neighbour.goals.items()):
                del neighbour.goals[origin]
            neighbour.barred.clear()
            if self._alive(peer):
                neighbour.asked_at = None
                effects += self._ask(peer, neighbour, now)
        return effects

    def _on_signed(self, batch: Batch, now: float) -> list[Effect]:
        feed = self._feeds.get(batch.origin)
        if batch.number != (0 if feed is None else feed.count):
            return []  # meanwhile we were told of batches of ours that our log had lost: this one must never be seen
        if self._feeds.accept(batch, trusted=True) is not Judgement.NEW:
            return []
        return self._spread(_News([batch]), now, kept=True)

    def _on_gossip(self) -> list[Effect]:
        have = self._have()
        effects: list[Effect] = []
        for peer, neighbour in self._neighbours.items():
            neighbour.answers = 0
            if self._alive(peer):
                effects.append(Send(peer, have))
        effects.append(self._next_gossip)
        return effects

    def _have(self) -> Have:
        return Have(self._feeds.digest[:SIGN_BYTES], self._feeds.weights[:SIGN_BYTES])

    # Envelopes ----------------------------------------------------------------------------------------

    def _on_received(self, envelope: Envelope, now: float) -> list[Effect]:
        sender, body = envelope.sender, envelope.body
        neighbour = self._neighbours.get(sender)
        if neighbour is None:
            return [Report(Dropped(sender, Verdict.FOREIGN))]
        if envelope.incarnation < neighbour.incarnation:
            return [Report(Dropped(sender, Verdict.OUTDATED))]
        if envelope.incarnation > neighbour.incarnation:
            neighbour.forget()
            neighbour.incarnation = envelope.incarnation
        match body:
            case Rumor():
                return self._on_rumor(sender, neighbour, body, now)
            case Have():
                return self._on_have(sender, neighbour, body, now)
            case Vector():
                return self._on_vector(sender, neighbour, body, now)
            case Update() | Question() | Evidence():
                return [Report(Dropped(sender, Verdict.MALFORMED))]  # models are not gossiped here
            case Heartbeat() | Goodbye() | Ask() | Offer() | Fetch() | Piece():
                return []

    def _on_have(self, peer: PeerId, neighbour: Neighbour, have: Have, now: float) -> list[Effect]:
        neighbour.sign = have.digest
        if self.agrees(peer):
            neighbour.heard = True
            neighbour.goals.clear()
            neighbour.barred.clear()
            for feed in self._feeds:
                neighbour.known[feed.origin] = feed.count
            return self._compare_weights(peer, neighbour, have)
        moment_ago = self._signs.get(have.digest)
        if neighbour.heard and moment_ago is not None and now - moment_ago < self._ask_s:
            return []  # what we spread since is on its way
        return [] if self._handover.defers(peer, now) else self._ask(peer, neighbour, now)

    def _compare_weights(self, peer: PeerId, neighbour: Neighbour, have: Have) -> list[Effect]:
        ours = self._feeds.weights[:SIGN_BYTES]
        if not ours or not have.weights or have.weights == ours or neighbour.diverged == have.digest:
            return []
        neighbour.diverged = have.digest
        return [Report(Diverged(peer))]

    def _ask(self, peer: PeerId, neighbour: Neighbour, now: float, feeds: Sequence[FeedState] = ()) -> list[Effect]:
        """Ask for all that we lack, or for these feeds; not twice in a short time."""
        if neighbour.asked_at is not None and now - neighbour.asked_at < self._ask_s:
            return []
        neighbour.asked_at = now
        vector = Vector(tuple(feeds), whole=False) if feeds else Vector(self._feeds.states())
        return [Send(peer, vector)]

    def _on_vector(self, peer: PeerId, neighbour: Neighbour, vector: Vector, now: float) -> list[Effect]:
        if len(vector.feeds) > self._vector_max:
            return [Report(Dropped(peer, Verdict.MALFORMED))]
        found = compare(self._feeds, vector)
        if vector.whole:
            neighbour.heard = True
            neighbour.goals, neighbour.barred = found.goals, found.barred
            neighbour.known = {state.origin: state.count for state in vector.feeds}
        effects = self._answer(peer, neighbour, found)
        if found.traces and self._may_answer(neighbour):
            effects.append(Send(peer, Vector(tuple(found.traces[: self._vector_max]), whole=False)))
        effects += self._handover.consider(peer, vector, self._is_stuck(), now)
        if found.asks and not self._handover.hushes(now):
            effects += self._ask(peer, neighbour, now, found.asks)
        return effects

    def _is_stuck(self) -> bool:
        """Whether all live neighbours were heard, and what we lack of some feed none of them has."""
        live = [neighbour for peer, neighbour in self._neighbours.items() if self._alive(peer)]
        if not all(neighbour.heard for neighbour in live):
            return False
        reachable = {origin for neighbour in live for origin in neighbour.goals}
        return any(neighbour.barred - reachable for neighbour in live)

    def _may_answer(self, neighbour: Neighbour) -> bool:
        neighbour.answers += 1
        return neighbour.answers <= ANSWERS_MAX

    def _answer(self, peer: PeerId, neighbour: Neighbour, found: Difference) -> list[Effect]:
        if not (found.offers or found.rulings) or not self._may_answer(neighbour):
            return []
        rumor = pack(found)
        for batch in rumor.batches:
            neighbour.known[batch.origin] = batch.number + 1
        return [Send(peer, rumor)]

    def _on_rumor(self, peer: PeerId, neighbour: Neighbour, rumor: Rumor, now: float) -> list[Effect]:
        if len(rumor.batches) + len(rumor.rulings) > ITEMS_MAX or len(rumor.rulings) > RULINGS_MAX:
            return [Report(Dropped(peer, Verdict.MALFORMED))]
        news = _News()
        judged = _Judged()
        self._judge_rulings(rumor.rulings, news, judged)
        for batch in rumor.batches:
            if judged.verdict is not None:
                break
            self._judge_batch(batch, neighbour, news, judged)
        self._judge_rulings(tuple(judged.early), news, judged)  # of feeds that began only in this rumor
        effects = self._spread(news, now)
        if judged.verdict is not None:
            effects.append(Report(Dropped(peer, judged.verdict)))
        if judged.proofs and self._may_answer(neighbour):
            effects.append(Send(peer, Rumor(rulings=tuple(judged.proofs.values())[:RULINGS_MAX])))
        for origin in self._feeds.reached(neighbour.goals.items()):
            del neighbour.goals[origin]
        is_useful = bool(news.batches or news.rulings)
        if self._handover.hushes(now):
            return effects
        if rumor.more and is_useful:
            neighbour.asked_at = None
            return [*effects, *self._ask(peer, neighbour, now)]
        return effects + self._ask_gaps(peer, neighbour, judged.gaps, now)

    def _judge_batch(self, batch: Batch, neighbour: Neighbour, news: _News, judged: _Judged) -> None:
        judgement = self._feeds.accept(batch)
        match judgement:
            case Judgement.NEW:
                news.batches.append(batch)
            case Judgement.FORKED | Judgement.DEEP:
                self._closed(batch.origin, news)
            case Judgement.GAP:
                judged.gaps[batch.origin] = None
            case Judgement.VOID:
                feed = self._feeds.get(batch.origin)
                if feed is not None and feed.ruling is not None:
                    judged.proofs[feed.origin] = feed.ruling  # it has not heard
            case Judgement.MALFORMED | Judgement.FORGED:
                judged.verdict = Verdict[judgement.name]
                return
            case Judgement.KNOWN:
                pass
        if self._feeds.get(batch.origin) is not None and neighbour.known.get(batch.origin, 0) <= batch.number:
            neighbour.known[batch.origin] = batch.number + 1

    def _judge_rulings(self, rulings: Iterable[Ruling], news: _News, judged: _Judged) -> None:
        """Up to the first that no honest neighbour would pass on."""
        for ruling in rulings:
            if judged.verdict is not None:
                return
            match judgement := self._rule(ruling, news):
                case Judgement.GAP:
                    judged.early.append(ruling)
                case Judgement.MALFORMED | Judgement.FORGED:
                    judged.verdict = Verdict[judgement.name]
                case _:
                    pass

    def _rule(self, ruling: Ruling, news: _News) -> Judgement:
        judgement = self._feeds.rule(ruling)
        if judgement in (Judgement.NEW, Judgement.DEEP):
            self._closed(ruling.origin, news)
        return judgement

    def _closed(self, origin: Origin, news: _News) -> None:
        if (ruling := self._feeds.ruling(origin)) is not None:
            news.rulings.append(ruling)

    def _ask_gaps(self, peer: PeerId, neighbour: Neighbour, gaps: Iterable[Origin], now: float) -> list[Effect]:
        asked: list[FeedState] = []
        for origin in gaps:
            asked_at = neighbour.gaps.get(origin)
            if asked_at is None or now - asked_at >= self._ask_s:
                asked.append(self._feeds.state_of(origin))
        if not asked:
            return []
        if len(neighbour.gaps) + len(asked) > self._vector_max:  # so many only when it invents origins
            neighbour.gaps = {origin: at for origin, at in neighbour.gaps.items() if now - at < self._ask_s}
        del asked[max(0, self._vector_max - len(neighbour.gaps)) :]
        neighbour.gaps.update((state.origin, now) for state in asked)
        return [Send(peer, Vector(tuple(asked), whole=False))] if asked else []

    # Spreading ----------------------------------------------------------------------------------------

    def _spread(self, news: _News, now: float, kept: bool = False) -> list[Effect]:
        """Keep what is new, tell the neighbours and the people. `kept`: it is in the log already."""
        if not (news.batches or news.rulings):
            return []
        self.changed_at = now
        self._note_digest(now)
        batches = [batch for batch in news.batches if self._still_holds(batch)]
        effects: list[Effect] = []
        if not kept and (batches or news.rulings):
            effects.append(Keep(tuple(batches), tuple(news.rulings)))
        effects += [Report(self._told(ruling)) for ruling in news.rulings]
        effects += self._forget_crowded_out(news)
        for peer, neighbour in self._neighbours.items():
            if neighbour.heard and self._alive(peer):
                lacked = tuple(b for b in batches if neighbour.known.get(b.origin, 0) <= b.number)
                rulings = tuple(news.rulings)
                if lacked or rulings:
                    effects.append(Send(peer, Rumor(lacked, rulings[:RULINGS_MAX])))
                for start in range(RULINGS_MAX, len(rulings), RULINGS_MAX):
                    effects.append(Send(peer, Rumor(rulings=rulings[start : start + RULINGS_MAX])))
                for batch in lacked:
                    neighbour.known[batch.origin] = batch.number + 1
        return effects

    def _forget_crowded_out(self, news: _News) -> list[Effect]:
        """Nothing is kept about a feed that is not held; it is told of, unless it came and went in one event."""
        begun = {batch.origin for batch in news.batches if batch.number == 0}
        gone = self._feeds.take_crowded_out()
        for neighbour in self._neighbours.values():
            for origin, _ in gone:
                neighbour.known.pop(origin, None)
                neighbour.goals.pop(origin, None)
                neighbour.gaps.pop(origin, None)
        return [Report(CrowdedOut(origin, peer)) for origin, peer in gone if origin not in begun]

    def _still_holds(self, batch: Batch) -> bool:
        """A ruling in the same rumor may have voided it."""
        feed = self._feeds.get(batch.origin)
        return feed is not None and batch.number < feed.count

    def _told(self, ruling: Ruling) -> Voided | Unreached:
        origin = ruling.origin
        feed = self._feeds.get(origin)
        peer, closed = (PeerId(""), 0) if feed is None else (feed.name, feed.closed or 0)
        if (deep := self._feeds.deep.get(origin)) is not None and deep[1] == ruling:
            return Unreached(origin, peer, deep[0])
        return Voided(origin, peer, closed, isinstance(ruling, Fork))

    def _note_digest(self, now: float) -> None:
        """From now on the digest is another one."""
        self._signs[self._sign] = now
        if len(self._signs) > DIGESTS_KEPT_MAX:
            del self._signs[next(iter(self._signs))]
        self._sign = self._feeds.digest[:SIGN_BYTES]


@dataclass(slots=True)
class _Judged:
    """What is to be said about one rumor."""

    verdict: Verdict | None = None
    gaps: dict[Origin, None] = field(default_factory=dict[Origin, None])
    early: list[Ruling] = field(default_factory=list[Ruling])  # on feeds that are not here yet
    proofs: dict[Origin, Ruling] = field(default_factory=dict[Origin, Ruling])  # why some of it is void
