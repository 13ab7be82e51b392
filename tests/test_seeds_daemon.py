"""Daemons of the `seeds` exchange: what one records all hold, and neither crashes, partitions nor lies change that."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from murmurate.peer.errors import LocalError
from murmurate.peer.protocol.events import Keep, PeerId, Rumor, Vector
from murmurate.peer.protocol.records import Batch, Origin
from murmurate.peer.runtime import transport
from murmurate.peer.runtime.control import ControlClient
from murmurate.peer.runtime.identity import Identity, open_identity
from murmurate.peer.runtime.log import MARKER, Log
from murmurate.peer.runtime.wire import encode_body, encode_hello

from .ear import hello, raw
from .plot import RECORDS, Counting, Crash, Sower, again, agree, begin, codes, restored, seeds_config
from .toy import living

ALL = "abc"


# Records reach everybody --------------------------------------------------------------------------------


def test_a_record_reaches_the_far_end_of_the_line_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            a, _, c = lives = await begin(stack, tmp_path, seeds={"gossip_s": 2.0})
            c.heard.clear()
            a.replica.allow(3)
            await agree(lives, 3 * RECORDS)
            assert [batch.number for batch in c.heard] == [1, 2, 3]
            assert {batch.origin for batch in c.heard} == {a.origin}
            assert [batch.codes for batch in c.heard] == [codes("a", round) for round in (1, 2, 3)]
            assert not a.heard[2:]  # the two births: nothing comes back
            (row,) = [row for row in a.all("round") if row["round"] == 3]
            assert (row["records"], row["batches"], row["folded"], row["missing"]) == (3 * RECORDS, 1, [], [])
            assert a.daemon.transport.counters(PeerId("b")).bytes_sent > 3 * (64 + RECORDS)

    asyncio.run(scenario())


def test_all_train_and_all_weights_are_equal(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            lives = await begin(stack, tmp_path)
            for life in lives:
                life.replica.allow(4)
            await agree(lives, 3 * 4 * RECORDS)
            statuses = [await asyncio.to_thread(ControlClient(tmp_path / name).status) for name in ALL]
            for status, life in zip(statuses, lives, strict=True):
                assert status["exchange"] == "seeds"
                records = status["records"]
                assert (records["records"], records["key"]) == (48, life.origin.hex())
                assert records["set"] == lives[0].feeds.digest.hex()
                assert [
                    (o["peer"], o["batches"], o["records"], o["round"], o["closed"]) for o in records["origins"]
                ] == [(name, 5, 16, 4, False) for name in ALL]
            assert len({status["records"]["cut"] for status in statuses}) == 1

    asyncio.run(scenario())


def test_who_made_all_rounds_leaves_when_all_agree(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            lives = await begin(stack, tmp_path, rounds={"max": 2, "deadline_s": 0.05})
            for life in lives:
                life.replica.allow(2)
            for life in lives:
                await life.end()
            assert {life.feeds.records for life in lives} == {3 * 2 * RECORDS}
            assert len({life.replica.value() for life in lives}) == 1
            assert {life.feeds.weights for life in lives} != {b""}

    asyncio.run(scenario())


# Restarts -----------------------------------------------------------------------------------------------


def test_after_a_crash_the_same_feed_goes_on_and_only_what_is_lacking_is_asked_for(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            a, b = await begin(stack, tmp_path, "ab")
            for life in (a, b):
                life.replica.allow(3)
            await agree([a, b], 6 * RECORDS)
            origin = a.origin
            await a.crash()
            b.replica.allow(5)
            await b.holds(8 * RECORDS)
            a = await again(stack, a)
            assert (await a.row("started"))["round"] == 3
            assert a.origin == origin
            a.replica.allow(5)
            await agree([a, b], 10 * RECORDS)
            assert sorted(batch.number for batch in a.heard) == [4, 5]
            assert not a.all("voided") + b.all("voided")
            feed = b.feeds.get(origin)
            assert feed is not None
            assert [batch.round for batch in feed.batches] == [0, 1, 2, 3, 4, 5]

    asyncio.run(scenario())


def test_nothing_that_others_saw_can_be_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever reached a neighbour is in the log of its origin at that moment, and on its disk."""
    append, synced = Log.append, set[tuple[bool, bool]]()

    def watched(self: Log, batches: Any, rulings: Any = (), sync: bool = False, told: bool = False) -> None:
        who = self.path.parent.name
        owners = {open_identity(tmp_path / who).origin == batch.origin for batch in batches}
        synced.update((is_ours, sync) for is_ours in owners)
        append(self, batches, rulings, sync, told)

    monkeypatch.setattr(Log, "append", watched)

    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            a, b = await begin(stack, tmp_path, "ab")
            log = tmp_path / "a" / "records.log"
            copies: list[tuple[int, bytes]] = []
            send = a.daemon.transport.send

            def noting(to: PeerId, body: Any) -> None:
                if isinstance(body, Rumor):
                    copies.extend((batch.number, log.read_bytes()) for batch in body.batches)
                send(to, body)

            a.daemon.transport.send = noting
            a.replica.allow(3)
            await agree([a, b], 3 * RECORDS)
        assert {number for number, _ in copies} == {1, 2, 3}
        assert synced == {(True, True), (False, False)}  # ours are waited for, others' are not
        for number, copy in copies:
            log.write_bytes(copy)
            assert max(restored(a)[a.origin.hex()]) >= number

    asyncio.run(scenario())


