"""What happened, for people and for metrics. Everybody imports it from events.py, the whole vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from .bodies import PeerId, PeerState
from .records import Origin


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


@dataclass(frozen=True, slots=True)
class Took:
    """We took the state of `batches` batches, `size` bytes, instead of the batches themselves."""

    sources: tuple[PeerId, ...]
    batches: int
    size: int


@dataclass(frozen=True, slots=True)
class Unreached:
    """The records of `origin` (a life of `peer`) from `from_seq` on are void, but we hold a state instead of their log:
    they count here until a neighbour that has the log hands over a state without them.
    """

    origin: Origin
    peer: PeerId
    from_seq: int


@dataclass(frozen=True, slots=True)
class CrowdedOut:
    """The feed of `origin` counts nowhere any more: `peer` has too many lives, and all peers keep the same ones."""

    origin: Origin
    peer: PeerId


@dataclass(frozen=True, slots=True)
class AuditDone:
    """An audit of how `round` of `peer` began did not convict it. `open`: why it did not clear it either."""

    peer: PeerId
    round: int
    open: str = ""


@dataclass(frozen=True, slots=True)
class Banned:
    """An audit convicted `peer`: what it sends has no effect any more."""

    peer: PeerId
    round: int
    reason: str


Fact = (
    RoundDone
    | Joined
    | Skipped
    | PeerChanged
    | Dropped
    | Voided
    | Diverged
    | Took
    | Unreached
    | CrowdedOut
    | AuditDone
    | Banned
)
