"""The local control service: what it answers, who may open it, and what is said when nobody answers."""

from __future__ import annotations

import asyncio
import math
import os
import socket
import stat
import tempfile
import threading
import tomllib
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import pytest

from murmurate.peer.config import parse
from murmurate.peer.errors import LocalError
from murmurate.peer.protocol.events import Mix, Mixed
from murmurate.peer.protocol.seams import Write
from murmurate.peer.runtime import control
from murmurate.peer.runtime.control import ControlClient, finite, socket_path

from .toy import PATIENCE_S, Life, Toy, living, make_config, until_interrupted

T = TypeVar("T")


def with_daemon(folder: Path, scenario: Callable[[Life], Awaitable[T]], toy: Toy | None = None, **tables: Any) -> T:
    """A daemon without neighbours, whose training goes on until the scenario ends."""

    async def run() -> T:
        life = Life(make_config(folder, "a", {"a": 0}, **tables), toy or Toy(train=until_interrupted))
        async with living(life):
            return await scenario(life)

    return asyncio.run(run())


def asking(folder: Path, question: Callable[[ControlClient], T]) -> Callable[[Life], Awaitable[T]]:
    async def scenario(_: Life) -> T:
        return await asyncio.to_thread(question, ControlClient(folder / "a"))

    return scenario


def complaint(question: Callable[[], object]) -> str:
    with pytest.raises(LocalError) as raised:
        question()
    return str(raised.value)


# Answers ----------------------------------------------------------------------------------------------


def test_status_says_how_it_is(tmp_path: Path) -> None:
    toy = Toy(0.5, train=until_interrupted)
    status = with_daemon(tmp_path, asking(tmp_path, ControlClient.status), toy)
    assert 0 < status.pop("uptime_s") < PATIENCE_S
    assert len(status.pop("swarm")) == 64
    assert status.pop("incarnation") >= 1
    assert status == {
        "peer": "a",
        "phase": "training",
        "round": 0,
        "figures": {"loss": 0.5},
        "bytes_sent": 0,
        "bytes_received": 0,
        "snapshot_round": 0,
        "listen": "127.0.0.1:0",
        "metrics": "",
        "peers": [],
        "exchange": "models",
        "records": None,
    }


def test_only_what_json_can_express_is_told() -> None:
    assert [finite(value) for value in (1.5, 2, "x", math.nan, math.inf, -math.inf)] == [1.5, 2, "x", None, None, None]


def test_a_figure_that_is_not_finite_is_none(tmp_path: Path) -> None:
    toy = Toy(float("inf"), train=until_interrupted)
    assert with_daemon(tmp_path, asking(tmp_path, ControlClient.status), toy)["figures"] == {"loss": None}


def test_status_shows_the_neighbours(tmp_path: Path) -> None:
    async def scenario() -> list[dict[str, Any]]:
        b = Life(make_config(tmp_path, "b", {"a": 0, "b": 0, "c": 1}), Toy(train=until_interrupted))
        async with living(b):
            a = Life(make_config(tmp_path, "a", {"a": 0, "b": b.port, "c": 1}), Toy(train=until_interrupted))
            async with living(a):
                await b.row("peer", peer="a", state="alive")
                return (await asyncio.to_thread(ControlClient(tmp_path / "b").status))["peers"]

    a, c = asyncio.run(scenario())
    assert (a["peer"], a["state"], a["linked"], a["address"]) == ("a", "alive", True, "127.0.0.1:0")
    assert a["bytes_sent"] > 0 < a["bytes_received"]
    assert 0 <= a["heard_ago_s"] < PATIENCE_S
    assert (c["peer"], c["linked"], c["heard_ago_s"], c["refusals"]) == ("c", False, -1.0, 0)


def test_leave_makes_it_leave(tmp_path: Path) -> None:
    async def scenario(life: Life) -> None:
        await asyncio.to_thread(ControlClient(tmp_path / "a").leave)
        await life.end()

    with_daemon(tmp_path, scenario)
    assert (tmp_path / "a" / "snapshot.safetensors").exists()


def test_config_is_the_effective_one(tmp_path: Path) -> None:
    text = with_daemon(tmp_path, asking(tmp_path, ControlClient.config), rounds={"eval_every": 7})
    expected = make_config(tmp_path, "a", {"a": 0}, rounds={"eval_every": 7})
    assert parse(tomllib.loads(text)) == expected


# Export -----------------------------------------------------------------------------------------------


def test_export_writes_the_model(tmp_path: Path) -> None:
    def export(client: ControlClient) -> dict[str, Any]:
        return client.export(tmp_path / "model")

    reply = with_daemon(tmp_path, asking(tmp_path, export), Toy(0.5), rounds={"max": 0})
    assert reply["path"] == str(tmp_path / "model")
    assert (tmp_path / "model").read_text().startswith('{"value": 0.5, "round": ')


