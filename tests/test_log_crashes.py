"""The log of records when the power is cut at any moment, and when a state is put in its place."""

from __future__ import annotations

import os
from itertools import product
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from murmurate.peer.errors import LocalError
from murmurate.peer.protocol.events import Restored
from murmurate.peer.protocol.records import Batch, FeedState, Ground
from murmurate.peer.runtime import log as log_module
from murmurate.peer.runtime.identity import Identity, Verifier
from murmurate.peer.runtime.log import MARKER, WAITED, Log

SWARM = b"5" * 32
A, B = (Identity(Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32), SWARM) for n in range(2))


def feed(who: Identity, count: int, codes: bytes = b"codes") -> list[Batch]:
    return [who.sign_batch(Batch(who.origin, number, number, codes, b"")) for number in range(count)]


OURS, THEIRS = feed(A, 6), feed(B, 6)


def opened(folder: Path) -> Log:
    log = Log(folder, SWARM, Verifier(SWARM))
    log.open()
    return log


def held(folder: Path) -> Restored:
    log = Log(folder, SWARM, Verifier(SWARM))
    try:
        return log.open()
    finally:
        log.close()


# Power cuts ---------------------------------------------------------------------------------------------


class Disk:
    """What was written since the log was opened, and what was asked to be safe."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.base = path.read_bytes()
        self.steps: list[tuple[int, bytes] | None] = []  # None: all before is safe
        write, sync = os.pwrite, os.fsync

        def writing(descriptor: int, data: memoryview, place: int) -> int:
            self.steps.append((place, bytes(data)))
            return write(descriptor, data, place)

        def syncing(descriptor: int) -> None:
            self.steps.append(None)
            sync(descriptor)

        monkeypatch.setattr(os, "pwrite", writing)
        monkeypatch.setattr(os, "fsync", syncing)

    def after_a_cut(self, end: int) -> list[bytes]:
        """What the file may be when the power is cut after so many steps: of what is not safe any part is lost."""
        safe = max((at + 1 for at, step in enumerate(self.steps[:end]) if step is None), default=0)
        writes = [step for step in self.steps[:end] if step is not None]
        unsafe = sum(step is not None for step in self.steps[safe:end])
        found: list[bytes] = []
        for is_kept in product((True, False), repeat=unsafe):
            image = bytearray(self.base)
            for (place, data), kept in zip(writes, [True] * (len(writes) - unsafe) + list(is_kept), strict=True):
                image[len(image) :] = bytes(max(0, place + len(data) - len(image)))
                if kept:
                    image[place : place + len(data)] = data
            found.append(bytes(image))
        return found


def test_no_power_cut_ends_a_log_or_loses_what_was_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("murmurate.peer.runtime.packing.RUMOR_BYTES", 100)  # several entries in one addition
    log = opened(tmp_path)
    safe_at: list[tuple[int, set[Batch]]] = []
    with monkeypatch.context() as patch:
        disk = Disk(log.path, patch)
        ours: set[Batch] = set()
        for batches, sync, told in (
            (OURS[:1], True, False),
            (THEIRS[:1], False, False),
            (THEIRS[1:3], False, False),
            (OURS[1:2], True, False),
            (THEIRS[3:4], False, False),
            ([*THEIRS[4:5], *OURS[2:5], *THEIRS[5:]], True, True),
            (OURS[5:], True, False),
        ):
            log.append(batches, sync=sync, told=told)
            if sync:
                ours |= {batch for batch in batches if batch.origin == A.origin}
                safe_at.append((len(disk.steps), set(ours)))
    log.close()
    assert len(disk.steps) > 15
    for end in range(len(disk.steps) + 1):
        safe: set[Batch] = next((ours for at, ours in reversed(safe_at) if at <= end), set())
        for image in disk.after_a_cut(end):
            log.path.write_bytes(image)
            assert safe <= set(held(tmp_path).batches)
    assert set(held(tmp_path).batches) == {*OURS, *THEIRS}


# A state in its place -----------------------------------------------------------------------------------


GROUND = Ground((FeedState(A.origin, 3, b"h" * 16),), (2,), (OURS[0],), ())


def test_a_state_takes_no_damaged_logs_place(tmp_path: Path) -> None:
    """What is behind the damage would be gone, our own batches among it."""
    log = opened(tmp_path)
    log.append(OURS[:4], sync=True)
    log.append(THEIRS[:1])
    log.append(OURS[4:5], sync=True)
    whole = log.path.read_bytes()
    damaged = bytearray(whole)
    place = whole.index(MARKER)
    damaged[place + 30] ^= 1
    log.path.write_bytes(damaged)
    with pytest.raises(LocalError, match=f"damaged at byte {place} of {len(whole)} while we ran"):
        log.install(GROUND, (b"state",))
    assert log.path.read_bytes() == damaged
    log.append(OURS[5:], sync=True)  # it goes on at its end
    assert log.path.read_bytes()[: len(whole)] == damaged
    assert len(log.path.read_bytes()) > len(whole)
    log.path.write_bytes(whole[:-1])
    with pytest.raises(LocalError, match=f"damaged at byte {whole.rindex(WAITED)} of "):
        log.install(GROUND, (b"state",))
    log.close()


def test_a_state_that_cannot_be_written_leaves_the_log_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(path: Path, _: object) -> None:
        raise LocalError(f"{path}: no")

    log = opened(tmp_path)
    log.append(OURS[:4], sync=True)
    with monkeypatch.context() as patch:
        patch.setattr(log_module, "write_whole", failing)
        with pytest.raises(LocalError):
            log.install(GROUND, (b"state",))
    log.append(OURS[4:5], sync=True)
    log.close()
    assert held(tmp_path) == Restored(tuple(OURS[:5]), ())


def test_what_could_not_be_added_does_not_keep_a_state_away(tmp_path: Path) -> None:
    log = opened(tmp_path)
    log.append(OURS[:4], sync=True)
    with log.path.open("ab") as file:
        file.write(b"as a full disk leaves it where nothing can be cut off")
    log.install(GROUND, (b"state",))
    log.append(OURS[4:5], sync=True)
    log.close()
    assert held(tmp_path) == Restored(tuple(OURS[3:5]), (), GROUND)
