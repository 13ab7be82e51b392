"""Mixing rules that remember: the `Memory` seam.

Such a rule knows who sent what, keeps tensors from round to round, and may have every peer send a note behind its
model. What it remembers of a peer is bounded by the roster. None of them bears a given number of liars in the sense of
the others: their papers prove no bound, so `mixing.f` has to be 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from murmurate.kernels import mixing as kernels

from .geometry import Ints

LENGTH_MAX = 1e18
"""Longest vector that counts: its square is still a float32, whatever a kernel calculates in. (a guess)"""


@dataclass(frozen=True)
class Place:
    """Whose memory it is."""

    seed: int
    """The swarm's."""
    index: int
    """Our position in the roster."""
    roster: Sequence[str]
    """All names; positions in it are what tensors and notes hold."""


@dataclass(frozen=True, eq=False)
class Received:
    """What came in a round, rows sorted by the senders' names; there may be none."""

    round: int
    senders: Sequence[int]
    """Positions in the roster [K]."""
    theirs: Tensor
    """Models [K, D], or the parts of them that are exchanged; finite."""
    notes: Tensor
    """What their own memories sent [K, A]; checked."""


class Memory(Protocol):
    """A mixing rule with a state. The exchanged vectors have D numbers each, and notes A."""

    attachment_size: int
    """A: how many numbers every peer sends behind its model."""

    def begin(self, mine_D: Tensor) -> None:
        """From here on this is where our local steps begin: the first weights, or a model that was adopted."""
        ...

    def attach(self, round: int, mine_D: Tensor) -> Tensor:
        """The note [A], float32, to send with our model after its local steps. Changes nothing."""
        ...

    def check(self, notes_A: Tensor) -> None:
        """Raises RemoteError for a neighbour's notes that cannot be meant; they are finite."""
        ...

    def mix(self, mine_D: Tensor, received: Received) -> Tensor:
        """Remember, and fold the models into ours; the round is complete: our next local steps begin from the result.

        Changes no argument, and the result is finite whatever came.
        """
        ...

    def state(self) -> dict[str, Tensor]:
        """Copies of all that a restart needs."""
        ...

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave. Raises KeyError or ValueError for anything else."""
        ...


def usable(mine_D: Tensor, theirs_KD: Tensor) -> Ints:
    """Rows that are near enough to be measured: a finite vector may be too long for that."""
    if not len(theirs_KD):
        return np.zeros(0, np.int64)
    return np.flatnonzero(kernels.squares(mine_D, theirs_KD) <= LENGTH_MAX**2)


def shaped(state: Mapping[str, Tensor], name: str, like: Tensor) -> Tensor:
    """A copy of `state[name]`, where `like` is. Raises KeyError, or ValueError if it has another shape or type."""
    found = state[name]
    if found.shape != like.shape or found.dtype != like.dtype:
        raise ValueError(f"{name}: {found.dtype} {list(found.shape)}, and ours is {like.dtype} {list(like.shape)}")
    return found.to(like.device, copy=True)
