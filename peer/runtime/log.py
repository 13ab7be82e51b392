"""The records that this peer holds, on disk: all that a restart needs in the `seeds` exchange.

    FOLDER/records.log   a header (version, swarm, salt), then entries: marker, salt, length, checksum, a `Rumor` of
                         link.proto

Where a state was taken instead of old batches, the first entry is a `Stored`: it comes in one new file with all that
the log held beyond it.

Rules
* The file only grows, at its end. Our own batches are on the disk before anybody sees them, and so is all that an
  earlier life left. Those of others are not waited for: what a crash loses of them, the neighbours still have.
* Entries that we waited for, with what we signed, are marked, and on the disk is then all that stands before them. So a
  crash leaves at worst damage behind the last of them, which is cut off at the next start. Damage before one could hide
  a batch of our own, and whoever makes it again forks its feed: so that is refused, with a way out.
* What others made can hold any bytes, but not those that an entry of this log begins with: nobody else knows its salt.
* Of two batches of ours with one number the one that we were told of counts. We had forgotten it, and what we signed in
  its place was told to nobody: a batch is told only when the core took it, and it took the other one. So what of ours
  comes back is waited for as well: a crash that loses only that would leave the one that the core did not take.
* What stands before its predecessor, or behind a gap that is filled later, is taken in the order of its feed.
* Everything is checked again when it is read: form, checksum, signature.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf.message import DecodeError

from murmurate.peer.errors import LocalError, RemoteError
from murmurate.peer.protocol.events import Restored, Rumor
from murmurate.peer.protocol.records import Batch, Fork, Ground, Origin, Retraction, Ruling
from murmurate.proto import link_pb2 as pb

from .packing import pack_ground, pack_rumor, read_ground, read_rumor
from .store import reason_of, write_whole

LOG_FILE = "records.log"
VERSION = 2
TITLE = b"murmurate records\n"
SALT_BYTES = 8  # whoever fills 2^32 bytes of a log with guesses finds its entries' beginning once in 2^32 logs
PREFIX = struct.Struct(f"<{len(TITLE)}sI")  # what it is, version: of every version's header
HEADER = struct.Struct(f"<{len(TITLE)}sI32s{SALT_BYTES}sI")  # the same, swarm id, salt, checksum of all that
ENTRY = struct.Struct(f"<4s{SALT_BYTES}sII")  # marker, the log's salt, length, checksum (CRC-32) of the content
MARKER, WAITED, BACK = b"\xa7rec", b"\xa7own", b"\xa7bak"
"""One of them begins every entry, and behind it the salt, so that what follows a damaged one is found. `WAITED`: it was
on the disk before anything else was added, because we signed it or because it is part of a log that was written anew.
`BACK`: so was this, because others told us of batches of ours in it."""

WAY_OUT = (
    "remove it together with key.pem: this peer is then a new origin, and its neighbours give it all records that they "
    "have (an older copy of the log would fork our feed, which voids it)"
)

Verify = Callable[[Batch | Retraction], bool]


@dataclass(slots=True)
class _Content:
    """What the entries of a log say."""

    batches: dict[Origin, list[Batch]] = field(default_factory=dict[Origin, list[Batch]])
    rulings: dict[Ruling, None] = field(default_factory=dict[Ruling, None])
    ground: Ground | None = None
    pieces: tuple[bytes, ...] = ()
    floors: dict[Origin, int] = field(default_factory=dict[Origin, int])  # the first batches that are not in the state
    signed: set[tuple[Origin, int]] = field(default_factory=set[tuple[Origin, int]])  # by us, and told by nobody
    early: dict[tuple[Origin, int], Batch] = field(default_factory=dict[tuple[Origin, int], Batch])  # behind a gap

    def wants(self, batch: Batch, is_signed: bool) -> bool:
        """Whether `put` would take it."""
        key, feed = (batch.origin, batch.number), self.batches.get(batch.origin, [])
        place = batch.number - self.floors.get(batch.origin, 0)
        if place < 0:
            return False
        held = feed[place] if place < len(feed) else self.early.get(key)
        if held is None:
            return True
        is_other = (held.round, held.codes) != (batch.round, batch.codes)
        return is_other and not is_signed and key in self.signed

    def put(self, batch: Batch, is_signed: bool) -> None:
        """Take a batch that is wanted. What we signed behind one that was told instead of ours goes with ours."""
        feed = self.batches.setdefault(batch.origin, [])
        place = batch.number - self.floors.get(batch.origin, 0)
        del feed[place:]
        self.early[batch.origin, batch.number] = batch
        (self.signed.add if is_signed else self.signed.discard)((batch.origin, batch.number))
        self._go_on(batch.origin)

    def _go_on(self, origin: Origin) -> None:
        """Move what is not early any more."""
        feed, floor = self.batches[origin], self.floors.get(origin, 0)
        while (following := self.early.pop((origin, floor + len(feed)), None)) is not None:
            feed.append(following)

    def stand_on(self, ground: Ground, pieces: tuple[bytes, ...]) -> None:
        """Forget the batches below a cut. What is beyond it stays if nothing is missing between."""
        before, starts = self.batches, self.floors
        self.ground, self.pieces = ground, pieces
        self.floors = {state.origin: state.count for state in ground.cut}
        self.batches = {}
        for origin, feed in before.items():
            start, floor = starts.get(origin, 0), self.floors.get(origin, 0)
            if start <= floor:
                self.batches[origin] = feed[floor - start :]
                self._go_on(origin)

    def restored(self) -> Restored:
        """As the core is told."""
        batches = tuple(batch for feed in self.batches.values() for batch in feed)
        return Restored(batches, tuple(self.rulings), self.ground)


class Log:
    """The open log of one peer, whose folder is locked. One call at a time."""

    def __init__(self, folder: Path, swarm_id: bytes, verify: Verify) -> None:
        self.path = folder / LOG_FILE
        self._swarm_id = swarm_id
        self._verify = verify
        self._descriptor = -1
        self._pieces: tuple[bytes, ...] = ()
        self._salt = b""
        self._size = 0  # up to here the file is whole
        self._is_synced = True  # all of that is on the disk
        self.loss = ""  # what `open` had to cut off, in words; empty: nothing, or a torn end

    def open(self) -> Restored:
        """What the log holds, each feed in order, without a torn end. Raises LocalError."""
        if not self.path.exists():
            header = _header(self._swarm_id, os.urandom(SALT_BYTES))
            write_whole(self.path, lambda path: path.write_bytes(header))
        try:
            self._descriptor = os.open(self.path, os.O_RDWR)
            data = self.path.read_bytes()
        except OSError as error:
            raise LocalError(f"{self.path}: cannot be read: {error.strerror}") from None
        self._salt = _salt_of(data)
        if not self._salt or not data.startswith(_header(self._swarm_id, self._salt)):
            raise LocalError(self._explain_header(data))
        found, self._size = self._read(data)
        self._cut_torn_end(data)
        self._pieces = found.pieces
        return found.restored()

    def take_pieces(self) -> tuple[bytes, ...]:
        """Of the state that the log began with when it was opened; given away once, because they may be large."""
        pieces, self._pieces = self._pieces, ()
        return pieces

    def _read(self, data: bytes) -> tuple[_Content, int]:
        """All entries up to the first that is not whole, and where that is. Raises LocalError."""
        found, place = _Content(), HEADER.size
        while (content := self._entry_at(data, place)) is not None:
            try:
                if place == HEADER.size:
                    self._take_stored(content, found)
                self._take(content, found, is_signed=data.startswith(WAITED, place))
            except (DecodeError, RemoteError) as error:
                raise LocalError(self._explain_damage(data, place, str(error))) from None
            place += ENTRY.size + len(content)
        return found, place

    def install(self, ground: Ground, pieces: tuple[bytes, ...]) -> None:
        """Put a state in place of the batches that it contains. Raises LocalError: then nothing was changed."""
        try:
            data = self.path.read_bytes()[: self._size]  # beyond it there is at most what could not be added
        except OSError as error:
            raise LocalError(f"{self.path}: cannot be read: {reason_of(error)}") from None
        found, place = self._read(data)
        if place < self._size:
            raise LocalError(
                f"{self.path}: damaged at byte {place} of {self._size} while we ran: nothing is written in its place; "
                "the next start says what can be saved"
            )
        found.stand_on(ground, pieces)
        restored = found.restored()
        stored = pb.Stored(ground=pack_ground(ground), pieces=pieces)
        rumors = pack_rumor(Rumor(restored.batches, restored.rulings))
        entries = [self._entry(message.SerializeToString(), WAITED) for message in (stored, *rumors)]
        data = b"".join((_header(self._swarm_id, self._salt), *entries))
        write_whole(self.path, lambda path: path.write_bytes(data))
        self.close()
        try:
            self._descriptor = os.open(self.path, os.O_RDWR)
        except OSError as error:
            raise LocalError(f"{self.path}: cannot be opened: {reason_of(error)}") from None
        self._size, self._is_synced = len(data), True

    def append(
        self, batches: Sequence[Batch], rulings: Sequence[Ruling] = (), sync: bool = False, told: bool = False
    ) -> None:
        """Add to the end. Raises LocalError: then nothing was added. `sync`: some of it is ours; returns when no crash
        can lose it. `told`: others told us of it, else we signed it now.
        """
        assert self._descriptor >= 0
        marker = MARKER if not sync else BACK if told else WAITED
        contents = [message.SerializeToString() for message in pack_rumor(Rumor(tuple(batches), tuple(rulings)))]
        size = self._size
        try:
            for content in contents:
                if sync and not self._is_synced:
                    os.fsync(self._descriptor)  # or a crash could leave a marked entry behind damage
                size += self._write(self._entry(content, marker), size)
                self._is_synced = False
            if sync:
                os.fsync(self._descriptor)
                self._is_synced = True
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._descriptor, self._size)
            raise LocalError(f"{self.path}: could not be written: {reason_of(error)}") from error
        self._size = size

    def _write(self, data: bytes, place: int) -> int:
        """Returns how many bytes, which are all."""
        view = memoryview(data)
        while view:
            view = view[os.pwrite(self._descriptor, view, place + len(data) - len(view)) :]
        return len(data)

    def close(self) -> None:
        """Nothing is added any more."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _take_stored(self, content: bytes, found: _Content) -> None:
        """Believe the state that the first entry may be. Raises DecodeError or RemoteError."""
        stored = pb.Stored.FromString(content)
        if not stored.HasField("ground"):
            return
        ground = read_ground(stored.ground)
        for birth in ground.births:
            self._check(birth)
        self._check_rulings(ground.rulings)
        found.stand_on(ground, tuple(stored.pieces))

    def _take(self, content: bytes, found: _Content, is_signed: bool) -> None:
        """Believe one entry. Raises DecodeError or RemoteError."""
        rumor = read_rumor(pb.Rumor.FromString(content))
        for batch in rumor.batches:
            # A disk that was full for a while leaves a gap, and what was heard again comes twice: both are no damage.
            if found.wants(batch, is_signed):
                self._check(batch)
                found.put(batch, is_signed)
        self._check_rulings(rumor.rulings)
        found.rulings.update(dict.fromkeys(rumor.rulings))

    def _check_rulings(self, rulings: Sequence[Ruling]) -> None:
        for ruling in rulings:
            for signed in (ruling.one, ruling.other) if isinstance(ruling, Fork) else (ruling,):
                self._check(signed)

    def _check(self, signed: Batch | Retraction) -> None:
        if not self._verify(signed):
            raise RemoteError("a signature is wrong")

    def _cut_torn_end(self, data: bytes) -> None:
        """Raises LocalError when we had waited for what is damaged, or for something behind it."""
        is_ours = self._stands_behind(data, WAITED) or self._stands_behind(data, BACK)
        is_damage = is_ours or self._stands_behind(data, MARKER)  # else a torn end, which is no damage
        if is_ours or (is_damage and data.startswith((WAITED, BACK), self._size)):
            raise LocalError(self._explain_damage(data, self._size, "an entry cannot be read"))
        if is_damage:
            self.loss = (
                f"{self.path}: damaged at byte {self._size} of {len(data)}, where most likely only what others made "
                "was not safe yet: cut off there; the neighbours still have these records, and our own if any are "
                "among them: start it where they can be reached"
            )
        try:
            if self._size < len(data):
                os.ftruncate(self._descriptor, self._size)
            # Who was killed left the rest to the system; from now on it is told, so no crash may lose it any more.
            os.fsync(self._descriptor)
        except OSError as error:
            raise LocalError(f"{self.path}: could not be written: {reason_of(error)}") from error
        self._is_synced = True

    def _stands_behind(self, data: bytes, marker: bytes) -> bool:
        """Whether a whole entry follows behind what is not whole."""
        beginning = marker + self._salt
        place = data.find(beginning, self._size + 1)
        while place >= 0 and self._entry_at(data, place) is None:
            place = data.find(beginning, place + 1)
        return place >= 0

    def _entry(self, content: bytes, marker: bytes) -> bytes:
        return ENTRY.pack(marker, self._salt, len(content), zlib.crc32(content)) + content

    def _entry_at(self, data: bytes, place: int) -> bytes | None:
        """The content of the entry that begins at `place`; None when there is no whole one."""
        start = place + ENTRY.size
        if len(data) < start:
            return None
        marker, salt, size, checksum = ENTRY.unpack_from(data, place)
        if marker not in (MARKER, WAITED, BACK) or salt != self._salt or len(data) < start + size:
            return None
        content = data[start : start + size]
        return content if zlib.crc32(content) == checksum else None

    def _explain_damage(self, data: bytes, place: int, why: str) -> str:
        return f"{self.path}: damaged at byte {place} of {len(data)}: {why}; {WAY_OUT}"

    def _explain_header(self, data: bytes) -> str:
        if len(data) >= PREFIX.size and data.startswith(TITLE):
            _, version = PREFIX.unpack_from(data)
            if version != VERSION:
                return f"{self.path}: written by another version of murmurate: format {version}, ours is {VERSION}"
        if not self._salt:
            return f"{self.path}: damaged, or no log of records; {WAY_OUT}"
        swarm_id = HEADER.unpack_from(data)[2]
        return f"{self.path}: belongs to swarm {swarm_id.hex()[:12]}; choose another state_dir or remove the folder"


def _header(swarm_id: bytes, salt: bytes) -> bytes:
    content = HEADER.pack(TITLE, VERSION, swarm_id, salt, 0)[:-4]
    return content + zlib.crc32(content).to_bytes(4, "little")


def _salt_of(data: bytes) -> bytes:
    """Of a log with a whole header of our version; else none."""
    if len(data) < HEADER.size:
        return b""
    title, version, swarm_id, salt, _ = HEADER.unpack_from(data)
    is_whole = (title, version) == (TITLE, VERSION) and data.startswith(_header(swarm_id, salt))
    return salt if is_whole else b""
