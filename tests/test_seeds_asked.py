"""What a user asks a daemon of the `seeds` exchange for: to void records, and to write the model of a set of them."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from murmurate.peer import console
from murmurate.peer.cli import main
from murmurate.peer.config import Config, load
from murmurate.peer.errors import LocalError
from murmurate.peer.runtime.control import ControlClient
from murmurate.peer.runtime.cuts import cut_text
from murmurate.peer.runtime.identity import open_identity
from murmurate.peer.toml import to_toml

from .plot import RECORDS, Counting, Sower, again, agree, begin, rulings, seeds_config
from .test_cli import answer, complaint
from .toy import MAKER, living, maker_module

ALL = "abc"
PROBER = "murmurate.peer.learning.prober"


# Retraction ---------------------------------------------------------------------------------------------


def test_a_retraction_spreads_and_undoes_exactly(tmp_path: Path) -> None:
    async def scenario() -> None:
        authority = [open_identity(tmp_path / "a").origin.hex()]
        async with AsyncExitStack() as stack:
            a, b, c = lives = await begin(stack, tmp_path, seeds={"authority": authority})
            a.replica.allow(2)
            c.replica.allow(3)
            await agree(lives, 5 * RECORDS)
            honest = a.replica.value({a.origin: 3, c.origin: 2})  # and of c its first batch, but its last three records
            reply = await asyncio.to_thread(ControlClient(tmp_path / "a").retract, "c", 4)
            assert reply == {"peer": "c", "origin": c.origin.hex(), "from_seq": 4, "awaits_state": False}
            await agree(lives, 3 * RECORDS)
            assert a.replica.value() == honest
            for life in lives:
                row = await life.row("voided")
                assert (row["peer"], row["from_seq"], row["forked"], row["origin"]) == ("c", 4, False, c.origin.hex())
            again_ = await asyncio.to_thread(ControlClient(tmp_path / "a").retract, f"c@{c.origin.hex()[:6]}", 9)
            assert again_["from_seq"] == 4  # it is void from there on already
            c.replica.allow(9)
            a.replica.allow(3)
            await agree(lives, 4 * RECORDS)  # nothing of c is accepted any more
            await b.crash()
            b = await again(stack, b, c=c.port)
            await b.holds(4 * RECORDS)
            assert b.replica.value() == a.replica.value()
            status = await asyncio.to_thread(ControlClient(tmp_path / "b").status)
            assert [(o["closed"], o["closed_at"]) for o in status["records"]["origins"]] == [
                (False, 0),
                (False, 0),
                (True, 4),
            ]
        assert [ruling.from_seq for ruling in rulings(a)] == [4]  # who decided keeps it as well

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("who", "from_seq", "why"),
    [
        ("b", 0, r"^b may not retract: seeds\.authority does not name its key [0-9a-f]{64}$"),
        ("z", 0, r"^z: nobody of whom we hold records; known are a@[0-9a-f]{8}, b@[0-9a-f]{8}$"),
        ("a@ffff0000", 0, "^a@ffff0000: nobody of whom"),
        ("beef", 0, "^beef: nobody of whom"),
    ],
)
def test_who_may_not_retract_is_told_why(tmp_path: Path, who: str, from_seq: int, why: str) -> None:
    async def scenario() -> None:
        authority = [open_identity(tmp_path / "a").origin.hex()]
        async with AsyncExitStack() as stack:
            _, b = await begin(stack, tmp_path, "ab", seeds={"authority": authority})
            with pytest.raises(LocalError, match=why):
                await asyncio.to_thread(ControlClient(tmp_path / "b").retract, who, from_seq)
            assert not any(feed.closed is not None for feed in b.feeds)

    asyncio.run(scenario())


def test_a_retraction_beyond_every_feed_is_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        authority = [open_identity(tmp_path / "a").origin.hex()]
        async with AsyncExitStack() as stack:
            a, _ = await begin(stack, tmp_path, "ab", seeds={"authority": authority})
            with pytest.raises(LocalError, match=r"^b@[0-9a-f]{8}: --from 9007199254740992 is beyond every feed$"):
                await a.daemon.retract("b", 2**53)
            with pytest.raises(LocalError, match=r"is beyond every feed$"):  # as far as the socket can say
                await asyncio.to_thread(ControlClient(tmp_path / "a").retract, "b", 2**63)
        assert rulings(a) == []  # in its log, which grows by the others' batches meanwhile

    asyncio.run(scenario())


# Export -------------------------------------------------------------------------------------------------


def test_an_export_at_a_cut_is_the_same_on_every_peer(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            lives = await begin(stack, tmp_path)
            a, b, c = lives
            for life in lives:
                life.replica.allow(3)
            await agree(lives, 9 * RECORDS)
            now = cut_text(a.feeds, a.feeds.cut())
            names = [f"{name}@{life.origin.hex()[:8]}" for name, life in zip(ALL, lives, strict=True)]
            for cut, expected in (
                (now, {life.origin: 4 for life in lives}),
                ("a:3,b:2", {a.origin: 3, b.origin: 2}),
                (f"{names[2]}:2, {names[0]}:1", {c.origin: 2}),
                (f"{b.origin.hex()}:4,{c.origin.hex()[:8].upper()}:0", {b.origin: 4}),
            ):
                values: set[int] = set()
                for life in lives:
                    path = tmp_path / f"model of {life.daemon.config.name}"
                    reply = await asyncio.to_thread(ControlClient(life.daemon.store.folder).export, path, cut)
                    assert reply == {"path": str(path), "round": max(expected.values()) - 1, "cut": cut}
                    values.add(json.loads(path.read_text())["value"])
                assert values == {a.replica.value(expected)}
            exported = await a.daemon.export(tmp_path / "model")
            assert (exported.round, exported.cut) == (3, now)
            assert json.loads((tmp_path / "model").read_text())["value"] == a.replica.value()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("cut", "why"),
    [
        ("a:9", r"^--at 'a:9': we do not hold these records \(yet\): a@[0-9a-f]{8} has 2 of 9 batches$"),
        ("a:1,z:1", "^z: nobody of whom we hold records; known are a@"),
        ("a:1,a:1", r"^--at 'a:1,a:1': names a@[0-9a-f]{8} twice$"),
        ("a", r"^--at 'a': should be ORIGIN:BATCHES,\.\.\. as `murmurate status` prints it$"),
        ("a:-1", "^--at 'a:-1': should be ORIGIN:BATCHES"),
        (":3", "^--at ':3': should be ORIGIN:BATCHES"),
        ("a:1,", "^--at 'a:1,': should be ORIGIN:BATCHES"),
    ],
)
def test_a_cut_that_is_not_here_is_named(tmp_path: Path, cut: str, why: str) -> None:
    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            a, b = await begin(stack, tmp_path, "ab")
            a.replica.allow(1)
            await agree([a, b], RECORDS)
            with pytest.raises(LocalError, match=why):
                await asyncio.to_thread(ControlClient(tmp_path / "b").export, tmp_path / "model", cut)
            assert not (tmp_path / "model").exists()

    asyncio.run(scenario())


def test_an_export_waits_until_the_weights_contain_the_cut(tmp_path: Path) -> None:
    """A batch of another is held at once, and folded when our own training is over."""

    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            a, b = await begin(stack, tmp_path, "ab")
            b.replica.stick()
            folds = b.replica.folds
            a.replica.allow(2)
            await b.until(lambda: b.feeds.records == 2 * RECORDS and b.feeds.pending)  # b trains
            export = asyncio.create_task(b.daemon.export(tmp_path / "model", "a:3"))
            await asyncio.sleep(0)
            assert not export.done()
            b.replica.allow(0)
            await export
            assert b.replica.folds > folds
            assert json.loads((tmp_path / "model").read_text())["value"] == a.replica.value({a.origin: 3})

    asyncio.run(scenario())


def test_a_cut_beyond_what_was_voided_is_what_is_left_of_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        authority = [open_identity(tmp_path / "a").origin.hex()]
        async with AsyncExitStack() as stack:
            a, b = await begin(stack, tmp_path, "ab", seeds={"authority": authority})
            b.replica.allow(3)
            await agree([a, b], 3 * RECORDS)
            await a.daemon.retract("b", 5)
            await b.until(lambda: b.feeds.records == 5)
            values: set[int] = set()
            for life in (a, b):
                await life.daemon.export(tmp_path / "model", "b:4")
                values.add(json.loads((tmp_path / "model").read_text())["value"])
            assert values == {a.replica.value()}

    asyncio.run(scenario())


# The command line ----------------------------------------------------------------------------------------


def test_the_commands_for_a_daemon_with_records(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    here, file = tmp_path, "swarm.toml"
    (here / file).write_text(to_toml(seeds_config(here, "a", {"a": 0})))
    key = answer(capsys, "key")["key"]
    assert main(["key"]) == 0
    assert capsys.readouterr().out == f"{key}\n"
    (here / file).write_text(to_toml(seeds_config(here, "a", {"a": 0}, seeds={"authority": [key]})))
    who = f"a@{key[:8]}"

    def ask() -> None:
        records = answer(capsys, "status")["records"]
        assert (records["records"], records["key"], records["cut"]) == (3 * RECORDS, key, f"{who}:4")
        (origin,) = records["origins"]
        assert origin == {
            "peer": "a",
            "origin": key,
            "batches": 4,
            "records": 3 * RECORDS,
            "round": 3,
            "closed": False,
            "closed_at": 0,
        }
        values: list[int] = []
        for cut in ("a:4", "a:2", ""):
            at = ["--at", cut] if cut else []
            reply = answer(capsys, "export", file, "model", *at)
            assert reply == {"path": str(here / "model"), "round": 1 if cut == "a:2" else 3, "cut": cut or f"{who}:4"}
            values.append(json.loads((here / "model").read_text())["value"])
        assert values[0] == values[2] != values[1]
        for argv in (["status"], ["export", file, "model", "--at", "a:2"], ["retract", file, "a", "--from", "5"]):
            assert main(argv) == 0
        words = ("exchange", "records", key, f"cut {who}:4", "not digested", "the model at a:2, after 1 rounds")
        out = capsys.readouterr().out
        assert all(word in out for word in words)
        assert f"the records of a ({key}) from 5 on count nowhere any more" in out
        reply = answer(capsys, "retract", file, key[:6], "--from", "5")
        assert reply == {"peer": "a", "origin": key, "from_seq": 5, "awaits_state": False}
        assert main(["status"]) == 0
        assert "from 5 on" in capsys.readouterr().out
        assert complaint(capsys, 1, "retract", file, "zed", "--from", "0").startswith("zed: nobody of whom we hold")
        assert complaint(capsys, 1, "export", file, "model", "--at", "a").startswith(
            "--at 'a': should be ORIGIN:BATCHES"
        )

    async def scenario() -> None:
        life = Sower(load(Path(file)), allowed=3)
        async with living(life):
            await life.holds(3 * RECORDS)
            await asyncio.to_thread(ask)

    asyncio.run(scenario())


@pytest.mark.parametrize("awaits", [False, True])
def test_a_retraction_that_awaits_a_state_says_so(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, awaits: bool
) -> None:
    reply = {"peer": "b", "origin": "ab", "from_seq": 7, "awaits_state": awaits}

    def retract(*_: object) -> dict[str, Any]:
        return reply

    monkeypatch.setattr(ControlClient, "retract", retract)
    (tmp_path / "swarm.toml").write_text(to_toml(seeds_config(tmp_path, "a", {"a": 0})))
    assert main(["retract", str(tmp_path / "swarm.toml"), "b", "--from", "7"]) == 0
    but = "; here they do until a neighbour hands over a state without them" if awaits else ""
    assert capsys.readouterr().out == f"the records of b (ab) from 7 on count nowhere any more{but}\n"


def test_run_takes_a_replica_for_this_exchange(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_prober(config: Config) -> Counting:
        return Counting(config.name, allowed=2)

    module = ModuleType(PROBER)
    vars(module).update(make_prober=make_prober)
    monkeypatch.setitem(sys.modules, PROBER, module)
    monkeypatch.setitem(sys.modules, MAKER, maker_module())
    monkeypatch.chdir(tmp_path)
    rounds = {"max": 2, "deadline_s": 0.01}
    Path("swarm.toml").write_text(to_toml(seeds_config(tmp_path, "a", {"a": 0}, rounds=rounds)))
    assert main(["run", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["round"], row["records"]) for row in rows if row["kind"] == "round"] == [(1, 4), (2, 8)]
    assert main(["run"]) == 0
    out = capsys.readouterr().out
    assert "batches of 4 B, ring of 1, seeds with private directions; listening on 127.0.0.1:0" in out
    assert "started, after round 2" in out


def test_what_happens_to_records_has_words() -> None:
    done = {"kind": "round", "round": 1, "seconds": 1.0, "waited_s": 0.0, "folded": ["b"], "missing": []}
    assert "64 records, 3 batches new" in console.run_line({**done, "records": 64, "batches": 3}).plain
    void = {"kind": "voided", "peer": "b", "origin": "ab", "from_seq": 7, "forked": True}
    assert console.run_line(void).plain == "b signed two histories: its records from 7 on count nowhere"
    assert console.run_line({**void, "forked": False}).plain == "b is retracted: its records from 7 on count nowhere"
    assert "b holds the same records" in console.run_line({"kind": "diverged", "peer": "b"}).plain
