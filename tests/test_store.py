"""A peer's folder: locked, its own, and whole at any instant."""

from __future__ import annotations

import errno
import json
import os
import resource
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from murmurate.peer.errors import ConfigError, LocalError, MurmurateError
from murmurate.peer.runtime.store import Store, write_whole

SWARM, OTHER = "5a" * 32, "0b" * 32


def text(content: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_text(content, encoding="utf-8")

    return write


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def broken(*_: object) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


# One file ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("point", "fault", "why"),
    [
        ("write", full, "no space left on the disk"),
        ("write", broken, "Input/output error"),
        ("fsync", full, "no space left on the disk"),
        ("fsync", broken, "Input/output error"),
        ("rename", broken, "Input/output error"),
    ],
)
@pytest.mark.parametrize("before", ["old", None])
def test_a_failure_leaves_the_old_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    point: str,
    fault: Callable[..., None],
    why: str,
    before: str | None,
) -> None:
    path = tmp_path / "file"
    if before is not None:
        path.write_text(before)

    def write(temporary: Path) -> None:
        temporary.write_text("ne")
        if point == "write":
            fault()

    with monkeypatch.context() as patch:
        if point == "fsync":
            patch.setattr(os, "fsync", fault)
        elif point == "rename":
            patch.setattr(Path, "replace", fault)
        with pytest.raises(LocalError) as raised:
            write_whole(path, write)
    kept = " (the file from before is kept)" if before is not None else ""
    assert str(raised.value) == f"{path}: could not be written: {why}{kept}"
    assert raised.value.__cause__ is not None
    assert [file.read_text() for file in tmp_path.iterdir()] == ([before] if before is not None else [])


def test_a_failure_of_the_trainers_own_is_named_as_well(tmp_path: Path) -> None:
    def write(_: Path) -> None:
        raise RuntimeError("serialization: No space left on device (os error 28)")  # as safetensors has it

    with pytest.raises(LocalError, match=r"could not be written: no space left on the disk$"):
        write_whole(tmp_path / "file", write)

    def stumble(_: Path) -> None:
        raise ValueError("of another kind")

    with pytest.raises(LocalError, match=r"could not be written: ValueError: of another kind$"):
        write_whole(tmp_path / "file", stumble)


