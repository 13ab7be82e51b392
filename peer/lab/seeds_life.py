"""One life of one peer that exchanges seeds, and its disk: a log of batches and rulings that survives crashes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace

from murmurate.peer.protocol.events import (
    Audit,
    Audited,
    Capture,
    Effect,
    Event,
    Fold,
    Folded,
    Install,
    Installed,
    Keep,
    Restored,
    Sign,
    Signed,
    Started,
    Trained,
)
from murmurate.peer.protocol.records import Batch, Ground, Origin, Retraction, Ruling

from .life import Life, Stage, World
from .seeds_referee import SeedsReferee
from .tally import Tally

SIGNATURE_BYTES = 8


@dataclass(slots=True)
class Disk:
    """A folder: a key, and a log that grows at its end."""

    origin: Origin
    entries: list[Batch | Ruling] = field(default_factory=list[Batch | Ruling])
    synced: int = 0  # so many of them no crash can lose
    ground: Ground | None = None  # what comes before them
    pieces: tuple[bytes, ...] = ()

    def append(self, *entries: Batch | Ruling, sync: bool = False) -> None:
        """Write, and with `sync` make sure of everything written so far."""
        self.entries += entries
        if sync:
            self.synced = len(self.entries)

    def restored(self) -> Restored:
        """What a start finds."""
        self.synced = len(self.entries)  # whatever survived a crash is on the disk
        batches = tuple(entry for entry in self.entries if isinstance(entry, Batch))
        rulings = tuple(entry for entry in self.entries if not isinstance(entry, Batch))
        return Restored(batches, rulings, self.ground)

    def install(self, ground: Ground, pieces: tuple[bytes, ...]) -> None:
        """Atomically: a state, and of what was here all that is beyond it, one batch after the other."""
        ends = {state.origin: state.count for state in ground.cut}
        kept: list[Batch | Ruling] = []
        for entry in self.entries:
            if not isinstance(entry, Batch):
                kept.append(entry)
            elif entry.number == ends.get(entry.origin, 0):
                kept.append(entry)
                ends[entry.origin] = entry.number + 1
        self.entries, self.ground, self.pieces = kept, ground, pieces
        self.synced = len(kept)


class SeedsLife(Life):
    """From a start to a crash or a leave."""

    def __init__(self, stage: Stage, replica: Tally, disk: Disk, referee: SeedsReferee, world: World) -> None:
        super().__init__(stage, referee, world)
        self.replica = replica
        self.disk = disk
        self.signing: Batch | None = None
        self._referee = referee

    def start(self) -> None:
        """The first events."""
        restored = self.disk.restored()
        round = max((batch.round for batch in restored.batches if batch.origin == self.disk.origin), default=0)
        if (ground := restored.ground) is not None:
            installed = self.replica.install(Install(ground, self.disk.pieces))
            assert installed.sound
            self._referee.installed(installed, self.replica.weights)
            own = (r for state, r in zip(ground.cut, ground.rounds, strict=True) if state.origin == self.disk.origin)
            round = max(round, *own, 0)
        self.feed(restored, len(restored.batches), len(restored.rulings))
        self.feed(Started(round), round, self.incarnation)

    def _do(self, effect: Effect) -> None:
        match effect:
            case Sign(batch):
                self.signing = batch
                self._begin(self._pace.mix_s, self._sign, batch)
            case Keep(batches, rulings):
                is_ours = any(batch.origin == self.disk.origin for batch in batches)
                self.disk.append(*batches, *rulings, sync=is_ours)
            case Fold():
                self._begin(self._pace.mix_s, self._fold, effect)
            case Audit():
                self._begin(self._pace.mix_s, self._audit, effect)
            case Capture():
                captured = self.replica.capture(effect)  # of now, whatever is trained meanwhile
                self._schedule.after(self._pace.mix_s, self._captured, captured)
            case Install():
                self._begin(self._pace.mix_s, self._install, effect)
            case _:
                raise AssertionError(f"{effect} is of another exchange")

    def _train(self, round: int) -> Trained:
        self._training = None
        self._trace.flush()
        trained = self.replica.train(round)
        self._trace.bytes.extend(trained.payload)  # so that the digest also tells whether the codes repeated
        return trained

    def _sign(self, batch: Batch) -> Event:
        self.signing = None
        batch = signed(batch)
        self.disk.append(batch, sync=True)
        self._referee.published(batch)
        return Signed(batch)

    def sign_unseen(self, batch: Batch) -> None:
        """A crash hits when the batch is in the log, and before the core is told."""
        self._sign(batch)

    def _fold(self, effect: Fold) -> Folded:
        folded = self.replica.fold(effect)
        self._referee.folded(self.replica.weights)
        return folded

    def _captured(self, captured: Event) -> None:
        if self.up:
            self.feed(captured)

    def _install(self, effect: Install) -> Installed:
        installed = self.replica.install(effect)
        if installed.sound:
            self.disk.install(effect.ground, effect.pieces)
            self._referee.installed(installed, self.replica.weights)
        return installed

    def _audit(self, effect: Audit) -> Audited:
        return self.replica.audit(effect)


# Signatures that cost next to nothing: nobody in the simulation computes them in another's name. ---------------------


def signed(batch: Batch) -> Batch:
    """With its origin's signature."""
    return replace(batch, signature=_batch_signature(batch))


def retracted(origin: Origin, from_seq: int, authority: bytes) -> Retraction:
    """With its authority's signature."""
    unsigned = Retraction(origin, from_seq, authority, b"")
    return replace(unsigned, signature=_retraction_signature(unsigned))


def verify(value: Batch | Retraction) -> bool:
    """Implements seams.Verify."""
    if isinstance(value, Batch):
        return value.signature == _batch_signature(value)
    return value.signature == _retraction_signature(value)


def _batch_signature(batch: Batch) -> bytes:
    text = b"%b %d %d %b" % (batch.origin, batch.number, batch.round, batch.codes)
    return hashlib.sha256(text).digest()[:SIGNATURE_BYTES]


def _retraction_signature(retraction: Retraction) -> bytes:
    text = b"%b %d %b" % (retraction.origin, retraction.from_seq, retraction.authority)
    return hashlib.sha256(text).digest()[:SIGNATURE_BYTES]
