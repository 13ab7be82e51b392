"""The benchmarks about learning by records: small runs of what they are made of, and their arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from murmurate.peer.config import Config
from murmurate.peer.lab import bench_liars, bench_traffic
from murmurate.peer.lab.bench_directions import measure_directions
from murmurate.peer.lab.bench_liars import Case, measure_liars
from murmurate.peer.lab.bench_traffic import BATCH_OVERHEAD_BYTES, PEERS, measure_traffic
from murmurate.peer.lab.demo_seeds import SeedsResult, SeedsView
from murmurate.peer.lab.together import together
from murmurate.peer.learning.descent import DIRECTIONS, Course, descend
from murmurate.peer.protocol.events import Rumor
from murmurate.peer.protocol.records import Batch, Origin
from murmurate.peer.runtime.wire import encode_body

from .seeds_peers import DROPOUT, config_of, task_of

COURSE = Course(points=6, records=2, looks=3)


@pytest.mark.parametrize("kind", DIRECTIONS)
def test_directions_are_of_length_one_an_entry_and_their_own(kind: str) -> None:
    one_D, same_D, other_D = torch.zeros(3, 40_000)
    draw = DIRECTIONS[kind](5)
    draw(one_D, 0)
    draw(same_D, 0)
    draw(other_D, 1)
    assert torch.equal(one_D, same_D)
    assert abs(float(one_D.square().mean()) - 1) < 0.05
    assert abs(float((one_D * other_D).mean())) < 0.05
    assert (set(one_D.tolist()) == {1.0, -1.0}) == (kind != "gaussian")


def test_a_descent_looks_where_it_should_and_goes_down() -> None:
    config = config_of(task={"name": "digits"}, local={"lr": 1e-2, "batch_size": 32})
    looks = list(descend(config, Course(points=50, records=16, looks=5), "structured", "float32"))
    assert [look["records"] for look in looks] == [0, 160, 320, 480, 640, 800]
    assert looks[-1]["test_loss"] < looks[0]["test_loss"] - 0.1


def test_both_passes_of_a_descent_drop_the_same_units() -> None:
    """Half of the units are dropped: with another draw in each pass the slopes would be noise over epsilon."""
    config = config_of(task=DROPOUT, local={"lr": 1e-2, "batch_size": 8}, seeds={"epsilon": 2.0**-14})
    first, last = descend(config, Course(points=1, records=4, looks=1), "structured", "float32")
    assert 0 < abs(first["test_loss"] - last["test_loss"]) < 0.1


def test_a_byte_is_near_but_not_the_same() -> None:
    config = config_of(task={"name": "digits"}, local={"lr": 1e-2, "batch_size": 32})
    exact, again, byte = (
        [look["test_loss"] for look in descend(config, COURSE, "gaussian", scalar)]
        for scalar in ("float32", "float32", "byte")
    )
    assert exact == again
    assert exact != byte
    np.testing.assert_allclose(exact, byte, atol=0.05)


def test_curves_begin_at_one_point(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(measure_directions.__globals__["COURSES"], "digits", COURSE)
    rows = list(measure_directions("digits", 3))
    assert len(rows) == len(DIRECTIONS) * 2 * 4
    assert len({row["test_loss"] for row in rows if row["records"] == 0}) == 1
    assert len({row["test_loss"] for row in rows if row["records"] == 12}) == len(DIRECTIONS) * 2


def test_liars_lie_only_where_there_are_some(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the losses: in so few rounds the accuracies may all stay at chance."""
    losses: list[float] = []

    def watched(configs: Sequence[Config], rounds: int) -> list[Mapping[str, float]]:
        found = together(configs, rounds)
        losses.append(found[-1]["test_loss"])
        return found

    monkeypatch.setattr(bench_liars, "PROBES", 2)
    monkeypatch.setattr(bench_liars, "together", watched)
    rows = list(measure_liars(0, (Case("mean", 0, rounds=10), Case("mean", 2, rounds=10), Case("nna", 2, rounds=10))))
    assert [len(row["curve"]) for row in rows] == [10, 10, 10]
    honest, lied_to, byzantine = losses
    assert lied_to > 10
    assert max(honest, byzantine) < 2.5
    assert honest != byzantine


def test_traffic_counts_what_passes_a_link(monkeypatch: pytest.MonkeyPatch) -> None:
    race = replace(bench_traffic.RACES["digits"], gain=0.01, probes=(1, 2))
    monkeypatch.setitem(bench_traffic.RACES, "digits", race)
    monkeypatch.setattr(bench_traffic, "LOOK_EVERY", 1)
    models, *seeds = measure_traffic("digits", 0)
    size = sum(value.nbytes for value in task_of().model().parameters())
    assert models["bytes_per_link"] == models["rounds"] * 2 * size
    for row in seeds:
        assert row["rounds"]
        assert row["bytes_per_link"] == pytest.approx(row["rounds"] * PEERS * on_the_wire(row["probes"]), rel=0.02)
    assert [row["probes"] for row in seeds] == [1, 2]


def on_the_wire(codes: int) -> int:
    """Bytes of a batch that is told to a neighbour."""
    batch = Batch(Origin(bytes(32)), 1000, 1000, bytes(codes), bytes(64))
    return sum(map(len, encode_body(Rumor((batch,)))))


def test_a_race_that_begins_with_knowledge_has_a_higher_target(monkeypatch: pytest.MonkeyPatch) -> None:
    race = replace(bench_traffic.RACES["digits"], gain=0.0, probes=(), knows=True)
    monkeypatch.setitem(bench_traffic.RACES, "digits", race)
    (row,) = measure_traffic("digits", 0)
    assert row["target"] > 0
    assert row["rounds"] == 1


def test_the_overhead_of_a_batch_is_that_of_the_wire() -> None:
    assert on_the_wire(64) == 64 + BATCH_OVERHEAD_BYTES


def test_the_demos_figures() -> None:
    views = tuple(SeedsView(name, "idle", 9, 50, None, 1000, "s", f"w-{name}") for name in "ab")
    result = SeedsResult(0.5, 0.575, views, links=4, joiner_bytes=1234, model_bytes=10**6, wall_s=60.04)
    assert result.figures() == {
        "accuracy_before": 0.5,
        "accuracy_after": 0.575,
        "digests": ["w-a", "w-b"],
        "records": 50,
        "bytes_per_record_per_link": 10.0,
        "joiner_bytes": 1234,
        "wall_s": 60.0,
    }
    assert any("NOT EQUAL" in sentence for sentence in result.sentences())
