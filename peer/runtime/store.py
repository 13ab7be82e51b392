"""One peer's folder on disk: who it is, how often it was started, its newest snapshot.

    FOLDER/lock                   held while a daemon runs: two daemons never share a folder
    FOLDER/peer.json              {"peer", "swarm", "incarnation"}
    FOLDER/snapshot.safetensors   everything a restart needs, written by the trainer
    FOLDER/key.pem, records.log   the same for the `seeds` exchange, which has no snapshot: identity.py, log.py
    FOLDER/control.sock           the local control service

Every file is written to a temporary name, synced, then renamed over the old one: whoever dies at any instant leaves
either the old file whole or the new file whole.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

from murmurate.peer.errors import ConfigError, LocalError
from murmurate.peer.protocol.seams import Write


def write_whole(path: Path, write: Write) -> None:
    """Replace `path` by what `write` writes, or leave it as it was and raise LocalError."""
    temporary = path.parent / f".{path.name}.{os.getpid()}.new"
    try:
        write(temporary)
        _sync(temporary)
        temporary.replace(path)
    except Exception as error:  # `write` is the trainer's, and may fail in any way
        with suppress(OSError):
            temporary.unlink()
        kept = " (the file from before is kept)" if os.path.exists(path) else ""
        raise LocalError(f"{path}: could not be written: {reason_of(error)}{kept}") from error
    try:
        _sync(path.parent)
    except OSError as error:
        raise LocalError(f"{path}: is written, but may not survive a power cut: {reason_of(error)}") from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def reason_of(error: Exception) -> str:
    """Why a file could not be written, for people."""
    # safetensors wraps the operating system's error in its own and keeps only the text.
    if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
        return "no space left on the disk"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror  # without the temporary file's name
    return f"{type(error).__name__}: {error}"


class Store:
    """The folder of one peer, locked while open."""

    def __init__(self, folder: Path, peer: str, swarm: str, clock: Callable[[], float] = time.time) -> None:
        self.folder = folder
        self.incarnation = 0
        self._peer = peer
        self._swarm = swarm
        self._clock = clock
        self._lock: IO[bytes] | None = None

    @property
    def snapshot(self) -> Path:
        """Where the newest snapshot is, if there is one."""
        return self.folder / "snapshot.safetensors"

    def open(self) -> None:
        """Lock the folder and count this start. Raises LocalError (in use, not writable), ConfigError (foreign)."""
        try:
            self._take()
        except BaseException:
            self.close()
            raise

    def _take(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / "lock").open("wb")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for leftover in self.folder.glob(".*.new"):
                leftover.unlink()
        except BlockingIOError:
            raise LocalError(f"{self.folder}: in use by another daemon; stop it or choose another state_dir") from None
        except OSError as error:
            raise LocalError(f"{self.folder}: cannot be used as state_dir: {error.strerror}") from None
        identity = self.folder / "peer.json"
        if identity.exists():
            self.incarnation = self._check(identity)
        # A folder that was wiped must not be taken for an earlier life of this peer: start from the clock, then count.
        self.incarnation = max(self.incarnation + 1, int(self._clock()))
        record = {"peer": self._peer, "swarm": self._swarm, "incarnation": self.incarnation}
        write_whole(identity, lambda path: path.write_text(json.dumps(record) + "\n", encoding="utf-8"))

    def _check(self, identity: Path) -> int:
        try:
            record = json.loads(identity.read_text(encoding="utf-8"))
            peer, swarm, incarnation = str(record["peer"]), str(record["swarm"]), int(record["incarnation"])
        except OSError as error:
            raise LocalError(f"{identity}: cannot be read: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, ArithmeticError, RecursionError):
            raise LocalError(f"{identity}: damaged; remove the folder to start anew") from None
        if peer != self._peer:
            raise ConfigError(f"{self.folder}: belongs to peer {peer!r}; choose another state_dir for {self._peer!r}")
        if swarm != self._swarm:
            keep = f" (to go on from its model, set task.weights to {self.snapshot})" if self.snapshot.exists() else ""
            raise ConfigError(
                f"{self.folder}: belongs to swarm {swarm[:12]}, this configuration is swarm {self._swarm[:12]}; "
                f"choose another state_dir or remove the folder{keep}"
            )
        return incarnation

    def save(self, write: Write) -> None:
        """Replace the snapshot. Raises LocalError; the old one is then untouched."""
        write_whole(self.snapshot, write)

    def close(self) -> None:
        """Release the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None
