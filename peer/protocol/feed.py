"""One feed, as far as it is held."""

from __future__ import annotations

import hashlib
import struct

from .events import PeerId
from .records import HEAD_BYTES, Batch, FeedState, Ruling

_ROUND = struct.Struct("<Q")


class Feed:
    """One origin's batches, as far as they are held."""

    __slots__ = (
        "_ground",
        "batches",
        "birth",
        "closed",
        "floor",
        "folded",
        "heads",
        "line",
        "name",
        "origin",
        "ruling",
        "told",
    )

    def __init__(self, birth: Batch, state: FeedState | None = None, round: int = 0) -> None:
        """Empty, but for what `state` stands for, whose last batch is of `round`."""
        self.origin = birth.origin
        self.name = PeerId("")
        self.birth = birth
        has_floor = state is not None and state.count > 1
        self.floor = state.count if state is not None and has_floor else 0  # 0, or at least 2
        self._ground = (state.head if state is not None and has_floor else b"", round)  # the head and round there
        self.batches: list[Batch] = []  # from the floor on
        self.heads: list[bytes] = []  # after each of them
        self.closed: int | None = None
        self.ruling: Ruling | None = None  # why it is closed
        self.folded = 0  # how many batches the weights contain, or will when the running fold is done
        self.told = False  # whether the weights heard of it: of a batch, or that it is closed
        self.line = b""  # its part of the digest's input; empty: not computed

    @property
    def count(self) -> int:
        """Batches held, the birth included."""
        return self.floor + len(self.batches)

    @property
    def round(self) -> int:
        """Of the newest batch; 0 when there is none but the birth."""
        return self.round_at(self.count)

    def round_at(self, count: int) -> int:
        """Of the last of the first `count` batches, of which there are at least as many as the floor."""
        return self.batches[count - self.floor - 1].round if count > self.floor else self._ground[1]

    def head(self, count: int) -> bytes:
        """The hash over the first `count` batches, no fewer than the floor; b"" for none."""
        return self.heads[count - self.floor - 1] if count > self.floor else self._ground[0]

    def since(self, number: int) -> list[Batch]:
        """The batches from this number on, which is no smaller than the floor."""
        return self.batches[number - self.floor :]

    def follows(self, state: FeedState) -> bool:
        """Whether its batches go on where such a beginning ends."""
        if state.closed is not None or not max(1, self.floor) <= state.count <= self.count:
            return False
        return self.head(state.count) == state.head

    def append(self, batch: Batch) -> None:
        """At the end."""
        before = self.head(self.count) or self.origin
        content = b"".join((before, _ROUND.pack(batch.round), batch.codes))
        self.batches.append(batch)
        self.heads.append(hashlib.sha256(content).digest()[:HEAD_BYTES])
        self.line = b""

    def cut(self, count: int) -> None:
        """Keep no more than the first `count` batches, which are no fewer than the floor."""
        del self.batches[count - self.floor :], self.heads[count - self.floor :]
        self.folded = min(self.folded, count)
        self.line = b""

    def state(self) -> FeedState:
        """For a `Vector`."""
        return FeedState(self.origin, self.count, self.head(self.count), self.closed, self.floor)

    def at(self, count: int) -> FeedState:
        """Its first `count` batches, no fewer than the floor, as part of a cut."""
        return FeedState(self.origin, count, self.head(count), self.closed)
