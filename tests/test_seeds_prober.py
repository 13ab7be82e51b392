"""The replica as the protocol sees it: rounds, folds in any order, retraction, interruption, export, bit for bit."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from murmurate.kernels import noise
from murmurate.peer.build import NOISE, build_manifest, build_topology
from murmurate.peer.errors import ConfigError
from murmurate.peer.lab.together import origin_of
from murmurate.peer.learning.prober import Prober, make_prober
from murmurate.peer.manifest import first_difference
from murmurate.peer.protocol.events import Audit, Audited
from murmurate.peer.protocol.seams import Replica

from .seeds_inside import private, weights
from .seeds_peers import Bowl, batch_of, config_of, fold, made, prober_of, rounds

KINDS: dict[str, dict[str, Any]] = {
    "private": {},
    "private with momentum": {"momentum": 0.5},
    "pool": {"directions": "pool", "pool": 16},
    "pro": {"directions": "pool", "pool": 16, "sampling": "pro"},
    "shared": {"directions": "shared", "rule": "median"},
    "shared with momentum": {"directions": "shared", "momentum": 0.5},
    "lean": {"memory": "lean"},
    "parts": {"parts": 3},
    "conservative": {"probe": "conservative"},
    "sign": {"probe": "sign"},
    "forward": {"probe": "forward"},
    "ferret": {"probe": "ferret", "directions": "shared"},
    "score": {"objective": "score", "epsilon": 0.1},
}
FRESH = prober_of().weights_digest()  # of the digits' first weights


def pair(**tables: Any) -> dict[str, Prober]:
    return {me: prober_of(me, **tables) for me in "ab"}


# One set, one model ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_replicas_stay_bit_identical(kind: str) -> None:
    """Three rounds on the digits, each heard by both; then a third replica that heard all of it in another way."""
    peers = pair(seeds={"probes": 2, **KINDS[kind]})
    batches = rounds(peers, 3)
    digests = {prober.weights_digest() for prober in peers.values()}
    assert len(digests) == 1
    late = prober_of("a", seeds={"probes": 2, **KINDS[kind]})
    assert late.weights_digest() not in digests, "nothing has moved"
    for batch in sorted(batches, key=lambda batch: (batch.origin, batch.number)):
        fold(late, batch)
    assert late.weights_digest() in digests
    assert late.train(4).payload == peers["a"].train(4).payload  # the log was all it needed


@pytest.mark.parametrize("kind", ["private with momentum", "pro", "shared with momentum", "lean", "parts"])
@settings(max_examples=15)
@given(data=st.data())
def test_weights_are_a_function_of_the_set(kind: str, data: st.DataObject) -> None:
    """Random codes of three origins in any order that keeps each feed's, in any number of folds, with closings."""
    prober = prober_of(seeds=KINDS[kind])
    width, code = prober.payload_bytes, st.integers(0, 255)
    feeds = [
        [made(me, n, 2 * n, bytes(data.draw(st.lists(code, min_size=width, max_size=width)))) for n in range(1, 4)]
        for me in "abc"
    ]
    closed = [(origin_of("b"), data.draw(st.integers(0, 8)))]
    everything = [batch for feed in feeds for batch in feed]
    fold(prober, *everything, closed=closed)
    other = prober_of(seeds=KINDS[kind])
    queues = [list(feed) for feed in feeds]
    closing = data.draw(st.integers(0, 8))
    for place, turn in enumerate(data.draw(st.permutations([0, 1, 2] * 3))):
        fold(other, queues[turn].pop(0), closed=closed if place == closing else ())
    assert other.weights_digest() == prober.weights_digest()


@pytest.mark.parametrize("kind", ["private", "private with momentum", "pool", "shared", "lean"])
def test_retraction_is_never_having_heard(kind: str) -> None:
    """Even our own: the weights are then those of the others' records."""
    peers = pair(seeds=KINDS[kind])
    batches = rounds(peers, 4)
    honest = [batch for batch in batches if batch.origin == origin_of("a") or batch.number <= 2]
    without = prober_of("a", seeds=KINDS[kind])
    fold(without, *honest)
    for prober in peers.values():
        fold(prober, closed=[(origin_of("b"), 2 * peers["a"].payload_bytes)])
        assert prober.weights_digest() == without.weights_digest()
        fold(prober, made("b", 3, 9, bytes(prober.payload_bytes)))  # nothing of it is taken again
        assert prober.weights_digest() == without.weights_digest()


