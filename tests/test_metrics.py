"""Rows in metrics.jsonl, TensorBoard and Prometheus; a sink that fails is told of once, and stops nothing."""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

from murmurate.peer.errors import LocalError
from murmurate.peer.runtime.metrics import Metrics

STARTED = {"kind": "started", "round": 4, "incarnation": 2, "port": 7000}
ROUND: dict[str, Any] = {
    "kind": "round",
    "round": 5,
    "loss": 0.25,
    "accuracy": None,
    "top-1 %": 3,
    "folded": ["b", "c"],
}


def unexpected(text: str) -> None:
    raise AssertionError(text)


def opened(
    folder: Path, tensorboard: bool = False, prometheus: str = "", warn: Callable[[str], None] = unexpected
) -> closing[Metrics]:
    return closing(Metrics(folder, "a", tensorboard, prometheus, warn))


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


# metrics.jsonl ----------------------------------------------------------------------------------------


def test_a_row_is_a_line_at_once(tmp_path: Path) -> None:
    with opened(tmp_path) as metrics:
        metrics.write(STARTED)
        metrics.write(ROUND)
        found = rows(tmp_path)  # while the file is open
    assert [{key: row[key] for key in row if key != "time"} for row in found] == [STARTED, ROUND]
    assert found[0]["time"] > 1.7e9
    assert metrics.address == ""


def test_the_next_life_goes_on_in_the_same_file(tmp_path: Path) -> None:
    for row in (STARTED, ROUND):
        with opened(tmp_path) as metrics:
            metrics.write(row)
    assert [row["kind"] for row in rows(tmp_path)] == ["started", "round"]


@pytest.mark.parametrize("whole", [0, 1, 500])
@pytest.mark.parametrize("half", ['{"kind": "ro', "x" * 10_000])
def test_half_a_row_of_an_earlier_life_is_cut_off(tmp_path: Path, whole: int, half: str) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"kind": "round"}\n' * whole + half)
    with opened(tmp_path) as metrics:
        metrics.write(STARTED)
    assert [row["kind"] for row in rows(tmp_path)] == [*["round"] * whole, "started"]


# TensorBoard ------------------------------------------------------------------------------------------


def events(folder: Path) -> Iterator[Any]:
    """What TensorBoard reads: records of a length, its checksum, an event, its checksum."""
    (path,) = (folder / "tensorboard").iterdir()
    assert re.fullmatch(r"events\.out\.tfevents\..+", path.name)
    data = path.read_bytes()
    parse: Callable[[bytes], Any] = event_pb2.Event.FromString  # pyright: ignore[reportAttributeAccessIssue]: generated
    while data:
        length, checksum_of_length = struct.unpack_from("<QI", data)
        event, data = data[12 : 12 + length], data[12 + length :]
        assert checksum_of_length == masked_crc32c(struct.pack("<Q", length))
        assert struct.unpack_from("<I", data) == (masked_crc32c(event),)
        yield parse(event)
        data = data[4:]


def test_tensorboard_has_the_figures_of_the_rounds_at_once(tmp_path: Path) -> None:
    with opened(tmp_path, tensorboard=True) as metrics:
        metrics.write(STARTED)
        metrics.write(ROUND)
        header, event = events(tmp_path)  # while the file is open
    assert header.file_version == "brain.Event:2"
    assert (event.step, event.wall_time > 1.7e9) == (5, True)
    assert {value.tag: value.simple_value for value in event.summary.value} == {"loss": 0.25, "top-1 %": 3.0}


# Prometheus -------------------------------------------------------------------------------------------


def scrape(metrics: Metrics) -> dict[str, float]:
    with urllib.request.urlopen(f"http://{metrics.address}/metrics") as reply:
        lines = reply.read().decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def test_prometheus_serves_the_newest_figures(tmp_path: Path) -> None:
    with opened(tmp_path, prometheus="127.0.0.1:0") as metrics:
        metrics.write(STARTED)
        metrics.write({**ROUND, "loss": 0.5, "round": 4})
        metrics.write(ROUND)
        found = scrape(metrics)
    figures = {name: value for name, value in found.items() if "facts" not in name}
    assert figures == {
        'murmurate_round{peer="a"}': 5.0,
        'murmurate_loss{peer="a"}': 0.25,
        'murmurate_top_1__{peer="a"}': 3.0,  # Prometheus has its own idea of a name
    }
    assert found['murmurate_facts_total{kind="round",peer="a"}'] == 2.0
    assert found['murmurate_facts_total{kind="started",peer="a"}'] == 1.0


def test_the_endpoint_ends_with_the_metrics(tmp_path: Path) -> None:
    with opened(tmp_path, prometheus="127.0.0.1:0") as metrics:
        host, port = metrics.address.split(":")
        assert int(port) > 0
    with socket.socket() as free, pytest.raises(ConnectionRefusedError):
        free.connect((host, int(port)))


def test_two_peers_of_one_process_have_two_endpoints(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    with opened(tmp_path, prometheus="127.0.0.1:0") as one, opened(tmp_path / "b", prometheus="127.0.0.1:0") as other:
        one.write(ROUND)
        assert 'murmurate_loss{peer="a"}' not in scrape(other)


# What can be wrong ------------------------------------------------------------------------------------


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(LocalError) as raised:
            opened(tmp_path, tensorboard=True, prometheus=address)
    assert str(raised.value) == f"runtime.prometheus = {address!r}: cannot listen there: Address already in use"


def test_a_host_that_nobody_knows_is_named(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match=r"runtime\.prometheus = 'no\.such\.invalid:1': cannot listen there: \w+"):
        opened(tmp_path, prometheus="no.such.invalid:1")


@pytest.mark.parametrize("name", ["metrics.jsonl", "tensorboard"])
def test_a_sink_that_cannot_be_opened_is_named(tmp_path: Path, name: str) -> None:
    if name == "tensorboard":
        (tmp_path / name).touch()
    else:
        (tmp_path / name).mkdir()
    with pytest.raises(LocalError, match=f"{tmp_path}: metrics cannot be written: "):
        opened(tmp_path, tensorboard=True)


def descriptor_of(path: Path) -> int:
    """Of the file that this process has open."""
    return next(int(link.name) for link in Path("/proc/self/fd").iterdir() if link.exists() and link.samefile(path))


needs_dev_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="a file that is always full is Linux's")


@needs_dev_full
def test_a_full_disk_is_told_of_once_and_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    warnings: list[str] = []
    with opened(tmp_path, prometheus="127.0.0.1:0", warn=warnings.append) as metrics:
        for round in range(1, 20):
            metrics.write({**ROUND, "round": round})
        assert warnings == ["metrics are not written any more: No space left on device"]
        assert scrape(metrics)['murmurate_round{peer="a"}'] == 19.0
    assert warnings[1:] == ["metrics could not be flushed: No space left on device"]


@needs_dev_full
def test_a_full_disk_under_tensorboard_blocks_nobody(tmp_path: Path) -> None:
    warnings: list[str] = []
    with opened(tmp_path, tensorboard=True, warn=warnings.append) as metrics:
        (path,) = (tmp_path / "tensorboard").iterdir()
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, descriptor_of(path))
        for round in range(1, 50):
            metrics.write({**ROUND, "round": round})
        os.close(full)
    assert warnings == ["metrics are not written any more: No space left on device"]
    assert [row["round"] for row in rows(tmp_path)] == list(range(1, 50))
