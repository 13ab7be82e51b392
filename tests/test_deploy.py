"""What deploy/ says agrees with the configuration that the daemons read."""

import re
from pathlib import Path

import pytest

from murmurate.peer.build import build_topology
from murmurate.peer.config import Runtime, load

DEPLOY = Path(__file__).resolve().parents[1] / "deploy"
COMPOSE = DEPLOY / "compose.yaml"
SWARM = DEPLOY / "compose" / "swarm.toml"
STATE = Path("/var/lib/murmurate")


def seconds(file: Path, key: str) -> list[float]:
    return [float(value) for value in re.findall(rf"{key}[:=]\s*(\d+)", file.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("name", re.findall(r"MURMURATE_NAME: (\w+)", COMPOSE.read_text(encoding="utf-8")))
def test_compose_peer_has_a_configuration(name: str) -> None:
    config = load(SWARM, name)
    assert config.peers[name] == f"{name}:7000"  # the service's name is its address
    assert config.runtime.insecure
    assert config.state_dir == STATE
    build_topology(config)


def test_compose_runs_every_peer_of_its_swarm() -> None:
    text = COMPOSE.read_text(encoding="utf-8")
    names = re.findall(r"MURMURATE_NAME: (\w+)", text)
    assert tuple(names) == load(SWARM, "a").roster
    assert re.findall(rf'"(\w+):{STATE}"', text) == names  # a volume each


def test_enough_time_to_leave() -> None:
    needed_s = Runtime().shutdown_s_max
    assert (
        min(seconds(COMPOSE, "stop_grace_period") + seconds(DEPLOY / "murmurate.service", "TimeoutStopSec")) > needed_s
    )


@pytest.mark.parametrize("file", ["Dockerfile", "murmurate.service"])
def test_modules_are_never_found_in_the_current_directory(file: str) -> None:
    assert "PYTHONSAFEPATH=1" in (DEPLOY / file).read_text(encoding="utf-8")
