"""The seams between the pure core and the world: what a shell plugs in.

A shell (the asyncio daemon, the virtual-time simulator) owns a `core.Peer`, performs its effects through these, and
feeds the results back as events. Tensors stay behind `Trainer`; here they are payload bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from .events import (
    Adopt,
    Audit,
    Audited,
    Capture,
    Captured,
    Examine,
    Examined,
    Fold,
    Folded,
    Install,
    Installed,
    Mix,
    Mixed,
    Trained,
)
from .records import Batch, Origin, Retraction

Write = Callable[[Path], object]
"""Writes an already copied state to a file; may run in another thread, later."""

Verify = Callable[[Batch | Retraction], bool]
"""Whether its origin signed the batch, or its authority the retraction. Pure, and never raises."""


class Trainer(Protocol):
    """A model, its data and its optimizer. One call at a time, except `interrupt` and `figures`."""

    @property
    def payload_bytes(self) -> int:
        """The exact size of every payload of this swarm."""
        ...

    def train(self, round: int) -> Trained:
        """The local steps of `round`; continues an interrupted round where it stopped."""
        ...

    def mix(self, effect: Mix) -> Mixed:
        """Fold the inbox into the model; without `pack` this completes the round. Names the payloads it refused."""
        ...

    def adopt(self, effect: Adopt) -> Mixed:
        """Replace the model by one from the inbox; the round counts as complete."""
        ...

    def interrupt(self) -> None:
        """From any thread: end a running `train` after the current step."""
        ...

    def snapshot(self) -> Write:
        """Copy everything a restart needs."""
        ...

    def restore(self, path: Path) -> int:
        """Load what `snapshot` wrote; returns the last complete round. Raises LocalError when it does not fit."""
        ...

    def export(self) -> Write:
        """Copy the bare model for use elsewhere."""
        ...

    def figures(self) -> Mapping[str, float]:
        """The newest figures by name: loss, accuracy, ... From any thread."""
        ...


class Auditor(Protocol):
    """What a trainer can do beside training where models are audited; see audits.py."""

    start_bytes: int
    """Exact size of what a round begins with (`Proof.start`)."""
    payload_bytes: int
    """As a trainer's."""

    def examine(self, effect: Examine) -> Examined:
        """Recompute what a neighbour did. Its evidence may be anything: a fault of it, and never an error."""
        ...


class Replica(Protocol):
    """The trainer of the `seeds` exchange: weights that are a pure function of the records folded into them.

    One call at a time, except `interrupt` and `figures`. The log of records is all that a restart needs.
    """

    @property
    def payload_bytes(self) -> int:
        """The exact number of codes in every batch but the first of a feed."""
        ...

    @property
    def state_bytes(self) -> int | None:
        """About how large a captured state is; None: states cannot be handed over here."""
        ...

    def begin(self, swarm_id: bytes, origin: Origin) -> None:
        """Once, before everything else: the swarm's own directions, and ours."""
        ...

    def train(self, round: int) -> Trained:
        """Probe; the payload is the round's codes. Whatever it moves itself counts only once it is folded."""
        ...

    def fold(self, effect: Fold) -> Folded:
        """Add and void records. Any order and any division into folds gives the same weights, bit for bit."""
        ...

    def audit(self, effect: Audit) -> Audited:
        """The SHA-256 of the weights as they are after the last fold."""
        ...

    def capture(self, effect: Capture) -> Captured:
        """Write down the state at a cut through what is folded; no pieces when that is not possible."""
        ...

    def install(self, effect: Install) -> Installed:
        """Contain this state and nothing else. Its pieces are somebody else's: not `sound` when they are no state."""
        ...

    def interrupt(self) -> None:
        """From any thread: end a running `train` after the current step."""
        ...

    def export(self, cut: Mapping[Origin, int] | None = None) -> Write:
        """Copy the bare model as it is, or as it was with only the first `cut[origin]` batches of each feed. Raises
        LocalError for a cut below a state that was installed.
        """
        ...

    def figures(self) -> Mapping[str, float]:
        """The newest figures by name: loss, accuracy, ... From any thread."""
        ...
