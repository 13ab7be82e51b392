"""How a daemon ends: by a fault that is named, by leaving in good order, by a signal, or at once."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from murmurate.peer.errors import LocalError
from murmurate.peer.protocol.events import Event, PeerId
from murmurate.peer.protocol.seams import Write
from murmurate.peer.toml import to_toml

from .toy import PATIENCE_S, Life, Process, Toy, a_life, living, make_config, until_interrupted

ALONE = {"a": 0}


# Faults -----------------------------------------------------------------------------------------------


class Failing(Toy):
    """Fails in one call of one round."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self._where = where

    def _note(self, call: str) -> None:
        super()._note(call)
        if call == self._where:
            raise ZeroDivisionError("no data")


@pytest.mark.parametrize("where", ["train 2", "mix 2"])
def test_a_failing_task_ends_the_daemon_and_is_named_with_the_round(tmp_path: Path, where: str) -> None:
    with pytest.raises(LocalError) as raised:
        asyncio.run(a_life(make_config(tmp_path, "a", ALONE), Failing(where)))
    assert str(raised.value) == "the task failed in round 2: ZeroDivisionError: no data"
    assert isinstance(raised.value.__cause__, ZeroDivisionError)


def test_a_snapshot_that_does_not_fit_is_named(tmp_path: Path) -> None:
    asyncio.run(a_life(make_config(tmp_path, "a", ALONE, rounds={"max": 1})))
    with pytest.raises(LocalError, match=r"^the task failed in restore: ZeroDivisionError: no data$"):
        asyncio.run(a_life(make_config(tmp_path, "a", ALONE), Failing("restore")))


@pytest.mark.parametrize("how", ["copy", "write"])
def test_only_the_last_snapshot_is_worth_an_end(tmp_path: Path, how: str) -> None:
    """Before, a failure is told and the training goes on: the disk may have room again."""

    class Unlucky(Toy):
        failures = 2

        def snapshot(self) -> Write:
            write = super().snapshot()

            def fail(_: Path) -> NoReturn:
                raise OSError(28, "No space left on device")

            if len([call for call in self.calls if call.startswith("snapshot")]) > self.failures:
                return write
            return fail(Path()) if how == "copy" else fail

    config = make_config(tmp_path, "a", ALONE, rounds={"max": 3}, runtime={"snapshot_s": 0.0})
    toy = Unlucky()
    life = asyncio.run(a_life(config, toy))
    assert len(life.all("round")) == 3
    assert life.daemon.snapshot_round == 3
    if how == "copy":  # a write may be left out: a newer one followed before it began
        assert [row["text"] for row in life.all("warning")] == [
            "the task failed in snapshot: OSError: [Errno 28] No space left on device; training goes on"
        ] * 2

    toy = Unlucky()
    toy.failures = 99
    config = make_config(tmp_path, "a", ALONE, rounds={"max": 4})
    with pytest.raises(LocalError, match="No space left on device" if how == "copy" else "no space left on the disk"):
        asyncio.run(a_life(config, toy))


def test_a_broken_promise_of_our_own_is_a_crash(tmp_path: Path) -> None:
    async def scenario() -> None:
        life = Life(make_config(tmp_path, "a", {"a": 0, "b": 1}, liveness={"heartbeat_s": 0.01}))
        handle = life.daemon.core.handle

        def broken(event: Event, now: float) -> Any:
            assert type(event).__name__ != "TimerFired", "a broken promise"
            return handle(event, now)

        life.daemon.core.handle = broken
        async with living(life):
            await life.end()

    with pytest.raises(AssertionError, match="a broken promise"):
        asyncio.run(scenario())


# The end ----------------------------------------------------------------------------------------------


def test_leaving_ends_the_step_takes_a_snapshot_and_says_goodbye(tmp_path: Path) -> None:
    async def scenario() -> tuple[Life, Life]:
        b = Life(make_config(tmp_path, "b", {"a": 0, "b": 0}, rounds={"deadline_s": PATIENCE_S}))
        async with living(b):
            toy = Toy(train=lambda toy, round: until_interrupted(toy, round) if round == 3 else None)
            a = Life(make_config(tmp_path, "a", {"a": 0, "b": b.port}), toy)
            async with living(a):
                await a.row("round", round=2)
                a.leave()
                await a.end()
                await b.row("peer", peer="a", state="left")
        return a, b

    a, b = asyncio.run(scenario())
    assert a.toy.calls[-2:] == ["train 3", "snapshot 2"]
    assert json.loads((tmp_path / "a" / "snapshot.safetensors").read_text())["round"] == 2
    assert [row["state"] for row in b.all("peer")] == ["alive", "left"]


def test_a_peer_may_leave_before_anybody_has_come(tmp_path: Path) -> None:
    async def scenario() -> Life:
        life = Life(make_config(tmp_path, "a", {"a": 0, "b": 1}, liveness={"join_s": PATIENCE_S}))
        async with living(life):
            life.leave()
            await life.end()
        return life

    assert asyncio.run(scenario()).toy.calls == ["snapshot 0"]


