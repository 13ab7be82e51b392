"""Shared by the tests of mixing rules that remember: peers, messages, and the rules once more, loop by loop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from murmurate.peer.config import Config, parse
from murmurate.peer.learning.make import make_trainer
from murmurate.peer.learning.mixing import Received, make_memory
from murmurate.peer.learning.mixing.reputation import Reputations
from murmurate.peer.learning.trainer import TorchTrainer
from murmurate.peer.protocol.events import Mix, PeerId, Turn

Floats = NDArray[np.float64]

ROSTER = "abcdef"
VECTORS = ("foolsgold", "sybilwall", "rffl")
HEAD = {"parameters": r"^4\."}  # the last layer of digits' mlp


def config_of(rule: str, me: str = "a", options: dict[str, Any] | None = None, **tables: Any) -> Config:
    addresses = {name: f"localhost:{7000 + i}" for i, name in enumerate(ROSTER)}
    exchange = {**(HEAD if rule == "bristle" else {}), **tables.pop("exchange", {})}
    mixing = {"rule": rule, "options": options or {}, **tables.pop("mixing", {})}
    local = {"steps": 5, "batch_size": 32, **tables.pop("local", {})}
    return parse({"name": me, "peers": addresses, "local": local, "exchange": exchange, "mixing": mixing, **tables})


def memory_of(rule: str, mine_D: Tensor, me: str = "a", **options: float) -> Any:
    memory = make_memory(config_of(rule, me, options), mine_D, (), None)
    assert memory is not None
    return memory


def trainer_of(rule: str, me: str = "a", **tables: Any) -> TorchTrainer:
    return make_trainer(config_of(rule, me, **tables), 5)


def heard(models: Sequence[Tensor], senders: Sequence[int], notes: Sequence[Tensor] = (), round: int = 1) -> Received:
    return Received(round, senders, torch.stack(list(models)), torch.stack(list(notes)) if notes else torch.empty(0, 0))


def drawn(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# Plain forms -----------------------------------------------------------------------------------------


def plain_trust(histories: Sequence[Floats], kappa: float = 1.0) -> list[float]:
    """FoolsGold's algorithm, loop by loop."""
    n = len(histories)

    def cosine(a: Floats, b: Floats) -> float:
        lengths = math.sqrt(float(a @ a)) * math.sqrt(float(b @ b))
        return max(0.0, float(a @ b) / lengths) if lengths else 0.0

    cs = [[0.0 if i == j else cosine(histories[i], histories[j]) for j in range(n)] for i in range(n)]
    v = [max(row) for row in cs]
    for i in range(n):
        for j in range(n):
            if v[j] > v[i]:
                cs[i][j] *= v[i] / v[j]
    alpha = [min(1.0, max(0.0, 1 - max(row))) for row in cs]
    alpha = [a if a > 1e-6 else 0.0 for a in alpha]
    if max(alpha) == 0:
        return alpha
    weights: list[float] = []
    for a in alpha:
        scaled = min(0.99, a / max(alpha))
        weights.append(min(1.0, max(0.0, kappa * (math.log(scaled / (1 - scaled)) + 0.5))) if scaled else 0.0)
    return weights


def mean_of(mine: Floats, theirs: Sequence[Floats], weights: Sequence[float]) -> Floats:
    total = mine.copy()
    for weight, model in zip(weights, theirs, strict=True):
        total += weight * model
    return total / (1 + sum(weights))


class PlainReputations:
    """RFFL's algorithm for one peer, names in order, ours first."""

    def __init__(self, n: int, alpha: float, gamma: float) -> None:
        self.r = [1.0] * n
        self.heard, self.alpha, self.gamma = 0, alpha, gamma

    def mix(self, start: Floats, models: Sequence[Floats]) -> Floats:
        there = [i for i, r in enumerate(self.r) if r]
        deltas = [models[i] - start for i in there]
        lengths = [float(np.linalg.norm(delta)) for delta in deltas]
        limit = self.gamma or float(np.median(lengths))
        deltas = [
            delta * min(1.0, limit / length) if length else delta for delta, length in zip(deltas, lengths, strict=True)
        ]
        shares = [self.r[i] / sum(self.r[k] for k in there) for i in there]
        whole = sum((share * delta for share, delta in zip(shares, deltas, strict=True)), np.zeros_like(start))
        news: list[float] = []
        for share, delta in zip(shares, deltas, strict=True):
            scale = float(np.linalg.norm(delta) * np.linalg.norm(whole))
            phi = float(delta @ whole) / scale if scale else 0.0
            news.append(max(1e-300, self.alpha * share + (1 - self.alpha) * phi))
        self.heard += 1
        total = sum(self.r)
        for i, new in zip(there, news, strict=True):
            share = new / sum(news)
            self.r[i] = 0.0 if i and self.heard > 10 and share < 1 / 3 / len(there) else share * total
        return start + whole


def plain_integrate(own: Sequence[float], theirs: Sequence[Sequence[float]], familiar: Sequence[int], C: int) -> Floats:
    weights = np.zeros((len(theirs), C))
    for j, f1s in enumerate(theirs):
        average = sum(f1s) / len(f1s)
        certainty = max(0.0, average - math.sqrt(sum((f1 - average) ** 2 for f1 in f1s) / len(f1s)))
        scores = [
            (10 * (f1 - mine)) ** (3 + mine) if f1 > mine else -((10 * (mine - f1)) ** (4 + mine))
            for f1, mine in zip(f1s, own, strict=True)
        ]

        def pull(score: float, certainty: float = certainty) -> float:
            return max(0.0, 10 / (1 + math.exp(min(500.0, -score / 100))) - 4) * certainty

        weights[j] = pull(sum(scores))
        for c, score in zip(familiar, scores, strict=True):
            weights[j, c] = pull(max(-100.0, score))
    return weights


def swarm(rule: str, rounds: int, **attack: Any) -> list[TorchTrainer]:
    """All peers hear all; the last one may lie."""
    tables: list[dict[str, Any]] = [{"attack": attack} if attack and me == ROSTER[-1] else {} for me in ROSTER]
    trainers = [trainer_of(rule, me, local={"steps": 10}, **table) for me, table in zip(ROSTER, tables, strict=True)]
    for round in range(1, rounds + 1):
        said = {PeerId(me): trainer.train(round).payload for me, trainer in zip(ROSTER, trainers, strict=True)}
        for me, trainer in zip(ROSTER, trainers, strict=True):
            inbox = {name: payload for name, payload in said.items() if name != me}
            trainer.mix(Mix(Turn(round), inbox, dict.fromkeys(inbox, 1 / 6)))
    return trainers


def reputations_of(trainer: TorchTrainer) -> Reputations:
    return cast("Reputations", trainer._memory)  # pyright: ignore[reportPrivateUsage] (what it thinks of others)
