"""The part of a daemon that depends on what its swarm exchanges: `models.Models` or `seeds.Seeds`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

from murmurate.peer.protocol.core import Peer
from murmurate.peer.protocol.events import (
    Adopt,
    Audit,
    Capture,
    Event,
    Examine,
    Fold,
    Install,
    Keep,
    Mix,
    Save,
    Sign,
    Train,
)

Work = Train | Mix | Adopt | Sign | Keep | Fold | Audit | Capture | Install | Examine | Save
"""Effects that take their time: in a thread, and all but `Keep` and `Save` are answered by an event."""


class Exported(NamedTuple):
    """What a written model contains."""

    round: int
    cut: str = ""  # as `murmurate status` prints it; empty without records


class Exchange(Protocol):
    """Owns the core, and performs its work with the daemon's threads. Everything is called on the event loop."""

    core: Peer

    @property
    def payload_bytes_max(self) -> int:
        """The largest update that is accepted on a link. Raises ConfigError when that is above the user's limit."""
        ...

    async def restore(self) -> tuple[Event, ...]:
        """Read what an earlier life left; the first events of the core, `Started` the last. Raises MurmurateError."""
        ...

    def perform(self, effect: Work) -> None:
        """Begin one effect; its answer is fed when it is there."""
        ...

    async def export(self, path: Path, cut: str) -> Exported:
        """Write the model, as it is or at a cut through the records. Raises LocalError."""
        ...

    def facts(self) -> Mapping[str, object]:
        """What the row of a round says beside what all exchanges have; called once a round."""
        ...

    def close(self) -> None:
        """After the last effect, before the folder is unlocked. May wait for the disk."""
        ...
