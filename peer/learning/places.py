"""Where the parts of a model lie: the flat vector cut at the borders of tensors (docs/noise.md, Parts)."""

from __future__ import annotations

from typing import NamedTuple

from murmurate.kernels import noise
from murmurate.peer.errors import ConfigError

from .flat import FlatModel


class Place(NamedTuple):
    """One part of the vector and the number of its first block."""

    span: slice
    first_block: int


def places_of(model: FlatModel, parts: int) -> list[Place]:
    """Runs of tensors of about equal size. Raises ConfigError when there are fewer tensors than parts."""
    sizes = [value.numel() for value in model.parameters]
    if parts > len(sizes):
        raise ConfigError(f"seeds.parts = {parts}: the model has only {len(sizes)} trainable tensors")
    places: list[Place] = []
    start, first_block, used = 0, 0, 0
    for number in range(parts):
        stop, goal = start, sum(sizes) * (number + 1) / parts
        # At least one tensor, up to the border nearest to an even share, and one must be left for each later part.
        while stop == start or (used < len(sizes) - (parts - 1 - number) and stop + sizes[used] / 2 <= goal):
            stop += sizes[used]
            used += 1
        if number == parts - 1:
            stop = sum(sizes)
        places.append(Place(slice(start, stop), first_block))
        first_block += -(-(stop - start) // noise.BLOCK)
        start = stop
    return places
