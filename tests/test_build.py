"""A configuration becomes a core: of the exchange that it names."""

from __future__ import annotations

from typing import Any

import pytest

from murmurate.peer.build import build_core, build_neighbourhood, build_rules, build_topology
from murmurate.peer.config import Config, parse
from murmurate.peer.lab.seeds_life import verify
from murmurate.peer.protocol.events import Restored, SetTimer, Sign, Started, Timer, TimerFired, Turn
from murmurate.peer.protocol.records import Batch
from murmurate.peer.protocol.rounds import Phase

from .seeds_scene import key


def config(**tables: Any) -> Config:
    peers = {"b": "127.0.0.1:0", "me": "127.0.0.1:0"}
    return parse({"name": "me", "peers": peers, "exchange": {"name": "seeds"}, **tables})


def test_a_core_that_gossips_seeds() -> None:
    built = config(
        local={"steps": 5}, seeds={"probes": 2, "authority": ["ab" * 32], "gossip_s": 3.0}, liveness={"join_s": 7.0}
    )
    core = build_core(built, build_neighbourhood(built, build_topology(built)), key("me"), verify)
    assert core.feeds is not None
    assert (core.feeds.rules.records, core.feeds.rules.codes) == (10, 10)
    assert core.feeds.rules.authorities == {b"\xab" * 32}
    assert core.feeds.rules.roster == {"me", "b"}
    core.handle(Restored((), ()), 0.0)
    delays = {one.timer.kind: one.delay_s for one in core.handle(Started(0), 0.0) if isinstance(one, SetTimer)}
    assert delays == {"heartbeat": 0.5, "gossip": 3.0, "join": 7.0}
    birth = Sign(Batch(key("me"), 0, 0, b"me", b""))
    assert core.handle(TimerFired(Timer("join", Turn(0))), 7.0) == [birth]
    assert core.phase is Phase.SIGNING


def test_a_core_that_exchanges_models_has_no_feeds() -> None:
    built = config(exchange={"name": "models"})
    assert build_core(built, build_neighbourhood(built, build_topology(built))).feeds is None


@pytest.mark.parametrize(
    ("seeds", "codes"),
    [
        ({"directions": "pool", "sampling": "pro"}, 3),
        ({"directions": "pool", "sampling": "uniform"}, 1),
        ({"directions": "private", "sampling": "uniform"}, 1),
    ],
)
def test_only_drawn_ids_travel_beside_the_codes(seeds: dict[str, Any], codes: int) -> None:
    rules = build_rules(config(local={"steps": 1}, seeds=seeds))
    assert (rules.records, rules.codes) == (1, codes)