def test_a_restart_goes_on_from_the_snapshot(tmp_path: Path) -> None:
    first = asyncio.run(a_life(make_config(tmp_path, "a", ALONE, rounds={"max": 3}), Toy(0.25)))
    toy = Toy(7.0)
    life = asyncio.run(a_life(make_config(tmp_path, "a", ALONE, rounds={"max": 5}), toy))
    assert {key: life.rows[0][key] for key in ("kind", "round")} == {"kind": "started", "round": 3}
    assert life.rows[0]["incarnation"] > first.rows[0]["incarnation"]
    assert [row["round"] for row in life.all("round")] == [4, 5]
    assert toy.value == 0.25


def test_a_neighbour_sees_the_second_life(tmp_path: Path) -> None:
    async def scenario() -> list[str]:
        liveness = {"heartbeat_s": 0.05, "timeout_s": PATIENCE_S}
        b = Life(make_config(tmp_path, "b", {"a": 0, "b": 0}, liveness=liveness), Toy(train=until_interrupted))
        async with living(b):
            for _ in range(2):
                a = Life(make_config(tmp_path, "a", {"a": 0, "b": b.port}), Toy(train=until_interrupted))
                async with living(a):
                    await a.row("peer", peer="b", state="alive")
                    await until(lambda: b.daemon.core.state(PeerId("a")) == "alive", b)
                await until(lambda: b.daemon.core.state(PeerId("a")) == "left", b)
        return [row["state"] for row in b.all("peer")]

    assert asyncio.run(scenario()) == ["alive", "left", "alive", "left"]


async def until(true: Callable[[], bool], life: Life) -> None:
    """Looks again after every event that the daemon is told of."""
    async with asyncio.timeout(PATIENCE_S):
        while not true():
            await next_event(life)


def next_event(life: Life) -> Awaitable[None]:
    """The next call of the core, which heartbeats bring about even when nothing else does."""
    core, came = life.daemon.core, asyncio.get_running_loop().create_future()
    handle = core.handle

    def once(event: Event, now: float) -> Any:
        core.handle = handle
        if not came.done():
            came.set_result(None)
        return handle(event, now)

    core.handle = once
    return came


# Signals, in a process of its own ----------------------------------------------------------------------


def config_file(folder: Path, **tables: Any) -> Path:
    path = folder / "a.toml"
    path.write_text(to_toml(make_config(folder, "a", ALONE, **tables)), encoding="utf-8")
    return path


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_a_reason_to_leave(tmp_path: Path, number: signal.Signals) -> None:
    with Process(config_file(tmp_path), "until_interrupted") as process:
        process.row("training")
        process.popen.send_signal(number)
        code, rows, err = process.end()
    assert (code, err) == (0, "")
    assert [row["kind"] for row in rows] == ["interrupted"]
    assert (tmp_path / "a" / "snapshot.safetensors").exists()
    assert not (tmp_path / "a" / "control.sock").exists()


def test_a_second_signal_ends_a_step_that_hangs(tmp_path: Path) -> None:
    with Process(config_file(tmp_path, runtime={"shutdown_s_max": PATIENCE_S}), "forever") as process:
        process.row("training")
        process.popen.terminate()
        process.row("interrupted")
        process.popen.terminate()
        code, rows, _ = process.end()
    assert code == 1
    assert [row["text"] for row in rows] == ["asked twice to leave: ended without a new snapshot"]


def test_a_step_that_hangs_is_ended_after_the_limit(tmp_path: Path) -> None:
    with Process(config_file(tmp_path, runtime={"shutdown_s_max": 0.05}), "forever") as process:
        process.row("training")
        process.popen.terminate()
        process.row("interrupted")
        code, rows, _ = process.end()
    assert code == 1
    assert [row["text"] for row in rows] == [
        "could not leave within shutdown_s_max = 0.05 s: ended without a new snapshot"
    ]


def test_a_daemon_writes_nothing_on_stderr_when_a_neighbour_goes(tmp_path: Path) -> None:

    async def scenario() -> tuple[int, str]:
        b = Life(make_config(tmp_path, "b", {"a": 0, "b": 0}), Toy(train=until_interrupted))
        path = tmp_path / "a.toml"
        liveness = {"heartbeat_s": 0.05, "timeout_s": 60.0}  # a goodbye, and no silence that a busy machine makes
        async with living(b):
            config = make_config(tmp_path, "a", {"a": 0, "b": b.port}, liveness=liveness)
            path.write_text(to_toml(config), encoding="utf-8")
            process = Process(path, "until_interrupted")
            with process:
                await asyncio.to_thread(process.row, "peer", peer="b", state="alive")
                b.leave()
                await b.end()
                await asyncio.to_thread(process.row, "peer", peer="b", state="left")
                process.popen.terminate()
                code, _, err = await asyncio.to_thread(process.end)
        return code, err

    assert asyncio.run(scenario()) == (0, "")
