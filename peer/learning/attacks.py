"""Lies for experiments: what a peer sends instead of its model. It trains and mixes honestly."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from murmurate.peer import config


def distort(attack: config.Attack, flat_D: Tensor) -> Tensor:
    """What this peer sends in place of `flat_D`."""
    return ATTACKS[attack.name](flat_D, attack.scale)


def _none(flat_D: Tensor, scale: float) -> Tensor:
    del scale
    return flat_D


def _sign_flip(flat_D: Tensor, scale: float) -> Tensor:
    return flat_D * -scale


ATTACKS: dict[str, Callable[[Tensor, float], Tensor]] = {"none": _none, "sign_flip": _sign_flip}
