"""The vocabulary of the protocol: everything a peer can be told (`Event`) and can ask for (`Effect`).

Rules
* Closed unions of frozen values: `match` over them is checked for exhaustiveness.
* No clock, socket, tensor or randomness: time is an argument of `core.Peer.handle`, a payload is opaque bytes.
* An effect's result comes back as an event: `Train` -> `Trained`, `Mix`/`Adopt` -> `Mixed`, `SetTimer` -> `TimerFired`;
  with the `seeds` exchange also `Sign` -> `Signed`, `Fold` -> `Folded`, `Audit` -> `Audited`, `Capture` -> `Captured`,
  `Install` -> `Installed`; with audits `Examine` -> `Examined`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from .bodies import (
    Ask as Ask,
)
from .bodies import (
    Body as Body,
)
from .bodies import (
    Envelope as Envelope,
)
from .bodies import (
    Evidence as Evidence,
)
from .bodies import (
    Fetch as Fetch,
)
from .bodies import (
    Goodbye as Goodbye,
)
from .bodies import (
    Have as Have,
)
from .bodies import (
    Heartbeat as Heartbeat,
)
from .bodies import (
    Offer as Offer,
)
from .bodies import (
    Payload as Payload,
)
from .bodies import (
    PeerId as PeerId,
)
from .bodies import (
    PeerState as PeerState,
)
from .bodies import (
    Piece as Piece,
)
from .bodies import (
    Question as Question,
)
from .bodies import (
    Rumor as Rumor,
)
from .bodies import (
    Source as Source,
)
from .bodies import (
    Turn as Turn,
)
from .bodies import (
    Update as Update,
)
from .bodies import (
    Vector as Vector,
)
from .facts import (
    AuditDone as AuditDone,
)
from .facts import (
    Banned as Banned,
)
from .facts import (
    CrowdedOut as CrowdedOut,
)
from .facts import (
    Diverged as Diverged,
)
from .facts import (
    Dropped as Dropped,
)
from .facts import (
    Fact as Fact,
)
from .facts import (
    Joined as Joined,
)
from .facts import (
    PeerChanged as PeerChanged,
)
from .facts import (
    RoundDone as RoundDone,
)
from .facts import (
    Skipped as Skipped,
)
from .facts import (
    Took as Took,
)
from .facts import (
    Unreached as Unreached,
)
from .facts import (
    Verdict as Verdict,
)
from .facts import (
    Voided as Voided,
)
from .inquiry import (
    Examine as Examine,
)
from .inquiry import (
    Examined as Examined,
)
from .inquiry import (
    Proof as Proof,
)
from .records import Batch, FeedState, Ground, Origin, Retraction, Ruling

# Timers -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Timer:
    """Handed out by `SetTimer` and handed back by `TimerFired`; a deadline of a turn that is over is ignored."""

    kind: Literal["heartbeat", "deadline", "join", "settle", "gossip", "audit"]
    turn: Turn


# Events: what a peer is told ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Started:
    """The daemon is up. `round`: the last complete round of the restored snapshot, 0 when there is none.

    `incarnation`: of this life; audits need it.
    """

    round: int
    incarnation: int = 0


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
    """The local steps of `round` ended; not `complete` means they were interrupted and nothing is to be sent.

    `proof`: only with audits.
    """

    round: int
    payload: Payload
    complete: bool = True
    proof: Proof | None = None


@dataclass(frozen=True, slots=True)
class Mixed:
    """The mix (or adoption) of `turn` is done; `payload` is the mixed model when the effect asked for it.

    `malformed`: the senders whose payloads could not be used. `digests`: the SHA-256 of all others', only with audits.
    """

    turn: Turn
    payload: Payload = b""
    malformed: tuple[PeerId, ...] = ()
    digests: tuple[tuple[PeerId, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Restored:
    """What our log held when we started, each feed in order; told once, before `Started`.

    `ground`: what came before its batches, where we took a state; the weights contain that already.
    """

    batches: tuple[Batch, ...]
    rulings: tuple[Ruling, ...]
    ground: Ground | None = None


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
class Captured:
    """The state at this cut; no pieces: it cannot be handed over."""

    cut: tuple[FeedState, ...]
    pieces: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Installed:
    """The weights contain exactly this, and no crash can lose it. Not `sound`: it is no state, and nothing changed."""

    ground: Ground
    sound: bool = True


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
    | Captured
    | Installed
    | Examined
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
    An empty inbox is legal: a peer whose neighbours are silent completes its rounds alone. `sources`: of which life and
    round of its sender each payload is; only audits look at it.
    """

    turn: Turn
    inbox: Mapping[PeerId, Payload]
    weights: Mapping[PeerId, float]
    pack: bool = False
    sources: Mapping[PeerId, Source] = field(default_factory=dict[PeerId, Source], compare=False)


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
    the batches are, which their births say. `dropped`: feeds that are to be forgotten before all else, as if they had
    never been folded, their closing as well; one of them may come back later, or at once, from its beginning.
    """

    round: int
    batches: tuple[Batch, ...]
    closed: tuple[tuple[Origin, int], ...]
    names: tuple[tuple[Origin, PeerId], ...] = field(default=(), compare=False)
    dropped: tuple[Origin, ...] = ()


@dataclass(frozen=True, slots=True)
class Audit:
    """Digest the weights as they are after the last `Fold`, then answer `Audited` with this `digest`."""

    digest: bytes


@dataclass(frozen=True, slots=True)
class Capture:
    """Write down the state that the weights have with these batches alone, then answer `Captured`.

    All of them are folded, and nothing is closed that the weights were not told. The same cut gives the same bytes at
    every peer. May be asked while a training runs.
    """

    cut: tuple[FeedState, ...]


@dataclass(frozen=True, slots=True)
class Install:
    """Forget every record; contain this state instead, and put it into the log in place of what it covers. Then answer
    `Installed`. Later folds go on behind its cut, and bring again whatever else we hold.
    """

    ground: Ground
    pieces: tuple[bytes, ...]


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


Effect = (
    Train
    | Mix
    | Adopt
    | Sign
    | Keep
    | Fold
    | Audit
    | Capture
    | Install
    | Examine
    | Send
    | SetTimer
    | Save
    | Interrupt
    | Leave
    | Report
)
