"""A trainer of one number, without torch, and daemons around it: in this process, or as processes of their own.

Run as a program it is `murmurate run CONFIG --json` with that trainer: `toy.py CONFIG [BEHAVIOUR]`.
"""

from __future__ import annotations

import array
import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from murmurate.peer.build import build_manifest, build_topology
from murmurate.peer.cli import main
from murmurate.peer.config import Config, parse
from murmurate.peer.protocol.events import Adopt, Mix, Mixed, Trained
from murmurate.peer.protocol.seams import Write
from murmurate.peer.runtime.daemon import Daemon

PATIENCE_S = 60.0  # only a broken test waits this long
MAKER = "murmurate.peer.learning.make"

Row = Mapping[str, Any]


class Toy:
    """Implements `protocol.seams.Trainer`: the model is `value`, and training leaves it as it is."""

    payload_bytes = 8
    schema = (("value", (), "float64"),)
    base = "toy"

    def __init__(self, value: float = 1.0, train: Callable[[Toy, int], object] | None = None) -> None:
        """`train` is called in the middle of every training, on its thread."""
        self.value = value
        self.round = 0
        self.calls: list[str] = []
        self.threads: set[threading.Thread] = set()
        self.interrupted = threading.Event()
        self._train = train

    def train(self, round: int) -> Trained:
        self._note(f"train {round}")
        if self._train is not None:
            self._train(self, round)
        return Trained(round, self._pack(), complete=not self.interrupted.is_set())

    def mix(self, effect: Mix) -> Mixed:
        self._note(f"mix {effect.turn.round}")
        own = 1 - sum(effect.weights.values())
        theirs = (effect.weights[peer] * _unpack(payload) for peer, payload in effect.inbox.items())
        self.value = own * self.value + sum(theirs)
        self.round = effect.turn.round
        return Mixed(effect.turn, self._pack() if effect.pack else b"")

    def adopt(self, effect: Adopt) -> Mixed:
        self._note(f"adopt {effect.turn.round}")
        self.value = _unpack(effect.inbox[min(effect.inbox)])
        self.round = effect.turn.round
        return Mixed(effect.turn)

    def interrupt(self) -> None:
        self.interrupted.set()

    def snapshot(self) -> Write:
        self._note(f"snapshot {self.round}")
        return self._writer()

    def restore(self, path: Path) -> int:
        self._note("restore")
        state = json.loads(path.read_text(encoding="utf-8"))
        self.value, self.round = state["value"], state["round"]
        return self.round

    def export(self) -> Write:
        self._note("export")
        return self._writer()

    def figures(self) -> Mapping[str, float]:
        return {"loss": self.value}

    def _note(self, call: str) -> None:
        self.calls.append(call)
        self.threads.add(threading.current_thread())

    def _pack(self) -> bytes:
        return array.array("d", [self.value]).tobytes()

    def _writer(self) -> Write:
        text = json.dumps({"value": self.value, "round": self.round})

        def write(path: Path) -> None:
            path.write_text(text, encoding="utf-8")

        return write


def _unpack(payload: bytes | bytearray | memoryview) -> float:
    return array.array("d", bytes(payload))[0]


def until_interrupted(toy: Toy, round: int) -> None:
    """A training that lasts until the daemon is to leave."""
    assert toy.interrupted.wait(PATIENCE_S)


# Daemons in this process ------------------------------------------------------------------------------


def make_config(folder: Path, name: str, ports: Mapping[str, int], **tables: Any) -> Config:
    """`ports` on loopback: 0 for oneself and for those who dial us, which is everybody with a smaller name."""
    runtime = {"state_dir": str(folder / name), **tables.pop("runtime", {})}
    peers = {peer: f"127.0.0.1:{port}" for peer, port in ports.items()}
    return parse({"name": name, "peers": peers, "runtime": runtime, **tables})


