"""Gossip of feeds with the neighbours: every batch and every ruling reaches every peer, whatever gets lost.

Theory of operation
* Flood: what is new goes at once to every live neighbour that is not known to hold it, in one `Rumor` per neighbour
  and event. What a neighbour holds is remembered from its vectors, from what it sent and from what we sent.
* Repair: in every `gossip_s`, and when a link opens, each peer says in a `Have` what it holds, as a digest. Whoever
  finds another digest there answers with its `Vector`, and is told in a `Rumor` what it lacks; `more` makes it ask
  again. A digest that was ours a moment ago only means that our latest batches are on their way.
* A batch with a gap before it is dropped, and its sender is asked for the feed at once.
* Bounds: an answer has at most RUMOR_BYTES_MAX and one item; a neighbour gets at most ANSWERS_MAX of them in each
  `gossip_s`, and is asked at most twice in it unless its answers bring something new; no feed's gap is asked about more
  often than that either. So a neighbour that lies about what it holds costs some answers, and delays nobody else's.
* A batch that was not signed by its origin, or that no honest peer makes, ends the rumor it came in, and is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from .difference import ITEMS_MAX, TRACE_POINTS, Difference, compare, pack
from .events import (
    Audited,
    Diverged,
    Dropped,
    Effect,
    Envelope,
    Event,
    Goodbye,
    Have,
    Heartbeat,
    Keep,
    LinkUp,
    PeerId,
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
    Update,
    Vector,
    Verdict,
    Voided,
)
from .feeds import ORIGINS_PER_PEER_MAX, Feeds, Judgement
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
class _Neighbour:
    incarnation: int = 0
    known: dict[Origin, int] = field(default_factory=dict[Origin, int])  # how much of each feed it holds
    goals: dict[Origin, int] = field(default_factory=dict[Origin, int])  # how much it said to hold, where we lack some
    heard: bool = False  # whether, since the link opened, it told what it holds
    sign: bytes = b""  # the newest digest it told
    diverged: bytes = b""  # the digest of which we reported that its weights differ
    answers: int = 0  # in this gossip_s
    asked_at: float | None = None

    def forget(self) -> None:
        """A link opens, or another life begins: nothing is certain."""
        self.known.clear()
        self.goals.clear()
        self.heard, self.sign, self.asked_at = False, b"", None


@dataclass(slots=True)
class _News:
    """What one event brought."""

    batches: list[Batch] = field(default_factory=list[Batch])
    rulings: list[Ruling] = field(default_factory=list[Ruling])


class Rumors:
    """The gossip of one peer."""

    def __init__(self, feeds: Feeds, links: Sequence[PeerId], alive: Callable[[PeerId], bool], gossip_s: float) -> None:
        self._feeds = feeds
        self._alive = alive
        self._neighbours = {peer: _Neighbour() for peer in links}
        self._next_gossip = SetTimer(Timer("gossip", Turn(0)), gossip_s)
        self._ask_s = min(gossip_s / 2, ASK_S_MAX)
        self._vector_max = ORIGINS_PER_PEER_MAX * len(feeds.rules.roster) + TRACE_POINTS + 2
        self._gaps: dict[Origin, float] = {}  # when we last asked about a gap in each feed
        self._signs: dict[bytes, float] = {}  # our latest digests, and until when they were ours
        self._sign = b""
        self.changed_at = 0.0  # when the set last grew

    # What the pace asks -------------------------------------------------------------------------------

    def level(self, peer: PeerId) -> bool:
        """Whether `peer` told what it holds, and we hold it too."""
        neighbour = self._neighbours[peer]
        return neighbour.heard and not neighbour.goals

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
            case Restored(batches, rulings):
                return self._on_restored(batches, rulings)
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
            case Update():
                return [Report(Dropped(sender, Verdict.MALFORMED))]  # models are not gossiped here
            case Heartbeat() | Goodbye():
                return []

    def _on_have(self, peer: PeerId, neighbour: _Neighbour, have: Have, now: float) -> list[Effect]:
        neighbour.sign = have.digest
        if self.agrees(peer):
            neighbour.heard = True
            neighbour.goals.clear()
            for feed in self._feeds:
                neighbour.known[feed.origin] = feed.count
            return self._compare_weights(peer, neighbour, have)
        moment_ago = self._signs.get(have.digest)
        if neighbour.heard and moment_ago is not None and now - moment_ago < self._ask_s:
            return []  # what we spread since is on its way
        return self._ask(peer, neighbour, now)

    def _compare_weights(self, peer: PeerId, neighbour: _Neighbour, have: Have) -> list[Effect]:
        ours = self._feeds.weights[:SIGN_BYTES]
        if not ours or not have.weights or have.weights == ours or neighbour.diverged == have.digest:
            return []
        neighbour.diverged = have.digest
        return [Report(Diverged(peer))]

    def _ask(self, peer: PeerId, neighbour: _Neighbour, now: float, feeds: Sequence[FeedState] = ()) -> list[Effect]:
        """Ask for all that we lack, or for these feeds; not twice in a short time."""
        if neighbour.asked_at is not None and now - neighbour.asked_at < self._ask_s:
            return []
        neighbour.asked_at = now
        vector = Vector(tuple(feeds), whole=False) if feeds else Vector(self._feeds.states())
        return [Send(peer, vector)]

    def _on_vector(self, peer: PeerId, neighbour: _Neighbour, vector: Vector, now: float) -> list[Effect]:
        if len(vector.feeds) > self._vector_max:
            return [Report(Dropped(peer, Verdict.MALFORMED))]
        found = compare(self._feeds, vector)
        if vector.whole:
            neighbour.heard = True
            neighbour.goals = found.goals
            neighbour.known = {state.origin: state.count for state in vector.feeds}
        effects = self._answer(peer, neighbour, found)
        if found.traces and self._may_answer(neighbour):
            effects.append(Send(peer, Vector(tuple(found.traces[: self._vector_max]), whole=False)))
        if found.asks:
            effects += self._ask(peer, neighbour, now, found.asks)
        return effects

    def _may_answer(self, neighbour: _Neighbour) -> bool:
        neighbour.answers += 1
        return neighbour.answers <= ANSWERS_MAX

    def _answer(self, peer: PeerId, neighbour: _Neighbour, found: Difference) -> list[Effect]:
        if not (found.offers or found.rulings) or not self._may_answer(neighbour):
            return []
        rumor = pack(found)
        for batch in rumor.batches:
            neighbour.known[batch.origin] = batch.number + 1
        return [Send(peer, rumor)]

    def _on_rumor(self, peer: PeerId, neighbour: _Neighbour, rumor: Rumor, now: float) -> list[Effect]:
        if len(rumor.batches) + len(rumor.rulings) > ITEMS_MAX:
            return [Report(Dropped(peer, Verdict.MALFORMED))]
        news = _News()
        judged = _Judged()
        for ruling in rumor.rulings:
            self._judge_ruling(ruling, news, judged)
        for batch in rumor.batches:
            if judged.verdict is not None:
                break
            self._judge_batch(batch, neighbour, news, judged)
        for ruling in judged.early:  # of feeds that began only in this rumor
            self._judge_ruling(ruling, news, judged)
        effects = self._spread(news, now)
        if judged.verdict is not None:
            effects.append(Report(Dropped(peer, judged.verdict)))
        if judged.proofs and self._may_answer(neighbour):
            effects.append(Send(peer, Rumor(rulings=tuple(judged.proofs[:ITEMS_MAX]))))
        for origin in self._feeds.reached(neighbour.goals.items()):
            del neighbour.goals[origin]
        is_useful = bool(news.batches or news.rulings)
        if rumor.more and is_useful:
            neighbour.asked_at = None
            return [*effects, *self._ask(peer, neighbour, now)]
        return effects + self._ask_gaps(peer, judged.gaps, now)

    def _judge_batch(self, batch: Batch, neighbour: _Neighbour, news: _News, judged: _Judged) -> None:
        judgement = self._feeds.accept(batch)
        match judgement:
            case Judgement.NEW:
                news.batches.append(batch)
            case Judgement.FORKED:
                self._closed(batch.origin, news)
            case Judgement.GAP:
                judged.gaps[batch.origin] = None
            case Judgement.VOID:
                feed = self._feeds.get(batch.origin)
                if feed is not None and feed.ruling is not None and feed.ruling not in judged.proofs:
                    judged.proofs.append(feed.ruling)  # it has not heard
            case Judgement.MALFORMED | Judgement.FORGED:
                judged.verdict = Verdict[judgement.name]
                return
            case Judgement.KNOWN:
                pass
        if self._feeds.get(batch.origin) is not None and neighbour.known.get(batch.origin, 0) <= batch.number:
            neighbour.known[batch.origin] = batch.number + 1

    def _judge_ruling(self, ruling: Ruling, news: _News, judged: _Judged) -> None:
        match self._rule(ruling, news):
            case Judgement.GAP if ruling not in judged.early:
                judged.early.append(ruling)
            case Judgement.MALFORMED:
                judged.verdict = Verdict.MALFORMED
            case Judgement.FORGED:
                judged.verdict = Verdict.FORGED
            case _:
                pass

    def _rule(self, ruling: Ruling, news: _News) -> Judgement:
        judgement = self._feeds.rule(ruling)
        if judgement is Judgement.NEW:
            self._closed(ruling.one.origin if isinstance(ruling, Fork) else ruling.origin, news)
        return judgement

    def _closed(self, origin: Origin, news: _News) -> None:
        feed = self._feeds.get(origin)
        if feed is not None and feed.ruling is not None:
            news.rulings.append(feed.ruling)

    def _ask_gaps(self, peer: PeerId, gaps: Iterable[Origin], now: float) -> list[Effect]:
        asked: list[FeedState] = []
        for origin in gaps:
            asked_at = self._gaps.get(origin)
            if asked_at is None or now - asked_at >= self._ask_s:
                asked.append(self._feeds.state_of(origin))
        if not asked:
            return []
        if len(self._gaps) + len(asked) > self._vector_max:  # so many only when somebody invents origins
            self._gaps = {origin: at for origin, at in self._gaps.items() if now - at < self._ask_s}
        del asked[max(0, self._vector_max - len(self._gaps)) :]
        self._gaps.update((state.origin, now) for state in asked)
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
        effects += [Report(self._voided(ruling)) for ruling in news.rulings]
        for peer, neighbour in self._neighbours.items():
            if neighbour.heard and self._alive(peer):
                lacked = tuple(b for b in batches if neighbour.known.get(b.origin, 0) <= b.number)
                if lacked or news.rulings:
                    effects.append(Send(peer, Rumor(lacked, tuple(news.rulings))))
                for batch in lacked:
                    neighbour.known[batch.origin] = batch.number + 1
        return effects

    def _still_holds(self, batch: Batch) -> bool:
        """A ruling in the same rumor may have voided it."""
        feed = self._feeds.get(batch.origin)
        return feed is not None and batch.number < feed.count

    def _voided(self, ruling: Ruling) -> Voided:
        is_fork = isinstance(ruling, Fork)
        origin = ruling.one.origin if is_fork else ruling.origin
        feed = self._feeds.get(origin)
        peer, closed = (PeerId(""), 0) if feed is None else (feed.name, feed.closed or 0)
        return Voided(origin, peer, closed, is_fork)

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
    proofs: list[Ruling] = field(default_factory=list[Ruling])  # why some of it is void
