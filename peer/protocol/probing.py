"""One peer's rounds in the `seeds` exchange: join -> (train -> sign -> wait -> fold) ... -> idle -> leave. Pure.

Theory of operation
* A round is one local training, whose codes become one batch of our feed. It is signed and safe in our log before
  anybody sees it (rumors.py spreads it then), and it counts for ourselves only when it is folded, like all others.
* Shared directions: a round waits for the votes of the feeds that are at most one round behind, or for the deadline;
  who missed one is not awaited before it was in time for another. A late vote still counts: what it changes is
  corrected exactly. A peer that finds others ahead goes on from the round that f + 1 others have reached, and that at
  least half of all names have: neither f liars can drag us nor, of three names or more, a single one. Who votes in
  several names can: a name is not bound to a key. Private and pooled directions: nobody waits for anybody.
* Start: fold what the log held, hear what the neighbours hold, at most for join_s; then sign our birth, if we have
  none. So a peer whose log was lost or rolled back first hears of its own feed, and continues instead of forking it.
* A state that is handed over (handover.py) is installed when nothing else runs: before we join, or between two rounds.
* A peer without neighbours trains alone, and what it found is merged when it meets somebody.
* A peer that has made all its rounds, or whose feed was closed, is idle: it relays and folds. After its last round it
  leaves when all live neighbours hold what it holds and nothing new came for a deadline; for neighbours that never
  agree it stays a few deadlines.
* Leave: end the step, say goodbye, go. The log is all that a restart needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .events import (
    Audit,
    Audited,
    Effect,
    Event,
    Fold,
    Folded,
    Goodbye,
    Installed,
    Interrupt,
    Joined,
    Leave,
    LeaveRequested,
    Payload,
    PeerId,
    PeerState,
    Report,
    Restored,
    RoundDone,
    Send,
    SetTimer,
    Sign,
    Signed,
    Skipped,
    Started,
    Timer,
    TimerFired,
    Train,
    Trained,
    Turn,
)
from .feeds import Feed, Feeds
from .handover import Handover
from .records import Batch, Origin
from .rounds import Pacing, Phase
from .rumors import Rumors

AUDIT_S = 60.0
"""Pause between two audits while we train: a billion weights take seconds to digest. (a guess)"""


IDLE_DEADLINES_MAX = 3
"""For so many deadlines without news a peer that is done waits for neighbours to agree with it. (a guess)"""


class Probing:
    """The state machine of one peer's rounds."""

    def __init__(
        self,
        me: PeerId,
        origin: Origin,
        shared: bool,
        links: Sequence[PeerId],
        pacing: Pacing,
        state: Callable[[PeerId], PeerState],
        feeds: Feeds,
        rumors: Rumors,
        handover: Handover,
    ) -> None:
        """`shared`: whether all peers probe the same directions in a round. `state`: as in Membership."""
        self._me = me
        self._origin = origin
        self._shared = shared
        self._links = tuple(links)
        self._pacing = pacing
        self._state = state
        self._feeds = feeds
        self._rumors = rumors
        self._handover = handover
        self.phase = Phase.JOINING
        self.turn = Turn(0)  # the newest begun
        self.complete = 0  # the last complete round
        self._is_busy = False  # a fold or an audit runs
        self._is_joined = False
        self._is_born = False  # whether our birth was signed in this run
        self._is_patient = True  # the join timer still runs
        self._is_settling = False
        self._is_handed = False  # whether a handover was under way when we last looked
        self._in_round = False  # the next fold completes one
        self._leaving = False
        self._missing: set[PeerId] = set()
        self._late: set[Origin] = set()  # missed a deadline, and was in time for no vote since
        self._voted_at: dict[int, float] = {}  # when we began to wait for the votes of a round; the latest deadline_s
        self._folding: tuple[PeerId, ...] = ()  # whose batches the running fold has
        self._folded_digest = b""  # of the set that the weights contain
        self._waiting_since = 0.0
        self._waited_s = 0.0
        self._audited_at = 0.0
        self._idle_since = 0.0
        self._quiet_digest = b""  # the set at the last beat of gossip

    def round_of(self, peer: PeerId) -> int:
        """The newest round of any life of `peer` that we hold."""
        return max((feed.round for feed in self._feeds.lives(peer)), default=0)

    @property
    def is_folding(self) -> bool:
        """Whether the weights do not contain yet what they were told."""
        return self._is_busy

    def handle(self, event: Event, now: float) -> list[Effect]:
        """See core.Peer.handle; `rumors` and `handover` were told already."""
        if self.phase is Phase.LEFT:
            return []
        match event:
            case Trained(round, payload, complete):
                return self._on_trained(round, payload, complete, now)
            case Signed(batch):
                return self._on_signed(batch, now)
            case Folded():
                return self._on_folded(now)
            case Audited():
                self._is_busy = False
                return self._next(now)
            case Installed():
                return self._on_installed(now)
            case Restored():
                return []  # nothing begins before the start
            case Started():
                return self._on_started(now)
            case TimerFired(timer):
                return self._on_timer(timer, now)
            case LeaveRequested():
                self._leaving = True
                if self.phase is Phase.TRAINING:
                    return [Interrupt()]
                return [] if self._is_busy or self.phase is Phase.SIGNING else self._leave()
            case _:
                return self._go_on(now)

    def _go_on(self, now: float) -> list[Effect]:
        """After anything that may have ended a wait."""
        self._late = {origin for origin in self._late if self._is_late(origin, now)}
        if self.phase is Phase.JOINING:
            return self._try_join(now)
        if self.phase is Phase.WAITING and not self._awaited():
            return self._end_wait(now)
        return []

    def _on_timer(self, timer: Timer, now: float) -> list[Effect]:
        match timer.kind:
            case "deadline":
                return self._on_deadline(now) if self.phase is Phase.WAITING and timer.turn == self.turn else []
            case "join":
                self._is_patient = False
                return self._go_on(now)
            case "settle":
                return self._on_settled(now)
            case "gossip":
                return self._on_quiet(now) if self.phase is Phase.IDLE and not self._is_busy else self._go_on(now)
            case "heartbeat":
                return self._go_on(now)  # the beat may have declared somebody dead
            case "audit":
                return []

    # Joining ------------------------------------------------------------------------------------------

    def _on_started(self, now: float) -> list[Effect]:
        self.complete = self._own_round()
        self.turn = Turn(self.complete)
        self._audited_at = now
        effects: list[Effect] = []
        if self._links:
            effects.append(SetTimer(Timer("join", Turn(0)), self._pacing.join_s))
        else:
            self._is_patient = False
        if self._feeds.pending:
            return effects + self._fold()
        return effects + self._try_join(now)

    def _own_round(self) -> int:
        feed = self._own_feed()
        return 0 if feed is None else feed.round

    def _own_feed(self) -> Feed | None:
        return self._feeds.get(self._origin)

    def _alive(self, peer: PeerId) -> bool:
        return self._state(peer) is PeerState.ALIVE

    def _try_join(self, now: float) -> list[Effect]:
        self.phase = Phase.JOINING
        if self._handover.under_way:
            self._is_handed = True
            return self._install(now)
        if self._is_handed:  # or not, and what is left comes as a log: either way the neighbours get their time again
            self._is_handed, self._is_patient = False, bool(self._links)
            return [SetTimer(Timer("join", Turn(0)), self._pacing.join_s), *self._try_join(now)]
        live = [peer for peer in self._links if self._alive(peer)]
        are_level = all(map(self._rumors.level, live))
        if not self._is_patient or (are_level and len(live) == len(self._links)):
            return self._join(now)
        runs = any(feed.name != self._me for feed in self._feeds)  # else everybody may be starting
        if live and are_level and runs and not self._is_settling:
            self._is_settling = True
            return [SetTimer(Timer("settle", Turn(0)), self._pacing.settle_s)]
        return []

    def _on_settled(self, now: float) -> list[Effect]:
        self._is_settling = False
        if self.phase is not Phase.JOINING:
            return []
        live = [peer for peer in self._links if self._alive(peer)]
        if live and all(map(self._rumors.level, live)) and not self._handover.under_way:
            return self._join(now)
        return self._try_join(now)

    def _install(self, now: float) -> list[Effect]:
        """Take the state that was handed over, if it is there."""
        effects = self._handover.next_install(now)
        if effects:
            self._is_busy = True
            if self.phase is not Phase.IDLE:
                self.phase = Phase.FOLDING
        return effects

    def _on_installed(self, now: float) -> list[Effect]:
        self._is_busy = False
        self.complete = max(self.complete, self._own_round())
        if self._leaving:
            return self._leave()
        return self._next(now) if self._is_joined else self._try_join(now)

    def _join(self, now: float) -> list[Effect]:
        self._is_joined = True
        self._handover.close()
        if not self._feeds.pending:
            return self._next(now)
        sources = tuple(peer for peer in self._links if self._alive(peer))
        return [*self._fold(), Report(Joined(self._own_round(), sources))]

    # The round ----------------------------------------------------------------------------------------

    def _next(self, now: float, was_folded: bool = False) -> list[Effect]:
        """Nothing runs: what comes next. `was_folded`: a fold ended just now."""
        if self._leaving:
            return self._leave()
        if self._handover.under_way and (installing := self._install(now)):
            return installing
        if self.phase is Phase.IDLE:
            return []
        if self._must_fold(was_folded):
            return self._fold()
        own, limit = self._own_feed(), self._pacing.rounds_max
        if own is None and self._is_born:
            return self._rest(now)  # our name has too many lives, and we are the one too many
        if own is None:
            return self._sign(Batch(self._origin, 0, 0, self._me.encode(), b""))
        if self._feeds.is_ended(own) or (limit and own.round >= limit):
            return self._rest(now)
        upcoming = self._upcoming(own.round)
        if limit:
            upcoming = min(upcoming, limit)
        self.turn = Turn(upcoming)
        self.phase = Phase.TRAINING
        skipped = [Report(Skipped(own.round + 1, upcoming))] if upcoming > own.round + 1 else []
        return [Train(upcoming), *skipped]

    def _must_fold(self, was_folded: bool) -> bool:
        """Whether something is to be folded before we train. What came during a fold waits for the next round's, or a
        peer to whom much is told would never train; but never what is our own: its records are numbered on from there.
        """
        own = self._own_feed()
        is_ours = own is not None and own.count > max(1, own.folded)
        return self._feeds.pending and (is_ours or not was_folded)

    def _upcoming(self, own_round: int) -> int:
        """The next round: ours plus one, or with shared directions that of the k-th most advanced other name: k is
        f + 1, or half of all names if that is more.
        """
        theirs = 0
        if self._shared:
            newest: dict[PeerId, int] = {}
            for feed in self._feeds:
                if feed.closed is None and feed.name != self._me:
                    newest[feed.name] = max(newest.get(feed.name, 0), feed.round)
            rounds = sorted(newest.values(), reverse=True)
            names = len(rounds) + 1  # with ours
            k = max(self._pacing.f + 1, -(-names // 2))
            theirs = rounds[k - 1] if len(rounds) >= k else 0
        return max(own_round + 1, theirs)

    def _on_trained(self, round: int, payload: Payload, complete: bool, now: float) -> list[Effect]:
        assert self.phase is Phase.TRAINING
        assert round == self.turn.round
        own = self._own_feed()
        # Not after an interruption, nor when others meanwhile told of rounds of ours that our log had lost.
        if complete and own is not None and own.closed is None and own.round < round:
            return self._sign(Batch(self._origin, own.count, round, bytes(payload), b""))
        if self._leaving:
            return self._leave()
        return self._next(now)

    def _sign(self, batch: Batch) -> list[Effect]:
        self.phase = Phase.SIGNING
        return [Sign(batch)]

    def _on_signed(self, batch: Batch, now: float) -> list[Effect]:
        assert self.phase is Phase.SIGNING
        if self._leaving:
            return self._leave()
        if batch.number == 0:
            self._is_born = True
            return self._next(now)
        self._in_round = True
        self._missing, self._waited_s = set(), 0.0
        self._note_vote(now)
        if not self._awaited():
            return self._fold()
        self.phase = Phase.WAITING
        self._waiting_since = now
        return [SetTimer(Timer("deadline", self.turn), self._pacing.deadline_s)]

    def _note_vote(self, now: float) -> None:
        """We voted, and wait for the others' votes of this round."""
        while self._voted_at and now - next(iter(self._voted_at.values())) >= self._pacing.deadline_s:
            del self._voted_at[next(iter(self._voted_at))]
        self._voted_at[self.turn.round] = now

    def _is_late(self, origin: Origin, now: float) -> bool:
        """Whether the newest vote of a feed came after we would have stopped waiting for it."""
        feed = self._feeds.get(origin)
        if feed is None:
            return False
        voted_at = self._voted_at.get(feed.round, now if feed.round > max(self._voted_at, default=0) else None)
        return voted_at is None or now - voted_at >= self._pacing.deadline_s

    def _awaited(self) -> list[Feed]:
        """Whose votes of this round are on their way."""
        return [feed for feed in self._feeds if self._awaits(feed)] if self._shared else []

    def _awaits(self, feed: Feed) -> bool:
        if feed.round != self.turn.round - 1 or feed.closed is not None or feed.name == self._me:
            return False  # it has voted, or it is away
        if feed.origin in self._late:
            return False
        return feed.name not in self._links or self._state(feed.name) not in (PeerState.DEAD, PeerState.LEFT)

    def _on_deadline(self, now: float) -> list[Effect]:
        awaited = self._awaited()
        self._missing = {feed.name for feed in awaited}
        self._late |= {feed.origin for feed in awaited}
        return self._end_wait(now)

    def _end_wait(self, now: float) -> list[Effect]:
        self._waited_s = now - self._waiting_since
        return self._fold()

    def _fold(self) -> list[Effect]:
        batches, closed, dropped = self._feeds.take()
        if self.phase is not Phase.IDLE:
            self.phase = Phase.FOLDING
        self._is_busy = True
        self._folded_digest = self._feeds.digest
        names = {batch.origin: feed.name for batch in batches if (feed := self._feeds.get(batch.origin)) is not None}
        self._folding = tuple(sorted({*names.values()} - {self._me}))
        return [Fold(self.turn.round, batches, closed, tuple(names.items()), dropped)]

    def _on_folded(self, now: float) -> list[Effect]:
        self._is_busy = False
        effects: list[Effect] = []
        if self._in_round:
            self._in_round = False
            self.complete = self.turn.round
            missing = tuple(sorted(self._missing.difference(self._folding)))
            effects.append(Report(RoundDone(self.complete, self._waited_s, self._folding, missing)))
        if self._leaving:
            return effects + self._leave()
        if not self._is_joined:
            return effects + self._try_join(now)
        if now - self._audited_at >= AUDIT_S and self.phase is not Phase.IDLE:
            return effects + self._audit(now)
        return effects + self._next(now, was_folded=True)

    def _audit(self, now: float) -> list[Effect]:
        self._audited_at = now
        self._is_busy = True
        # A birth changes the set, and there is nothing to fold.
        return [Audit(self._folded_digest if self._feeds.pending else self._feeds.digest)]

    # The end ------------------------------------------------------------------------------------------

    def _rest(self, now: float) -> list[Effect]:
        self.phase = Phase.IDLE
        self._idle_since = now
        return []

    def _on_quiet(self, now: float) -> list[Effect]:
        """A beat of gossip while we are idle: fold what came since, audit what stays, leave when all agree."""
        if self._handover.under_way and (installing := self._install(now)):
            return installing
        digest, before = self._feeds.digest, self._quiet_digest
        self._quiet_digest = digest
        if self._feeds.pending:
            return self._fold()
        if digest == before and not self._feeds.weights:
            return self._audit(now)
        if not self._pacing.rounds_max:
            return []
        deadlines = (now - max(self._idle_since, self._rumors.changed_at)) / self._pacing.deadline_s
        agree = all(self._rumors.agrees(peer) for peer in self._links if self._alive(peer))
        return self._leave() if deadlines >= (1 if agree else IDLE_DEADLINES_MAX) else []

    def _leave(self) -> list[Effect]:
        self.phase = Phase.LEFT
        return [*(Send(peer, Goodbye()) for peer in self._links if self._alive(peer)), Leave()]
