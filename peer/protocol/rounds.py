"""One peer's rounds: join -> (train -> send -> wait -> mix) ... -> leave. Pure.

Theory of operation
* A round has one local training and `gossip_steps` exchanges (`Turn`s). After sending, a peer waits until every
  *expected* neighbour has spoken for this turn, or the deadline. Expected is who is alive and at most one round
  behind: a peer that joins, or that is much slower, is welcome when it speaks, and nobody waits for it.
  A neighbour that let a deadline pass is not awaited again before it has sent an update.
  When more than f of our neighbours, or half of them, are further behind, it is we who ran away (with f > 0 a few
  peers ahead are not followed): then all that are alive are expected, and at worst each round takes a deadline.
* Nobody waits for the whole swarm: there is no barrier, and rounds of distant peers drift apart freely.
* A peer that finds its neighbours two or more rounds ahead joins their round instead of walking through those
  between. How far ahead counts the (f+1)-th most advanced neighbour, so that f liars cannot drag us.
* Start: wait for the neighbours. When they are ahead, a peer without a snapshot adopts a model of theirs, one with a
  snapshot mixes theirs into its own, before it trains or sends anything. When nobody comes, train alone.
* Leave: end the step, say goodbye, save, go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from .events import (
    Adopt,
    Dropped,
    Effect,
    Envelope,
    Event,
    Goodbye,
    Heartbeat,
    Interrupt,
    Joined,
    Leave,
    LeaveRequested,
    LinkDown,
    LinkUp,
    Mix,
    Mixed,
    Payload,
    PeerId,
    Received,
    Report,
    RoundDone,
    Save,
    Send,
    SetTimer,
    Skipped,
    Source,
    Started,
    Timer,
    TimerFired,
    Train,
    Trained,
    Turn,
    Update,
    Verdict,
)
from .inbox import Neighbour
from .neighbourhood import Neighbourhood

# Who ran away waits for whom it left behind, who may be slower than one deadline; this many in a row is silence, not
# slowness, and the most that silent liars can cost. (Measured in the simulator: 1 leaves rings torn, 3 does not.)
DEADLINES_MISSED_MAX = 3


# How often a joiner gives models that are on the way another settle_s (a minute, as that is set): silent liars must not
# keep it out for ever. (a guess)
SETTLES_MAX = 60


@dataclass(frozen=True, slots=True)
class Pacing:
    """The constants of a peer's rounds; see config.Rounds, config.Liveness and config.Mixing."""

    rounds_max: int = 0
    deadline_s: float = 30.0
    stale_max: int = 8
    gossip_steps: int = 1
    f: int = 0
    join_s: float = 10.0
    settle_s: float = 1.0
    save_s: float = 30.0


class Phase(StrEnum):
    """What a peer is doing; each exchange has some of these."""

    JOINING = "joining"
    ADOPTING = "adopting"
    TRAINING = "training"
    SIGNING = "signing"
    WAITING = "waiting"
    MIXING = "mixing"
    FOLDING = "folding"
    IDLE = "idle"
    LEFT = "left"