@pytest.mark.parametrize("kind", ["private", "pool", "lean", "private with momentum"])
def test_own_steps_count_once(kind: str) -> None:
    """What a round moved ahead is what its batch brings, and is forgotten when the batch never comes."""
    prober = prober_of(seeds={"probes": 2, **KINDS[kind]})
    before = prober.weights_digest()
    batch = batch_of(prober, "a", 1)
    private(prober, "weights").settle()
    moved = private(prober, "model").flat_D.clone()
    assert prober.weights_digest() == before, "an audit sees what was folded, not what is under way"
    fold(prober, batch, round=1)
    other = prober_of("b", seeds={"probes": 2, **KINDS[kind]})
    fold(other, batch)
    assert other.weights_digest() == prober.weights_digest() != before
    private(prober, "weights").settle()
    assert torch.equal(private(prober, "model").flat_D, moved)
    prober.train(2)
    prober.train(3)  # as if round 2 had been skipped
    fold(prober)
    assert other.weights_digest() == prober.weights_digest()


def test_private_steps_move_within_the_round_and_shared_ones_do_not() -> None:
    """With private directions the second step is measured where the first one led."""
    heard: dict[str, list[Tensor]] = {}
    for kind in ("private", "shared"):
        prober = prober_of(seeds={"directions": kind}, local={"steps": 2, "lr": 10.0})
        points = heard[kind] = []
        task = private(prober, "task")
        loss = task.loss

        def watched(model: Any, batch: Any, loss: Any = loss, points: list[Tensor] = points) -> Tensor:
            points.append(torch.cat([value.detach().reshape(-1) for value in model.parameters()]).clone())
            return loss(model, batch)

        task.loss = watched
        prober.train(1)
    for kind, moves in (("private", True), ("shared", False)):
        first, second = ((heard[kind][i] + heard[kind][i + 1]) / 2 for i in (0, 2))
        assert (float((first - second).abs().max()) > 1e-4) == moves


def test_a_pool_moves_as_private_directions_do() -> None:
    """The same scalars along the ids that their origins draw: the model is K integers."""
    terms: dict[str, Any] = {"seeds": {"directions": "pool", "pool": 4, "probes": 2}}
    prober = prober_of(**terms)
    codes = bytes([0x05, 0x83, 0x10, 0x07])
    base_D = private(prober, "model").flat_D.clone()
    fold(prober, made("a", 1, 1, codes), made("b", 1, 1, codes))
    swarm = bytes(range(32))
    signs, key = noise.derive_key(swarm, b"signs"), noise.derive_key(swarm, b"pool")
    sums = np.zeros(4, dtype=np.int64)
    for me in "ab":
        own = noise.derive_key(swarm, b"private", origin_of(me))
        np.add.at(sums, noise.draws(own, np.arange(4, dtype=np.uint64), 4).astype(np.int64), noise.decode(codes))
    directions = noise.Directions.of_key(key, np.arange(4, dtype=np.uint64))
    noise.replay(base_D, directions, sums, signs, config_of(**terms).unit_log2)
    private(prober, "weights").settle()
    assert torch.equal(private(prober, "model").flat_D, base_D)


def test_lean_and_exact_agree_on_the_grid() -> None:
    """The same records from a base that lies on the grid."""
    made_of = {memory: prober_of(seeds={"memory": memory}) for memory in ("lean", "exact")}
    grid_D = private(made_of["lean"], "model").flat_D.clone()
    exact = private(made_of["exact"], "weights")
    exact._base_D.copy_(grid_D)
    codes = bytes(range(2))
    for prober in made_of.values():
        fold(prober, *(made("b", n, n, codes) for n in range(1, 9)))
    assert made_of["lean"].weights_digest() == made_of["exact"].weights_digest()


# Training --------------------------------------------------------------------------------------------


def test_it_is_a_replica() -> None:
    prober: Replica = prober_of(seeds={"directions": "pool", "sampling": "pro", "probes": 3})
    assert prober.payload_bytes == 2 * 3 * 3
    assert len(prober.train(1).payload) == prober.payload_bytes
    assert prober.audit(Audit(b"set")) == Audited(b"set", prober_of().weights_digest())
    assert set(prober.figures()) == {"loss", "records", "examples_per_s"}


def test_the_digest_is_of_the_weights() -> None:
    prober = prober_of()
    assert hashlib.sha256(private(prober, "model").flat_D.numpy().astype("<f4").tobytes()).digest() == FRESH


@pytest.mark.parametrize("kind", ["private", "pro", "shared", "lean", "ferret"])
def test_interrupted_and_continued_is_the_same(kind: str) -> None:
    tables: dict[str, Any] = {"local": {"steps": 4}, "seeds": {"probes": 2, **KINDS[kind]}}
    straight = prober_of(**tables)
    expected = straight.train(1)
    for stop in range(5):
        prober = prober_of(**tables)
        task, calls = private(prober, "task"), [0]
        original = task.batch

        def interrupting(indices_B: Tensor, prober: Prober = prober, stop: int = stop, calls: list[int] = calls) -> Any:
            calls[0] += 1
            if calls[0] == stop:
                prober.interrupt()
            return original(indices_B)  # noqa: B023 (the same in every turn)

        task.batch = interrupting
        if stop == 0:
            prober.interrupt()
        first = prober.train(1)
        assert first.complete == (stop == 4)
        assert first.complete or first.payload == b""
        assert prober.weights_digest() == straight.weights_digest()
        assert prober.train(1) == expected
        batch = made("a", 1, 1, expected.payload)
        fold(prober, batch, round=1)
        other = prober_of("b", **tables)
        fold(other, batch)
        assert prober.weights_digest() == other.weights_digest()


