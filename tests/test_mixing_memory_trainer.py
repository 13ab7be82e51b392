"""Mixing rules that remember in a trainer: notes, restarts, start-up; and exchanging a part of the model."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from murmurate.peer.build import build_manifest, build_topology
from murmurate.peer.config import Config, Mixing
from murmurate.peer.errors import ConfigError
from murmurate.peer.learning import snapshot
from murmurate.peer.learning.make import make_trainer
from murmurate.peer.learning.mixing import MEMORIES, Memory, make_mixer
from murmurate.peer.learning.tasks import TASKS, digits
from murmurate.peer.learning.trainer import TorchTrainer
from murmurate.peer.protocol.events import Adopt, Mix, Payload, PeerId, Turn

from .mixing_memory_scene import (
    HEAD,
    config_of,
    drawn,
    reputations_of,
    trainer_of,
)

# Notes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", MEMORIES)
def test_the_order_of_arrival_changes_no_bit(rule: str) -> None:
    trainers = [trainer_of(rule, me) for me in "aabcd"]
    payloads = {PeerId(me): trainer.train(1).payload for me, trainer in zip("bcd", trainers[2:], strict=True)}
    for trainer, order in zip(trainers, ("bcd", "dbc"), strict=False):
        trainer.train(1)
        inbox = {PeerId(me): payloads[PeerId(me)] for me in order}
        trainer.mix(Mix(Turn(1), inbox, dict.fromkeys(inbox, 0.25)))
    assert trainers[0].train(2).payload == trainers[1].train(2).payload


def tampered(payload: Payload, *numbers: float) -> bytes:
    """With other last numbers."""
    words = np.frombuffer(bytes(payload), "<f4").copy()
    words[len(words) - len(numbers) :] = numbers
    return words.tobytes()


@pytest.mark.parametrize(
    "numbers",
    [
        (math.nan, 1.0),
        (0.0, math.inf),
        (0.5, 1.0),
        (-1.0, 1.0),
        (6.0, 1.0),
        (1e30, 1.0),
        (0.0, 0.0),
        (0.0, -1.0),
        (0.0, 7.0),
        (0.0, 1.5),
        (3e18, 0.0, 1.0),
    ],
)
def test_malformed_notes_are_reported_and_not_used(numbers: tuple[float, ...]) -> None:
    trainer, quiet = trainer_of("sybilwall"), trainer_of("sybilwall")
    payloads = {PeerId(me): trainer_of("sybilwall", me).train(1).payload for me in "bc"}
    bad = payloads | {PeerId("c"): tampered(payloads[PeerId("c")], *numbers)}
    for peer in (trainer, quiet):
        peer.train(1)
    answer = trainer.mix(Mix(Turn(1), bad, dict.fromkeys(bad, 0.25)))
    assert answer.malformed == ("c",)
    quiet.mix(Mix(Turn(1), {PeerId("b"): payloads[PeerId("b")]}, {PeerId("b"): 0.25}))
    assert trainer.train(2).payload == quiet.train(2).payload


def test_good_notes_of_all_kinds_are_taken() -> None:
    trainer, b = trainer_of("sybilwall"), trainer_of("sybilwall", "b").train(1).payload
    assert trainer.payload_bytes == len(b) == 4 * (3 * 6570 + 2)
    for owner, distance in ((0, 1), (1, 1), (5, 6)):
        answer = trainer.mix(Mix(Turn(1), {PeerId("b"): tampered(b, owner, distance)}, {PeerId("b"): 0.25}))
        assert answer.malformed == ()
    assert trainer.mix(Mix(Turn(2), {PeerId("b"): b[:-4]}, {PeerId("b"): 0.25})).malformed == ("b",)


# Restarts --------------------------------------------------------------------------------------------


def three_rounds(rule: str, path: Path, restart: int, steps: int) -> tuple[list[Payload], dict[str, Tensor], Any]:
    """Three peers; the first may stop in a round after so many steps, and go on in a new process."""
    trainers = [trainer_of(rule, me) for me in "abc"]
    payloads: list[Payload] = []
    for round in (1, 2, 3, 4):
        if round == restart:
            old = trainers[0]
            task = cast("Any", old._task)  # pyright: ignore[reportPrivateUsage] (to interrupt before a given step)
            original, calls = task.batch, [0]

            def interrupting(
                indices_B: Tensor, original: Any = original, calls: list[int] = calls, old: Any = old
            ) -> Any:
                calls[0] += 1
                if calls[0] == steps:
                    old.interrupt()
                return original(indices_B)

            task.batch = interrupting
            old.train(round)
            write = old.snapshot()
            old.train(round + 1)
            old.mix(Mix(Turn(round), {PeerId("b"): payloads[1]}, {PeerId("b"): 0.25}))  # what was copied stays
            write(path)
            trainers[0] = trainer_of(rule, "a")
            assert trainers[0].restore(path) == round - 1
        payloads = [trainer.train(round).payload for trainer in trainers]
        for me, trainer in zip("abc", trainers, strict=True):
            inbox = {PeerId(other): said for other, said in zip("abc", payloads, strict=True) if other != me}
            trainer.mix(Mix(Turn(round), inbox, dict.fromkeys(inbox, 0.25)))
    trainers[0].snapshot()(path)
    return payloads, *snapshot.load(path)


@pytest.mark.parametrize("rule", MEMORIES)
def test_a_restart_loses_nothing(rule: str, tmp_path: Path) -> None:
    payloads, tensors, document = three_rounds(rule, tmp_path / "straight", 0, 0)
    assert any(name.startswith("mixing.") for name in tensors) == (rule != "bristle")
    for restart, steps in ((3, 2), (4, 5)):
        again, others, text = three_rounds(rule, tmp_path / "anew", restart, steps)
        assert again == payloads
        assert text == document
        assert tensors.keys() == others.keys()
        assert all(torch.equal(value, others[name]) for name, value in tensors.items())


def test_another_rule_or_roster_starts_anew(tmp_path: Path) -> None:
    old = trainer_of("foolsgold")
    old.train(1)
    old.mix(Mix(Turn(1), {PeerId("b"): trainer_of("foolsgold", "b").train(1).payload}, {PeerId("b"): 0.5}))
    old.snapshot()(tmp_path / "s")
    for rule in ("rffl", "mean"):
        assert trainer_of(rule).restore(tmp_path / "s") == 1
    anew = trainer_of("rffl")
    anew.restore(tmp_path / "s")
    memory = reputations_of(anew)
    assert memory.state()["heard"].sum() == 0
    mine = anew.mix(Mix(Turn(2), {}, {}, pack=True)).payload
    assert torch.equal(memory.state()["start"], torch.frombuffer(bytearray(mine), dtype=torch.float32))
    peers = {name: f"localhost:{7100 + i}" for i, name in enumerate("abcdefg")}
    larger = make_trainer(config_of("foolsgold").model_copy(update={"peers": peers}), 5)
    assert larger.restore(tmp_path / "s") == 1
    assert cast("Any", larger)._memory.state()["owners"].tolist() == [0]


def test_a_joiner_takes_the_best_offer_and_begins_there() -> None:
    teacher = trainer_of("rffl", "b")
    for round in range(1, 8):
        teacher.train(round)
    honest = teacher.train(8).payload
    bad = np.full(6570, 50, "<f4").tobytes()
    joiner = trainer_of("rffl")
    joiner.adopt(Adopt(Turn(8), {PeerId("b"): honest, PeerId("c"): bad}))
    start_D = reputations_of(joiner).state()["start"]
    assert start_D.numpy().tobytes() == honest


@pytest.mark.parametrize("rule", ["foolsgold", "rffl"])
def test_an_undone_mix_is_no_update(rule: str) -> None:
    """Weights with which training diverges: we are back at our last model, and our next steps begin there."""
    trainer = trainer_of(rule)
    said = trainer.train(1).payload
    assert (
        trainer.mix(Mix(Turn(1), {PeerId("b"): np.full(6570, 1e15, "<f4").tobytes()}, {PeerId("b"): 0.5})).malformed
        == ()
    )
    assert trainer.train(2).complete
    assert trainer.figures()["mixes_undone"] == 1
    start_D = cast("Memory", trainer._memory).state()["start"]  # pyright: ignore[reportPrivateUsage] (where it began)
    assert start_D.numpy().tobytes() == said


# Parts of models -------------------------------------------------------------------------------------


def weights_of(trainer: TorchTrainer, path: Path) -> dict[str, Tensor]:
    trainer.snapshot()(path)
    tensors, _ = snapshot.load(path)
    return {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}


@pytest.mark.parametrize("rule", ["mean", "nna", "median", "rffl", "foolsgold"])
def test_only_what_is_selected_crosses_the_wire(rule: str, tmp_path: Path) -> None:
    a = trainer_of(rule, exchange={"parameters": r"weight$"})
    a.train(1)
    before = weights_of(a, tmp_path / "s")
    size = 4096 + 2048 + 320
    assert a.payload_bytes == 4 * size
    assert a.mix(Mix(Turn(1), {}, {}, pack=True)).payload == b"".join(
        before[name].numpy().tobytes() for name in ("0.weight", "2.weight", "4.weight")
    )
    theirs = drawn(3, 2, size, dtype=torch.float32)  # one row each, unlike each other
    inbox = {PeerId(me): row.numpy().tobytes() for me, row in zip("bc", theirs, strict=True)}
    assert a.mix(Mix(Turn(1), inbox, dict.fromkeys(inbox, 0.25))).malformed == ()
    after = weights_of(a, tmp_path / "s")
    for name in before:
        assert torch.equal(before[name], after[name]) == name.endswith("bias")
    if rule == "mean":
        expected = before["4.weight"].view(-1) / 2 + theirs.mean(0)[-320:] / 2
        torch.testing.assert_close(after["4.weight"].view(-1), expected)
    whole = {PeerId("b"): np.zeros(6570, "<f4").tobytes()}
    assert a.mix(Mix(Turn(2), whole, {PeerId("b"): 0.5})).malformed == ("b",)


def test_a_joiner_keeps_its_own_part(tmp_path: Path) -> None:
    joiner = trainer_of("mean", exchange=HEAD)
    before = weights_of(joiner, tmp_path / "s")
    offers = {PeerId(me): np.full(330, value, "<f4").tobytes() for me, value in (("b", 0.01), ("c", 0.03))}
    joiner.adopt(Adopt(Turn(4), offers))
    after = weights_of(joiner, tmp_path / "s")
    assert torch.equal(before["0.weight"], after["0.weight"])
    torch.testing.assert_close(after["4.bias"], torch.full((10,), 0.02))


def test_everything_may_be_named_and_variance_is_kept_by_part() -> None:
    payloads = [trainer_of("nna", exchange={"parameters": pattern}).train(1).payload for pattern in ("", "weight|bias")]
    assert payloads[0] == payloads[1]
    kept = trainer_of("mean", exchange=HEAD, mixing={"keep_variance": True})
    inbox = {PeerId("b"): trainer_of("mean", "b", exchange=HEAD).train(1).payload}
    assert kept.mix(Mix(Turn(1), inbox, dict.fromkeys(inbox, 0.5))).malformed == ()


def test_a_liar_lies_about_the_part() -> None:
    liar, honest = (trainer_of("nna", exchange=HEAD, attack=a) for a in ({"name": "sign_flip", "scale": 2.0}, {}))
    said, meant = (np.frombuffer(bytes(trainer.train(1).payload), "<f4") for trainer in (liar, honest))
    np.testing.assert_array_equal(said, -2 * meant)


# Start-up --------------------------------------------------------------------------------------------


def refused(words: str, *arguments: Any, make: Callable[..., Any] = trainer_of, **tables: Any) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        make(*arguments, **tables)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rule", MEMORIES)
def test_start_up_refuses_what_no_memory_can(rule: str) -> None:
    for words, mixing in (
        (rf"mixing.f = 1: {rule} promises nothing against liars", {"f": 1}),
        (r"mixing.before = 'bucketing': .* has to know whose", {"before": "bucketing"}),
        (r"mixing.keep_variance: is for rules of vectors alone", {"keep_variance": True}),
        (r"mixing.gossip_steps = 2: .* judges what peers learnt", {"gossip_steps": 2}),
        (r"mixing.options.radius: unknown; .* knows ", {"options": {"radius": 1.0}}),
    ):
        with pytest.raises(ConfigError, match=words):
            make_mixer(Mixing(rule=rule, **cast("Any", mixing)), 5)
    make_mixer(Mixing(rule=rule), 0)


def test_start_up_refuses_an_exchange_that_cannot_work() -> None:
    refused(
        "exchange.dtype = 'float16': mixing.rule = 'sybilwall' sends whole", "sybilwall", exchange={"dtype": "float16"}
    )
    refused("should select one weight", "bristle", exchange={"parameters": ""})
    refused("should select one weight .* not 0.bias", "bristle", exchange={"parameters": "bias"})
    refused("should select one weight", "bristle", exchange={"parameters": r"4.weight|2.bias"})
    refused("'nothing': matches no trained parameter; there are 0.weight,", "mean", exchange={"parameters": "nothing"})
    refused(
        r"exchange.parameters = '\(': not a regular expression", "mean", make=config_of, exchange={"parameters": "("}
    )
    seeds = {"name": "seeds", "parameters": "weight"}
    refused(r"exchange.parameters: selects parts of models", "mean", make=config_of, exchange=seeds)


def test_a_task_that_cannot_classify_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def blind(config: Config) -> Any:
        task = cast("Any", digits.make_task(config))
        task.predict = None
        return task

    monkeypatch.setitem(cast("dict[str, Any]", TASKS), "digits", blind)
    refused("mixing.rule = 'bristle': scores models .* has no `predict`", "bristle")


def test_the_manifest_has_the_part() -> None:
    def manifest(**exchange: Any) -> bytes:
        config = config_of("mean", exchange=exchange)
        return build_manifest(config, build_topology(config), [], "seed:0").swarm_id

    assert len({manifest(), manifest(parameters="weight"), manifest(parameters="bias")}) == 3