@pytest.mark.parametrize("how", ["lost", "rolled back"])
def test_who_lost_its_log_hears_of_its_own_feed_and_does_not_fork_it(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, kept = Log.append, list[tuple[int, bool, bool]]()

    def noting(self: Log, batches: Any, rulings: Any = (), sync: bool = False, told: bool = False) -> None:
        own = open_identity(self.path.parent).origin
        kept.extend((batch.number, sync, told) for batch in batches if batch.origin == own)
        append(self, batches, rulings, sync, told)

    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            a, b = await begin(stack, tmp_path, "ab")
            a.replica.allow(1)
            await agree([a, b], 1 * RECORDS)
            log = tmp_path / "a" / "records.log"
            copy = log.read_bytes()
            a.replica.allow(3)
            await agree([a, b], 3 * RECORDS)
            await a.crash()
            log.write_bytes(copy) if how == "rolled back" else log.unlink()
            monkeypatch.setattr(Log, "append", noting)
            a = await again(stack, a)
            a.replica.allow(4)
            await agree([a, b], 4 * RECORDS)
            back = range(2 if how == "rolled back" else 0, 4)
            assert kept == [*((number, True, True) for number in back), (4, True, False)]  # all waited for
            assert not a.all("voided") + b.all("voided")
        assert restored(a)[a.origin.hex()] == [0, 1, 2, 3, 4]

    asyncio.run(scenario())


def test_a_wiped_folder_is_a_new_origin(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            a, b = await begin(stack, tmp_path, "ab")
            a.replica.allow(2)
            await agree([a, b], 2 * RECORDS)
            await a.crash()
            shutil.rmtree(tmp_path / "a")
            reborn = await again(stack, a)
            assert reborn.origin != a.origin
            reborn.replica.allow(1)
            await agree([reborn, b], 3 * RECORDS)
            assert {feed.origin for feed in b.feeds.lives(PeerId("a"))} == {a.origin, reborn.origin}
            with pytest.raises(LocalError, match=r"^a: may mean a@[0-9a-f]{8}, a@[0-9a-f]{8}; name one of them$"):
                await b.daemon.export(tmp_path / "model", "a:1")

    asyncio.run(scenario())


def test_partitions_train_alone_and_merge_when_they_heal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    is_torn = False
    dial = transport._open_channel  # pyright: ignore[reportPrivateUsage]: the network is torn here

    def torn(address: str) -> grpc.aio.Channel:
        return dial("127.0.0.1:9" if is_torn else address)

    monkeypatch.setattr(transport, "_open_channel", torn)

    async def scenario() -> None:
        nonlocal is_torn
        async with AsyncExitStack() as stack:
            a, b, c = lives = await begin(stack, tmp_path)
            a.replica.allow(1)
            await agree(lives, RECORDS)
            is_torn = True
            a.daemon.transport._links[PeerId("b")].abort()  # pyright: ignore[reportPrivateUsage]: and there
            await b.until(lambda: not b.daemon.transport.linked(PeerId("a")))
            a.replica.allow(4)
            c.replica.allow(3)
            await a.holds(4 * RECORDS)
            await c.holds(4 * RECORDS)
            await b.holds(4 * RECORDS)
            assert a.feeds.digest != b.feeds.digest == c.feeds.digest
            is_torn = False
            await agree(lives, 7 * RECORDS)

    asyncio.run(scenario())


# Lies ---------------------------------------------------------------------------------------------------


def test_forged_batches_are_refused_and_marked(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            config = seeds_config(tmp_path, "b", {"a": 0, "b": 0}, liveness={"join_s": 0.0})
            b = Sower(config)
            await stack.enter_async_context(living(b))
            b.replica.allow(2)
            await b.holds(2 * RECORDS)
            liar = open_identity(tmp_path / "liar", b.daemon.manifest.swarm_id)
            birth = liar.sign_batch(Batch(liar.origin, 0, 0, b"a", b""))
            honest = liar.sign_batch(Batch(liar.origin, 1, 1, b"true", b""))
            own = b.feeds.get(b.origin)
            assert own is not None
            async with raw(f"127.0.0.1:{b.port}") as a:
                await a.say(encode_hello(hello(PeerId("a"), b.daemon.manifest)))

                async def tell(body: Any) -> None:
                    for frame in encode_body(body):
                        await a.say(frame)

                await tell(Vector(()))
                await tell(Rumor((birth, replace(honest, codes=b"lies"))))
                await b.row("refused", peer="a", reason="forged signature")
                assert b.daemon.marks[PeerId("a")] == 1
                await tell(Rumor((replace(own.batches[1], codes=b"mine"),)))
                await b.until(lambda: b.daemon.marks[PeerId("a")] == 2)
                assert len(b.all("refused")) == 1  # a row each time would fill the disk
                await tell(Rumor((liar.sign_batch(Batch(liar.origin, 1, 1, b"too long", b"")),)))
                await b.row("refused", peer="a", reason="malformed payload")
                assert b.feeds.records == 2 * RECORDS
                await tell(Rumor((honest,)))
                await b.until(lambda: b.feeds.records == 3 * RECORDS)
                status = await asyncio.to_thread(ControlClient(tmp_path / "b").status)
                assert status["peers"][0]["refusals"] == 3
                assert status["peers"][0]["last_refusal"] == "malformed payload"
                # And now it signs another one for the same place.
                await tell(Rumor((liar.sign_batch(Batch(liar.origin, 1, 1, b"fork", b"")),)))
                row = await b.row("voided", peer="a", forked=True)
                assert (row["from_seq"], row["origin"]) == (0, liar.origin.hex())
                assert b.feeds.records == 2 * RECORDS

    asyncio.run(scenario())


# Disks --------------------------------------------------------------------------------------------------


def test_a_torn_log_is_mended_and_a_damaged_one_named(tmp_path: Path) -> None:
    async def scenario() -> None:
        log = tmp_path / "b" / "records.log"
        async with AsyncExitStack() as stack:
            a, b = await begin(stack, tmp_path, "ab")
            a.replica.allow(3)
            await agree([a, b], 3 * RECORDS)
            await b.crash()
            port, whole = b.port, log.read_bytes()
            log.write_bytes(whole[:-1])
            b = await again(stack, b)
            assert b.feeds.records == 2 * RECORDS
            assert not b.all("warning")
            await b.crash()
            damaged = bytearray(whole)
            damaged[whole.rindex(MARKER, 0, whole.rindex(MARKER)) + 20] ^= 1  # of a's, with a whole one behind it
            log.write_bytes(damaged)
            b = await again(stack, b, b=port)
            assert b.rows[0]["text"].startswith(f"{log}: damaged at byte ")
            b.replica.allow(1)
            await agree([a, b], 4 * RECORDS)  # the neighbour still had it
            await b.crash()
            whole = log.read_bytes()
        damaged = bytearray(whole)
        damaged[len(whole) // 2] ^= 1
        log.write_bytes(damaged)
        with pytest.raises(LocalError, match=f"^{log}: damaged at byte .*; remove it together with key.pem"):
            await Sower(b.daemon.config).begin()
        assert log.read_bytes() == damaged

    asyncio.run(scenario())


class Disk:
    """That of b, which may be full."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_full = False
        append = Log.append

        def limited(log: Log, *arguments: Any, **options: Any) -> None:
            if self.is_full and log.path.parent.name == "b":
                raise LocalError(f"{log.path}: could not be written: no space left on the disk")
            append(log, *arguments, **options)

        monkeypatch.setattr(Log, "append", limited)


def test_a_full_disk_ends_us_only_when_our_own_batch_could_be_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)

    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            a, b = await begin(stack, tmp_path, "ab")
            disk.is_full = True
            a.replica.allow(3)
            await b.until(lambda: b.feeds.records == 3 * RECORDS)
            row = await b.row("warning")
            assert row["text"].endswith(
                "no space left on the disk; training goes on, and the neighbours still have these records"
            )
            disk.is_full = False
            a.replica.allow(4)
            await b.until(lambda: b.feeds.records == 4 * RECORDS)
            await b.until(lambda: not b.seeds._is_full)  # pyright: ignore[reportPrivateUsage]: it has room again
            assert len(b.all("warning")) == 1
            disk.is_full = True
            b.replica.allow(1)
            with pytest.raises(LocalError, match=r"b/records\.log: could not be written: no space left on the disk$"):
                await b.end()
            assert a.feeds.records == 4 * RECORDS
            disk.is_full = False
            b = await again(stack, b, b=b.port)
            b.replica.allow(1)
            await agree([a, b], 5 * RECORDS)  # what was not kept comes from the neighbour

    asyncio.run(scenario())


def test_what_is_ours_and_came_back_must_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our log was lost, a neighbour tells us of our feed, and the disk is full: it would not tell us again."""
    disk = Disk(monkeypatch)

    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            a, b = await begin(stack, tmp_path, "ab")
            b.replica.allow(2)
            await agree([a, b], 2 * RECORDS)
            await b.crash()
            (tmp_path / "b" / "records.log").unlink()
            disk.is_full = True
            reborn = await again(stack, b, b=b.port)
            with pytest.raises(LocalError, match=r"b/records\.log: could not be written: no space left on the disk$"):
                await reborn.end()

    asyncio.run(scenario())


def test_what_is_kept_first_is_written_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What we sign must not stand in the log before what the core held when it asked for that."""
    append, written = Log.append, [Batch(Origin(b""), 0, 0, b"", b"")]

    def noting(self: Log, batches: Any, rulings: Any = (), sync: bool = False, told: bool = False) -> None:
        append(self, batches, rulings, sync, told)
        written.extend(batches)

    monkeypatch.setattr(Log, "append", noting)

    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            (a,) = await begin(stack, tmp_path, "a")
            theirs = Identity(Ed25519PrivateKey.generate(), a.daemon.manifest.swarm_id)
            kept = theirs.sign_batch(Batch(theirs.origin, 0, 0, b"b", b""))
            del written[:]
            a.seeds.perform(Keep((kept,), ()))
            future = a.seeds._in_log(a.seeds._sign, Batch(a.origin, 1, 1, bytes(RECORDS), b""))  # pyright: ignore[reportPrivateUsage] (as `perform` queues it)
            signed = await future  # and the core is not told
            assert written == [kept, signed.batch]

    asyncio.run(scenario())


def test_who_must_leave_the_grid_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def figures(_: Counting) -> dict[str, float]:
        return {"off_grid": 1.0}

    monkeypatch.setattr(Counting, "figures", figures)

    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            (a,) = await begin(stack, tmp_path, "a")
            a.replica.allow(3)
            await a.row("round", round=3)
            (row,) = a.all("warning")
            assert row["text"].startswith("seeds.memory = 'lean': a weight left the grid")

    asyncio.run(scenario())


def test_a_crash_is_what_it_looks_like(tmp_path: Path) -> None:
    """The helper of these tests: no goodbye, and what `live` raises is the fault."""

    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            a, b = await begin(stack, tmp_path, "ab")
            await a.crash()
            with pytest.raises(Crash):
                await a.end()
            await b.until(lambda: b.daemon.core.state(PeerId("a")) == "suspect")

    asyncio.run(scenario())