def test_a_fold_between_begins_the_round_anew() -> None:
    prober, other = prober_of(), prober_of()
    news = made("b", 1, 1, b"\x7f\x7f")
    task = private(prober, "task")
    original = task.batch
    task.batch = lambda indices_B: (prober.interrupt(), original(indices_B))[1]  # pyright: ignore[reportUnknownLambdaType] (a test's trick)
    assert not prober.train(1).complete
    task.batch = original
    for each in (prober, other):
        fold(each, news)
    assert prober.train(1) == other.train(1)


def test_an_interrupt_that_came_too_late_is_forgotten() -> None:
    prober = prober_of()
    prober.interrupt()
    fold(prober)
    assert prober.train(1).complete


def test_steps_follow_the_trainers_order_of_data() -> None:
    """Two probers of one peer see the same batches, another peer sees others."""
    payloads = [prober_of(me, seeds={"probes": 8}).train(1).payload for me in "aab"]
    assert payloads[0] == payloads[1] != payloads[2]


@pytest.mark.parametrize("kind", ["private", "conservative", "sign", "forward", "ferret"])
def test_a_loss_that_is_not_finite_is_no_record(kind: str) -> None:
    task = Bowl()
    task.poison = True
    prober = prober_of(task=task, seeds={"probes": 2, **KINDS[kind]})
    before = prober.weights_digest()
    batch = batch_of(prober, "a", 1)
    assert batch.codes == bytes([noise.VOID] * 4)
    fold(prober, batch, round=1)
    assert prober.weights_digest() == before
    assert prober.figures()["records"] == 0
    assert "loss" not in prober.figures()
    task.poison = False
    fold(prober, batch_of(prober, "a", 2), round=2)
    assert prober.weights_digest() != before
    assert prober.figures()["loss"] > 0


def test_evaluation_is_due_every_so_often_and_at_the_end() -> None:
    prober = prober_of(rounds={"eval_every": 3, "max": 5})
    seen: list[float | None] = []
    for round in range(1, 6):
        fold(prober, batch_of(prober, "a", round), round=round)
        seen.append(prober.figures().get("test_loss"))
    assert seen[:2] == [None, None]
    assert seen[2] == seen[3] != seen[4]
    fold(prober, made("b", 1, 1, b"\x7f\x7f"), round=5)  # idle, and something came late
    assert prober.figures()["test_loss"] != seen[4]


def test_the_schedule_is_in_the_scalars() -> None:
    sums: dict[str, list[int]] = {}
    for schedule in ("constant", "linear", "cosine"):
        prober = prober_of(seeds={"probes": 64}, local={"steps": 1, "schedule": schedule, "schedule_rounds": 4})
        sums[schedule] = [int(np.abs(noise.decode(bytes(prober.train(round).payload))).sum()) for round in (1, 3, 5, 9)]
    whole = np.array(sums["constant"])
    np.testing.assert_allclose(np.array(sums["linear"]) / whole, [1, 0.5, 0, 0], atol=0.03)
    np.testing.assert_allclose(np.array(sums["cosine"]) / whole, [1, 0.5, 0, 0], atol=0.03)


# Lies ------------------------------------------------------------------------------------------------


def test_lies_are_sent_and_the_liar_ends_with_what_it_sent() -> None:
    honest = noise.decode(bytes(prober_of(seeds={"probes": 4}).train(1).payload))
    for attack, expected in (
        ({"name": "sign_flip"}, -honest),
        ({"name": "max_flip"}, -np.sign(honest) * noise.CODE_MAX),
    ):
        liar, other = (prober_of(me, seeds={"probes": 4}, attack=attack) for me in "ab")
        batch = batch_of(liar, "a", 1)
        assert noise.decode(batch.codes).tolist() == expected.tolist()
        for prober in (liar, other):
            fold(prober, batch)
        assert liar.weights_digest() == other.weights_digest() != FRESH