def test_export_names_the_round_of_the_model_it_wrote(tmp_path: Path) -> None:
    """The copy waits for the mix under way, and is then the model of a round that was not complete when we asked."""
    mixing, exporting = threading.Event(), threading.Event()

    class Waiting(Toy):
        def mix(self, effect: Mix) -> Mixed:
            if effect.turn.round == 3:
                mixing.set()
                assert exporting.wait(PATIENCE_S)
            return super().mix(effect)

    async def scenario(life: Life) -> int:
        await asyncio.to_thread(mixing.wait, PATIENCE_S)
        export = asyncio.create_task(life.daemon.export(tmp_path / "model"))
        await asyncio.sleep(0)  # it has its place in the queue
        exporting.set()
        return (await export).round

    round = with_daemon(tmp_path, scenario, Waiting())
    assert (tmp_path / "model").read_text() == f'{{"value": 1.0, "round": {round}}}'
    assert round == 3


@pytest.mark.parametrize("place", ["no such folder/model", "file/model", "/", "/proc/model"])
def test_an_export_that_cannot_be_written_says_why_and_the_daemon_lives_on(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()

    def export(client: ControlClient) -> tuple[str, str]:
        why = complaint(lambda: client.export(tmp_path / place))
        return why, client.status()["phase"]

    why, phase = with_daemon(tmp_path, asking(tmp_path, export), Toy())
    assert why.startswith(f"{(tmp_path / place).resolve()}: could not be written: ")
    assert phase in ("training", "waiting", "mixing")


def test_a_task_that_cannot_be_exported_says_why(tmp_path: Path) -> None:
    class Stubborn(Toy):
        def export(self) -> Write:
            raise KeyError("weights")

    async def scenario(life: Life) -> str:
        return await asyncio.to_thread(complaint, lambda: ControlClient(tmp_path / "a").export(tmp_path / "model"))

    assert with_daemon(tmp_path, scenario, Stubborn()) == "the task failed in export: KeyError: 'weights'"


def test_a_fault_of_our_own_is_not_taken_for_a_dead_daemon(tmp_path: Path) -> None:
    class Odd(Toy):
        def figures(self) -> NoReturn:
            raise KeyError("loss")

    async def scenario(_: Life) -> str:
        return await asyncio.to_thread(complaint, ControlClient(tmp_path / "a").status)

    why = with_daemon(tmp_path, scenario, Odd(train=until_interrupted))
    assert why.startswith(f"{tmp_path / 'a'}: the daemon could not do it: ")
    assert "KeyError" in why


# The socket -------------------------------------------------------------------------------------------


def test_only_this_user_may_open_it(tmp_path: Path) -> None:
    async def scenario(_: Life) -> int:
        return socket_path(tmp_path / "a").lstat().st_mode

    before = os.umask(0)
    try:
        mode = with_daemon(tmp_path, scenario)
        after = os.umask(0)
    finally:
        os.umask(before)
    assert (stat.S_ISSOCK(mode), stat.S_IMODE(mode)) == (True, 0o600)
    assert after == 0  # as it was
    assert not socket_path(tmp_path / "a").exists()


@pytest.mark.parametrize("name", ["with a space", "100%", "%41", "run#2", "what?", "ümlaut"])
def test_a_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    assert with_daemon(tmp_path / name, asking(tmp_path / name, ControlClient.status))["peer"] == "a"


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files whose path is short, which pytest's own is not."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


@pytest.mark.usefixtures("short")
def test_a_path_that_is_too_long_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 200)
    path = socket_path(folder / "a")
    assert len(str(path)) <= control.SOCKET_PATH_MAX < len(str(folder))

    async def scenario(_: Life) -> tuple[str, int]:
        status = await asyncio.to_thread(ControlClient(folder / "a").status)
        return status["peer"], stat.S_IMODE(path.parent.stat().st_mode)

    assert with_daemon(folder, scenario) == ("a", 0o700)
    assert socket_path(folder / "b") != path


@pytest.mark.parametrize("trap", ["writable by others", "a link"])
def test_a_folder_for_sockets_that_others_could_use_is_refused(tmp_path: Path, short: Path, trap: str) -> None:
    folder = tmp_path / ("x" * 200)
    shared = socket_path(folder / "a").parent
    assert shared.parent == short
    if trap == "a link":
        shared.symlink_to(tmp_path)
    else:
        shared.mkdir()
        shared.chmod(0o777)
    why = complaint(lambda: with_daemon(folder, asking(folder, ControlClient.status)))
    assert why.startswith(f"{shared}: should be a folder that only this user may write to; ")


def test_the_socket_of_a_dead_daemon_is_replaced(tmp_path: Path) -> None:
    path = socket_path(tmp_path / "a")
    path.parent.mkdir(exist_ok=True)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    assert complaint(ControlClient(tmp_path / "a").status) == f"{tmp_path / 'a'}: the daemon is not running any more"
    assert with_daemon(tmp_path, asking(tmp_path, ControlClient.status))["peer"] == "a"


def test_without_a_daemon_there_is_no_answer(tmp_path: Path) -> None:
    why = f"{tmp_path}: no daemon is running here"
    client = ControlClient(tmp_path)
    assert complaint(client.status) == why
    assert complaint(client.leave) == why
    assert complaint(client.config) == why
    assert complaint(lambda: client.export(tmp_path / "model")) == why


def test_a_daemon_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "CALL_S_MAX", 0.05)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(socket_path(tmp_path)))
        silent.listen()
        assert complaint(ControlClient(tmp_path).status) == f"{tmp_path}: the daemon does not answer"
