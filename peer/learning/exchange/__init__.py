"""What crosses the wire: the `Exchange` seam and its registry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from murmurate.peer import config
from murmurate.peer.protocol.events import Payload

from .models import Models


class Exchange(Protocol):
    """A payload format, agreed in the manifest, so a payload carries no header."""

    @property
    def payload_bytes(self) -> int:
        """The exact length of every payload."""
        ...

    def pack(self, flat_D: Tensor) -> Payload:
        """A copy of the model, as bytes."""
        ...

    def unpack(self, payload: Payload, out_D: Tensor) -> None:
        """Write a neighbour's model into `out_D`. Raises RemoteError when it is not one; `out_D` is then garbage."""
        ...


EXCHANGES: dict[str, Callable[[int, str], Exchange]] = {"models": Models}


def make_exchange(exchange: config.Exchange, parameters: int) -> Exchange:
    """The exchange of the configuration for a model of so many parameters."""
    return EXCHANGES[exchange.name](parameters, exchange.dtype)
