"""What of the model crosses the wire, and what neighbours' payloads become.

E parameters are exchanged: all D, or those that `exchange.parameters` selects; the rest stays each peer's own. Behind
them a payload may carry A further numbers, the notes of a mixing rule that remembers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from murmurate.peer import config
from murmurate.peer.errors import ConfigError, RemoteError
from murmurate.peer.learning.exchange import make_exchange
from murmurate.peer.learning.mixing import Memory
from murmurate.peer.protocol.events import Payload, PeerId

from .flat import FlatModel, Schema

SHOWN = 5  # parameters in an error (a guess)


class Selection:
    """The exchanged part of a model. Raises ConfigError when the pattern matches no parameter."""

    def __init__(self, model: FlatModel, pattern: str) -> None:
        self._flat_D = model.flat_D
        self.schema: Schema = tuple(entry for entry in model.schema if re.search(pattern, entry[0]))
        """As the model's, of what is exchanged."""
        if not self.schema:
            names = ", ".join(name for name, _, _ in model.schema[:SHOWN])
            raise ConfigError(
                f"exchange.parameters = {pattern!r}: matches no trained parameter; there are {names}, ..."
            )
        self.sizes = [math.prod(shape) for _, shape, _ in self.schema]
        """How many numbers each of them has."""
        self.size = sum(self.sizes)
        """E."""
        parts = model.named(self._flat_D)
        some = len(self.schema) < len(parts)
        self._parts = [parts[name].view(-1) for name, _, _ in self.schema] if some else []

    def get(self) -> Tensor:
        """The part as it is [E]: the model itself where all is exchanged, else a copy."""
        return torch.cat(self._parts) if self._parts else self._flat_D

    def put(self, part_E: Tensor) -> None:
        """Make it this; the rest of the model stays as it is."""
        if not self._parts:
            self._flat_D.copy_(part_E)
            return
        for mine, part in zip(self._parts, part_E.split(self.sizes), strict=True):
            mine.copy_(part)


class Payloads:
    """Packs what is sent, and keeps what the last inbox held."""

    def __init__(self, exchange: config.Exchange, part_E: Tensor, memory: Memory | None) -> None:
        notes = memory.attachment_size if memory else 0
        self._size, self._notes, self._memory = part_E.numel(), notes, memory
        self._exchange = make_exchange(exchange, self._size + notes)
        self.payload_bytes = self._exchange.payload_bytes
        self._theirs_KE = part_E.new_empty(0, self._size)
        self._notes_KA = part_E.new_empty(0, notes, dtype=torch.float32)
        # Where a payload with notes is cut in two: in the wire's format, because notes may hold whole numbers.
        self._whole = part_E.new_empty(self._size + notes if notes else 0, dtype=torch.float32)

    def make_room(self, rows: int) -> None:
        """For so many payloads in an inbox; what the last one held is lost."""
        if rows > len(self._theirs_KE):
            self._theirs_KE = self._theirs_KE.new_zeros(rows, self._size)
            self._notes_KA = self._notes_KA.new_zeros(rows, self._notes)

    def pack(self, said_E: Tensor, notes_A: Tensor | None = None) -> Payload:
        """As bytes."""
        if notes_A is None or not self._notes:
            return self._exchange.pack(said_E)
        return self._exchange.pack(torch.cat([said_E.float(), notes_A]))

    def unpack(self, payload: Payload, out_E: Tensor) -> None:
        """Write what a payload says of the model into `out_E`. Raises RemoteError when it is none, or has bad notes."""
        if self._memory is None or not self._notes:
            self._exchange.unpack(payload, out_E)
            return
        self._exchange.unpack(payload, self._whole)
        self._memory.check(self._whole[self._size :])
        out_E.copy_(self._whole[: self._size])

    def receive(self, inbox: Mapping[PeerId, Payload]) -> tuple[list[PeerId], tuple[PeerId, ...]]:
        """Fills the first rows of `theirs` and `notes`; returns whose they are, sorted, and who sent rubbish."""
        self.make_room(len(inbox))
        senders: list[PeerId] = []
        malformed: list[PeerId] = []
        for sender in sorted(inbox):
            row = len(senders)
            try:
                self.unpack(inbox[sender], self._theirs_KE[row])
            except RemoteError:
                malformed.append(sender)
            else:
                if self._notes:
                    self._notes_KA[row].copy_(self._whole[self._size :])
                senders.append(sender)
        return senders, tuple(malformed)

    def theirs(self, rows: int) -> Tensor:
        """What the first senders said of the model [rows, E]."""
        return self._theirs_KE[:rows]

    def notes(self, rows: int) -> Tensor:
        """Their notes [rows, A] in float32."""
        return self._notes_KA[:rows]
