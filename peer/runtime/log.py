"""The records that this peer holds, on disk: all that a restart needs in the `seeds` exchange.

    FOLDER/records.log   a header (version, swarm), then entries: marker, length, checksum, a `Rumor` of link.proto

Rules
* The file only grows, at its end. Our own batches are on the disk before anybody sees them; those of others are not
  waited for: what a crash loses of them, the neighbours still have.
* A crash leaves at worst a torn end, which is cut off at the next start. Damage anywhere else could hide a batch of our
  own, and whoever makes it again forks its feed: so that is refused, with a way out.
* Everything is checked again when it is read: form, checksum, signature.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from google.protobuf.message import DecodeError

from murmurate.peer.errors import LocalError, RemoteError
from murmurate.peer.protocol.events import Restored, Rumor
from murmurate.peer.protocol.records import Batch, Fork, Origin, Retraction, Ruling
from murmurate.proto import link_pb2 as pb

from .packing import pack_rumor, read_rumor
from .store import reason_of, write_whole

LOG_FILE = "records.log"
VERSION = 1
TITLE = b"murmurate records\n"
HEADER = struct.Struct(f"<{len(TITLE)}sI32s")  # what it is, version, swarm id
ENTRY = struct.Struct("<4sII")  # marker, length, checksum (CRC-32) of the content
MARKER = b"\xa7rec"
"""Begins every entry, so that what follows a damaged one is found."""

WAY_OUT = (
    "remove it together with key.pem: this peer is then a new origin, and its neighbours give it all records that they "
    "have (an older copy of the log would fork our feed, which voids it)"
)

Verify = Callable[[Batch | Retraction], bool]


class Log:
    """The open log of one peer, whose folder is locked. One call at a time."""

    def __init__(self, folder: Path, swarm_id: bytes, verify: Verify) -> None:
        self.path = folder / LOG_FILE
        self._swarm_id = swarm_id
        self._verify = verify
        self._descriptor = -1
        self._size = 0  # up to here the file is whole

    def open(self) -> Restored:
        """What the log holds, each feed in order, without a torn end. Raises LocalError."""
        header = HEADER.pack(TITLE, VERSION, self._swarm_id)
        if not self.path.exists():
            write_whole(self.path, lambda path: path.write_bytes(header))
        try:
            self._descriptor = os.open(self.path, os.O_RDWR)
            data = self.path.read_bytes()
        except OSError as error:
            raise LocalError(f"{self.path}: cannot be read: {error.strerror}") from None
        if data[: HEADER.size] != header:
            raise LocalError(self._explain_header(data))
        batches: dict[Origin, list[Batch]] = {}
        rulings: dict[Ruling, None] = {}
        self._size = HEADER.size
        while (content := _entry_at(data, self._size)) is not None:
            try:
                self._take(content, batches, rulings)
            except (DecodeError, RemoteError) as error:
                raise LocalError(self._explain_damage(data, str(error))) from None
            self._size += ENTRY.size + len(content)
        self._cut_torn_end(data)
        return Restored(tuple(batch for feed in batches.values() for batch in feed), tuple(rulings))

    def append(self, batches: Sequence[Batch], rulings: Sequence[Ruling] = (), sync: bool = False) -> None:
        """Add to the end; with `sync`, returns when no crash can lose it. Raises LocalError: then nothing was added."""
        assert self._descriptor >= 0
        contents = [message.SerializeToString() for message in pack_rumor(Rumor(tuple(batches), tuple(rulings)))]
        data = b"".join(ENTRY.pack(MARKER, len(entry), zlib.crc32(entry)) + entry for entry in contents)
        try:
            view = memoryview(data)
            while view:
                written = os.pwrite(self._descriptor, view, self._size + len(data) - len(view))
                view = view[written:]
            if sync:
                os.fsync(self._descriptor)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._descriptor, self._size)
            raise LocalError(f"{self.path}: could not be written: {reason_of(error)}") from error
        self._size += len(data)

    def sync(self) -> None:
        """Returns when no crash can lose what was added. Raises LocalError."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise LocalError(f"{self.path}: could not be written: {reason_of(error)}") from error

    def close(self) -> None:
        """Nothing is added any more."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _take(self, content: bytes, batches: dict[Origin, list[Batch]], rulings: dict[Ruling, None]) -> None:
        """Believe one entry. Raises DecodeError or RemoteError."""
        rumor = read_rumor(pb.Rumor.FromString(content))
        for batch in rumor.batches:
            feed = batches.setdefault(batch.origin, [])
            # A disk that was full for a while leaves a gap, and what was heard again comes twice: both are no damage.
            if batch.number == len(feed):
                self._check(batch)
                feed.append(batch)
        for ruling in rumor.rulings:
            for signed in (ruling.one, ruling.other) if isinstance(ruling, Fork) else (ruling,):
                self._check(signed)
            rulings[ruling] = None

    def _check(self, signed: Batch | Retraction) -> None:
        if not self._verify(signed):
            raise RemoteError("a signature is wrong")

    def _cut_torn_end(self, data: bytes) -> None:
        """Raises LocalError when what follows is no torn end, because an entry stands behind it."""
        place = data.find(MARKER, self._size + 1)
        while place >= 0:
            if _entry_at(data, place) is not None:
                raise LocalError(self._explain_damage(data, "an entry cannot be read"))
            place = data.find(MARKER, place + 1)
        if self._size < len(data):
            try:
                os.ftruncate(self._descriptor, self._size)
            except OSError as error:
                raise LocalError(f"{self.path}: could not be written: {reason_of(error)}") from error

    def _explain_damage(self, data: bytes, why: str) -> str:
        return f"{self.path}: damaged at byte {self._size} of {len(data)}: {why}; {WAY_OUT}"

    def _explain_header(self, data: bytes) -> str:
        if len(data) < HEADER.size or not data.startswith(TITLE):
            return f"{self.path}: damaged, or no log of records; {WAY_OUT}"
        _, version, swarm_id = HEADER.unpack_from(data)
        if version != VERSION:
            return f"{self.path}: written by another version of murmurate: format {version}, ours is {VERSION}"
        return f"{self.path}: belongs to swarm {swarm_id.hex()[:12]}; choose another state_dir or remove the folder"


def _entry_at(data: bytes, place: int) -> bytes | None:
    """The content of the entry that begins at `place`; None when there is no whole one."""
    if len(data) < place + ENTRY.size:
        return None
    marker, size, checksum = ENTRY.unpack_from(data, place)
    content = data[place + ENTRY.size : place + ENTRY.size + size]
    return content if marker == MARKER and len(content) == size and zlib.crc32(content) == checksum else None
