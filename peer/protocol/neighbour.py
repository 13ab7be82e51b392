"""What one peer remembers of a neighbour with which it gossips; all of it is bounded."""

from __future__ import annotations

from dataclasses import dataclass, field

from .records import Origin


@dataclass(slots=True)
class Neighbour:
    """What gossip remembers of it."""

    incarnation: int = 0
    known: dict[Origin, int] = field(default_factory=dict[Origin, int])  # how much of each feed it holds
    goals: dict[Origin, int] = field(default_factory=dict[Origin, int])  # how much it said to hold, where we lack some
    barred: set[Origin] = field(default_factory=set[Origin])  # of which it holds more, but not what we lack
    heard: bool = False  # whether, since the link opened, it told what it holds
    sign: bytes = b""  # the newest digest it told
    diverged: bytes = b""  # the digest of which we reported that its weights differ
    answers: int = 0  # in this gossip_s
    asked_at: float | None = None
    gaps: dict[Origin, float] = field(default_factory=dict[Origin, float])  # when it was asked about one in each feed

    def forget(self) -> None:
        """A link opens, or another life begins: nothing is certain."""
        self.known.clear()
        self.goals.clear()
        self.barred.clear()
        self.gaps.clear()
        self.heard, self.sign, self.asked_at = False, b"", None
