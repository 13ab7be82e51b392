"""The log of records: what was added is there again, a torn end is cut off, and any other damage is refused."""

from __future__ import annotations

import errno
import os
import random
import resource
import zlib
from collections.abc import Sequence
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from murmurate.peer.errors import LocalError
from murmurate.peer.protocol.events import Restored
from murmurate.peer.protocol.records import Batch, Fork, Retraction, Ruling
from murmurate.peer.runtime.identity import Identity, Verifier
from murmurate.peer.runtime.log import BACK, ENTRY, HEADER, MARKER, SALT_BYTES, WAITED, Log

SWARM = b"5" * 32
A, B = (Identity(Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32), SWARM) for n in range(2))


def batch(number: int, who: Identity = A, codes: bytes = b"codes") -> Batch:
    return who.sign_batch(Batch(who.origin, number, number, codes, b""))


FEED = [batch(number) for number in range(4)]
FORK = Fork(FEED[2], batch(2, codes=b"other"))
RETRACTION = B.sign_retraction(A.origin, 7)


def log(folder: Path, swarm: bytes = SWARM) -> Log:
    return Log(folder, swarm, Verifier(SWARM))


def held(folder: Path) -> Restored:
    """What the log in `folder` holds."""
    opened = log(folder)
    try:
        return opened.open()
    finally:
        opened.close()


def write(folder: Path, *entries: Sequence[Batch], rulings: Sequence[Ruling] = (), sync: bool = False) -> Path:
    """A log of entries, and its path. `sync`: as if we had signed them now."""
    opened = log(folder)
    opened.open()
    for entry in entries:
        opened.append(entry, sync=sync)
    if rulings:
        opened.append((), rulings)
    opened.close()
    return opened.path


def complaint(folder: Path, swarm: bytes = SWARM) -> str:
    opened = log(folder, swarm)
    with pytest.raises(LocalError) as raised:
        opened.open()
    opened.close()
    return str(raised.value)


# What was added is there again --------------------------------------------------------------------------


def test_a_new_log_holds_nothing(tmp_path: Path) -> None:
    assert held(tmp_path) == held(tmp_path) == Restored((), ())


def test_feeds_come_back_in_order_and_rulings_once(tmp_path: Path) -> None:
    others = [batch(number, B) for number in range(2)]
    write(tmp_path, FEED[:1], others[:1], FEED[1:3], others[1:], rulings=[FORK, RETRACTION])
    write(tmp_path, FEED[3:], rulings=[RETRACTION])
    assert held(tmp_path) == Restored((*FEED, *others), (FORK, RETRACTION))


def test_what_comes_twice_or_after_a_gap_is_left_out(tmp_path: Path) -> None:
    """A disk that was full for a while: the neighbours have the rest."""
    write(tmp_path, FEED[:2], FEED[3:], FEED[1:2], FEED[:1])
    assert held(tmp_path).batches == tuple(FEED[:2])


def test_a_gap_that_is_filled_later_is_none(tmp_path: Path) -> None:
    """What we signed may stand before what we were told first."""
    write(tmp_path, FEED[:1])
    write(tmp_path, FEED[3:], sync=True)
    write(tmp_path, FEED[2:3], FEED[1:2])
    assert held(tmp_path).batches == tuple(FEED)


def test_of_ours_the_told_one_counts(tmp_path: Path) -> None:
    """We had forgotten number 2, signed another one, and were told of ours before we told anybody."""
    write(tmp_path, FEED[:2], sync=True)
    other = batch(2, codes=b"other")
    write(tmp_path, [other], [batch(3, codes=b"behind")], sync=True)
    write(tmp_path, FEED[2:3])
    assert held(tmp_path).batches == tuple(FEED[:3])
    write(tmp_path, [other], sync=True)  # the other way round the first one counts as well
    assert held(tmp_path).batches == tuple(FEED[:3])
    write(tmp_path, [FEED[1]], FEED[3:])
    write(tmp_path, [batch(4)], sync=True)
    assert held(tmp_path).batches == (*FEED, batch(4))


