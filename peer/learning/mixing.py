"""Mixing rules by name, and the promise that each is used only where it can keep it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from murmurate.kernels import mixing as kernels
from murmurate.peer import config
from murmurate.peer.errors import ConfigError


class Mixer(Protocol):
    """Folds neighbours' models into ours: [D], [K, D], [K] -> [D]. Rows come sorted by peer id; K may be 0."""

    def __call__(self, mine_D: Tensor, theirs_KD: Tensor, weights_K: Tensor) -> Tensor:
        """What `weights_K` leaves of 1 is ours. Changes no argument."""
        ...


def make_mixer(mixing: config.Mixing, degree_min: int) -> Mixer:
    """The configured rule. Raises ConfigError if it cannot bear `mixing.f` liars among `degree_min` neighbours."""
    if mixing.rule not in RULES:
        raise ConfigError(f"mixing.rule = {mixing.rule!r}: unknown; known are {', '.join(RULES)}")
    return RULES[mixing.rule](mixing.f, degree_min)


def _mean(f: int, degree_min: int) -> Mixer:
    del degree_min
    if f:
        raise ConfigError(f"mixing.f = {f}: one liar is enough to move a mean anywhere; use mixing.rule = 'nna'")
    return kernels.mean


def _nna(f: int, degree_min: int) -> Mixer:
    # Honest vectors, our own included, must outnumber the liars: degree + 1 - f > f.
    if degree_min + 1 <= 2 * f:
        raise ConfigError(
            f"mixing.f = {f}: nna needs more than {2 * f - 1} neighbours at every peer, and the graph has a peer with "
            f"{degree_min}; choose f <= {degree_min // 2} or a denser graph"
        )
    return functools.partial(kernels.nna, f=f)


RULES: dict[str, Callable[[int, int], Mixer]] = {"mean": _mean, "nna": _nna}
