"""One peer's place in the graph: whom it sends to, whom it hears, with which weights, in which round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from murmurate.topology import Topology

from .events import PeerId


class Edges(NamedTuple):
    """This round's edges. `weights` are those of the in-neighbours; what they leave of 1 is our own."""

    outs: tuple[PeerId, ...]
    weights: Mapping[PeerId, float]


class Neighbourhood:
    """The rows of the mixing matrix that concern `me`; the roster's order numbers the graph's vertices."""

    def __init__(self, me: PeerId, roster: Sequence[PeerId], topology: Topology) -> None:
        if topology.n != len(roster):
            raise ValueError(f"a graph of {topology.n} vertices does not fit {len(roster)} peers")
        self.me = me
        self._roster = tuple(roster)
        self._index = self._roster.index(me)
        self._topology = topology
        self._rows: dict[int, Edges] = {}  # one per round of the period; the newest alone when there is none
        self.links: tuple[PeerId, ...] = tuple(self._roster[i] for i in topology.links(self._index))

    @property
    def changes(self) -> bool:
        """Whether rounds have different edges."""
        return self._topology.period != 1

    def weights_of(self, peer: PeerId, round: int) -> Mapping[PeerId, float]:
        """The weights with which another peer mixes those that it hears in `round`."""
        weights = self._topology.row(self._roster.index(peer), round).weights
        return {self._roster[i]: weights[i] for i in sorted(weights)}

    def edges(self, round: int) -> Edges:
        """The edges of `round`, in the roster's order."""
        period = self._topology.period
        key = round if period is None else round % period
        if key not in self._rows:
            if period is None:
                self._rows.clear()
            row = self._topology.row(self._index, key)
            weights = {self._roster[i]: row.weights[i] for i in sorted(row.weights)}
            self._rows[key] = Edges(tuple(self._roster[i] for i in row.outs), weights)
        return self._rows[key]