def test_of_ours_the_told_one_counts_also_if_it_was_waited_for(tmp_path: Path) -> None:
    other = batch(2, codes=b"other")
    path = write(tmp_path, FEED[:2], [other], sync=True)
    opened = log(tmp_path)
    opened.open()
    opened.append(FEED[2:3], sync=True, told=True)
    opened.close()
    assert held(tmp_path).batches == tuple(FEED[:3])
    assert path.read_bytes().count(BACK) == 1
    write(tmp_path, FEED[3:])  # so what came back is no torn end any more
    damaged = bytearray(path.read_bytes())
    damaged[damaged.rindex(BACK) + ENTRY.size] ^= 1
    path.write_bytes(damaged)
    assert "an entry cannot be read; remove" in complaint(tmp_path)


def test_of_two_that_were_told_the_first_counts(tmp_path: Path) -> None:
    write(tmp_path, FEED[:3], [batch(2, codes=b"other")], FEED[3:])
    assert held(tmp_path).batches == tuple(FEED)


def test_a_long_addition_is_several_entries(tmp_path: Path) -> None:
    feed = [batch(number, codes=bytes(1000)) for number in range(500)]
    write(tmp_path, feed)
    assert held(tmp_path).batches == tuple(feed)


def test_only_what_must_not_be_lost_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = log(tmp_path)
    opened.open()
    sync, synced = os.fsync, list[int]()

    def noting(descriptor: int) -> None:
        synced.append(opened.path.stat().st_size)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", noting)
    opened.append(FEED[:1])
    assert synced == []
    first = opened.path.stat().st_size
    opened.append(FEED[1:2], sync=True)
    second = opened.path.stat().st_size
    assert synced == [first, second]  # what stands before it, and then it
    opened.append(FEED[2:3], sync=True, told=True)
    assert synced == [first, second, opened.path.stat().st_size]
    opened.close()


def test_what_an_earlier_life_left_to_the_system_is_synced_before_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, FEED[:2])
    whole = path.read_bytes()
    path.write_bytes(whole + b"torn")
    sync, synced = os.fsync, list[tuple[bool, int]]()

    def noting(descriptor: int) -> None:
        synced.append((os.path.sameopenfile(descriptor, ours), path.stat().st_size))
        sync(descriptor)

    ours = os.open(path, os.O_RDONLY)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", noting)
        assert held(tmp_path).batches == tuple(FEED[:2])
    assert synced == [(True, len(whole))]
    os.close(ours)
    monkeypatch.setattr(os, "fsync", full)
    assert complaint(tmp_path) == f"{path}: could not be written: no space left on the disk"


# Torn ends ----------------------------------------------------------------------------------------------


def test_wherever_the_end_is_torn_the_rest_is_there_and_can_grow(tmp_path: Path) -> None:
    path = write(tmp_path, *([item] for item in FEED[:3]))
    whole = path.read_bytes()
    two = whole.rindex(MARKER)
    for size in range(two, len(whole)):
        path.write_bytes(whole[:size])
        assert held(tmp_path).batches == tuple(FEED[:2])
        assert path.stat().st_size == two
    write(tmp_path, FEED[2:])
    assert held(tmp_path).batches == tuple(FEED)


@pytest.mark.parametrize("tail", [bytes(100), b"\xa7rec", b"\xa7rec" * 50, b"\xff" * 5000])
def test_a_power_cut_may_leave_anything_at_the_end(tmp_path: Path, tail: bytes) -> None:
    path = write(tmp_path, FEED)
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    assert held(tmp_path).batches == tuple(FEED)
    assert path.read_bytes() == whole


def claims(salt: bytes, size: int) -> bytes:
    """What looks like the beginnings of entries of ours, as others may put into their codes."""
    beginnings = b"".join(ENTRY.pack(marker, salt, size, 0) for marker in (WAITED, BACK, MARKER))
    return beginnings + WAITED + bytes(8) + salt


