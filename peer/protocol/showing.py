"""The answers to audits: what a peer keeps of its rounds, and shows of them. Pure.

Evidence of the two newest rounds is there; once a neighbour has begun to ask for some, it stays until it was given
whole, or another is asked for. So whoever began to show need not stop, however slow the link is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from .events import Evidence, Payload, PeerId, Source

PIECE_BYTES = 2**18
"""Evidence is cut into pieces of so many bytes; the last may be shorter. A heartbeat never waits long behind one."""

HELD_MAX = 3
"""Rounds of which we keep what they began with: that is evidence of the newest two."""

AGAIN_MAX = 10
"""How often, on average, a neighbour is given each piece: twice as often as it is asked for."""

SHOWN_ROUNDS_MAX = 64
"""So many rounds evidence may take: it is a dozen models, and a round of a busy link brings one. (a guess)"""


@dataclass(slots=True, eq=False)
class _Past:
    """A round of ours."""

    round: int
    payload: Payload
    start: bytes
    mixed: dict[Source, Payload] = field(default_factory=dict[Source, Payload])
    given: Counter[PeerId] = field(default_factory=Counter[PeerId])  # pieces, of how it began


class _Shown(NamedTuple):
    """What a neighbour is given."""

    before: _Past
    past: _Past


class Showing:
    """What one peer can show of its rounds."""

    def __init__(self) -> None:
        self._pasts: list[_Past] = []
        self._shown: dict[PeerId, _Shown] = {}
        self._given: set[PeerId] = set()  # the last piece, in this round

    def add(self, round: int, payload: Payload, start: bytes, undone: bool) -> None:
        """A round was trained; `undone`: what was mixed before it was not."""
        if undone and self._pasts:
            self._pasts[-1].mixed = {}
        self._pasts = [*self._pasts[1 - HELD_MAX :], _Past(round, payload, start)]
        oldest = round - SHOWN_ROUNDS_MAX
        for peer in [peer for peer, shown in self._shown.items() if peer in self._given or shown.past.round < oldest]:
            del self._shown[peer]
        self._given.clear()

    def mixes(self, round: int, inbox: dict[Source, Payload]) -> None:
        """What the mix of this round begins with; malformed models are taken out of it later."""
        if self._pasts and self._pasts[-1].round == round:
            self._pasts[-1].mixed = inbox

    def answer(self, peer: PeerId, round: int, number: int) -> Evidence | None:
        """This piece of how `round` began; None: it was given too often, or there is none of that number."""
        shown = self._find(peer, round)
        if shown is None:
            return Evidence(round, number, 0)
        before, past = self._shown[peer] = shown
        parts = [before.start, before.payload, *before.mixed.values(), past.start]
        size = sum(map(len, parts))
        pieces = -(-size // PIECE_BYTES)
        past.given[peer] += 1
        if number >= pieces or past.given[peer] > AGAIN_MAX * pieces:
            return None
        if number == pieces - 1:
            self._given.add(peer)
        data = _cut(parts, number * PIECE_BYTES, PIECE_BYTES)
        if number:
            return Evidence(round, number, size, data=data)
        return Evidence(round, 0, size, before.round, tuple(before.mixed), data)

    def _find(self, peer: PeerId, round: int) -> _Shown | None:
        if (shown := self._shown.get(peer)) is not None and shown.past.round == round:
            return shown
        place = next((i for i, past in enumerate(self._pasts) if i and past.round == round), 0)
        return _Shown(self._pasts[place - 1], self._pasts[place]) if place else None


def _cut(parts: Sequence[Payload], first: int, count: int) -> bytes:
    """Bytes first, ..., first + count - 1 of all parts, one after the other."""
    found: list[Payload] = []
    for part in parts:
        if first < len(part) and count > 0:
            found.append(memoryview(part)[first : first + count])
            count -= len(found[-1])
        first = max(0, first - len(part))
    return b"".join(found)
