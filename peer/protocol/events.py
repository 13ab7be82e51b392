"""The vocabulary of the protocol: everything a peer can be told (`Event`) and can ask for (`Effect`).

Rules
* Closed unions of frozen values: `match` over them is checked for exhaustiveness.
* No clock, socket, tensor or randomness: time is an argument of `core.Peer.handle`, a payload is opaque bytes.
* An effect's result comes back as an event: `Train` -> `Trained`, `Mix`/`Adopt` -> `Mixed`, `SetTimer` -> `TimerFired`;
  with the `seeds` exchange also `Sign` -> `Signed`, `Fold` -> `Folded`, `Audit` -> `Audited`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, NamedTuple, NewType

from .records import Batch, FeedState, Origin, Retraction, Ruling

PeerId = NewType("PeerId", str)
Payload = bytes | bytearray | memoryview


class Turn(NamedTuple):
    """One exchange of models. Round 0 is "not begun"; a round has as many hops as it has gossip steps."""

    round: int
    hop: int = 0


class PeerState(StrEnum):
    """What we believe of another peer (SWIM's words)."""

    ALIVE = "alive"
    SUSPECT = "suspect"
    DEAD = "dead"
    LEFT = "left"


# What crosses a link ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Update:
    """The sender's model after its local steps (hop 0) or after an earlier mix of the same round (hop > 0)."""

    turn: Turn
    payload: Payload


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A sign of life; `turn` is the newest one the sender has begun."""

    turn: Turn


@dataclass(frozen=True, slots=True)
class Goodbye:
    """The sender leaves on purpose: do not wait for it, do not call it dead."""


@dataclass(frozen=True, slots=True)
class Rumor:
    """Batches in the order of their feeds, and what voids some. `more`: the sender has more that the receiver lacks."""

    batches: tuple[Batch, ...] = ()
    rulings: tuple[Ruling, ...] = ()
    more: bool = False


@dataclass(frozen=True, slots=True)
class Have:
    """A short sign of what the sender holds: equal digests (they may be cut short) are equal sets of records.

    `weights` is the digest of its weights for exactly this set, where it knows one: sets that are equal with weights
    that are not mean that one of us computes wrongly.
    """

    digest: bytes
    weights: bytes = b""


@dataclass(frozen=True, slots=True)
class Vector:
    """What the sender holds, feed by feed; the answer is a `Rumor` of what it lacks.

    Not `whole`: only these feeds are asked about, and one may come with several counts: its fork is searched.
    """

    feeds: tuple[FeedState, ...]
    whole: bool = True


Body = Update | Heartbeat | Goodbye | Rumor | Have | Vector


@dataclass(frozen=True, slots=True)
class Envelope:
    """A body, who sent it, and in which of its lives (`incarnation` grows with every start of the daemon)."""

    sender: PeerId
    incarnation: int
    body: Body


# Timers -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Timer:
    """Handed out by `SetTimer` and handed back by `TimerFired`; a deadline of a turn that is over is ignored."""

    kind: Literal["heartbeat", "deadline", "join", "settle", "gossip"]
    turn: Turn


# Facts: what happened, for people and for metrics ---------------------------------------------------


@dataclass(frozen=True, slots=True)
class RoundDone:
    """One round is complete. `folded`: whose payloads were mixed; `missing`: awaited, but not heard in time."""

    round: int
    waited_s: float
    folded: tuple[PeerId, ...]
    missing: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class Joined:
    """We took the swarm's state from `sources` and go on from `round`."""

    round: int
    sources: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class Skipped:
    """The neighbours were ahead, so we joined their round instead of walking through those between."""

    from_round: int
    to_round: int


@dataclass(frozen=True, slots=True)
class PeerChanged:
    """Another peer's state, as we see it, changed."""

    peer: PeerId
    state: PeerState


class Verdict(StrEnum):
    """What became of an envelope or an update that was not kept."""

    FOREIGN = "foreign"  # not a neighbour of ours
    OUTDATED = "outdated"  # from an earlier life of the sender
    DUPLICATE = "duplicate"  # this turn of this sender is here already
    LATE = "late"  # a newer turn of this sender was folded already, or it is too old to be useful
    MALFORMED = "malformed"  # the payload is not a model of this swarm: wrong length, or not finite
    FORGED = "forged"  # a batch or a ruling that its origin or authority did not sign


@dataclass(frozen=True, slots=True)
class Dropped:
    """An envelope had no effect; `FOREIGN`, `MALFORMED` and `FORGED` are held against the sender."""

    sender: PeerId
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Voided:
    """The records of `origin` (a life of `peer`) from `from_seq` on count nowhere any more."""

    origin: Origin
    peer: PeerId
    from_seq: int
    forked: bool  # it signed two different batches with one number; else a retraction


@dataclass(frozen=True, slots=True)
class Diverged:
    """`peer` holds the same records as we do, and has other weights."""

    peer: PeerId


Fact = RoundDone | Joined | Skipped | PeerChanged | Dropped | Voided | Diverged


# Events: what a peer is told ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Started:
    """The daemon is up. `round`: the last complete round of the restored snapshot, 0 when there is none."""

    round: int


@dataclass(frozen=True, slots=True)
class LinkUp:
    """A link to `peer` is open, and its handshake told us its incarnation and turn."""

    peer: PeerId
    incarnation: int
    turn: Turn


@dataclass(frozen=True, slots=True)
class LinkDown:
    """The link to `peer` broke or was closed."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Received:
    """An envelope arrived whole."""

    envelope: Envelope


@dataclass(frozen=True, slots=True)
class Trained:
    """The local steps of `round` ended; not `complete` means they were interrupted and nothing is to be sent."""

    round: int
    payload: Payload
    complete: bool = True


@dataclass(frozen=True, slots=True)
class Mixed:
    """The mix (or adoption) of `turn` is done; `payload` is the mixed model when the effect asked for it.

    `malformed`: the senders whose payloads could not be used.
    """

    turn: Turn
    payload: Payload = b""
    malformed: tuple[PeerId, ...] = ()


@dataclass(frozen=True, slots=True)
class Restored:
    """What our log held when we started, each feed in order; told once, before `Started`."""

    batches: tuple[Batch, ...]
    rulings: tuple[Ruling, ...]


@dataclass(frozen=True, slots=True)
class Signed:
    """Our batch is signed and survives a crash from now on: it may be shown to others."""

    batch: Batch


@dataclass(frozen=True, slots=True)
class Folded:
    """The weights contain what the `Fold` of `round` brought."""

    round: int


@dataclass(frozen=True, slots=True)
class Audited:
    """The weights for exactly the records of `digest` have the digest `weights`."""

    digest: bytes
    weights: bytes


@dataclass(frozen=True, slots=True)
class Ruled:
    """Our user decided to void records; the retraction is signed, and kept."""

    retraction: Retraction


@dataclass(frozen=True, slots=True)
class TimerFired:
    """A timer ran out."""

    timer: Timer


@dataclass(frozen=True, slots=True)
class LeaveRequested:
    """The user or a signal asks this peer to leave."""


Event = (
    Started
    | LinkUp
    | LinkDown
    | Received
    | Trained
    | Mixed
    | Restored
    | Signed
    | Folded
    | Audited
    | Ruled
    | TimerFired
    | LeaveRequested
)


# Effects: what a peer asks for ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Train:
    """Run the local steps of `round`, then answer `Trained`."""

    round: int


@dataclass(frozen=True, slots=True)
class Mix:
    """Fold `inbox` into our model with `weights` (what they leave of 1 is ours), then answer `Mixed`.

    `pack` asks for the mixed model's payload: another hop of this round follows. Without it the round is complete.
    An empty inbox is legal: a peer whose neighbours are silent completes its rounds alone.
    """

    turn: Turn
    inbox: Mapping[PeerId, Payload]
    weights: Mapping[PeerId, float]
    pack: bool = False


@dataclass(frozen=True, slots=True)
class Adopt:
    """We have no model worth keeping: take one from `inbox`, then answer `Mixed`."""

    turn: Turn
    inbox: Mapping[PeerId, Payload]


@dataclass(frozen=True, slots=True)
class Sign:
    """Sign this batch of ours, write it to the log so that no crash can lose it, then answer `Signed`.

    A batch that others saw and we forgot would be made again with other codes: a fork of our own feed.
    """

    batch: Batch  # without a signature


@dataclass(frozen=True, slots=True)
class Keep:
    """Add these to the log. No answer: what a crash loses of them, the neighbours still have."""

    batches: tuple[Batch, ...]
    rulings: tuple[Ruling, ...]


@dataclass(frozen=True, slots=True)
class Fold:
    """Let the weights contain `batches`, and no record of `closed` from its sequence number on; answer `Folded`.

    Over all folds, each batch but births comes once, in the order of its feed, our own among them. What is closed once
    stays so in all later folds, and can only be closed earlier; only news is told. `names`: whose lives the origins of
    the batches are, which their births say.
    """

    round: int
    batches: tuple[Batch, ...]
    closed: tuple[tuple[Origin, int], ...]
    names: tuple[tuple[Origin, PeerId], ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class Audit:
    """Digest the weights as they are after the last `Fold`, then answer `Audited` with this `digest`."""

    digest: bytes


@dataclass(frozen=True, slots=True)
class Send:
    """Best effort: a lost body is silence, and silence is the core's business."""

    to: PeerId
    body: Body


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Answer `TimerFired(timer)` after `delay_s`. A newer timer of the same kind replaces the older."""

    timer: Timer
    delay_s: float


@dataclass(frozen=True, slots=True)
class Save:
    """Take a snapshot now (before any later `Train`), and write it in the background."""


@dataclass(frozen=True, slots=True)
class Interrupt:
    """End the running local steps after the current one; `Trained(complete=False)` follows."""


@dataclass(frozen=True, slots=True)
class Leave:
    """Flush what is queued, close every link, end. Nothing follows."""


@dataclass(frozen=True, slots=True)
class Report:
    """Tell the people and the metrics."""

    fact: Fact


Effect = Train | Mix | Adopt | Sign | Keep | Fold | Audit | Send | SetTimer | Save | Interrupt | Leave | Report
