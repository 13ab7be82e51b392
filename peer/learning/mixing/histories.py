"""FoolsGold and SybilWall: whoever's updates point the same way, round after round, is one attacker under many names.

Both weigh a neighbour by how unlike its history of updates is to all others. Own and neighbours' histories are rows of
one matrix, M of them, sorted by their owners' positions in the roster.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from murmurate.kernels import mixing as kernels
from murmurate.peer.errors import RemoteError
from murmurate.peer.learning.flat import is_finite
from murmurate.peer.learning.randomness import derive

from .geometry import Floats
from .memory import LENGTH_MAX, Place, Received, shaped, usable
from .shares import Numbers

NEARLY_ONE = 0.99
"""The most trusted peer's, so that its logit is finite. (FoolsGold's code)"""
ROUNDING = 1e-6
"""Of a cosine, by the kernels' promise: less trust than that is none."""


def trust(gram_MM: Floats, confidence: float) -> Floats:
    """FoolsGold's weights [M] in [0, 1] from the histories' inner products.

    With c_ij the cosine of two histories (negative ones count as 0) and v_i = max_j c_ij: pardon whoever is like one
    that is even more like others, c_ij <- c_ij v_i / v_j where v_j > v_i; t_i = 1 - max_j c_ij, divided by the largest;
    w_i = confidence (ln(t_i / (1 - t_i)) + 1/2), cut to [0, 1].

    No trust is left where all histories are equal: all weights are 0. So is that of one that is not finite. Who has
    none yet is like nobody.
    """
    squares_M = gram_MM.diagonal()
    known = np.isfinite(squares_M)
    lengths_M = np.sqrt(np.where(known & (squares_M > 0), squares_M, np.inf))
    cosines_MM = np.where(np.outer(known, known), gram_MM, 0.0) / lengths_M[:, None] / lengths_M
    np.fill_diagonal(cosines_MM, 0.0)
    cosines_MM = np.clip((cosines_MM + cosines_MM.T) / 2, 0.0, 1.0)
    highest_M = cosines_MM.max(axis=1)
    most_MM = np.maximum(np.maximum.outer(highest_M, highest_M), np.finfo(float).tiny)
    alike_M = (cosines_MM * (highest_M[:, None] / most_MM)).max(axis=1)
    trust_M = np.where(known & (1.0 - alike_M > ROUNDING), 1.0 - alike_M, 0.0)
    if not trust_M.any():
        return trust_M
    trust_M = np.minimum(trust_M / trust_M.max(), NEARLY_ONE)
    logits_M = np.log(np.maximum(trust_M, np.finfo(float).tiny) / (1.0 - trust_M))
    return np.clip(confidence * (logits_M + 0.5), 0.0, 1.0) * (trust_M > 0)


