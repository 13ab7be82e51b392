"""The shell around the core: nothing blocks its loop, it tells what happens, it starts only where it may."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from murmurate.peer.errors import ConfigError, LocalError
from murmurate.peer.protocol.events import Envelope, Event, LinkUp, Mix, Mixed, PeerId, Received, Turn
from murmurate.peer.protocol.seams import Write
from murmurate.peer.runtime.control import ControlClient
from murmurate.peer.runtime.transport import GrpcTransport

from .toy import PATIENCE_S, Life, Toy, a_life, living, make_config, until_interrupted

ALONE = {"a": 0}
SIGNS_OF_LIFE = 5


# The loop is never blocked ----------------------------------------------------------------------------


def count_signs_of_life(life: Life, begun: threading.Event, enough: threading.Event) -> None:
    """Sets `enough` when the daemon has received so many bodies of "a" since `begun`: updates, or else heartbeats."""
    handle, count = life.daemon.core.handle, 0

    def counting(event: Event, now: float) -> Any:
        nonlocal count
        match event:
            case Received(Envelope("a")) if begun.is_set():
                count += 1
                if count == SIGNS_OF_LIFE:
                    enough.set()
            case _:
                pass
        return handle(event, now)

    life.daemon.core.handle = counting


@pytest.mark.timeout(2 * PATIENCE_S)
@pytest.mark.parametrize("job", ["train", "mix", "snapshot", "write", "export"])
def test_signs_of_life_flow_during_a_job_of_any_length(tmp_path: Path, job: str) -> None:
    """A job of "a" ends only when "b" has heard "a" several times since the job began."""
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
        count_signs_of_life(b, begun, enough)
        async with living(b):
            toy = Slow(train=(lambda _, round: wait() if round == 2 else None) if job == "train" else None)
            runtime = {"snapshot_s": 0.0}
            a = Life(make_config(tmp_path, "a", {"a": 0, "b": b.port}, runtime=runtime, **tables), toy)
            async with living(a):
                if job == "export":
                    await a.daemon.export(tmp_path / "model")
                assert await asyncio.to_thread(enough.wait, PATIENCE_S)
                await a.row("round", round=3)

    asyncio.run(scenario())


def test_the_trainer_is_called_on_one_thread_that_is_not_the_loops(tmp_path: Path) -> None:
    async def scenario() -> Toy:
        config = make_config(tmp_path, "a", ALONE, rounds={"max": 2})
        await a_life(config)
        life = Life(make_config(tmp_path, "a", ALONE, rounds={"max": 4}))
        async with living(life):
            await life.daemon.export(tmp_path / "model")
            await life.end()
        return life.toy

    toy = asyncio.run(scenario())
    assert {"restore", "train 3", "mix 3", "export", "snapshot 4"} <= set(toy.calls)
    (thread,) = toy.threads
    assert thread is not threading.current_thread()


def test_a_snapshot_is_taken_before_the_next_training(tmp_path: Path) -> None:
    config = make_config(tmp_path, "a", ALONE, rounds={"max": 3}, runtime={"snapshot_s": 0.0})
    life = asyncio.run(a_life(config))
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

    a, b = asyncio.run(scenario())
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

    life = asyncio.run(a_life(make_config(tmp_path, "a", ALONE, rounds={"max": 1}), Odd()))
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

    assert len(asyncio.run(scenario())) == 3


def test_what_is_heard_before_the_start_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = GrpcTransport.start

    async def start_and_hear(self: GrpcTransport) -> None:
        await start(self)
        self._deliver(LinkUp(PeerId("b"), 1, Turn(0)))  # pyright: ignore[reportPrivateUsage]: as its own links do

    monkeypatch.setattr(GrpcTransport, "start", start_and_hear)
    tables: dict[str, Any] = {"liveness": {"join_s": PATIENCE_S}, "rounds": {"max": 1, "deadline_s": 0.01}}
    life = asyncio.run(a_life(make_config(tmp_path, "a", {"a": 0, "b": 1}, **tables)))
    assert [row["kind"] for row in life.rows[:3]] == ["started", "peer", "round"]


# Health -----------------------------------------------------------------------------------------------


def test_the_standard_health_service_is_on_the_port_of_the_links(tmp_path: Path) -> None:
    async def scenario() -> list[int]:
        life = Life(make_config(tmp_path, "a", ALONE), Toy(train=until_interrupted))
        async with living(life), grpc.aio.insecure_channel(f"127.0.0.1:{life.port}") as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            request = health_pb2.HealthCheckRequest()
            checked = await stub.Check(request)
            watch = stub.Watch(request)
            seen = [checked.status, (await watch.read()).status]
            life.leave()
            seen.append((await watch.read()).status)
            watch.cancel()
            return seen

    status = health_pb2.HealthCheckResponse
    assert asyncio.run(scenario()) == [status.SERVING, status.SERVING, status.NOT_SERVING]


# Refusals ---------------------------------------------------------------------------------------------


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        config = make_config(tmp_path, "a", ALONE, runtime={"listen": address})
        with pytest.raises(LocalError, match=f"^{address}: cannot listen there; the port may be in use"):
            asyncio.run(a_life(config))
    asyncio.run(
        a_life(make_config(tmp_path, "a", ALONE, rounds={"max": 1}, runtime={"listen": address}))
    )  # it let go of all


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
        asyncio.run(a_life(make_config(tmp_path, "a", ALONE, runtime={"payload_bytes_max": 7})))


def test_another_swarms_peer_is_refused_with_the_first_difference(tmp_path: Path) -> None:
    async def scenario() -> tuple[Any, Any, dict[str, Any]]:
        b = Life(make_config(tmp_path, "b", {"a": 0, "b": 0}, mixing={"gossip_steps": 2}))
        async with living(b):
            a = Life(make_config(tmp_path, "a", {"a": 0, "b": b.port}))
            async with living(a):
                rows = await a.row("refused"), await b.row("refused")
                (status,) = (await asyncio.to_thread(ControlClient(tmp_path / "b").status))["peers"]
        return *rows, status

    ours, theirs, status = asyncio.run(scenario())
    assert (ours["peer"], theirs["peer"]) == ("b", "a")
    assert "mixing.gossip_steps: ours 1, theirs 2" in ours["reason"]
    assert "mixing.gossip_steps: ours 2, theirs 1" in theirs["reason"]
    assert (status["refusals"], status["last_refusal"], status["linked"]) == (1, theirs["reason"], False)
