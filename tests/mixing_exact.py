"""The mixing rules as their papers write them: whole vectors in numpy float64, no Gram matrix, no kernel, no shortcut.

`RULES[name](X_ND, weights_N, f)` -> the mixture [D]. Ours is the first of the N vectors. Numbers have defaults.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Rule = Callable[[Floats, Floats, int], Floats]


def distance(one_D: Floats, other_D: Floats) -> float:
    return float(np.sqrt(np.sum((one_D - other_D) ** 2)))


def level(score: float) -> float:
    """So that scores which are equal but for rounding tie: NNM makes many."""
    return float(f"{score:.9e}")


def nearest(X_ND: Floats, pivot_D: Floats, count: int) -> list[int]:
    """The rows nearest to the pivot, of equal ones the first."""
    return sorted(sorted(range(len(X_ND)), key=lambda i: (level(distance(X_ND[i], pivot_D)), i))[:count])


def nnm(X_ND: Floats, f: int) -> Floats:
    return np.stack([X_ND[nearest(X_ND, x_D, len(X_ND) - f)].mean(0) for x_D in X_ND])


def bucketing(X_ND: Floats, size: int) -> Floats:
    """Ours, and the others in buckets."""
    return np.stack([X_ND[0], *(X_ND[at : at + size].mean(0) for at in range(1, len(X_ND), size))])


def mean(X_ND: Floats, weights_N: Floats, f: int) -> Floats:
    return weights_N @ X_ND


def nna(X_ND: Floats, weights_N: Floats, f: int) -> Floats:
    return X_ND[nearest(X_ND, X_ND[0], max(1, len(X_ND) - f))].mean(0)


def krum_scores(X_ND: Floats, f: int, less: int = 2) -> list[float]:
    n = len(X_ND)
    others = [sorted(distance(X_ND[i], X_ND[j]) ** 2 for j in range(n) if j != i) for i in range(n)]
    return [level(sum(row[: n - f - less])) for row in others]


def krum(X_ND: Floats, weights_N: Floats, f: int) -> Floats:
    scores = krum_scores(X_ND, f)
    return X_ND[scores.index(min(scores))]


def multi_krum(X_ND: Floats, weights_N: Floats, f: int) -> Floats:
    scores = krum_scores(X_ND, f)
    best = sorted(range(len(X_ND)), key=lambda i: (scores[i], i))[: len(X_ND) - f]
    return X_ND[best].mean(0)


def best_subset(X_ND: Floats, f: int, score: Callable[[list[float]], object]) -> Floats:
    def value(subset: tuple[int, ...]) -> Any:
        return score([distance(X_ND[i], X_ND[j]) for i, j in itertools.combinations(subset, 2)])

    subsets = itertools.combinations(range(len(X_ND)), len(X_ND) - f)
    return X_ND[list(min(subsets, key=value))].mean(0)


def mda(X_ND: Floats, weights_N: Floats, f: int) -> Floats:
    """Of those that share the widest pair the narrowest."""
    return best_subset(X_ND, f, lambda each: (level(max(each, default=0.0)), level(sum(d**2 for d in each))))


def mva(X_ND: Floats, weights_N: Floats, f: int) -> Floats:
    return best_subset(X_ND, f, lambda each: level(sum(d**2 for d in each)))


def sum_of_distances(X_ND: Floats, z_D: Floats) -> float:
    return sum(distance(x_D, z_D) for x_D in X_ND)


def geometric_median(X_ND: Floats, weights_N: Floats, f: int, steps: int = 2000, nu: float = 1e-6) -> Floats:
    z_D = X_ND.mean(0)
    for _ in range(steps):
        b_N = np.array([1 / max(nu, distance(x_D, z_D)) for x_D in X_ND])
        z_D = b_N @ X_ND / b_N.sum()
    return z_D


def centred_clipping(X_ND: Floats, weights_N: Floats, f: int, radius: float = 0.0, steps: int = 3) -> Floats:
    v_D = X_ND[0]
    for _ in range(steps):
        lengths = [distance(x_D, v_D) for x_D in X_ND]
        tau = radius or sorted(lengths)[max(0, len(X_ND) - f - 1)]
        clipped = [(x_D - v_D) * min(1, tau / r if r else 1) for x_D, r in zip(X_ND, lengths, strict=True)]
        v_D = v_D + sum(clipped) / len(X_ND)
    return v_D


def self_centred_clipping(X_ND: Floats, weights_N: Floats, f: int, radius: float = 0.0) -> Floats:
    x_D = X_ND[0]
    lengths = [distance(other_D, x_D) for other_D in X_ND[1:]]
    if not radius:
        if f >= len(lengths):
            return x_D
        radius = sorted(lengths, reverse=True)[f]
    pulls = [
        weight * (other_D - x_D) * min(1, radius / r if r else 1)
        for weight, other_D, r in zip(weights_N[1:], X_ND[1:], lengths, strict=True)
    ]
    return x_D + sum(pulls)


def flag(X_ND: Floats, weights_N: Floats, f: int, steps: int = 5) -> Floats:
    differences_PD = X_ND[1:] - X_ND[0]
    p = len(differences_PD)
    if not p:
        return X_ND[0]
    normed_PD = differences_PD / np.linalg.norm(differences_PD, axis=1)[:, None]
    w_P = np.ones(p)
    basis_DR = np.zeros((X_ND.shape[1], 0))
    for _ in range(steps):
        left, values, _ = np.linalg.svd((normed_PD * w_P[:, None]).T, full_matrices=False)
        basis_DR = left[:, : math.ceil((p + 1) / 2)][:, values[: math.ceil((p + 1) / 2)] > 1e-6 * values[0]]
        w_P = (np.maximum(1 - ((normed_PD @ basis_DR) ** 2).sum(1), 0) + 1e-7) ** -0.25
    return X_ND[0] + basis_DR @ (basis_DR.T @ differences_PD.sum(0)) / len(X_ND)


def by_parameter(rule: Callable[[list[float], int], float]) -> Rule:
    return lambda X_ND, weights_N, f: np.array([rule(sorted(column), f) for column in X_ND.T.tolist()])


def middle(values: list[float]) -> float:
    n = len(values)
    return (values[(n - 1) // 2] + values[n // 2]) / 2


def trimmed(values: list[float], f: int) -> float:
    return sum(values[f : len(values) - f]) / (len(values) - 2 * f)


def around(values: list[float], centre: float, count: int) -> float:
    return sum(sorted(values, key=lambda value: abs(value - centre))[:count]) / count


def choices_around(values: list[float], centre: float, count: int, slack: float) -> list[float]:
    """What `around` may be when the centre and the values are only known up to `slack`: the means of those windows of
    the sorted values beside which none is nearer than one inside."""
    found: list[float] = []
    for at in range(len(values) - count + 1):
        window, beside = values[at : at + count], [*values[:at][-1:], *values[at + count :][:1]]
        farthest = max(abs(window[0] - centre), abs(window[-1] - centre))
        if farthest <= min((abs(value - centre) for value in beside), default=math.inf) + slack:
            found.append(sum(window) / count)
    return found


CENTRES: dict[str, Callable[[list[float], int], float]] = {
    "meamed": lambda values, f: middle(values),
    "phocas": trimmed,
}
RULES: dict[str, Rule] = {
    "mean": mean,
    "nna": nna,
    "krum": krum,
    "multi_krum": multi_krum,
    "mda": mda,
    "mva": mva,
    "geometric_median": geometric_median,
    "centred_clipping": centred_clipping,
    "self_centred_clipping": self_centred_clipping,
    "flag": flag,
    "trimmed_mean": by_parameter(trimmed),
    "median": by_parameter(lambda values, f: middle(values)),
    "meamed": by_parameter(lambda values, f: around(values, middle(values), len(values) - f)),
    "phocas": by_parameter(lambda values, f: around(values, trimmed(values, f), len(values) - f)),
}
