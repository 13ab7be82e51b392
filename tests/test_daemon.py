"""The shell around the core: nothing blocks its loop, nothing ends it silently, everything ends it in good order."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from murmurate.peer.config import Config
from murmurate.peer.errors import ConfigError, LocalError
from murmurate.peer.protocol.events import Envelope, Event, Heartbeat, LinkUp, Mix, Mixed, PeerId, Received, Turn
from murmurate.peer.protocol.seams import Write
from murmurate.peer.runtime.control import ControlClient
from murmurate.peer.runtime.transport import GrpcTransport
from murmurate.peer.toml import to_toml

from .toy import PATIENCE_S, Life, Process, Toy, living, make_config

T = TypeVar("T")
ALONE = {"a": 0}
HEARTBEATS = 5


def play(scenario: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(scenario)


def until_interrupted(toy: Toy, round: int) -> None:
    assert toy.interrupted.wait(PATIENCE_S)


async def a_life(config: Config, toy: Toy | None = None) -> Life:
    """From the beginning to the end. Raises what the daemon raises."""
    life = Life(config, toy)
    async with living(life):
        await life.end()
    return life


# The loop is never blocked ----------------------------------------------------------------------------


def count_heartbeats(life: Life, begun: threading.Event, enough: threading.Event) -> None:
    """Sets `enough` when the daemon has received so many heartbeats of "a" since `begun`."""
    handle, count = life.daemon.core.handle, 0

    def counting(event: Event, now: float) -> Any:
        nonlocal count
        match event:
            case Received(Envelope("a", _, Heartbeat())) if begun.is_set():
                count += 1
                if count == HEARTBEATS:
                    enough.set()
            case _:
                pass
        return handle(event, now)

    life.daemon.core.handle = counting


@pytest.mark.timeout(2 * PATIENCE_S)
@pytest.mark.parametrize("job", ["train", "mix", "snapshot", "write", "export"])
def test_heartbeats_flow_during_a_job_of_any_length(tmp_path: Path, job: str) -> None:
    """A job of "a" ends only when "b" has received heartbeats that "a" sent since the job began."""
    begun, enough = threading.Event(), threading.Event()

    def wait() -> None:
        if not begun.is_set():
            begun.set()
            assert enough.wait(PATIENCE_S)

    class Slow(Toy):
        def mix(self, effect: Mix) -> Mixed:
            if job == "mix":
                wait()
            return super().mix(effect)

        def snapshot(self) -> Write:
            if job == "snapshot":
                wait()
            return self._slowly(super().snapshot(), job == "write")

        def export(self) -> Write:
            return self._slowly(super().export(), job == "export")

        def _slowly(self, write: Write, slow: bool) -> Write:
            def written(path: Path) -> None:
                if slow:
                    wait()
                write(path)

            return written

    async def scenario() -> None:
        tables: dict[str, Any] = {"liveness": {"heartbeat_s": 0.02, "timeout_s": PATIENCE_S}}
        b = Life(make_config(tmp_path, "b", {"a": 0, "b": 0}, **tables))
        count_heartbeats(b, begun, enough)
        async with living(b):
            toy = Slow(train=(lambda _, round: wait() if round == 2 else None) if job == "train" else None)
            runtime = {"snapshot_s": 0.0}
            a = Life(make_config(tmp_path, "a", {"a": 0, "b": b.port}, runtime=runtime, **tables), toy)
            async with living(a):
                if job == "export":
                    await a.daemon.export(tmp_path / "model")
                assert await asyncio.to_thread(enough.wait, PATIENCE_S)
                await a.row("round", round=3)

    play(scenario())


def test_the_trainer_is_called_on_one_thread_that_is_not_the_loops(tmp_path: Path) -> None:
    async def scenario() -> Toy:
        config = make_config(tmp_path, "a", ALONE, rounds={"max": 2})
        await a_life(config)
        life = Life(make_config(tmp_path, "a", ALONE, rounds={"max": 4}))
        async with living(life):
            await life.daemon.export(tmp_path / "model")
            await life.end()
        return life.toy

    toy = play(scenario())
    assert {"restore", "train 3", "mix 3", "export", "snapshot 4"} <= set(toy.calls)
    (thread,) = toy.threads
    assert thread is not threading.current_thread()


def test_a_snapshot_is_taken_before_the_next_training(tmp_path: Path) -> None:
    config = make_config(tmp_path, "a", ALONE, rounds={"max": 3}, runtime={"snapshot_s": 0.0})
    life = play(a_life(config))
    assert life.toy.calls == [f"{call} {n}" for n in (1, 2, 3) for call in ("train", "mix", "snapshot")]
    assert json.loads((tmp_path / "a" / "snapshot.safetensors").read_text())["round"] == 3


# Facts ------------------------------------------------------------------------------------------------


def test_a_round_is_a_row(tmp_path: Path) -> None:
    async def scenario() -> tuple[Life, Life]:
        b = Life(make_config(tmp_path, "b", {"a": 0, "b": 0}, rounds={"max": 2}), Toy(0.0))
        async with living(b):
            a = Life(make_config(tmp_path, "a", {"a": 0, "b": b.port}, rounds={"max": 2}), Toy(1.0))
            async with living(a):
                await a.end()
                await b.end()
        return a, b

    a, b = play(scenario())
    for life, other in ((a, "b"), (b, "a")):
        assert [row["kind"] for row in life.rows[:2]] == ["started", "peer"]
        first, second = life.all("round")
        assert (first["round"], first["loss"], first["folded"], first["missing"]) == (1, 0.5, [other], [])
        assert second["bytes_sent"] >= first["bytes_sent"] > 0
        assert 0 <= first["waited_s"] <= first["seconds"]
    rows = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert [{key: row[key] for key in row if key != "time"} for row in rows] == a.rows


def test_a_figure_of_the_task_never_replaces_a_fact(tmp_path: Path) -> None:
    class Odd(Toy):
        def figures(self) -> dict[str, float]:
            return {"kind": 1.0, "round": 2.0, "seconds": -1.0, "folded": 3.0, "loss": float("nan")}

    life = play(a_life(make_config(tmp_path, "a", ALONE, rounds={"max": 1}), Odd()))
    (row,) = life.all("round")
    assert (row["round"], row["folded"], row["loss"]) == (1, [], None)
    assert row["seconds"] >= 0


def test_nobody_reading_our_output_ends_no_training(tmp_path: Path) -> None:
    class Broken(Life):
        def _tell(self, row: Any) -> None:
            super()._tell(row)
            raise BrokenPipeError

    async def scenario() -> list[Any]:
        life = Broken(make_config(tmp_path, "a", ALONE, rounds={"max": 3}))
        async with living(life):
            await life.end()
        return life.all("round")

    assert len(play(scenario())) == 3


def test_what_is_heard_before_the_start_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = GrpcTransport.start

    async def start_and_hear(self: GrpcTransport) -> None:
        await start(self)
        self._deliver(LinkUp(PeerId("b"), 1, Turn(0)))  # pyright: ignore[reportPrivateUsage]: as its own links do

    monkeypatch.setattr(GrpcTransport, "start", start_and_hear)
    tables: dict[str, Any] = {"liveness": {"join_s": PATIENCE_S}, "rounds": {"max": 1, "deadline_s": 0.01}}
    life = play(a_life(make_config(tmp_path, "a", {"a": 0, "b": 1}, **tables)))
    assert [row["kind"] for row in life.rows[:3]] == ["started", "peer", "round"]


# Health -----------------------------------------------------------------------------------------------


def test_the_standard_health_service_is_on_the_port_of_the_links(tmp_path: Path) -> None:
    async def scenario() -> list[int]:
        life = Life(make_config(tmp_path, "a", ALONE), Toy(train=until_interrupted))
        async with living(life), grpc.aio.insecure_channel(f"127.0.0.1:{life.port}") as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)  # pyright: ignore[reportUnknownVariableType]
            request = health_pb2.HealthCheckRequest()
            checked = await stub.Check(request)
            watch = stub.Watch(request)
            seen = [checked.status, (await watch.read()).status]
            life.leave()
            seen.append((await watch.read()).status)
            watch.cancel()
            return seen

    status = health_pb2.HealthCheckResponse
    assert play(scenario()) == [status.SERVING, status.SERVING, status.NOT_SERVING]


# Refusals ---------------------------------------------------------------------------------------------


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        config = make_config(tmp_path, "a", ALONE, runtime={"listen": address})
        with pytest.raises(LocalError, match=f"^{address}: cannot listen there; the port may be in use"):
            play(a_life(config))
    play(a_life(make_config(tmp_path, "a", ALONE, rounds={"max": 1}, runtime={"listen": address})))  # it let go of all


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "192.168.1.5:0", "example.org:0"])
def test_other_machines_are_let_in_only_with_consent(tmp_path: Path, listen: str) -> None:
    why = rf"^runtime\.listen = '{listen}': reaches beyond this machine".replace("[", r"\[")
    with pytest.raises(ConfigError, match=why):
        Life(make_config(tmp_path, "a", ALONE, runtime={"listen": listen}))
    Life(make_config(tmp_path, "a", ALONE, runtime={"listen": listen, "insecure": True}))


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "127.1.2.3:0", "[::1]:0", "localhost:0"])
def test_loopback_needs_no_consent(tmp_path: Path, listen: str) -> None:
    Life(make_config(tmp_path, "a", ALONE, runtime={"listen": listen}))


def test_a_model_above_the_limit_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^runtime\.payload_bytes_max = 7: should be at least 8, this model's"):
        play(a_life(make_config(tmp_path, "a", ALONE, runtime={"payload_bytes_max": 7})))


def test_another_swarms_peer_is_refused_with_the_first_difference(tmp_path: Path) -> None:
    async def scenario() -> tuple[Any, Any, dict[str, Any]]:
        b = Life(make_config(tmp_path, "b", {"a": 0, "b": 0}, mixing={"gossip_steps": 2}))
        async with living(b):
            a = Life(make_config(tmp_path, "a", {"a": 0, "b": b.port}))
            async with living(a):
                rows = await a.row("refused"), await b.row("refused")
                (status,) = (await asyncio.to_thread(ControlClient(tmp_path / "b").status))["peers"]
        return *rows, status

    ours, theirs, status = play(scenario())
    assert (ours["peer"], theirs["peer"]) == ("b", "a")
    assert "mixing.gossip_steps: ours 1, theirs 2" in ours["reason"]
    assert "mixing.gossip_steps: ours 2, theirs 1" in theirs["reason"]
    assert (status["refusals"], status["last_refusal"], status["linked"]) == (1, theirs["reason"], False)


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
        play(a_life(make_config(tmp_path, "a", ALONE), Failing(where)))
    assert str(raised.value) == "the task failed in round 2: ZeroDivisionError: no data"
    assert isinstance(raised.value.__cause__, ZeroDivisionError)


def test_a_snapshot_that_does_not_fit_is_named(tmp_path: Path) -> None:
    play(a_life(make_config(tmp_path, "a", ALONE, rounds={"max": 1})))
    with pytest.raises(LocalError, match=r"^the task failed in restore: ZeroDivisionError: no data$"):
        play(a_life(make_config(tmp_path, "a", ALONE), Failing("restore")))


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
    life = play(a_life(config, toy))
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
        play(a_life(config, toy))


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
        play(scenario())


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

    a, b = play(scenario())
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

    assert play(scenario()).toy.calls == ["snapshot 0"]


def test_a_restart_goes_on_from_the_snapshot(tmp_path: Path) -> None:
    play(a_life(make_config(tmp_path, "a", ALONE, rounds={"max": 3}), Toy(0.25)))
    toy = Toy(7.0)
    life = play(a_life(make_config(tmp_path, "a", ALONE, rounds={"max": 5}), toy))
    assert {key: life.rows[0][key] for key in ("kind", "round", "incarnation")} == {
        "kind": "started",
        "round": 3,
        "incarnation": 2,
    }
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

    assert play(scenario()) == ["alive", "left", "alive", "left"]


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


def test_a_neighbour_that_vanishes_writes_nothing_on_stderr(tmp_path: Path) -> None:
    """gRPC's core would like to tell of every connection that is lost."""

    async def scenario() -> tuple[int, str]:
        b = Life(make_config(tmp_path, "b", {"a": 0, "b": 0}), Toy(train=until_interrupted))
        path = tmp_path / "a.toml"
        liveness = {"heartbeat_s": 0.05, "timeout_s": 0.2}
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

    assert play(scenario()) == (0, "")