class Rounds:
    """The state machine of one peer's rounds."""

    def __init__(self, neighbourhood: Neighbourhood, pacing: Pacing, alive: Callable[[PeerId], bool]) -> None:
        self._neighbourhood = neighbourhood
        self._pacing = pacing
        self._alive = alive
        self._neighbours = {peer: Neighbour() for peer in neighbourhood.links}
        self.phase = Phase.JOINING
        self.turn = Turn(0)  # the newest begun
        self.complete = 0  # the last complete round
        self._newest: Update | None = None  # what we sent last: a link begins with it
        self._mixing: set[PeerId] = set()  # whose payloads the running mix has
        self._folded: set[PeerId] = set()  # whose payloads this round mixed
        self._missing: set[PeerId] = set()  # expected in this round, and not heard in time
        self._waiting_since = 0.0
        self._patient = False  # in this wait we await even those that are far behind
        self._waited_s = 0.0
        self._saved_at = 0.0
        self._early = True  # the join timer still runs
        self._settles = 0  # how often we gave models that are on the way more time
        self._settling = False
        self._leaving = False

    @property
    def neighbours(self) -> Mapping[PeerId, Neighbour]:
        """What each neighbour sent, and where it is."""
        return self._neighbours

    def forget(self, peer: PeerId, now: float) -> list[Effect]:
        """Mix nothing of `peer` that is here; what comes from now on must not reach us, and it is not alive to us."""
        self._neighbours[peer].payloads.clear()
        return self._go_on(now)

    def kept(self, peer: PeerId) -> int:
        """How many payloads of `peer` wait for their turn: at most `inbox.SLOTS_MAX`."""
        neighbour = self._neighbours.get(peer)
        return 0 if neighbour is None else len(neighbour.payloads)

    def round_of(self, peer: PeerId) -> int:
        """The newest round `peer` told us of."""
        return self._neighbours[peer].turn.round

    def handle(self, event: Event, now: float) -> list[Effect]:
        """See core.Peer.handle."""
        if self.phase is Phase.LEFT:
            return []
        match event:
            case Received(envelope):
                return self._on_received(envelope, now)
            case Trained(round, payload, complete):
                return self._on_trained(round, payload, complete, now)
            case Mixed():
                return self._on_mixed(event, now)
            case LinkUp(peer, incarnation, turn):
                return self._on_link_up(peer, incarnation, turn, now)
            case LinkDown():
                return self._go_on(now)
            case TimerFired(timer):
                return self._on_timer(timer, now)
            case Started(round):
                return self._on_started(round, now)
            case LeaveRequested():
                self._leaving = True
                if self.phase is Phase.TRAINING:
                    return [Interrupt()]
                return [] if self.phase in (Phase.MIXING, Phase.ADOPTING) else self._leave()
            case _:
                return []  # of the other exchange

    # Envelopes ----------------------------------------------------------------------------------------

    def _on_received(self, envelope: Envelope, now: float) -> list[Effect]:
        neighbour = self._neighbours.get(envelope.sender)
        if neighbour is None:
            return [Report(Dropped(envelope.sender, Verdict.FOREIGN))]
        if not neighbour.meet(envelope.incarnation):
            return [Report(Dropped(envelope.sender, Verdict.OUTDATED))]
        match envelope.body:
            case Update(turn, payload):
                verdict = neighbour.keep(turn, payload, self._oldest_round())
                if verdict is not None:
                    return [Report(Dropped(envelope.sender, verdict)), *self._go_on(now)]
            case Heartbeat(turn):
                neighbour.turn = max(neighbour.turn, turn)
                if self.phase is Phase.WAITING:
                    return []  # a heartbeat alone never ends a wait
            case _:
                pass
        return self._go_on(now)

    def _on_link_up(self, peer: PeerId, incarnation: int, turn: Turn, now: float) -> list[Effect]:
        neighbour = self._neighbours.get(peer)
        if neighbour is None or not neighbour.meet(incarnation):
            return []
        neighbour.turn = max(neighbour.turn, turn)
        # A link begins with our newest update: a joiner needs it, and a broken link may have lost it.
        keyframe = [Send(peer, self._newest)] if self._newest is not None and self._alive(peer) else []
        return [*keyframe, *self._go_on(now)]

    def _go_on(self, now: float) -> list[Effect]:
        """After anything that may have ended a wait."""
        if self.phase is Phase.JOINING:
            return self._try_join()
        if self.phase is Phase.WAITING and not self._is_awaiting():
            return self._mix(now)
        return []

    def _on_timer(self, timer: Timer, now: float) -> list[Effect]:
        match timer.kind:
            case "deadline":
                return self._on_deadline(now) if self.phase is Phase.WAITING and timer.turn == self.turn else []
            case "heartbeat":
                return self._go_on(now)  # the beat may have declared somebody dead
            case "join" | "settle":
                return self._on_patience_over(timer.kind)
            case "gossip" | "audit":
                return []

    # Joining ------------------------------------------------------------------------------------------

    def _on_started(self, round: int, now: float) -> list[Effect]:
        self.complete = round
        self.turn = Turn(round)
        self._saved_at = now
        if self._pacing.rounds_max and round >= self._pacing.rounds_max:
            return self._leave()
        if not self._neighbours:
            return self._begin(round + 1)
        return [SetTimer(Timer("join", Turn(0)), self._pacing.join_s)]

    def _ahead(self) -> list[PeerId]:
        """Live neighbours two or more rounds beyond our last complete one; none unless more than f say so."""
        beyond = self.complete + 2
        ahead = [p for p, n in self._neighbours.items() if self._alive(p) and n.turn.round >= beyond]
        return ahead if len(ahead) > self._pacing.f else []

    def _try_join(self) -> list[Effect]:
        all_linked = all(self._alive(peer) for peer in self._neighbours)
        ahead = self._ahead()
        if all_linked and not ahead:
            return self._begin(self.complete + 1)
        if all_linked and len(self._ready(ahead)) == len(ahead):
            return self._take_over(sorted(ahead))
        if ahead and not self._settling:
            self._settling = True
            return [SetTimer(Timer("settle", Turn(0)), self._pacing.settle_s)]
        return []

    def _ready(self, ahead: list[PeerId]) -> list[PeerId]:
        """Those whose models are here; none unless more than f are, as for `_ahead`."""
        ready = sorted(peer for peer in ahead if self._neighbours[peer].payloads)
        return ready if len(ready) > self._pacing.f else []

    def _on_patience_over(self, kind: str) -> list[Effect]:
        if self.phase is not Phase.JOINING:
            return []
        self._early = self._early and kind != "join"
        ahead = self._ahead()
        if ready := self._ready(ahead):
            return self._take_over(ready)
        self._settling = bool(ahead)
        if ahead and self._settles < SETTLES_MAX:  # their models are on the way
            self._settles += 1
            return [SetTimer(Timer("settle", Turn(0)), self._pacing.settle_s)]
        # Those that were ahead are gone again or say so only, or nobody came.
        return [] if self._early else self._begin(self.complete + 1)

    def _take_over(self, sources: list[PeerId]) -> list[Effect]:
        rounds = sorted((self._neighbours[peer].sent.round for peer in sources), reverse=True)
        # Never back: a source that has just skipped ahead may have sent only what is older than our snapshot.
        target = Turn(max(rounds[self._pacing.f], self.complete), self._pacing.gossip_steps - 1)
        oldest = rounds[self._pacing.f] - self._pacing.stale_max  # more than f are as new
        inbox: dict[PeerId, Payload] = {}
        for peer in sources:
            neighbour = self._neighbours[peer]
            payload = neighbour.fold(neighbour.sent, oldest)
            if payload is not None:
                inbox[peer] = payload
        self._mixing = set(inbox)
        self.phase = Phase.ADOPTING
        self.turn = target
        if self.complete == 0:
            return [Adopt(target, inbox)]
        return [Mix(target, inbox, {peer: 1 / (len(inbox) + 1) for peer in inbox}, sources=self._sources(inbox))]

    # The round ----------------------------------------------------------------------------------------

    def _begin(self, round: int) -> list[Effect]:
        self.turn = Turn(round)
        self.phase = Phase.TRAINING
        self._folded, self._missing, self._waited_s = set(), set(), 0.0
        return [Train(round)]

    def _on_trained(self, round: int, payload: Payload, complete: bool, now: float) -> list[Effect]:
        assert self.phase is Phase.TRAINING
        assert round == self.turn.round
        sent = self._broadcast(payload) if complete else []
        return [*sent, *self._leave()] if self._leaving else [*sent, *self._wait(now)]

    def _broadcast(self, payload: Payload) -> list[Effect]:
        self._newest = Update(self.turn, payload)
        outs = self._neighbourhood.edges(self.turn.round).outs
        return [Send(peer, self._newest) for peer in outs if self._alive(peer)]

    def _wait(self, now: float) -> list[Effect]:
        self.phase = Phase.WAITING
        self._waiting_since = now
        self._patient = self._ran_away()
        if not self._is_awaiting():
            return self._mix(now)
        return [SetTimer(Timer("deadline", self.turn), self._pacing.deadline_s)]

    def _ran_away(self) -> bool:
        """Whether it is we who are ahead: with f > 0 the others may not follow a few that are."""
        if not self._pacing.f:
            return False
        oldest = self.turn.round - 1
        heard = [p for p in self._neighbourhood.edges(self.turn.round).weights if self._alive(p)]
        behind = sum(self._neighbours[peer].turn.round < oldest for peer in heard)
        return behind > self._pacing.f or 2 * behind >= len(heard)

    def _awaits(self, peer: PeerId) -> bool:
        """Whether `peer` is expected and has not spoken for this turn."""
        neighbour = self._neighbours[peer]
        if neighbour.sent >= self.turn or not self._alive(peer):
            return False
        if self._patient:
            return neighbour.missed < DEADLINES_MISSED_MAX
        return not neighbour.missed and neighbour.turn.round >= self.turn.round - 1

    def _is_awaiting(self) -> bool:
        return any(map(self._awaits, self._neighbourhood.edges(self.turn.round).weights))

    def _on_deadline(self, now: float) -> list[Effect]:
        for peer in filter(self._awaits, self._neighbourhood.edges(self.turn.round).weights):
            self._neighbours[peer].missed += 1
            self._missing.add(peer)
        return self._mix(now)

    def _oldest_round(self) -> int:
        return self.turn.round - self._pacing.stale_max

    def _mix(self, now: float) -> list[Effect]:
        self._waited_s += now - self._waiting_since
        inbox: dict[PeerId, Payload] = {}
        weights: dict[PeerId, float] = {}
        for peer, weight in self._neighbourhood.edges(self.turn.round).weights.items():
            payload = self._neighbours[peer].fold(self.turn, self._oldest_round())
            if payload is not None:  # a silent neighbour's weight stays ours
                inbox[peer] = payload
                weights[peer] = weight
        self._mixing = set(inbox)
        self.phase = Phase.MIXING
        pack = self.turn.hop + 1 < self._pacing.gossip_steps
        return [Mix(self.turn, inbox, weights, pack, self._sources(inbox))]

    def _sources(self, peers: Iterable[PeerId]) -> dict[PeerId, Source]:
        """Of which of their models each of them was mixed last."""
        neighbours = {peer: self._neighbours[peer] for peer in peers}
        return {peer: Source(peer, one.incarnation, one.folded.round) for peer, one in neighbours.items()}

    def _on_mixed(self, mixed: Mixed, now: float) -> list[Effect]:
        assert self.phase in (Phase.MIXING, Phase.ADOPTING)
        assert mixed.turn == self.turn
        effects: list[Effect] = [Report(Dropped(peer, Verdict.MALFORMED)) for peer in mixed.malformed]
        self._folded |= self._mixing - set(mixed.malformed)
        if self.phase is Phase.MIXING and self.turn.hop + 1 < self._pacing.gossip_steps:
            self.turn = Turn(self.turn.round, self.turn.hop + 1)
            effects += self._broadcast(mixed.payload)
            return effects + (self._leave() if self._leaving else self._wait(now))
        folded = tuple(sorted(self._folded))
        if self.phase is Phase.ADOPTING:
            effects.append(Report(Joined(self.turn.round, folded)))
        else:
            missing = tuple(sorted(self._missing - self._folded))
            effects.append(Report(RoundDone(self.turn.round, self._waited_s, folded, missing)))
        self.complete = self.turn.round
        return effects + self._after_round(now)

    def _after_round(self, now: float) -> list[Effect]:
        limit = self._pacing.rounds_max
        if self._leaving or (limit and self.complete >= limit):
            return self._leave()
        effects: list[Effect] = []
        if now - self._saved_at >= self._pacing.save_s:
            self._saved_at = now
            effects.append(Save())
        upcoming = self._upcoming()
        if limit:
            upcoming = min(upcoming, limit)
        effects += self._begin(upcoming)
        if upcoming > self.complete + 1:
            effects.append(Report(Skipped(self.complete + 1, upcoming)))
            effects += [Send(peer, Heartbeat(self.turn)) for peer in self._neighbours if self._alive(peer)]
        return effects

    def _upcoming(self) -> int:
        """The next round: ours plus one, or the neighbours' when at least f+1 of them are beyond it."""
        rounds = sorted((n.turn.round for p, n in self._neighbours.items() if self._alive(p)), reverse=True)
        theirs = rounds[self._pacing.f] if len(rounds) > self._pacing.f else 0
        return max(self.complete + 1, theirs)

    def _leave(self) -> list[Effect]:
        self.phase = Phase.LEFT
        goodbyes = [Send(peer, Goodbye()) for peer in self._neighbours if self._alive(peer)]
        return [*goodbyes, Save(), Leave()]
