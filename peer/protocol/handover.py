"""A peer that begins late takes the state of the others instead of their log, when that is cheaper or the log is gone.

Theory of operation
* A joiner that holds nothing of others hears in a neighbour's first vector what the log would cost. If the state costs
  less it asks for it, and for no batch, until it stands on the state or has given up; then the log is asked for.
* The asked one writes down the state of all that it has folded, and offers it: what it stands on (ground.py) and the
  digests of its pieces. The joiner asks its other neighbours for theirs at exactly that cut.
* What `vouchers` of them, or all where there are fewer, offer in the same words is believed: fewer may lie. Who offers
  something else at that cut is reported.
  The pieces come from all that agree, and each is compared with its digest, so one that lies costs one piece.
* Then the weights begin anew from the state, the feeds stand on its cut (feeds.py), and gossip brings what is newer.
* The same helps a peer whose neighbours no longer have the batches that it lacks, or that hears of a ruling which
  reaches below its floor. It works on meanwhile, and keeps what it has until the other state is there whole.
* Bounds: an attempt ends when nothing came for PATIENCE_S, or too few neighbours are left to vouch. We keep
  CAPTURES_MAX captures, for CAPTURE_S after their last use, make one at a time, at most one in each `gossip_s` for
  each neighbour, and give a neighbour FETCHES_MAX pieces in it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .difference import size
from .events import (
    Ask,
    Body,
    Capture,
    Captured,
    Dropped,
    Effect,
    Event,
    Fetch,
    Install,
    Installed,
    Offer,
    PeerId,
    Piece,
    Received,
    Report,
    Send,
    TimerFired,
    Took,
    Vector,
    Verdict,
)
from .feeds import ORIGINS_PER_PEER_MAX, Feeds
from .ground import DIGEST_BYTES, PIECE_BYTES, PIECES_MAX, is_sound, name_of
from .records import FeedState, Ground, Origin
from .seams import Verify

PATIENCE_S = 60.0
"""Longest wait for the next word: a neighbour writes its state down after its running training. (a guess)"""

RETRY_S = 30.0
"""Pause before the next attempt where the log does not help. (a guess)"""

WAIT_S = 1.0
"""For so long, or one `gossip_s`, a joiner waits for a neighbour's vector before showing its own, and for a piece
before asking another neighbour. (a guess)"""

SHORT_S = 5.0
"""How long a joiner that could take a state, but whose links are not all up yet, does without the log. (a guess)"""

CAPTURES_MAX = 2
CAPTURE_S = 60.0
"""For so long a capture is kept after its last use, and offered to whoever asks for any. (a guess)"""

WINDOW = 2  # pieces asked for at once of each neighbour
FETCHES_MAX = 64  # pieces for one neighbour in each gossip_s: 16 MiB. (a guess)

OFFER_BYTES_MAX = 2**19
"""What a state stands on must fit one frame: some thousand births. (a guess)"""

BATCH_BYTES = 70  # of a batch in the log, beside its codes: a signature and numbers
FEED_BYTES = 170  # of a feed in an offer: origin, count, head, birth


@dataclass(slots=True)
class _Capture:
    """A state of ours that others may fetch."""

    offer: Offer
    pieces: tuple[bytes, ...]
    made_at: float
    used_at: float


@dataclass(slots=True)
class _Asker:
    """What a neighbour did in this gossip_s."""

    captures: int = 0
    fetches: int = 0


@dataclass(slots=True)
class _Attempt:
    """A state that we are taking."""

    first: PeerId
    is_first: bool  # we hold nothing yet, and ask for no log meanwhile
    heard_at: float
    cut: tuple[FeedState, ...] = ()
    offers: dict[PeerId, bytes] = field(default_factory=dict[PeerId, bytes])  # the name of what each offered
    found: dict[bytes, Offer] = field(default_factory=dict[bytes, Offer])
    agreed: bytes = b""  # the name of what is believed
    pieces: dict[int, bytes] = field(default_factory=dict[int, bytes])
    asked: dict[int, tuple[PeerId, float]] = field(default_factory=dict[int, tuple[PeerId, float]])
    voices: set[PeerId] = field(default_factory=set[PeerId])  # who ever offered something
    givers: set[PeerId] = field(default_factory=set[PeerId])
    is_installing: bool = False


class Handover:
    """Both sides of it, for one peer."""

    def __init__(
        self,
        origin: Origin,
        feeds: Feeds,
        links: Sequence[PeerId],
        alive: Callable[[PeerId], bool],
        verify: Verify,
        state_bytes: int | None,
        vouchers: int,
        gossip_s: float,
    ) -> None:
        """`state_bytes`: about what a state costs; None: this exchange has none that could be handed over. `vouchers`:
        how many neighbours must say the same, at least 1.
        """
        self._origin = origin
        self._feeds = feeds
        self._links = tuple(links)
        self._alive = alive
        self._verify = verify
        self._state_bytes = state_bytes
        self._vouchers = max(1, min(vouchers, len(links)))
        self._wait_s = max(gossip_s, WAIT_S)
        self._feeds_max = ORIGINS_PER_PEER_MAX * len(feeds.rules.roster)
        self._attempt: _Attempt | None = None
        self._is_open = True  # we may still begin from a state
        self._retry_at = 0.0
        self._deferred: dict[PeerId, float] = {}  # since when we wait for its vector
        self._short_since: float | None = None  # since when only vouchers are missing
        self._captures: dict[bytes, _Capture] = {}
        self._wanted: dict[tuple[FeedState, ...], set[PeerId]] = {}  # cuts to capture, and who waits for them
        self._writing: Ground | None = None
        self._askers = {peer: _Asker() for peer in links}

    # What the others ask of us to know ----------------------------------------------------------------

    @property
    def under_way(self) -> bool:
        """Whether a state may come."""
        return self._attempt is not None

    def hushes(self, now: float) -> bool:
        """Whether nobody is to be asked for the log."""
        if self._attempt is not None:
            return self._attempt.is_first
        return self._short_since is not None and now - self._short_since < SHORT_S and self._may_begin()

    def defers(self, peer: PeerId, now: float) -> bool:
        """Whether we wait for the vector of `peer` instead of showing ours, which it answers with the log. Only for a
        while: it may wait for ours in the same way.
        """
        if self.hushes(now):
            return True
        if not self._may_begin():
            return False
        return now - self._deferred.setdefault(peer, now) < self._wait_s

    def close(self) -> None:
        """We have begun: from now on only need makes us take a state."""
        self._is_open = False

    def consider(self, peer: PeerId, vector: Vector, is_stuck: bool, now: float) -> list[Effect]:
        """`peer` told all that it holds. `is_stuck`: no live neighbour has the batches that we lack."""
        if self._state_bytes is None or self._attempt is not None or not self._alive(peer) or not vector.whole:
            return []
        is_first = self._may_begin() and self._is_cheaper(vector)
        if sum(map(self._alive, self._links)) < self._vouchers:
            if is_first and self._short_since is None:
                self._short_since = now  # the other links may still be opening
            return []  # too few to believe
        is_needed = (is_stuck or self._feeds.deep or self._feeds.crowded) and now >= self._retry_at
        if not is_first and not is_needed:
            return []
        self._attempt = _Attempt(peer, is_first, now)
        return [Send(peer, Ask())]

    def _may_begin(self) -> bool:
        if not self._is_open or self._state_bytes is None:
            return False
        return all(feed.count <= 1 or feed.origin == self._origin for feed in self._feeds)

    def _is_cheaper(self, vector: Vector) -> bool:
        assert self._state_bytes is not None
        each = self._feeds.rules.codes + BATCH_BYTES
        log = sum(each * max(0, state.count - 1) for state in vector.feeds if state.origin != self._origin)
        return log > self._state_bytes + FEED_BYTES * len(vector.feeds)

    def next_capture(self) -> list[Effect]:
        """Call when the weights contain all that was folded: writes down what somebody waits for."""
        while self._writing is None and self._wanted:
            cut = next(iter(self._wanted))
            self._writing = self._feeds.ground(cut)
            if self._writing is not None and size(Offer(self._writing, ())) <= OFFER_BYTES_MAX:
                return [Capture(self._writing.cut)]
            self._writing = None
            del self._wanted[cut]
        return []

    def next_install(self, now: float) -> list[Effect]:
        """Call when the weights are at rest: the state that is there whole, if one is."""
        attempt = self._attempt
        if attempt is None or not attempt.agreed or attempt.is_installing:
            return []
        offer = attempt.found[attempt.agreed]
        if len(attempt.pieces) < len(offer.digests):
            return []
        if not self._suits(offer.ground.cut):
            self._fail(now)
            return []
        attempt.is_installing = True
        return [Install(offer.ground, tuple(attempt.pieces[number] for number in range(len(offer.digests))))]

    def _suits(self, cut: tuple[FeedState, ...]) -> bool:
        """Whether we may stand on it: no batch of ours may be forgotten, or we would make it again."""
        own = self._feeds.get(self._origin)
        if own is not None:
            state = next((state for state in cut if state.origin == self._origin), None)
            if state is None and own.floor:
                return False
            if state is not None and state.count < own.count and not own.follows(state):
                return False
        return self._feeds.admits(cut)

    # Events -------------------------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Effect]:
        """See core.Peer.handle; membership was told already."""
        if self._state_bytes is None:
            return []
        match event:
            case Received(envelope) if envelope.sender in self._askers:
                return self._on_body(envelope.sender, envelope.body, now)
            case Captured(cut, pieces):
                return self._on_captured(cut, pieces, now)
            case Installed(ground, sound):
                return self._on_installed(ground, sound, now)
            case TimerFired(timer) if timer.kind == "gossip":
                return self._on_gossip(now)
            case _:
                return []

    def _on_body(self, peer: PeerId, body: Body, now: float) -> list[Effect]:
        match body:
            case Ask(cut):
                return self._on_ask(peer, cut, now)
            case Offer():
                return self._on_offer(peer, body, now)
            case Fetch(capture, number):
                return self._on_fetch(peer, capture, number, now)
            case Piece():
                return self._on_piece(peer, body, now)
            case _:
                return []

    def _on_gossip(self, now: float) -> list[Effect]:
        self._askers = {peer: _Asker() for peer in self._links}
        self._captures = {n: kept for n, kept in self._captures.items() if now - kept.used_at < CAPTURE_S}
        attempt = self._attempt
        if attempt is None or attempt.is_installing:
            return []
        live = [peer for peer in self._links if self._alive(peer)]
        has_source = attempt.cut or attempt.first in live
        if now - attempt.heard_at > PATIENCE_S or len(live) < self._vouchers or not has_source:
            self._fail(now)
            return []
        late = [(number, peer) for number, (peer, at) in attempt.asked.items() if now - at >= self._wait_s]
        for number, peer in late:
            del attempt.asked[number]
            attempt.offers.pop(peer, None)  # it may have forgotten its capture, or begun a new life
        if not attempt.cut:
            return [Send(attempt.first, Ask())]
        asked: list[Effect] = [Send(peer, Ask(attempt.cut)) for peer in live if peer not in attempt.offers]
        return asked + self._fetch(attempt, now)

    def _fail(self, now: float) -> None:
        """The log, then; or another attempt, where it cannot help."""
        if self._attempt is not None and self._attempt.is_first:
            self.close()
        self._attempt = None
        self._retry_at = now + RETRY_S

    # Giving -------------------------------------------------------------------------------------------

    def _on_ask(self, peer: PeerId, cut: tuple[FeedState, ...], now: float) -> list[Effect]:
        if len(cut) > self._feeds_max:
            return [Report(Dropped(peer, Verdict.MALFORMED))]
        for kept in self._captures.values():
            ground = kept.offer.ground
            is_young = now - kept.made_at < CAPTURE_S and self._feeds.admits(ground.cut)
            if ground.cut == cut or (not cut and is_young):
                kept.used_at = now
                return [Send(peer, kept.offer)]
        asker = self._askers[peer]
        if asker.captures:
            return []
        asker.captures += 1
        self._wanted.setdefault(cut, set()).add(peer)
        return []

    def _on_captured(self, cut: tuple[FeedState, ...], pieces: tuple[bytes, ...], now: float) -> list[Effect]:
        ground, self._writing = self._writing, None
        assert ground is not None
        waiting = self._wanted.pop(cut, set()) | self._wanted.pop((), set())
        if not 0 < len(pieces) <= PIECES_MAX:
            return []
        offer = Offer(ground, tuple(hashlib.sha256(piece).digest() for piece in pieces))
        if len(self._captures) >= CAPTURES_MAX:
            del self._captures[min(self._captures, key=lambda name: self._captures[name].used_at)]
        self._captures[name_of(ground, offer.digests)] = _Capture(offer, pieces, now, now)
        return [Send(peer, offer) for peer in sorted(waiting) if self._alive(peer)]

    def _on_fetch(self, peer: PeerId, capture: bytes, number: int, now: float) -> list[Effect]:
        kept, asker = self._captures.get(capture), self._askers[peer]
        asker.fetches += 1
        if kept is None or asker.fetches > FETCHES_MAX or not 0 <= number < len(kept.pieces):
            return []
        kept.used_at = now
        return [Send(peer, Piece(capture, number, kept.pieces[number]))]

    # Taking -------------------------------------------------------------------------------------------

    def _on_offer(self, peer: PeerId, offer: Offer, now: float) -> list[Effect]:
        attempt = self._attempt
        if attempt is None or attempt.is_installing or peer in attempt.offers:
            return []
        if attempt.cut != offer.ground.cut and (attempt.cut or peer != attempt.first):
            return []  # too late, or nobody asked
        if not self._is_sound(offer):
            if peer == attempt.first:
                self._fail(now)
            return [Report(Dropped(peer, Verdict.MALFORMED))]
        if not self._suits(offer.ground.cut):
            self._fail(now)
            return []
        effects: list[Effect] = []
        if not attempt.cut:
            attempt.cut = offer.ground.cut
            others = (other for other in self._links if other != peer and self._alive(other))
            effects += [Send(other, Ask(attempt.cut)) for other in others]
        name = name_of(offer.ground, offer.digests)
        attempt.offers[peer] = name
        if peer not in attempt.voices:  # who says the same again brings nothing new, and must not keep us waiting
            attempt.voices.add(peer)
            attempt.heard_at = now
        attempt.found.setdefault(name, offer)
        return effects + self._count(attempt, peer) + self._fetch(attempt, now)

    def _is_sound(self, offer: Offer) -> bool:
        if len(offer.ground.cut) > self._feeds_max or not 0 < len(offer.digests) <= PIECES_MAX:
            return False
        if any(len(digest) != DIGEST_BYTES for digest in offer.digests):
            return False
        return is_sound(offer.ground, self._feeds.rules, self._verify)

    def _count(self, attempt: _Attempt, peer: PeerId) -> list[Effect]:
        """One more offer: believe what enough say, and hold it against those who say otherwise."""
        if attempt.agreed:
            is_other = attempt.offers[peer] != attempt.agreed
            return [Report(Dropped(peer, Verdict.MALFORMED))] if is_other else []
        name, votes = Counter(attempt.offers.values()).most_common(1)[0]
        if votes < self._vouchers:
            return []
        attempt.agreed = name
        liars = [other for other, said in attempt.offers.items() if said != name]
        return [Report(Dropped(liar, Verdict.MALFORMED)) for liar in liars]

    def _fetch(self, attempt: _Attempt, now: float) -> list[Effect]:
        """Ask for pieces, spread over all that have them."""
        if not attempt.agreed:
            return []
        loads = {peer: 0 for peer, name in attempt.offers.items() if name == attempt.agreed and self._alive(peer)}
        for number, (peer, _) in list(attempt.asked.items()):
            if peer in loads:
                loads[peer] += 1
            else:
                del attempt.asked[number]  # its giver is gone
        effects: list[Effect] = []
        for number in range(len(attempt.found[attempt.agreed].digests)):
            if number in attempt.pieces or number in attempt.asked:
                continue
            if not loads or min(loads.values()) >= WINDOW:
                break
            # The one that has the least to do; those that gave nothing yet last, when others did.
            peer = min(loads, key=lambda peer: (loads[peer], bool(attempt.givers) and peer not in attempt.givers))
            loads[peer] += 1
            attempt.asked[number] = (peer, now)
            effects.append(Send(peer, Fetch(attempt.agreed, number)))
        return effects

    def _on_piece(self, peer: PeerId, piece: Piece, now: float) -> list[Effect]:
        attempt = self._attempt
        if attempt is None or not attempt.agreed or piece.capture != attempt.agreed:
            return []
        digests = attempt.found[attempt.agreed].digests
        asked = attempt.asked.get(piece.number)
        is_asked = asked is not None and asked[0] == peer
        if attempt.is_installing or piece.number in attempt.pieces or not 0 <= piece.number < len(digests):
            return []
        is_right = len(piece.data) <= PIECE_BYTES and hashlib.sha256(piece.data).digest() == digests[piece.number]
        if not is_asked and not is_right:
            return []  # nobody asked it any more; what is right is welcome, however late
        attempt.asked.pop(piece.number, None)
        if not is_right:
            attempt.offers[peer] = b""  # no giver any more
            return [Report(Dropped(peer, Verdict.MALFORMED)), *self._fetch(attempt, now)]
        attempt.pieces[piece.number] = piece.data
        attempt.givers.add(peer)
        attempt.heard_at = now
        return self._fetch(attempt, now)

    def _on_installed(self, ground: Ground, sound: bool, now: float) -> list[Effect]:
        attempt = self._attempt
        assert attempt is not None
        if not sound:
            liars = [peer for peer, name in attempt.offers.items() if name == attempt.agreed]
            self._fail(now)
            return [Report(Dropped(liar, Verdict.MALFORMED)) for liar in liars]
        self._attempt = None
        self._retry_at = now + RETRY_S
        self._captures.clear()
        self._wanted.clear()
        self._feeds.install(ground)
        batches = sum(state.count - 1 for state in ground.cut)
        return [Report(Took(tuple(sorted(attempt.givers)), batches, sum(map(len, attempt.pieces.values()))))]