def test_others_codes_are_never_taken_for_entries_of_ours(tmp_path: Path) -> None:
    theirs = Batch(B.origin, 0, 0, b"".join(claims(bytes([guess]) * SALT_BYTES, 0) for guess in range(256)), b"")
    path = write(tmp_path, FEED[:2], sync=True)
    before = path.read_bytes()
    write(tmp_path, [B.sign_batch(theirs)])
    assert claims(bytes(SALT_BYTES), 0) in path.read_bytes()
    path.write_bytes(path.read_bytes()[:-1])
    opened = log(tmp_path)
    assert opened.open().batches == tuple(FEED[:2])
    assert opened.loss == ""
    opened.close()
    assert path.read_bytes() == before


def test_many_claims_cost_no_more_than_reading_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, FEED[:2])
    path.write_bytes(path.read_bytes() + claims(bytes(SALT_BYTES), 10_000) * 1000)
    checksum, checked = zlib.crc32, 0

    def counting(data: bytes) -> int:
        nonlocal checked
        checked += len(data)
        return checksum(data)

    monkeypatch.setattr(zlib, "crc32", counting)
    size = path.stat().st_size
    assert held(tmp_path).batches == tuple(FEED[:2])
    assert checked < size


def test_every_log_has_its_own_salt(tmp_path: Path) -> None:
    salts: set[bytes] = set()
    for name in "abc":
        (tmp_path / name).mkdir()
        salts.add(HEADER.unpack_from(write(tmp_path / name, FEED).read_bytes())[3])
    assert len(salts) == 3


# Damage -------------------------------------------------------------------------------------------------


def test_any_damage_before_the_last_entry_of_ours_is_refused_with_a_way_out(tmp_path: Path) -> None:
    path = write(tmp_path, *([item] for item in FEED), sync=True)
    whole = path.read_bytes()
    last = whole.rindex(WAITED)
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 + place % 255
        path.write_bytes(damaged)
        if place >= last:  # as if it were torn
            assert held(tmp_path).batches == tuple(FEED[:3])
        else:
            why = complaint(tmp_path)
            assert why.startswith(f"{path}: ")
            assert "remove" in why or "version" in why
            assert path.read_bytes() == damaged


def test_damage_behind_what_is_ours_is_cut_off(tmp_path: Path) -> None:
    """A power cut takes pages in any order of what was not waited for."""
    others = [batch(number, B) for number in range(3)]
    write(tmp_path, FEED[:2], sync=True)
    path = write(tmp_path, *([item] for item in others))
    whole = path.read_bytes()
    start, second = whole.index(MARKER), whole.index(MARKER, whole.index(MARKER) + 1)
    for place in range(start, second):
        damaged = bytearray(whole)
        damaged[place] ^= 1 + place % 255
        path.write_bytes(damaged)
        opened = log(tmp_path)
        assert opened.open().batches == tuple(FEED[:2])
        assert opened.loss.startswith(f"{path}: damaged at byte {start} of {len(whole)}, ")
        assert "and our own if any are among them" in opened.loss
        opened.append(others[:1])
        opened.close()
        assert held(tmp_path).batches == (*FEED[:2], others[0])
    damaged = bytearray(whole)
    damaged[start - 1] ^= 1  # our own last one, and more was written since
    path.write_bytes(damaged)
    assert "an entry cannot be read; remove" in complaint(tmp_path)
    path.write_bytes(whole)
    write(tmp_path, FEED[2:3], sync=True)
    damaged = bytearray(path.read_bytes())
    damaged[start + 20] ^= 1
    path.write_bytes(damaged)
    assert "an entry cannot be read; remove" in complaint(tmp_path)


def test_ours_whose_mark_is_damaged_may_be_among_what_is_cut_off(tmp_path: Path) -> None:
    write(tmp_path, FEED[:1], FEED[1:2], sync=True)
    path = write(tmp_path, [batch(0, B)])
    damaged = bytearray(path.read_bytes())
    damaged[damaged.rindex(WAITED)] ^= 1
    path.write_bytes(damaged)
    opened = log(tmp_path)
    assert opened.open().batches == tuple(FEED[:1])
    opened.close()
    assert "and our own if any are among them" in opened.loss


