"""Audits between real peers: on links, in the manifest, and in daemons with a real task."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from murmurate.peer.build import build_auditing, build_manifest, build_neighbourhood, build_topology
from murmurate.peer.config import Config, parse
from murmurate.peer.console import run_line
from murmurate.peer.errors import ConfigError, RemoteError
from murmurate.peer.lab.cohort import Cohort, loopback_configs
from murmurate.peer.learning.make import make_trainer
from murmurate.peer.manifest import Manifest, first_difference
from murmurate.peer.protocol.events import Ask, Body, Evidence, PeerId, Question, Rumor, Source, Vector
from murmurate.peer.protocol.showing import PIECE_BYTES
from murmurate.peer.runtime.packing import BODY_BYTES
from murmurate.peer.runtime.wire import RUMORS_BYTES_MAX, Outbox
from murmurate.proto import link_pb2 as pb

from .frames import check_that_it_arrives, listening

LIMIT_S = 150.0  # a safety net

# On links ---------------------------------------------------------------------------------------------

TOLD = (Source(PeerId("a"), 2**62, 2**53), Source(PeerId("b"), 0, 0))
BODIES: list[Body] = [
    Question(0),
    Question(2**53, 2**32 - 1),
    Evidence(7, 0, 0),
    Evidence(2**53, 0, 2**53, 2**53, TOLD, b"data"),
    Evidence(7, 3, 2**30, data=bytes(PIECE_BYTES)),
]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: type(body).__name__)
def test_what_is_said_arrives(body: Body) -> None:
    check_that_it_arrives(body)


def wrong_frames() -> Iterator[pb.Frame]:
    yield pb.Frame(question=pb.Question(round=2**53 + 1))
    yield pb.Frame(evidence=pb.Evidence(round=2**53 + 1))
    yield pb.Frame(evidence=pb.Evidence(before=2**53 + 1))
    yield pb.Frame(evidence=pb.Evidence(size_bytes=2**53 + 1))
    yield pb.Frame(evidence=pb.Evidence(data=bytes(PIECE_BYTES + 1)))
    yield pb.Frame(evidence=pb.Evidence(sources=[pb.Source()] * 2049))
    yield pb.Frame(evidence=pb.Evidence(sources=[pb.Source(peer="x" * 257)]))
    yield pb.Frame(evidence=pb.Evidence(sources=[pb.Source(round=2**53 + 1)]))


@pytest.mark.parametrize("frame", list(wrong_frames()))
def test_what_has_another_form_is_refused(frame: pb.Frame) -> None:
    with pytest.raises(RemoteError):
        listening().feed(frame.SerializeToString())


def test_a_neighbour_that_reads_nothing_costs_no_more_than_a_bound() -> None:
    outbox = Outbox()
    for number in range(100):
        outbox.put(Evidence(7, number, 2**30, data=bytes(PIECE_BYTES)))
    frames = 0
    while outbox.next_frame() is not None:
        frames += 1
    assert frames == RUMORS_BYTES_MAX // (PIECE_BYTES + BODY_BYTES)


@pytest.mark.parametrize("body", [Evidence(7, 0, 0), Question(7), Ask(), Vector((), whole=False), Rumor()], ids=str)
def test_bodies_without_data_wait_in_no_longer_a_line(body: Body) -> None:
    outbox = Outbox()
    for _ in range(2 * RUMORS_BYTES_MAX // BODY_BYTES):
        outbox.put(body)
    frames = 0
    while outbox.next_frame() is not None:
        frames += 1
    assert frames == RUMORS_BYTES_MAX // BODY_BYTES


# In the manifest ----------------------------------------------------------------------------------------


def config_of(name: str = "a", **tables: Any) -> Config:
    return parse({"name": name, "peers": dict.fromkeys("abc", "127.0.0.1:0"), **tables})


def manifest_of(**tables: Any) -> Manifest:
    config = config_of(**tables)
    return build_manifest(config, build_topology(config), (), "seed:0")


@pytest.mark.parametrize(
    ("tables", "field"),
    [
        ({"audit": {"rate": 0.0}}, "audit"),
        ({"local": {"steps": 5}}, "audit.local.steps"),
        ({"local": {"lr": 0.07}}, "audit.local.lr"),
        ({"local": {"batch_size": 5}}, "audit.local.batch_size"),
        ({"local": {"options": {"momentum": 0.5}}}, "audit.local.options"),
        ({"task": {"partition": "dirichlet"}}, "audit.data.partition"),
        ({"runtime": {"device": "cuda:0"}}, "audit.device"),
        ({"local": {"schedule": "linear"}, "rounds": {"max": 7}}, "audit.local.schedule"),
    ],
    ids=str,
)
def test_with_audits_peers_agree_on_what_an_auditor_has_to_know(tables: dict[str, Any], field: str) -> None:
    audited = {"audit": {"rate": 0.5}}
    mine, theirs = manifest_of(**audited), manifest_of(**{**audited, **tables})
    assert first_difference(mine.text, theirs.text).startswith(field)
    if field != "audit":
        assert manifest_of().text == manifest_of(**tables).text


def test_the_rate_is_each_peers_own() -> None:
    assert manifest_of(audit={"rate": 0.1}).text == manifest_of(audit={"rate": 1.0, "deadline_s": 5.0}).text


def test_schedules_agree_on_their_end() -> None:
    audited = {"audit": {"rate": 0.5}, "local": {"schedule": "linear"}}
    one, other = (manifest_of(**audited, rounds={"max": rounds}) for rounds in (7, 8))
    assert first_difference(one.text, other.text).startswith("audit.local.schedule_rounds")


def test_a_core_audits_if_the_configuration_says_so() -> None:
    config = config_of(audit={"rate": 0.5}, mixing={"rule": "nna", "f": 1}, topology={"rule": "complete"})
    trainer = make_trainer(config, 2)
    auditing = build_auditing(config, build_neighbourhood(config, build_topology(config)), trainer, b"?")
    assert auditing is not None
    assert (auditing.rate, auditing.f, auditing.payload_bytes) == (0.5, 1, trainer.payload_bytes)
    plain = config_of()
    assert build_auditing(plain, build_neighbourhood(plain, build_topology(plain)), trainer, b"?") is None


def test_the_dead_must_be_known_before_they_are_guilty_of_silence() -> None:
    with pytest.raises(ConfigError, match=r"audit\.deadline_s = 3\.0: should be above liveness\.timeout_s = 3\.0"):
        config_of(audit={"rate": 0.5, "deadline_s": 3.0})
    assert config_of(audit={"rate": 0.0, "deadline_s": 3.0})


def test_a_graph_that_changes_is_refused() -> None:
    config = config_of(audit={"rate": 0.5}, topology={"rule": "random_matching"})
    with pytest.raises(ConfigError, match="has other edges in each"):
        build_auditing(config, build_neighbourhood(config, build_topology(config)), object(), b"?")


def test_people_are_told() -> None:
    row = {"peer": "b", "round": 7}
    assert str(run_line({"kind": "banned", **row, "reason": "it lies"})) == "banned b in round 7: it lies"
    assert "as it should be" in str(run_line({"kind": "audited", **row, "open": ""}))
    assert "it left" in str(run_line({"kind": "audited", **row, "open": "it left"}))


# In daemons ---------------------------------------------------------------------------------------------


def test_daemons_ban_the_liar_among_them_and_nobody_else(tmp_path: Path) -> None:
    table: dict[str, Any] = {
        "task": {"name": "digits"},
        "topology": {"rule": "complete"},
        "local": {"steps": 3},
        "audit": {"rate": 1.0, "deadline_s": 120.0},
        "rounds": {"eval_every": 0},
        "runtime": {"threads": 1},
    }
    names = ["p0", "p1", "p2", "p3"]
    configs = loopback_configs(tmp_path, names, table)
    configs[0] = parse({**configs[0].model_dump(), "attack": {"name": "sign_flip"}})
    honest = names[1:]
    with Cohort(tmp_path, configs) as cohort:
        cohort.start()
        cohort.wait(lambda: all(cohort.rows(name, "banned") for name in honest), LIMIT_S)
        cohort.wait(lambda: all(passed(cohort, name) >= {*honest} - {name} for name in honest), LIMIT_S)
        for name in honest:
            assert {row["peer"] for row in cohort.rows(name, "banned")} == {"p0"}
            status = cohort.status(name)
            assert status is not None
            (seen,) = (peer for peer in status["peers"] if peer["peer"] == "p0")
            assert seen["last_refusal"].startswith("banned: its local steps")
        assert "p0" not in cohort.rows("p1")[-1]["folded"]


def passed(cohort: Cohort, name: str) -> set[str]:
    """Whom it has audited, and found nothing."""
    return {row["peer"] for row in cohort.rows(name, "audited") if not row["open"]}
