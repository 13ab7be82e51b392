"""Safety of the `seeds` exchange, judged from outside: what every life of every peer must keep, whatever the weather.

Judged: no origin ever makes two batches with one number, in any of its lives; each batch is folded at most once, in the
order of its feed; after every fold the weights are those computed from scratch from the feeds held when it was asked
for; rounds grow; one job at a time; what leaves is bounded; after `Leave`, nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from murmurate.peer.protocol.core import Peer
from murmurate.peer.protocol.events import Audit, Effect, Fold, Install, Installed, Leave, PeerId, Send, Sign, Train
from murmurate.peer.protocol.feed import Feed
from murmurate.peer.protocol.feeds import Feeds
from murmurate.peer.protocol.records import Batch, FeedState, Origin

from .referee import VIOLATIONS_MAX
from .tally import Ledger


@dataclass(slots=True)
class Book:
    """What the referees of all lives know together."""

    ledger: Ledger
    published: dict[Origin, dict[int, Batch]] = field(default_factory=dict[Origin, dict[int, Batch]])
    """By number: what was signed, is safe in a log, and may have been shown."""
    violations: list[str] = field(default_factory=list[str])

    def state(self, cut: Iterable[FeedState]) -> int | None:
        """The weights of these beginnings of feeds; None when some of it is a liar's, and was never published."""
        weights = 0
        for state in cut:
            batches = [batch for n, batch in sorted(self.published.get(state.origin, {}).items()) if n < state.count]
            feed = Feed(Batch(state.origin, 0, 0, b"", b""))
            for batch in batches:
                feed.append(batch)
            if feed.at(feed.count).head != state.head:
                return None
            weights += sum(self.ledger.counting(batch, state.closed) for batch in batches[1:])
        return weights

    def object(self, sentence: str) -> None:
        """Note a violation."""
        if len(self.violations) < VIOLATIONS_MAX:
            self.violations.append(sentence)


class SeedsReferee:
    """Watches one life of one peer."""

    def __init__(self, name: str, core: Peer, links: frozenset[PeerId], book: Book) -> None:
        assert core.feeds is not None
        self._name = name
        self._feeds: Feeds = core.feeds
        self._links = links
        self._book = book
        self._folded: dict[Origin, int] = {}
        self._closed: dict[Origin, int] = {}
        self._expected = 0
        self._ground = 0  # of what is folded, the part that came as a state
        self._signed_round = -1
        self._busy = ""
        self._left = False

    def answered(self) -> None:
        """The running job is over."""
        self._busy = ""

    def published(self, batch: Batch) -> None:
        """A batch of ours is signed and in the log."""
        held = self._book.published.setdefault(batch.origin, {}).setdefault(batch.number, batch)
        if held != batch:
            self._object(f"makes its batch {batch.number} a second time, with other codes")

    def installed(self, installed: Installed, weights: int) -> None:
        """It stands on a state, which must be what its batches, as they were published, give."""
        cut = installed.ground.cut
        expected = self._book.state(cut)
        if expected is not None and expected != weights:
            self._object("took a state that its batches do not give")
        self._ground = weights
        self._folded = {state.origin: state.count - 1 for state in cut}
        self._closed = {state.origin: state.closed for state in cut if state.closed is not None}

    def folded(self, weights: int) -> None:
        """A fold is done."""
        if weights != self._expected:
            self._object("has other weights than its feeds give from scratch")

    def asked(self, effect: Effect) -> None:
        """Judge one effect."""
        if self._left:
            self._object(f"asks for {type(effect).__name__} after Leave")
        match effect:
            case Send(to):
                if to not in self._links:
                    self._object(f"sends to {to}, no neighbour")
            case Train(round):
                if round <= self._signed_round:
                    self._object(f"trains round {round} after publishing round {self._signed_round}")
                self._begin_job(effect)
            case Sign(batch):
                self._on_sign(batch)
                self._begin_job(effect)
            case Fold(_, batches, closed, dropped=dropped):
                self._begin_job(effect)
                for origin in dropped:  # it may come again, from its beginning
                    self._folded.pop(origin, None)
                    self._closed.pop(origin, None)
                self._on_fold(batches, closed)
                self._expected = self._ground + self._book.ledger.from_scratch(self._feeds)
            case Audit() | Install():
                self._begin_job(effect)
            case Leave():
                self._left = True
            case _:
                pass

    def _begin_job(self, effect: Effect) -> None:
        if self._busy:
            self._object(f"asks for {type(effect).__name__} while {self._busy} is running")
        self._busy = type(effect).__name__

    def _on_sign(self, batch: Batch) -> None:
        if batch.round <= self._signed_round:
            self._object(f"publishes round {batch.round} after round {self._signed_round}")
        self._signed_round = batch.round

    def _on_fold(self, batches: tuple[Batch, ...], closed: tuple[tuple[Origin, int], ...]) -> None:
        for batch in batches:
            folded = self._folded.get(batch.origin, 0)
            if batch.number != folded + 1:
                self._object(f"folds batch {batch.number} of {batch.origin.hex()[:8]} after {folded}")
            self._folded[batch.origin] = batch.number
        for origin, seq in closed:
            if self._closed.setdefault(origin, seq) < seq:
                self._object(f"closes {origin.hex()[:8]} at {seq} after {self._closed[origin]}")
            self._closed[origin] = seq

    def _object(self, sentence: str) -> None:
        self._book.object(f"{self._name} {sentence}")
