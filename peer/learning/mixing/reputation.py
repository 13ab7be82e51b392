"""RFFL: neighbours earn a reputation by pointing where the reputable ones point, and lose their place below a third of
the average."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from murmurate.kernels import mixing as kernels
from murmurate.peer.learning.flat import is_finite

from .geometry import Floats, Ints
from .memory import Place, Received, shaped, usable
from .shares import Numbers

TRIAL_ROUNDS = 10
"""How often a neighbour is heard before it can be removed. (the paper's)"""
FRACTION = 1 / 3
"""Of the average reputation; who has less is removed. (the paper's)"""


class Reputations:
    """x <- s + sum_j r_j clip(x_j - s), s our model before the local steps, j all that are heard and we ourselves.

    Xu and Lyu 2021, "A Reputation Mechanism Is All You Need: Collaborative Fairness and Adversarial Robustness in
    Federated Learning", its algorithm RFFL. phi_j = cos(clip(x_j - s), sum_k r_k clip(x_k - s)); r_j <- memory r_j +
    (1 - memory) phi_j, no less than 0, then normalised; memory = 0.95. After 10 rounds with a peer it is removed, for
    good, once r_j < (1/3) / |R|. clip shortens a difference to the length `clip`; 0: the median length of this round's
    (a guess; the paper's 0.5 is for its gradients, and shortens our own steps too).

    The decentralised reading: each peer is a server to its neighbours and one of them itself, and is never removed by
    itself. The average, the mixture and the normalisation are over those that are heard in a round, so that the silent
    keep their standing; a newcomer has the average one. The paper starts by data set sizes, here all are equal. Its
    reward, a part of the aggregate in proportion to reputation, is a server's to give, and is left out.

    Cost: four passes over the models; memory two numbers per peer of the roster and one vector. The paper
    proves no breakdown point: liars that point where the others do keep theirs, a majority of them removes the honest.
    No peer moves ours by more than r_j times `clip`. It bears f = 0.
    """

    attachment_size = 0

    def __init__(self, place: Place, mine_D: Tensor, numbers: Numbers) -> None:
        self._place, self._numbers = place, numbers
        n = len(place.roster)
        self._reputations_n = np.zeros(n)  # 1 is the average; 0: not known yet, or removed
        self._heard_n = np.zeros(n, np.int64)
        self._reputations_n[place.index] = 1.0
        self.begin(mine_D)

    @property
    def removed(self) -> list[str]:
        """Names of those who lost their place."""
        gone_n = (self._reputations_n == 0) & (self._heard_n > 0)
        return [self._place.roster[peer] for peer in np.flatnonzero(gone_n).tolist()]

    def begin(self, mine_D: Tensor) -> None:
        """See the seam."""
        self._start_D = mine_D.clone()

    def attach(self, round: int, mine_D: Tensor) -> Tensor:
        """See the seam: nothing."""
        del round
        return mine_D.new_empty(0, dtype=torch.float32)

    def check(self, notes_A: Tensor) -> None:
        """See the seam."""
        assert not len(notes_A)

    def mix(self, mine_D: Tensor, received: Received) -> Tensor:
        """See the seam."""
        self._start_D = self._mixed(mine_D, received)
        return self._start_D.clone()

    def state(self) -> dict[str, Tensor]:
        """See the seam."""
        return {
            "start": self._start_D.clone(),
            "reputations": torch.from_numpy(self._reputations_n.copy()),
            "heard": torch.from_numpy(self._heard_n.copy()),
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """See the seam."""
        start_D = shaped(state, "start", self._start_D)
        reputations_n = shaped(state, "reputations", torch.from_numpy(self._reputations_n)).numpy()
        heard_n = shaped(state, "heard", torch.from_numpy(self._heard_n)).numpy()
        if not (np.isfinite(reputations_n).all() and (reputations_n >= 0).all() and reputations_n[self._place.index]):
            raise ValueError(f"reputations: {reputations_n.tolist()}")
        self._start_D, self._reputations_n, self._heard_n = start_D, reputations_n, heard_n

    def _mixed(self, mine_D: Tensor, received: Received) -> Tensor:
        rows = self._welcome(mine_D, received)
        if not rows:
            return mine_D.clone()
        gram_PP = self._products(mine_D, received.theirs, rows)
        if not np.isfinite(gram_PP).all():
            return mine_D.clone()
        lengths_P = np.sqrt(gram_PP.diagonal())
        limit = self._numbers["clip"] or float(np.median(lengths_P))
        clips_P = limit / np.maximum(lengths_P, limit) if limit else np.where(lengths_P > 0, 0.0, 1.0)
        peers_P = np.array([self._place.index, *(received.senders[row] for row in rows)])
        reputations_P = self._reputations_n[peers_P]
        standing_P = reputations_P / reputations_P.sum()
        own, *others = (standing_P * clips_P).tolist()
        shares_K = [0.0] * len(received.senders)
        for row, share in zip(rows, others, strict=True):
            shares_K[row] = share
        mixed_D = kernels.combine(mine_D, received.theirs, own, shares_K)
        mixed_D.add_(self._start_D, alpha=1.0 - own - sum(others))
        self._judge(peers_P, standing_P, gram_PP * np.outer(clips_P, clips_P))
        return mixed_D if is_finite(mixed_D) else mine_D.clone()

    def _welcome(self, mine_D: Tensor, received: Received) -> list[int]:
        """The rows that count; newcomers get the average reputation."""
        known_n = self._reputations_n > 0
        average = float(self._reputations_n[known_n].mean())
        rows: list[int] = []
        for row in usable(mine_D, received.theirs).tolist():
            peer = received.senders[row]
            if not self._heard_n[peer]:
                self._reputations_n[peer] = average
            if self._reputations_n[peer] > 0:
                rows.append(row)
        return rows

    def _products(self, mine_D: Tensor, theirs_KD: Tensor, rows: list[int]) -> Floats:
        """Inner products of our own and these rows' differences to where our steps began [P, P], ours first.

        Those with ours follow from three distances, so that our own vector need not be copied beside the others.
        """
        own = float(kernels.squares(self._start_D, mine_D[None])[0])
        theirs_KK = kernels.gram(self._start_D, theirs_KD)
        apart_K = kernels.squares(mine_D, theirs_KD)
        gram_PP = np.empty((len(rows) + 1, len(rows) + 1))
        gram_PP[1:, 1:] = (theirs_KK[np.ix_(rows, rows)] + theirs_KK[np.ix_(rows, rows)].T) / 2
        gram_PP[0, 0] = own
        gram_PP[0, 1:] = gram_PP[1:, 0] = (own + gram_PP.diagonal()[1:] - apart_K[rows]) / 2
        return gram_PP

    def _judge(self, peers_P: Ints, standing_P: Floats, gram_PP: Floats) -> None:
        """Reputations after this round; those heard keep the sum of theirs."""
        products_P = gram_PP @ standing_P
        scale_P = np.sqrt(np.maximum(gram_PP.diagonal() * (standing_P @ products_P), 0.0))
        cosines_P = np.divide(products_P, scale_P, out=np.zeros_like(products_P), where=scale_P > 0)
        memory = self._numbers["memory"]
        news_P = np.maximum(memory * standing_P + (1.0 - memory) * cosines_P, np.finfo(float).tiny)
        news_P /= news_P.sum()
        self._heard_n[peers_P] += 1
        lost_P = (news_P < FRACTION / len(peers_P)) & (self._heard_n[peers_P] > TRIAL_ROUNDS)
        lost_P[0] = False
        total = self._reputations_n[peers_P].sum()
        self._reputations_n[peers_P] = np.where(lost_P, 0.0, news_P * total)