class Life:
    """One life of one daemon, and what it tells."""

    def __init__(self, config: Config, toy: Toy | None = None) -> None:
        self.toy = toy or Toy()
        self.rows: list[Row] = []
        self.port = 0
        self.task: asyncio.Task[None] | None = None
        self._leaving = False
        self._news = asyncio.Event()
        topology = build_topology(config)
        manifest = build_manifest(config, topology, self.toy.schema, self.toy.base)
        self.daemon = Daemon(config, self.toy, manifest, topology, self._tell)

    def _tell(self, row: Row) -> None:
        self.rows.append(row)
        self._news.set()

    async def begin(self) -> None:
        """Returns when it listens."""
        self.task = asyncio.create_task(self.daemon.live())
        self.task.add_done_callback(lambda _: self._news.set())
        self.port = (await self.row("started"))["port"]

    async def row(self, kind: str, **fields: object) -> Row:
        """The first row like this, past or future. Raises what the daemon raised."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                for row in self.rows:
                    if row["kind"] == kind and fields.items() <= row.items():
                        return row
                if self.task is not None and self.task.done():
                    await self.task
                    raise AssertionError(f"it ended without a row {kind} {fields}: {self.rows}")
                self._news.clear()
                await self._news.wait()

    def leave(self) -> None:
        """Asked once more it would end this process."""
        if not self._leaving:
            self._leaving = True
            self.daemon.leave()

    async def end(self) -> None:
        """Waits for its end. Raises what the daemon raised."""
        assert self.task is not None
        async with asyncio.timeout(PATIENCE_S):
            await self.task

    def all(self, kind: str) -> list[Row]:
        """The rows of one kind so far."""
        return [row for row in self.rows if row["kind"] == kind]


async def a_life(config: Config, toy: Toy | None = None) -> Life:
    """From the beginning to the end. Raises what the daemon raises."""
    life = Life(config, toy)
    async with living(life):
        await life.end()
    return life


@asynccontextmanager
async def living(*lives: Life) -> AsyncGenerator[None]:
    """These daemons live, and those that still do when the test is over leave."""
    try:
        for life in lives:
            await life.begin()
        yield
    finally:
        running = [life for life in lives if life.task is not None and not life.task.done()]
        for life in running:
            life.leave()
        for life in running:
            await life.end()


# Daemons in processes of their own ----------------------------------------------------------------------


class Process:
    """A daemon whose rows are read one by one."""

    def __init__(self, config: Path, behaviour: str = "plain") -> None:
        command = [sys.executable, __file__, str(config), behaviour]
        environment = {key: value for key, value in os.environ.items() if key != "GRPC_VERBOSITY"}  # ours to set
        environment |= {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(Path(__file__).parents[1] / ".src")}
        self.popen = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.popen.kill()
        self.popen.communicate()

    def row(self, kind: str, **fields: object) -> Row:
        """The next row like this."""
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            row = json.loads(line)
            if row["kind"] == kind and fields.items() <= row.items():
                return row
        raise AssertionError(f"it ended without a row {kind} {fields}:\n{self.popen.communicate()[1]}")

    def end(self) -> tuple[int, list[Row], str]:
        """The exit code, all further rows, and what it wrote on stderr."""
        out, err = self.popen.communicate(timeout=PATIENCE_S)
        return self.popen.returncode, [json.loads(line) for line in out.splitlines()], err


def _say(kind: str) -> None:
    sys.stdout.write(json.dumps({"kind": kind}) + "\n")
    sys.stdout.flush()


class _Told(Toy):
    """Tells when it is interrupted."""

    def interrupt(self) -> None:
        super().interrupt()
        _say("interrupted")


def _until_interrupted(toy: Toy, round: int) -> None:
    _say("training")
    until_interrupted(toy, round)


def _forever(toy: Toy, round: int) -> None:
    _say("training")
    threading.Event().wait()


def _failing(toy: Toy, round: int) -> None:
    raise ZeroDivisionError("a fault of the task")


BEHAVIOURS: dict[str, Callable[[Toy, int], object] | None] = {
    "plain": None,
    "until_interrupted": _until_interrupted,
    "forever": _forever,
    "failing": _failing,
}


def maker_module(behaviour: str = "plain") -> ModuleType:
    """What to put in the place of the module `MAKER`, so that no torch is needed."""

    def prepare(_config: object) -> None:
        pass

    def make_trainer(_config: object, _degree_min: int) -> Toy:
        return _Told(train=BEHAVIOURS[behaviour])

    module = ModuleType(MAKER)
    vars(module).update(prepare=prepare, make_trainer=make_trainer)
    return module


if __name__ == "__main__":
    sys.modules[MAKER] = maker_module(*sys.argv[2:])
    sys.exit(main(["run", sys.argv[1], "--json"]))