class FoolsGold:
    """x <- (x + sum_j w_j x_j) / (1 + sum_j w_j), w as `trust` gives them; the graph's weights do not count.

    Fung, Yoon and Beschastnikh 2020, "The Limitations of Federated Learning in Sybil Settings" (2018 as "Mitigating
    Sybils in Federated Learning Poisoning"), its algorithm FoolsGold. There a server sums up what each client makes of
    the model that it was sent. Here everybody is a server to its neighbours: what j has made of ours is its model less
    ours before the local steps. (Its model less its own last one would be its own update and the mix behind it, and
    all peers' mixes point to the same swarm.) Our own history is one among them, as in SybilWall, and our own weight is
    1. All histories that are known count, not only those of this round's senders, and every parameter counts alike:
    the paper's weighing of features is left out. `confidence` is its kappa.

    Cost: the Gram matrix of the histories, one pass that reads M vectors; memory M vectors of float32, at most one for
    each peer of the roster. Against Sybils only: a liar that is alone, or whose lies all differ, has the full weight of
    its model, so the breakdown point is 0 and it bears f = 0. Honest peers with the same data lose weight as Sybils do.
    """

    attachment_size = 0

    def __init__(self, place: Place, mine_D: Tensor, numbers: Numbers) -> None:
        self._place, self._numbers = place, numbers
        self._zeros_D = mine_D.new_zeros(mine_D.shape, dtype=torch.float32)
        self._owners = [place.index]
        self._histories_MD = self._zeros_D[None].clone()
        self.begin(mine_D)

    def begin(self, mine_D: Tensor) -> None:
        """See the seam."""
        self._start_D = mine_D.clone()

    def attach(self, round: int, mine_D: Tensor) -> Tensor:
        """See the seam: nothing."""
        del round, mine_D
        return self._zeros_D[:0]

    def check(self, notes_A: Tensor) -> None:
        """See the seam."""
        assert not len(notes_A)

    def mix(self, mine_D: Tensor, received: Received) -> Tensor:
        """See the seam."""
        rows = usable(mine_D, received.theirs).tolist()
        self._history(self._place.index).add_(self._update(mine_D))
        self._remember(received, rows)
        self._start_D = self._folded(mine_D, received, rows)
        return self._start_D.clone()

    def state(self) -> dict[str, Tensor]:
        """See the seam."""
        return {
            "start": self._start_D.clone(),
            "owners": torch.tensor(self._owners),
            "histories": self._histories_MD.clone(),
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """See the seam."""
        start_D = shaped(state, "start", self._start_D)
        owners: list[int] = state["owners"].tolist()
        ours = self._place.index in owners and set(owners) <= set(range(len(self._place.roster)))
        if not ours or owners != sorted(set(owners)):
            raise ValueError(f"owners: {owners}")
        like_MD = self._zeros_D.expand(len(owners), -1)
        self._histories_MD = shaped(state, "histories", like_MD).contiguous()
        self._start_D, self._owners = start_D, owners

    def _remember(self, received: Received, rows: list[int]) -> None:
        """What was heard of others, of these rows only."""
        for row in rows:
            self._history(received.senders[row]).add_(self._update(received.theirs[row]))

    def _update(self, model_D: Tensor) -> Tensor:
        return model_D.float() - self._start_D.float()

    def _history(self, owner: int) -> Tensor:
        """This peer's history [D], in place; a new one is zeros."""
        row = bisect.bisect_left(self._owners, owner)
        if row == len(self._owners) or self._owners[row] != owner:
            self._owners.insert(row, owner)
            parts = self._histories_MD[:row], self._zeros_D[None], self._histories_MD[row:]
            self._histories_MD = torch.cat(parts)
        return self._histories_MD[row]

    def _folded(self, mine_D: Tensor, received: Received, rows: list[int]) -> Tensor:
        if not rows:
            return mine_D.clone()
        weights_M = trust(kernels.gram(self._zeros_D, self._histories_MD), self._numbers["confidence"])
        weights = {row: float(weights_M[self._owners.index(received.senders[row])]) for row in rows}
        own = 1.0 / (1.0 + sum(weights.values()))
        shares_K = [own * weights.get(row, 0.0) for row in range(len(received.senders))]
        mixed_D = kernels.combine(mine_D, received.theirs, own, shares_K)
        return mixed_D if is_finite(mixed_D) else mine_D.clone()


def _shortened(history_D: Tensor) -> Tensor:
    """One that others will take: only its direction counts, and whoever trains for long enough outgrows every bound."""
    length = float(torch.linalg.vector_norm(history_D, dtype=torch.float64))
    return history_D if length <= LENGTH_MAX / 2 else history_D * (LENGTH_MAX / 2 / length)


class SybilWall(FoolsGold):
    """FoolsGold by histories that every peer tells of itself, and that travel on: Sybils at far ends of the graph, one
    for each honest neighbour, are alike all the same.

    Werthenbach and Pouwelse 2023, "Towards Sybil Resilience in Decentralized Learning", its algorithm SybilWall. With
    its model a peer sends H, the sum of its own updates, and one history that it knows of another peer, of distance d
    with probability ~ lambda exp(-lambda (d - 1)): those of its neighbours are the likeliest. All known histories and
    our own go into `trust`, and the neighbours' weights come out.

    Where we differ: one message goes to all neighbours instead of one to each, so a receiver ignores a history of its
    own, of a direct neighbour, or of somebody whom it knows from nearer. What is kept of a peer is the last that came
    from no farther away. The choice is a function of (swarm.seed, peer, round). Weights are normalised, distant
    histories take no part in that, and no logit is infinite (the authors' code fails at each of these).
    `lambda` is `spread`.

    Notes: our history [D], a distant one [D], its owner's position in the roster, its distance from us (1 to n). Who
    knows no distant one sends its own twice. So a payload is three times as long, and exchange.dtype has to be float32.

    Cost: as FoolsGold, with M up to all peers of the roster. Histories are what peers say of themselves and of others,
    nobody signs them: a liar that tells each neighbour another tale of itself, or an honest peer's history as a
    stranger's, is believed. It bears f = 0.
    """

    def __init__(self, place: Place, mine_D: Tensor, numbers: Numbers) -> None:
        super().__init__(place, mine_D, numbers)
        self.attachment_size = 2 * mine_D.numel() + 2
        self._distances = {place.index: 0}

    def attach(self, round: int, mine_D: Tensor) -> Tensor:
        """See the seam."""
        own_D = _shortened(self._history(self._place.index) + self._update(mine_D))
        owner = self._choose(round)
        if owner is None:
            owner, distance, distant_D = self._place.index, 1, own_D
        else:
            distance, distant_D = self._distances[owner], self._history(owner)
        return torch.cat([own_D, distant_D, own_D.new_tensor([owner, distance])])

    def check(self, notes_A: Tensor) -> None:
        """See the seam."""
        n, size = len(self._place.roster), len(self._zeros_D)
        owner, distance = notes_A[-2:].tolist()
        if not (owner.is_integer() and 0 <= owner < n and distance.is_integer() and 1 <= distance <= n):
            raise RemoteError(f"a history of peer {owner:g} at distance {distance:g}, where there are {n} peers")
        for history_D in notes_A[:-2].split(size):
            if float(torch.linalg.vector_norm(history_D, dtype=torch.float64)) > LENGTH_MAX:
                raise RemoteError(f"a history of updates longer than {LENGTH_MAX:g}")

    def state(self) -> dict[str, Tensor]:
        """See the seam."""
        return super().state() | {"distances": torch.tensor([self._distances[owner] for owner in self._owners])}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """See the seam."""
        distances: list[int] = state["distances"].tolist()
        if len(distances) != len(state["owners"]):
            raise ValueError(f"distances: {len(distances)} of {len(state['owners'])} peers")
        super().load(state)
        self._distances = dict(zip(self._owners, distances, strict=True))

    def _remember(self, received: Received, rows: list[int]) -> None:
        size = len(self._zeros_D)
        for row in rows:
            self._keep(received.senders[row], 1, received.notes[row, :size])
        for row in rows:
            owner, distance = map(int, received.notes[row, -2:].tolist())
            self._keep(owner, distance + 1, received.notes[row, size:-2])

    def _keep(self, owner: int, distance: int, history_D: Tensor) -> None:
        if distance <= self._distances.get(owner, len(self._place.roster)):
            self._history(owner).copy_(history_D)
            self._distances[owner] = distance

    def _choose(self, round: int) -> int | None:
        """Whose history to pass on; None if we know nobody's."""
        owners = [owner for owner in self._owners if owner != self._place.index]
        if not owners:
            return None
        rate = self._numbers["spread"]
        chances = [math.exp(-rate * (self._distances[owner] - 1)) for owner in owners]
        left = derive(self._place.seed, "sybilwall", self._place.index, round) / 2**63 * sum(chances)
        for owner, chance in zip(owners, chances, strict=True):
            left -= chance
            if left < 0:
                return owner
        return owners[-1]
