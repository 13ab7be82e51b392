"""What a poisoned peer does to its labels; what it does to its images is in images.py.

Label flipping is MoNNA's (Farhadkhani et al. 2023: y becomes 9 - y), the backdoor SybilWall's (Werthenbach
and Pouwelse 2023: a square of pixels that stands for one class).
"""

from __future__ import annotations

from torch import Tensor

from murmurate.peer.errors import ConfigError

LABEL_FLIP = "label_flip"
BACKDOOR = "backdoor"


def flipped(kind: str, labels_N: Tensor, classes: int) -> Tensor:
    """Every label y as classes - 1 - y. Raises ConfigError for another kind than LABEL_FLIP."""
    if kind != LABEL_FLIP:
        raise ConfigError(f"attack.name = {kind!r}: this task knows {LABEL_FLIP} alone, its examples take no trigger")
    return classes - 1 - labels_N