# Export ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["private with momentum", "pool", "shared", "lean"])
def test_export_at_a_cut_is_the_same_on_any_peer(kind: str, tmp_path: Path) -> None:
    peers = pair(seeds=KINDS[kind])
    batches = rounds(peers, 2)
    cut = peers["a"].counts
    expected = weights(peers["a"], tmp_path / "then")
    batches += rounds(peers, 4, first=3)
    digest = peers["b"].weights_digest()
    batch = batch_of(peers["b"], "b", 5)  # in the midst of a round
    found = weights(peers["b"], tmp_path / "cut", cut)
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    assert peers["b"].weights_digest() == digest, "an export leaves everything as it was"
    assert all(
        torch.equal(value, weights(peers["a"], tmp_path / "now")[name])
        for name, value in weights(peers["b"], tmp_path / "other").items()
    )
    fold(peers["b"], batch)
    empty = weights(peers["b"], tmp_path / "empty", {})
    fresh = weights(prober_of(seeds=KINDS[kind]), tmp_path / "fresh")
    assert all(torch.equal(value, fresh[name]) for name, value in empty.items())


def test_an_exported_model_can_be_the_first_weights(tmp_path: Path) -> None:
    prober = prober_of()
    fold(prober, batch_of(prober, "a", 1))
    prober.export()(tmp_path / "model.safetensors")
    again = make_prober(config_of(task={"weights": str(tmp_path / "model.safetensors")}))
    again.begin(bytes(32), origin_of("a"))
    assert again.weights_digest() == prober.weights_digest()
    assert again.base != prober.base


# What is agreed ---------------------------------------------------------------------------------------


def manifest_of(**tables: Any) -> str:
    config = config_of(**tables)
    prober = make_prober(config)
    return build_manifest(config, build_topology(config), prober.schema, prober.base).text


@pytest.mark.parametrize(
    ("tables", "field"),
    [
        ({"seeds": {"directions": "shared"}}, "exchange.directions"),
        ({"seeds": {"probes": 2, "unit_log2": -15}}, "exchange.records"),
        ({"seeds": {"unit_log2": -14}}, "exchange.unit_log2"),
        ({"local": {"lr": 0.04}}, "exchange.unit_log2"),
        ({"seeds": {"momentum": 0.5}}, "exchange.momentum"),
        ({"seeds": {"memory": "lean"}}, "exchange.memory"),
        ({"seeds": {"parts": 2}}, "exchange.parts"),
        ({"seeds": {"authority": ["ab" * 32]}}, "exchange.authority"),
        ({"seeds": {"parameters": "weight"}}, "parameter_order"),
        ({"swarm": {"seed": 1}}, "base"),
    ],
)
def test_what_differs_has_a_name(tables: dict[str, Any], field: str) -> None:
    difference = first_difference(manifest_of(), manifest_of(**tables))
    assert difference.startswith(f"{field}: ")
    if field == "base":
        assert difference.endswith("; give all peers one file of first weights: task.weights")


@pytest.mark.parametrize(
    "tables",
    [
        {"seeds": {"probe": "sign", "epsilon": 0.01, "gossip_s": 3.0}},
        {"local": {"schedule": "linear", "schedule_rounds": 5}},
        {"seeds": {"objective": "score"}},
        {"seeds": {"probes": 2, "unit_log2": -15}, "local": {"steps": 1, "optimizer": "adam", "lr": 0.3}},
        {"seeds": {"parameters": "."}},
    ],
)
def test_how_to_measure_is_each_peers_own_choice(tables: dict[str, Any]) -> None:
    assert manifest_of() == manifest_of(**tables)


def test_the_noise_of_the_manifest_is_the_kernels() -> None:
    assert noise.NOISE == NOISE


def test_the_base_has_what_a_task_says_is_common() -> None:
    """Such as a digest of data that all peers share."""

    class Common(Bowl):
        def __init__(self, common: str) -> None:
            super().__init__()
            self.common = common

    bases = [prober_of(task=task).base for task in (Bowl(), Common(""), Common("x"), Common("x"), Common("y"))]
    assert bases[0] == bases[1]
    assert bases[2] == bases[3]
    assert len(set(bases)) == 3


def test_a_part_of_the_parameters_can_be_trained() -> None:
    prober = prober_of(seeds={"parameters": r"^4\."})
    assert [name for name, _, _ in prober.schema] == ["4.weight", "4.bias"]
    assert prober.base == prober_of().base
    with pytest.raises(
        ConfigError, match=r"seeds.parameters = 'nothing': matches no trainable parameter; there are 0.w"
    ):
        prober_of(seeds={"parameters": "nothing"})


def test_no_gradient_is_ever_allocated() -> None:
    prober = prober_of(seeds={"probes": 2})
    fold(prober, batch_of(prober, "a", 1), round=1)
    model = private(prober, "model")
    assert model.grad_D.numel() == 0
    assert all(value.grad is None for value in model.parameters)


def test_first_weights_that_are_not_finite_are_refused() -> None:
    class Broken(Bowl):
        def model(self) -> torch.nn.Module:
            module = super().model()
            torch.nn.init.constant_(next(iter(module.parameters())), float("nan"))
            return module

    with pytest.raises(ConfigError, match="not all finite"):
        prober_of(task=Broken())
