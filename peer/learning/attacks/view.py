"""What a liar knows: by itself what its neighbours sent, or, in a simulation only, what everybody sends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from murmurate.peer.protocol.events import Payload

ROUNDS_KEPT = 4  # of the board: peers are a round apart at most where an omniscient liar is of use (a guess)


@dataclass(frozen=True, eq=False)
class View:
    """What a liar knows when it has to say something. Models are rows sorted by the names of their peers."""

    round: int
    mine: Tensor
    """[D]: its own model after this round's local steps: what an honest peer at its place would send."""
    mixed: Tensor | None
    """[D]: the same before them, so what the last mix made; None before the first."""
    names: tuple[str, ...]
    """Whose models the rows are: honest peers, as far as it knows."""
    honest: Tensor
    """[H, D]: what they send in this round, or the liar's best guess."""
    liars: int
    """How many lie together, itself among them."""


class Heard:
    """A peer's own view. It answers before it has heard the others' models of this round.

    So it guesses: each neighbour's model of the last round, moved by what its own honest model has moved by since.
    """

    def __init__(self, accomplices: frozenset[str]) -> None:
        self._accomplices = accomplices
        self._names: tuple[str, ...] = ()
        self._theirs_HD: Tensor | None = None
        self._sent_D: Tensor | None = None  # what was honest to say when they were heard
        self._mine_D: Tensor | None = None
        self._mixed_D: Tensor | None = None
        self._liars = 1 + len(accomplices)

    def mixed(self, senders: Sequence[str], theirs_KD: Tensor, mixed_D: Tensor) -> None:
        """A round's mix is done: these rows became this model."""
        rows = [row for row, sender in enumerate(senders) if sender not in self._accomplices]
        if rows:
            self._names = tuple(senders[row] for row in rows)
            self._theirs_HD = theirs_KD[rows]
            self._sent_D = self._mine_D
        self._mixed_D = mixed_D.clone()

    def look(self, round: int, mine_D: Tensor) -> View:
        """What is known now that this is our honest model."""
        self._mine_D = mine_D.clone()
        honest_HD = mine_D.new_empty(0, len(mine_D))
        if self._theirs_HD is not None:
            moved_D = 0.0 if self._sent_D is None else mine_D - self._sent_D
            honest_HD = self._theirs_HD + moved_D
        return View(round, self._mine_D, self._mixed_D, self._names, honest_HD, self._liars)


class Board:
    """What all honest peers of a simulated swarm send: for liars that see everything, which no real peer does.

    They have to speak last in a round; see `lab.simulator.Plan.last`.
    """

    def __init__(self, honest: frozenset[str]) -> None:
        self._honest = honest
        self._rounds: dict[int, dict[str, Payload]] = {}
        self._said: dict[int, Tensor | Payload] = {}
        self._mouth: Callable[[View], Tensor | Payload] | None = None

    def sent(self, name: str, round: int, payload: Payload) -> None:
        """A peer sends this."""
        if name in self._honest:
            self._rounds.setdefault(round, {})[name] = payload
        while len(self._rounds) > ROUNDS_KEPT:
            del self._rounds[min(self._rounds)]

    def look(self, view: View, unpack: Callable[[Payload, Tensor], None]) -> View:
        """The same with everybody's models of this round; a round that some have not sent yet shows fewer."""
        models = self._rounds.get(view.round, {})
        names = tuple(sorted(models))
        honest_HD = torch.empty(len(names), len(view.mine), dtype=view.mine.dtype, device=view.mine.device)
        for row_D, name in zip(honest_HD, names, strict=True):
            unpack(models[name], row_D)
        return View(view.round, view.mine, view.mixed, names, honest_HD, view.liars)

    def once(self, view: View, lie: Callable[[View], Tensor | Payload]) -> Tensor | Payload:
        """The lie of a round: those who see the same say the same, and the first that ever asked finds it for all."""
        self._mouth = self._mouth or lie
        if view.round not in self._said:
            self._said = {view.round: self._mouth(view)}
        return self._said[view.round]
