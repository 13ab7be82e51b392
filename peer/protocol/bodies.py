"""What the peers say to each other, as values. Everybody imports them from events.py, the whole vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, NewType

from .records import Batch, FeedState, Ground, Ruling

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


@dataclass(frozen=True, slots=True)
class Ask:
    """Offer me your state: at exactly this cut, or at one of yours when it is empty."""

    cut: tuple[FeedState, ...] = ()


@dataclass(frozen=True, slots=True)
class Offer:
    """My state at this cut, in pieces of these SHA-256 digests."""

    ground: Ground
    digests: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Fetch:
    """Send me one piece of the state that is named `capture` (handover.name_of)."""

    capture: bytes
    number: int


@dataclass(frozen=True, slots=True)
class Piece:
    """One piece of a state."""

    capture: bytes
    number: int
    data: bytes


class Source(NamedTuple):
    """Whose model was mixed: of which of its lives and rounds."""

    peer: PeerId
    incarnation: int
    round: int


@dataclass(frozen=True, slots=True)
class Question:
    """How did your `round` begin? Send me this piece of the evidence."""

    round: int
    number: int = 0


@dataclass(frozen=True, slots=True)
class Evidence:
    """One piece of `size` bytes of evidence: how the sender came from its round `before` to the beginning of `round`.

    `sources`: whose models it mixed then, sorted by peer; told with piece 0 only, as is `before`. `size` 0: it holds
    none of this round.
    """

    round: int
    number: int
    size: int
    before: int = 0
    sources: tuple[Source, ...] = ()
    data: Payload = b""


Body = Update | Heartbeat | Goodbye | Rumor | Have | Vector | Ask | Offer | Fetch | Piece | Question | Evidence


@dataclass(frozen=True, slots=True)
class Envelope:
    """A body, who sent it, and in which of its lives (`incarnation` grows with every start of the daemon)."""

    sender: PeerId
    incarnation: int
    body: Body