def test_the_rename_is_synced_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the new file is there, and nobody may say that it is the old one."""
    path = tmp_path / "file"
    path.write_text("old")
    sync, count = os.fsync, 0

    def second_fails(descriptor: int) -> None:
        nonlocal count
        count += 1
        if count == 2:
            broken()
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", second_fails)
    with pytest.raises(LocalError) as raised:
        write_whole(path, text("new"))
    assert str(raised.value) == f"{path}: is written, but may not survive a power cut: Input/output error"
    assert path.read_text() == "new"


def test_a_file_is_synced_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    sync, replace = os.fsync, Path.replace

    def note_sync(descriptor: int) -> None:
        calls.append("sync folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "sync file")
        sync(descriptor)

    def note_replace(self: Path, target: Path) -> Path:
        calls.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "replace", note_replace)
    write_whole(tmp_path / "file", text("new"))
    assert calls == ["sync file", "rename", "sync folder"]


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """The kernel's own refusal: a limit on the size of files stands in for the end of a disk."""
    path = tmp_path / "file"
    path.write_text("old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(LocalError) as raised:
            write_whole(path, text("x" * 1001))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(raised.value) == f"{path}: could not be written: File too large (the file from before is kept)"
    assert [file.read_text() for file in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize("place", ["no such folder/file", "a file/file", "a folder", "/", "/proc/file"])
def test_a_place_that_cannot_be_written(tmp_path: Path, place: str) -> None:
    (tmp_path / "a file").touch()
    (tmp_path / "a folder").mkdir()
    with pytest.raises(LocalError, match="could not be written: "):
        write_whole(tmp_path / place, text("new"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a file", "a folder"]


# The folder -------------------------------------------------------------------------------------------


def opened(folder: Path, peer: str = "a", swarm: str = SWARM) -> Store:
    store = Store(folder, peer, swarm, clock=lambda: 0.0)
    store.open()
    return store


def refusal(folder: Path, error: type[MurmurateError], peer: str = "a", swarm: str = SWARM) -> str:
    with pytest.raises(error) as raised:
        Store(folder, peer, swarm, clock=lambda: 0.0).open()
    return str(raised.value)


def test_every_start_is_counted(tmp_path: Path) -> None:
    for incarnation in (1, 2, 3):
        store = opened(tmp_path / "runs" / "a")
        assert store.incarnation == incarnation
        store.close()


def test_a_wiped_folder_is_a_new_life_all_the_same(tmp_path: Path) -> None:
    """Else the neighbours, who remember the number, would take all it says for old."""
    lives: list[int] = []
    for now in (1000.0, 1000.9, 1500.0):
        store = Store(tmp_path, "a", SWARM, clock=lambda now=now: now)
        store.open()
        lives.append(store.incarnation)
        store.close()
        if now == 1000.9:
            (tmp_path / "peer.json").unlink()
    assert lives == [1000, 1001, 1500]


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    store = opened(tmp_path)
    assert refusal(tmp_path, LocalError) == f"{tmp_path}: in use by another daemon; stop it or choose another state_dir"
    store.close()
    store = opened(tmp_path)
    assert store.incarnation == 2  # the refused start did not count
    store.close()


def test_a_refused_start_lets_go_of_the_folder(tmp_path: Path) -> None:
    opened(tmp_path).close()
    refusal(tmp_path, ConfigError, peer="b")
    opened(tmp_path).close()


def test_a_foreign_folder_is_refused_with_a_way_out(tmp_path: Path) -> None:
    store = opened(tmp_path)
    assert refusal(tmp_path, LocalError)
    store.close()
    assert refusal(tmp_path, ConfigError, peer="b") == (
        f"{tmp_path}: belongs to peer 'a'; choose another state_dir for 'b'"
    )
    belongs = f"{tmp_path}: belongs to swarm {SWARM[:12]}, this configuration is swarm {OTHER[:12]}; "
    way_out = "choose another state_dir or remove the folder"
    assert refusal(tmp_path, ConfigError, swarm=OTHER) == belongs + way_out
    store = opened(tmp_path)
    store.save(text("model"))
    store.close()
    keep = f" (to go on from its model, set task.weights to {tmp_path / 'snapshot.safetensors'})"
    assert refusal(tmp_path, ConfigError, swarm=OTHER) == belongs + way_out + keep


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b"{}",
        b"\xff",
        b'{"peer": "a", "swarm": "x", "incarnation": "many"}',
        b'{"peer": "a", "swarm": "x", "incarnation": null}',
        b'{"peer": "a", "swarm": "x", "incarnation": 1e999}',
        b"[" * 100_000,
    ],
)
def test_a_damaged_identity_is_named(tmp_path: Path, content: bytes) -> None:
    identity = tmp_path / "peer.json"
    identity.write_bytes(content)
    assert refusal(tmp_path, LocalError) == f"{identity}: damaged; remove the folder to start anew"
    assert identity.read_bytes() == content


def test_an_unreadable_identity_is_not_called_damaged(tmp_path: Path) -> None:
    (tmp_path / "peer.json").mkdir()
    assert refusal(tmp_path, LocalError) == f"{tmp_path / 'peer.json'}: cannot be read: Is a directory"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "a"
    assert refusal(folder, LocalError) == f"{folder}: cannot be used as state_dir: Not a directory"
    assert refusal(tmp_path / "file", LocalError) == f"{tmp_path / 'file'}: cannot be used as state_dir: File exists"


def test_what_a_crash_left_is_cleared_away(tmp_path: Path) -> None:
    leftover = tmp_path / ".snapshot.safetensors.123.new"
    leftover.write_text("half")
    opened(tmp_path).close()
    assert not leftover.exists()


# Sudden death -----------------------------------------------------------------------------------------

SAVING = """
import sys
from pathlib import Path
from murmurate.peer.runtime.store import Store

store = Store(Path(sys.argv[1]), "a", "swarm", clock=lambda: 0.0)
store.open()
number = 0
while True:
    number += 1
    block = (str(number) + ";") * 20_000
    def write(path):
        with path.open("w") as file:
            for _ in range(8):
                file.write(block)
                file.flush()
                print(number, flush=True)
    store.save(write)
    print("saved", number, flush=True)
"""


def test_killed_at_any_instant_the_snapshot_is_whole(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / ".src")}
    for life, lines in enumerate((1, 4, 8, 9, 10, 13, 17, 18, 22, 27), start=1):
        command = [sys.executable, "-c", SAVING, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stdout is not None
            said = [process.stdout.readline() for _ in range(lines)]
            process.kill()
            said += process.stdout.readlines()
        saved = [int(line.split()[1]) for line in said if line.startswith("saved")]
        path = tmp_path / "snapshot.safetensors"
        if path.exists():
            number = path.read_text().partition(";")[0]
            assert path.read_text() == f"{number};" * 160_000
            assert not saved or int(number) in (saved[-1], saved[-1] + 1)  # the last one said to be saved, or a later
        else:
            assert not saved
        assert json.loads((tmp_path / "peer.json").read_text())["incarnation"] == life
