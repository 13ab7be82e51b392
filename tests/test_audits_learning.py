"""Audits, the learning part: what an honest peer shows passes, bit for bit; whatever a liar shows or sends does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from murmurate.peer.config import Config
from murmurate.peer.learning.audits import AuditedTrainer
from murmurate.peer.learning.starts import DIGEST_BYTES
from murmurate.peer.learning.tasks import TASKS, digits
from murmurate.peer.protocol.events import Adopt, Examined, PeerId, Turn

from .audits_story import Story, digest, mix_of, sources_of, trainer_of

# These tests look inside: a liar can change anything of its own.
# pyright: reportPrivateUsage=false

# Honest peers pass --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tables",
    [
        {},
        {"local": {"optimizer": "adamw", "lr": 0.01}},
        {"local": {"sam_rho": 0.05}},
        {"local": {"optimizer": "sgd", "options": {"momentum": 0.0}}},
        {"local": {"schedule": "cosine", "schedule_rounds": 9}},
        {"task": {"options": {"model": "cnn"}, "partition": "dirichlet"}},
        {"mixing": {"rule": "nna", "f": 1}},
        {"mixing": {"rule": "trimmed_mean", "f": 1}},
        {"mixing": {"keep_variance": True}},
    ],
    ids=str,
)
def test_what_an_honest_peer_shows_is_bit_for_bit_what_is_recomputed(
    tables: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("audits.STEP_TOLERANCE", "audits.MIX_TOLERANCE", "starts.ROUNDINGS"):
        monkeypatch.setattr(f"murmurate.peer.learning.{name}", 0.0)
    story = Story.of(3, **tables)
    assert story.examine() == Examined(PeerId("a"), 3)


def test_the_sizes_are_exact() -> None:
    story = Story.of(3)
    sizes = [len(part) for part in story.parts()]
    trainer = story.witness
    assert sizes == [trainer.start_bytes, *[trainer.payload_bytes] * 4, trainer.start_bytes]
    assert {len(trained.proof.start) for trained in story.trained if trained.proof} == {trainer.start_bytes}
    assert all(trained.proof and trained.proof.digest == digest(trained.payload) for trained in story.trained)
    assert dict(story.mixed[0].digests) == {peer: digest(payload) for peer, payload in story.inboxes[0].items()}


@pytest.mark.parametrize("mixing", [{}, {"rule": "nna", "f": 1}], ids=str)
def test_malformed_models_have_no_digest_and_are_not_committed_to(mixing: dict[str, Any]) -> None:
    """Nor do they count among the f: no auditor knows of them."""
    story = Story.of(1, mixing=mixing)
    story.trained.append(story.witness.train(2))
    good = {PeerId(name): bytes(story.others[name].train(2).payload) for name in "bc"}
    size = story.witness.payload_bytes
    bad = {PeerId("d"): b"\xff" * size, PeerId("e"): b"", PeerId("f"): b"short"}
    inbox = {**good, **bad}
    mixed = story.witness.mix(mix_of(2, inbox, 0.2))
    assert set(mixed.malformed) == set(bad)
    assert dict(mixed.digests) == {peer: digest(payload) for peer, payload in good.items()}
    story.inboxes.append(good)
    story.trained.append(story.witness.train(3))
    found = story.examine(weights=dict.fromkeys(good, 0.2))
    assert found == Examined(PeerId("a"), 3)


class Normed(nn.Module):
    """Has buffers, and they matter: in training, what it computes depends on how many batches it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(64)
        self.last = nn.Linear(64, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        seen = self.norm.num_batches_tracked
        assert seen is not None
        return self.last(self.norm(images)) * (1 + 0.1 * seen)


def test_buffers_belong_to_what_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(config: Config) -> digits.Digits:
        task = digits.make_task(config)
        task.model = Normed
        return task

    monkeypatch.setitem(TASKS, "normed", make)
    honest = Story.of(3, task={"name": "normed"})
    assert honest.examine() == Examined(PeerId("a"), 3)

    def forge(witness: AuditedTrainer) -> None:
        witness._model.module.get_buffer("norm.num_batches_tracked").fill_(7)

    assert "optimizer is not" in Story.of(3, forge, task={"name": "normed"}).examine().fault


@pytest.mark.parametrize("value", [-1, 10**9])
def test_whole_numbers_that_no_start_has_are_not_trained(value: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may be indices, and on some devices a wrong one ends the process."""

    def make(config: Config) -> digits.Digits:
        task = digits.make_task(config)
        task.model = Normed
        return task

    def forge(witness: AuditedTrainer) -> None:
        witness._model.module.get_buffer("norm.num_batches_tracked").fill_(value)

    monkeypatch.setitem(TASKS, "normed", make)
    story = Story.of(3, forge, task={"name": "normed"})
    monkeypatch.setattr(AuditedTrainer, "_takes_steps", None)
    assert story.examine().fault == "it shows a start with a whole number that none has"


def test_what_should_be_zero_may_be_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean that a batch norm keeps of what is zero differs between processors by more than its own length."""

    def make(config: Config) -> digits.Digits:
        task = digits.make_task(config)
        task.model = lambda: nn.Sequential(nn.BatchNorm1d(64, affine=False), Normed())
        return task

    def round_off(witness: AuditedTrainer) -> None:
        witness._model.module.get_buffer("1.norm.running_mean").add_(1e-8)

    monkeypatch.setitem(TASKS, "normed", make)
    story = Story.of(3, round_off, task={"name": "normed"})
    kept = story.witness._model.module.get_buffer("1.norm.running_mean")
    assert 0 < float(kept.norm()) < 1e-6
    assert story.examine() == Examined(PeerId("a"), 3)


def test_a_peer_that_came_back_from_its_snapshot_passes(tmp_path: Path) -> None:
    story = Story.of(3)
    story.witness.snapshot()(tmp_path / "s")
    story.witness = trainer_of("a")
    assert story.witness.restore(tmp_path / "s") == 3
    story.do_round(4)
    story.do_round(5)
    assert story.examine() == Examined(PeerId("a"), 5)


def test_a_snapshot_between_training_and_mixing_holds_what_the_round_began_with(tmp_path: Path) -> None:
    story = Story.of(2)
    first = story.witness.train(3)
    story.witness.snapshot()(tmp_path / "s")
    again = trainer_of("a")
    assert again.restore(tmp_path / "s") == 2
    second = again.train(3)
    assert first.payload[:-DIGEST_BYTES] == second.payload[:-DIGEST_BYTES]
    story.trained.append(second)
    story.witness = again
    inbox = {PeerId(name): bytes(other.train(3).payload) for name, other in story.others.items()}
    story.inboxes.append(inbox)
    again.mix(mix_of(3, inbox))
    story.trained.append(again.train(4))
    assert story.examine() == Examined(PeerId("a"), 4)


def test_an_interrupted_round_begins_anew() -> None:
    story, other = Story.of(2), Story.of(2)
    witness = story.witness
    step = witness._step

    def last_step(batch: Any) -> torch.Tensor:
        witness.interrupt()
        return step(batch)

    witness._step = last_step
    assert not witness.train(3).complete
    for each in (story, other):
        each.do_round(3)
        each.do_round(4)
    assert story.examine() == Examined(PeerId("a"), 4)
    assert story.trained[-1].payload == other.trained[-1].payload


def test_who_joined_commits_to_no_history() -> None:
    story = Story.of(2)
    joiner = trainer_of("a")
    inbox = story.inboxes[-1]
    adopted = joiner.adopt(Adopt(Turn(2), inbox))
    assert dict(adopted.digests) == {peer: digest(payload) for peer, payload in inbox.items()}
    proof = joiner.train(3).proof
    assert proof is not None
    assert proof.start[:DIGEST_BYTES] == bytes(DIGEST_BYTES)


def test_a_mix_that_cannot_be_trained_is_undone_and_that_is_no_fault() -> None:
    story = Story.of(2)
    story.trained.append(story.witness.train(3))
    model = torch.full(((story.witness.payload_bytes - DIGEST_BYTES) // 4,), 1e30)
    huge = model.numpy().tobytes() + bytes(DIGEST_BYTES)
    story.witness.mix(mix_of(3, {PeerId("c"): huge}, 0.5))
    story.inboxes.append({PeerId("c"): huge})
    story.trained.append(story.witness.train(4))
    proof = story.trained[-1].proof
    assert proof is not None
    assert proof.undone
    assert story.witness.figures()["mixes_undone"] == 1
    assert story.examine() == Examined(PeerId("a"), 4)
    story.witness.mix(mix_of(4, {}))
    story.inboxes.append({})
    story.trained.append(story.witness.train(5))
    assert story.examine() == Examined(PeerId("a"), 5)


def test_a_model_that_has_grown_is_no_place_to_go_back_to() -> None:
    """It may be on its way to overflow: see undo.py."""
    story = Story.of(2, local={"lr": 1e-30})
    small = story.witness._model.flat_D.clone()
    story.witness._model.flat_D.fill_(1e4)
    assert story.witness.train(3).complete
    huge = torch.full_like(small, 1e30).numpy().tobytes() + bytes(DIGEST_BYTES)
    story.witness.mix(mix_of(3, {PeerId("c"): huge}, 0.5))
    assert story.witness.train(4).complete
    assert float(story.witness._model.flat_D.abs().max()) < 100


# Liars do not ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "liar",
    [
        {"name": "sign_flip"},
        {"name": "noise", "scale": 0.5},
        {"name": "label_flip"},
        {"name": "backdoor"},
        {"name": "stale", "scale": 1.0},
        {"name": "free_rider"},
        {"name": "mimic"},
        {"name": "alie"},
        {"name": "foe"},
    ],
    ids=str,
)
def test_a_lie_is_found(liar: dict[str, Any]) -> None:
    fault = Story.of(4, liar=liar).examine().fault
    assert fault == "its local steps do not lead to the model that it sent in round 3"


def test_longer_steps_are_found() -> None:
    def meddle(witness: AuditedTrainer) -> None:
        witness._config = witness._config.model_copy(
            update={"local": witness._config.local.model_copy(update={"lr": 0.06})}
        )

    story = Story.of(3, meddle)  # from round 3 on
    story.do_round(4)
    assert story.examine().fault == "its local steps do not lead to the model that it sent in round 3"


def test_a_forged_start_does_not_follow_from_the_mix() -> None:
    fault = Story.of(3, lambda witness: witness._model.flat_D.mul_(1.001)).examine().fault
    assert fault == "mixing does not lead from what it sent in round 2 to what it began the next with"


def test_a_forged_optimizer_does_not_follow_from_the_steps() -> None:
    def meddle(witness: AuditedTrainer) -> None:
        witness._optimizer.state_dict()["momentum"].mul_(-5)

    assert Story.of(3, meddle).examine().fault == "its optimizer is not what its local steps in round 2 leave"


def test_a_forgotten_optimizer_does_not_follow_from_the_steps() -> None:
    story = Story.of(3, lambda witness: witness._reset_optimizer())
    assert story.examine().fault == "its optimizer is not what its local steps in round 2 leave"


@pytest.mark.parametrize("part", ["model", "optimizer"])
def test_a_forged_first_start_is_found(part: str) -> None:
    witness = trainer_of("a")
    if part == "model":
        witness._model.flat_D.mul_(1.01)
    else:
        witness._optimizer.state_dict()["momentum"].fill_(0.01)
    story = Story.of(0)
    story.witness = witness
    story.do_round(1)
    story.do_round(2)
    assert story.examine().fault == "it began its first round elsewhere"


def test_a_forged_inbox_is_told_apart_from_what_was_heard() -> None:
    story = Story.of(3)
    heard = {peer: digest(payload) for peer, payload in story.inbox().items()}
    heard[PeerId("c")] = digest(b"another")
    assert story.examine(heard=heard) == Examined(PeerId("a"), 3, differs=(PeerId("c"),))
    del heard[PeerId("c")]
    assert story.examine(heard=heard) == Examined(PeerId("a"), 3)


@pytest.mark.parametrize("label", [{"incarnation": 99}, {"round": 1}], ids=str)
def test_lives_and_rounds_of_what_was_mixed_are_committed_to(label: dict[str, int]) -> None:
    story = Story.of(3)
    one, *rest = sources_of(2, story.inbox())
    found = story.examine(sources=(one._replace(**label), *rest))
    assert found.fault == "it shows other models than it committed to have mixed"


def test_weights_are_not_the_witnesses_choice() -> None:
    story = Story.of(3)
    weights = dict.fromkeys(story.inbox(), 0.1)
    assert story.examine(weights=weights).fault.startswith("mixing does not lead")
