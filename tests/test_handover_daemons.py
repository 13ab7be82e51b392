"""A state instead of the log between real daemons, over loopback, with the real replica and a long history."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from murmurate.peer.errors import LocalError
from murmurate.peer.learning.exchange import states
from murmurate.peer.protocol import handover
from murmurate.peer.protocol.events import Body, Offer, PeerId, Piece
from murmurate.peer.runtime.control import ControlClient
from murmurate.peer.runtime.cuts import cut_text
from murmurate.peer.runtime.identity import open_identity
from murmurate.peer.runtime.log import Log

from .harvest import Grower, garden, write_history
from .toy import PATIENCE_S, living

RECORDS = 64  # in a batch
BATCHES = 1600  # 102,400 records
JOIN_BYTES_MAX = 64 * 1024
SEEDS = {"probes": 8}


async def veterans(stack: AsyncExitStack, folder: Path, batches: int, **tables: Any) -> dict[str, Grower]:
    """Three peers that hold one long feed, which d made; a is missing."""
    lives: dict[str, Grower] = {}
    for name in "dcb":
        config = garden(folder, name, ports(lives), **{"seeds": SEEDS, **tables})
        if name == "d":
            write_history(config, batches)
        else:
            (folder / name).mkdir()
            shutil.copy(folder / "d" / "records.log", folder / name / "records.log")
        lives[name] = Grower(config)
        await stack.enter_async_context(living(lives[name]))
    for life in lives.values():
        await life.until(lambda life=life: len(list(life.feeds)) == 3)
    return lives


def ports(lives: dict[str, Grower]) -> dict[str, int]:
    return {name: lives[name].port if name in lives else 0 for name in "abcd"}


async def joined(
    stack: AsyncExitStack, folder: Path, lives: dict[str, Grower], hands_over: bool = True, **tables: Any
) -> Grower:
    """a, as soon as it holds what the others hold; its weights are theirs."""
    a = Grower(garden(folder, "a", ports(lives), **{"seeds": SEEDS, **tables}), hands_over)
    await stack.enter_async_context(living(a))
    await agree(a, lives["d"])
    return a


async def agree(one: Grower, other: Grower) -> None:
    for life, its in ((one, other), (other, one)):
        await life.until(
            lambda life=life, its=its: (
                len(list(life.feeds)) == 4 and life.feeds.digest == its.feeds.digest and not life.feeds.pending
            )
        )
    assert await one.weights() == await other.weights()


def lie(life: Grower, about: Callable[[Body], Body | None]) -> None:
    """Whatever this daemon says is changed on its way; None: it says nothing and ends."""
    send = life.daemon.transport.send

    def lying(to: PeerId, body: Body) -> None:
        said = about(body)
        if said is None:
            life.daemon.fail(LocalError("the power is cut"))
        else:
            send(to, said)

    life.daemon.transport.send = lying


# How much it costs --------------------------------------------------------------------------------------


def test_a_joiner_of_100_000_records_receives_less_than_64_kilobytes(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            lives = await veterans(stack, tmp_path, BATCHES)
            assert lives["d"].feeds.records == BATCHES * RECORDS >= 100_000
            a = await joined(stack, tmp_path, lives)
            row = await a.row("took")
            assert row["batches"] == BATCHES
            assert a.received < JOIN_BYTES_MAX
            feed = a.feeds.get(lives["d"].origin)
            assert feed is not None
            assert (feed.floor, feed.count) == (BATCHES + 1, BATCHES + 1)

    asyncio.run(scenario())


def test_several_neighbours_share_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "PIECE_BYTES", 512)

    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            lives = await veterans(stack, tmp_path, 200)
            a = await joined(stack, tmp_path, lives)
            row = await a.row("took")
            assert row["bytes"] > 5 * 512
            assert len(row["sources"]) > 1

    asyncio.run(scenario())


def test_who_takes_no_state_gets_the_log(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            lives = await veterans(stack, tmp_path, BATCHES)
            a = await joined(stack, tmp_path, lives, hands_over=False)
            assert a.received > BATCHES * RECORDS
            assert not a.all("took")

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "seeds",
    [
        {"directions": "private"},
        {"directions": "private", "memory": "lean"},
        {"directions": "private", "parts": 2},
        {"sampling": "pro", "pool": 256},
    ],
    ids=str,
)
def test_every_kind_of_state(tmp_path: Path, seeds: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            seeds_ = {**SEEDS, **seeds}
            lives = await veterans(stack, tmp_path, 100, seeds=seeds_)
            a = await joined(stack, tmp_path, lives, seeds=seeds_)
            assert a.all("took")
            for life in (a, *lives.values()):
                life.replica.allow(3)
            await a.until(lambda: a.feeds.records == (100 + 3 * 3) * RECORDS)
            await agree(a, lives["d"])

    asyncio.run(scenario())


@pytest.mark.parametrize("seeds", [{"momentum": 0.5}, {"directions": "shared"}], ids=str)
def test_where_old_records_are_needed_the_log_is_taken(tmp_path: Path, seeds: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            seeds_ = {**SEEDS, **seeds}
            lives = await veterans(stack, tmp_path, 100, seeds=seeds_)
            a = await joined(stack, tmp_path, lives, seeds=seeds_)
            assert not a.all("took")

    asyncio.run(scenario())


# What goes on afterwards --------------------------------------------------------------------------------


def test_a_joiner_trains_restarts_and_hands_over_itself(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            lives = await veterans(stack, tmp_path, 200)
            a = await joined(stack, tmp_path, lives)
            a.replica.allow(2)
            await lives["d"].until(lambda: lives["d"].feeds.records == 202 * RECORDS)
            await agree(a, lives["d"])
            before = await a.weights()
            a.leave()
            await a.end()
            assert len((tmp_path / "a" / "records.log").read_bytes()) < 200 * RECORDS
            again = Grower(a.daemon.config)
            await stack.enter_async_context(living(again))
            assert [row["round"] for row in again.all("started")] == [2]
            await agree(again, lives["d"])
            assert await again.weights() == before
            assert not again.all("took"), "it was in the log"
            with pytest.raises(LocalError, match="took a state"):
                await again.daemon.export(tmp_path / "old.safetensors", "d:10")
            # What was retracted above its floor goes; one who only has a's state can vouch for the rest.
            feed = again.feeds.get(a.origin)
            assert feed is not None
            assert feed.count == 3
            another = {name: life for name, life in lives.items() if name != "b"}
            lives["b"].leave()
            await lives["b"].end()
            shutil.rmtree(tmp_path / "b")
            b = Grower(garden(tmp_path, "b", {**ports(another), "a": 0}, seeds=SEEDS))
            await stack.enter_async_context(living(b))
            await b.row("took")
            await b.until(lambda: b.feeds.records == 202 * RECORDS)

    asyncio.run(scenario())


def test_what_a_state_has_closed_is_exported_also_after_a_restart(tmp_path: Path) -> None:
    async def exported(life: Grower) -> bytes:
        path = tmp_path / "model"
        async with asyncio.timeout(PATIENCE_S):
            await life.daemon.export(path, cut_text(life.feeds, life.feeds.cut()))
        return path.read_bytes()

    async def scenario() -> None:
        seeds = {**SEEDS, "authority": [open_identity(tmp_path / "d").origin.hex()]}
        async with AsyncExitStack() as stack:
            lives = await veterans(stack, tmp_path, 200, seeds=seeds)
            await lives["d"].daemon.retract("d", 100 * RECORDS)
            for life in lives.values():
                await life.until(lambda life=life: life.feeds.records == 100 * RECORDS and not life.feeds.pending)
            a = await joined(stack, tmp_path, lives, seeds=seeds)
            assert a.all("took")
            model = await exported(a)
            a.leave()
            await a.end()
            again = Grower(a.daemon.config)
            await stack.enter_async_context(living(again))
            await agree(again, lives["d"])
            assert await exported(again) == model == await exported(lives["d"])

    asyncio.run(scenario())


def test_a_retraction_below_a_floor_is_made_once_and_awaits_a_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover, "RETRY_S", PATIENCE_S * 10)  # which does not come in this test

    async def scenario() -> None:
        seeds = {**SEEDS, "authority": [open_identity(tmp_path / "a").origin.hex()]}
        async with AsyncExitStack() as stack:
            lives = await veterans(stack, tmp_path, 200, seeds=seeds)
            a = await joined(stack, tmp_path, lives, seeds=seeds)
            assert a.all("took")

            async def retracted(from_seq: int) -> tuple[int, bool]:
                reply = await asyncio.to_thread(ControlClient(tmp_path / "a").retract, "d", from_seq)
                assert (reply["peer"], reply["origin"]) == ("d", lives["d"].origin.hex())
                return reply["from_seq"], reply["awaits_state"]

            end = 200 * RECORDS
            assert await retracted(end) == (end, False)  # above its floor
            assert await retracted(100 * RECORDS) == (100 * RECORDS, True)
            assert await retracted(100 * RECORDS) == (100 * RECORDS, True)
            assert await retracted(150 * RECORDS) == (100 * RECORDS, True)  # that was void already
            assert await retracted(2**50) == (100 * RECORDS, True)
            for life in lives.values():
                await life.until(lambda life=life: life.feeds.records == 100 * RECORDS)
            assert a.feeds.records == end
        assert signed(a) == [end, 100 * RECORDS]

    asyncio.run(scenario())


def signed(life: Grower) -> list[int]:
    """Where its retractions begin, one for each time that one was written to its log."""
    found: list[int] = []

    class Counted(Log):
        def _check_rulings(self, rulings: Any) -> None:
            found.extend(ruling.from_seq for ruling in rulings)

    log = Counted(life.daemon.store.folder, life.daemon.manifest.swarm_id, lambda _: True)
    log.open()
    log.close()
    return found


# Who lies or dies ---------------------------------------------------------------------------------------


def test_without_agreement_the_log_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            lives = await veterans(stack, tmp_path, 200)
            offered: list[Body] = []

            def another(body: Body, name: str) -> Body:
                said = _another(body, name, offered)
                if (
                    len({offer.digests for offer in offered if isinstance(offer, Offer)}) > 1
                ):  # all that would be worth waiting for has been said
                    monkeypatch.setattr(handover, "PATIENCE_S", 0.0)
                return said

            for name in "bcd":
                lie(lives[name], lambda body, name=name: another(body, name))
            a = await joined(stack, tmp_path, lives)
            assert not a.all("took")
            assert len({offer.digests for offer in offered if isinstance(offer, Offer)}) > 1
            assert all(not feed.floor for feed in a.feeds)

    asyncio.run(scenario())


def _another(body: Body, name: str, offered: list[Body]) -> Body:
    if isinstance(body, Offer):
        body = replace(body, digests=(name.encode() * 32,))
        offered.append(body)
    return body


def test_wrong_pieces_and_a_death_in_the_middle_are_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "PIECE_BYTES", 512)

    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            lives = await veterans(stack, tmp_path, BATCHES)
            told: list[Body] = []

            def spoilt(body: Body) -> Body | None:
                """The second piece that anybody sends is wrong; who sends the fourth dies."""
                if not isinstance(body, Piece):
                    return body
                told.append(body)
                return {2: replace(body, data=body.data[::-1]), 4: None}.get(len(told), body)

            for name in "bcd":
                lie(lives[name], spoilt)
            a = Grower(garden(tmp_path, "a", ports(lives), seeds=SEEDS))
            await stack.enter_async_context(living(a))
            row = await a.row("took")
            assert len(a.all("refused")) == 1
            assert len(told) > row["bytes"] / 512 > 10
            assert a.received < JOIN_BYTES_MAX
            ends = [life.task for life in lives.values() if life.task is not None]
            (dead,), _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)  # it may take a while
            assert str(dead.exception()) == "the power is cut"

    asyncio.run(scenario())
