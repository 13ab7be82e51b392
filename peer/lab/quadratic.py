"""A toy to learn: peer i wants x near its own optimum c_i, all together want their mean. Exact, tiny, no torch.

f_i(x) = |x - c_i|^2 / 2        a step: x <- x - lr (x - c_i)        a payload: x as little-endian float64
"""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from murmurate.peer.errors import LocalError
from murmurate.peer.protocol.events import Adopt, Mix, Mixed, Payload, PeerId, Trained
from murmurate.peer.protocol.seams import Write

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]


class Field:
    """What the peers of one swarm share: the optima, the learning rate, the mixing rule."""

    def __init__(
        self,
        n: int,
        seed: int,
        *,
        dimension: int = 4,
        lr: float = 0.05,
        steps: int = 4,
        rule: str = "mean",
        f: int = 0,
        liars: frozenset[int] = frozenset(),
    ) -> None:
        """`rule`: `mean` or `nna`; `liars` send minus four times their model."""
        generator = random.Random(f"quadratic {seed}")
        self.optima_nD = np.array([[generator.gauss(0, 1) for _ in range(dimension)] for _ in range(n)])
        honest = [i for i in range(n) if i not in liars]
        self.optimum_D: Vector = self.optima_nD[honest].mean(axis=0)
        self.lr = lr
        self.steps = steps
        self.rule = rule
        self.f = f
        self.liars = liars


class Quadratic:
    """One peer's trainer; see protocol.seams.Trainer."""

    def __init__(self, field: Field, i: int) -> None:
        self._field = field
        self.lr = field.lr
        self._optimum_D: Vector = field.optima_nD[i]
        self._lies = i in field.liars
        self.model_D: Vector = self._optimum_D * 0.0
        self._complete = 0

    @property
    def payload_bytes(self) -> int:
        return 8 * len(self.model_D)

    def train(self, round: int) -> Trained:
        shrink = (1 - self.lr) ** self._field.steps  # that many steps at once
        self.model_D = self._optimum_D + shrink * (self.model_D - self._optimum_D)
        return Trained(round, self._pack())

    def mix(self, effect: Mix) -> Mixed:
        senders, theirs_KD, malformed = self._unpack(effect.inbox)
        if senders and self._field.rule == "nna":
            self.model_D = nearest_neighbour_average(self.model_D, theirs_KD, self._field.f)
        elif senders:
            weights_K = np.array([effect.weights[peer] for peer in senders])
            self.model_D = self.model_D + weights_K @ (theirs_KD - self.model_D)
        if effect.pack:
            return Mixed(effect.turn, self._pack(), malformed)
        self._complete = effect.turn.round
        return Mixed(effect.turn, malformed=malformed)

    def adopt(self, effect: Adopt) -> Mixed:
        senders, theirs_KD, malformed = self._unpack(effect.inbox)
        if senders:
            self.model_D = np.median(theirs_KD, axis=0)
        self._complete = effect.turn.round
        return Mixed(effect.turn, malformed=malformed)

    def interrupt(self) -> None:
        """A step takes no time: there is nothing to interrupt."""

    def snapshot(self) -> Write:
        content = struct.pack("<q", self._complete) + self.model_D.tobytes()
        return lambda path: path.write_bytes(content)

    def restore(self, path: Path) -> int:
        content = path.read_bytes()
        if len(content) != 8 + self.payload_bytes:
            raise LocalError(f"{path}: not a snapshot of this task")
        self._complete = struct.unpack_from("<q", content)[0]
        self.model_D = np.frombuffer(content, offset=8)
        return self._complete

    def export(self) -> Write:
        content = self.model_D.tobytes()
        return lambda path: path.write_bytes(content)

    def figures(self) -> Mapping[str, float]:
        away = self.model_D - self._optimum_D
        return {
            "loss": float(away @ away) / 2,
            "error": float(np.linalg.norm(self.model_D - self._field.optimum_D)),
        }

    def _pack(self) -> bytes:
        return (-4.0 * self.model_D if self._lies else self.model_D).tobytes()

    def _unpack(self, inbox: Mapping[PeerId, Payload]) -> tuple[list[PeerId], Matrix, tuple[PeerId, ...]]:
        """Who sent a model, all of them as rows, and who sent none."""
        size = self.payload_bytes
        senders = [peer for peer, payload in inbox.items() if len(payload) == size]
        theirs_KD = np.frombuffer(b"".join([inbox[peer] for peer in senders])).reshape(len(senders), len(self.model_D))
        if not math.isfinite(theirs_KD.sum()):
            finite = [k for k in range(len(senders)) if np.isfinite(theirs_KD[k]).all()]
            senders, theirs_KD = [senders[k] for k in finite], theirs_KD[finite]
        malformed = () if len(senders) == len(inbox) else tuple(peer for peer in inbox if peer not in senders)
        return senders, theirs_KD, malformed


def nearest_neighbour_average(mine_D: Vector, theirs_KD: Matrix, f: int) -> Vector:
    """The mean of the K+1-f models nearest to ours, our own included (MoNNA, Farhadkhani et al. 2023, on a graph)."""
    all_ND = np.vstack([mine_D, theirs_KD])
    distances_N = ((all_ND - mine_D) ** 2).sum(axis=1)
    nearest = np.argsort(distances_N, kind="stable")[: max(1, len(all_ND) - f)]
    return all_ND[nearest].mean(axis=0)
