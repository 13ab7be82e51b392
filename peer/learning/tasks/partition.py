"""Splitting a data set that every peer holds: pure functions of (labels, count, seed), so peers agree without talking.

Every rule returns `count` arrays of positions that are disjoint and cover everything. No shard is smaller than a tenth
of an even share (`SHARE_MIN`), and none is empty: where chance says otherwise, examples move from the largest shard.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from murmurate.peer import config
from murmurate.peer.errors import ConfigError

Indices = npt.NDArray[np.int64]

# A shard below this share of an even one only repeats a handful of examples. (a guess)
SHARE_MIN = 0.1


def shard(task: config.Task, labels: Indices, count: int, index: int, seed: int) -> Indices:
    """The positions of peer `index` of `count`. Raises ConfigError when there are fewer examples than peers."""
    if len(labels) < count:
        raise ConfigError(f"task.name = {task.name!r}: {len(labels)} training examples are too few for {count} peers")
    rules: dict[str, Callable[[], list[Indices]]] = {
        "iid": lambda: iid(labels, count, seed),
        "dirichlet": lambda: dirichlet(labels, count, seed, task.alpha),
        "shards": lambda: shards(labels, count, seed),
    }
    return rules[task.partition]()[index]


def iid(labels: Indices, count: int, seed: int) -> list[Indices]:
    """Evenly and at random."""
    return [np.sort(part) for part in np.array_split(np.random.default_rng(seed).permutation(len(labels)), count)]


def dirichlet(labels: Indices, count: int, seed: int, alpha: float) -> list[Indices]:
    """Label skew: every label is spread over the peers in proportions drawn from Dirichlet(alpha) (Hsu et al. 2019)."""
    rng = np.random.default_rng(seed)
    parts: list[list[Indices]] = [[] for _ in range(count)]
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        cuts = (np.cumsum(rng.dirichlet(np.full(count, alpha)))[:-1] * len(members)).astype(np.int64)
        for part, piece in zip(parts, np.split(members, cuts), strict=True):
            part.append(piece)
    return _balanced([np.concatenate(part) for part in parts], rng)


def shards(labels: Indices, count: int, seed: int) -> list[Indices]:
    """Two runs of the data sorted by label for every peer (McMahan et al. 2017, section 3)."""
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(labels))
    runs = np.array_split(shuffled[np.argsort(labels[shuffled], kind="stable")], 2 * count)
    order = rng.permutation(2 * count)
    return _balanced([np.concatenate([runs[order[2 * i]], runs[order[2 * i + 1]]]) for i in range(count)], rng)


def _balanced(parts: list[Indices], rng: np.random.Generator) -> list[Indices]:
    """Fill up the shards below the minimum, one example at a time from whichever shard is largest."""
    least = max(1, int(SHARE_MIN * sum(map(len, parts)) / len(parts)))
    for poor in range(len(parts)):
        while len(parts[poor]) < least:
            rich = int(np.argmax([len(part) for part in parts]))
            place = int(rng.integers(len(parts[rich])))
            parts[poor] = np.append(parts[poor], parts[rich][place])
            parts[rich] = np.delete(parts[rich], place)
    return [np.sort(part) for part in parts]