def test_a_torn_end_is_no_loss_to_speak_of(tmp_path: Path) -> None:
    path = write(tmp_path, FEED)
    path.write_bytes(path.read_bytes()[:-1])
    opened = log(tmp_path)
    opened.open()
    opened.close()
    assert opened.loss == ""


def test_what_was_not_signed_so_is_refused(tmp_path: Path) -> None:
    forged = Batch(A.origin, 1, 1, b"codes", bytes(64))
    path = write(tmp_path, FEED[:1], [forged])
    assert f"{path}: damaged at byte" in complaint(tmp_path)
    assert "a signature is wrong" in complaint(tmp_path)
    for name, ruling in (
        ("retraction", Retraction(A.origin, 1, B.origin, bytes(64))),
        ("fork", Fork(FEED[1], forged)),
    ):
        (tmp_path / name).mkdir()
        write(tmp_path / name, rulings=[ruling])
        assert "a signature is wrong" in complaint(tmp_path / name)


@pytest.mark.parametrize("content", [b"\xff\xff", b"\x0a\x02\x0a\x00"])
def test_what_is_no_rumor_is_refused(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path)
    header = path.read_bytes()
    salt = HEADER.unpack_from(header)[3]
    path.write_bytes(header + ENTRY.pack(MARKER, salt, len(content), zlib.crc32(content)) + content)
    assert f"damaged at byte {len(header)}" in complaint(tmp_path)


def test_another_swarms_log_and_another_versions_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, FEED)
    assert complaint(tmp_path, b"6" * 32).startswith(f"{path}: belongs to swarm {SWARM.hex()[:12]}; ")
    data = bytearray(path.read_bytes())
    data[18] = 9
    path.write_bytes(data)
    assert complaint(tmp_path) == f"{path}: written by another version of murmurate: format 9, ours is 2"
    path.write_bytes(b"murmurate records\n\1\0\0\0" + SWARM)  # an empty one of the first version, which was shorter
    assert complaint(tmp_path) == f"{path}: written by another version of murmurate: format 1, ours is 2"
    path.unlink()
    path.mkdir()
    assert complaint(tmp_path) == f"{path}: cannot be read: Is a directory"


# Full disks ---------------------------------------------------------------------------------------------


def full(*_: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("where", ["pwrite", "fsync"])
def test_what_could_not_be_added_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    opened = log(tmp_path)
    opened.open()
    opened.append(FEED[:1], sync=True)
    before = opened.path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, where, full)
        with pytest.raises(LocalError) as raised:
            opened.append(FEED[1:4], sync=True)
    assert str(raised.value) == f"{opened.path}: could not be written: no space left on the disk"
    assert opened.path.read_bytes() == before
    opened.append(FEED[1:2], sync=True)
    opened.close()
    assert held(tmp_path).batches == tuple(FEED[:2])


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """The kernel writes what fits, and refuses the rest."""
    path = write(tmp_path, FEED[:1])
    opened = log(tmp_path)
    opened.open()
    size = path.stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 30, before[1]))
    try:
        with pytest.raises(LocalError, match="could not be written: File too large"):
            opened.append(FEED[1:2])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.stat().st_size == size
    opened.append(FEED[1:2])
    opened.close()
    assert held(tmp_path).batches == tuple(FEED[:2])


@pytest.mark.parametrize("seed", range(3))
def test_random_bytes_are_never_more_than_a_complaint(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    path = write(tmp_path, *([item] for item in FEED))
    whole = path.read_bytes()
    for _ in range(200):
        data = bytearray(whole)
        for _ in range(rng.randrange(1, 5)):
            place = rng.randrange(len(data))
            data[place : place + rng.randrange(4)] = rng.randbytes(rng.randrange(4))
        path.write_bytes(data)
        try:
            batches = held(tmp_path).batches
        except LocalError:
            continue
        assert batches == tuple(FEED[: len(batches)])
