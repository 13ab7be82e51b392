"""What audits add to the vocabulary, besides what crosses a link. Everybody imports it from events.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .bodies import Payload, PeerId, Source


@dataclass(frozen=True, slots=True)
class Proof:
    """What audits need of a round: what it began with (the payload carries its digest), and the payload's SHA-256.

    `undone`: it began without what was mixed before, because that could not be trained.
    """

    start: bytes
    digest: bytes
    undone: bool = False


@dataclass(frozen=True, slots=True)
class Examine:
    """Recompute how `peer` came from its round `before` to what it sent in `round`, then answer `Examined`."""

    peer: PeerId
    round: int
    payload: Payload
    """What it sent in `round`, as we heard it."""
    before: int
    sent: bytes
    """SHA-256 of what it sent in `before`, as we heard it."""
    weights: Mapping[PeerId, float]
    """Whose models it says to have mixed after `before`, sorted, and with which weights it has to."""
    heard: Mapping[PeerId, bytes]
    """SHA-256 of those of these models that we heard as well."""
    sources: tuple[Source, ...]
    """Of which lives and rounds it says that these models are: that is committed to as well."""
    evidence: bytearray


@dataclass(frozen=True, slots=True)
class Examined:
    """What the `Examine` of this round of `peer` found: a `fault`, or `hindered`, why nothing can be said.

    `differs`: whose models it mixed otherwise than we heard them. `theirs`: what hinders may be its own doing.
    """

    peer: PeerId
    round: int
    fault: str = ""
    hindered: str = ""
    differs: tuple[PeerId, ...] = ()
    theirs: bool = False
