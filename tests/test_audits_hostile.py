"""Audits, the learning part: hostile evidence is a fault and never an error; what cannot be audited is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from murmurate.peer.errors import ConfigError
from murmurate.peer.learning.audits import AuditedTrainer
from murmurate.peer.learning.make import make_trainer
from murmurate.peer.learning.starts import DIGEST_BYTES, came_of
from murmurate.peer.learning.tasks import digits
from murmurate.peer.protocol.events import Examined, PeerId, Proof

from .audits_story import Story, config_of, digest, sources_of, trainer_of

# These tests look inside: where the audited peer's place is taken.
# pyright: reportPrivateUsage=false

# Hostile evidence ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def told() -> Story:
    return Story.of(3)


@pytest.mark.parametrize("place", range(6))
def test_every_part_is_bound_by_a_commitment(told: Story, place: int) -> None:
    for position in (0, DIGEST_BYTES, 500, -1):
        parts = told.parts()
        changed = bytearray(parts[place])
        changed[position] ^= 1
        parts[place] = bytes(changed)
        assert told.examine(parts).fault


@given(st.binary(max_size=200), st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_rubbish_is_a_fault_and_no_error(told: Story, data: bytes, size: int) -> None:
    whole = bytearray(b"".join(told.parts()))
    for evidence in (bytearray(data), bytearray(size), whole[: size % len(whole)], whole[len(data) + 1 :] + data):
        assert told.examine(evidence=evidence).fault
    at = size % (len(whole) - len(data))
    if bytes(whole[at : at + len(data)]) != data:
        whole[at : at + len(data)] = data
        assert told.examine(evidence=whole).fault


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("part", ["model", "momentum"])
def test_starts_that_nobody_can_train_are_faults(told: Story, value: float, part: str) -> None:
    """The whole chain of digests is right."""
    began, sent, *inbox, begins = told.parts()
    size = (told.witness.payload_bytes - DIGEST_BYTES) // 4
    at = DIGEST_BYTES + 1 + (0 if part == "model" else 4 * size)
    began = began[:at] + torch.full((size,), value).numpy().tobytes() + began[at + 4 * size :]
    sent = sent[:-DIGEST_BYTES] + digest(began)
    inbox_of = zip(sources_of(2, told.inbox()), map(digest, told.inbox().values()), strict=True)
    begins = came_of(digest(sent), inbox_of) + begins[DIGEST_BYTES:]
    payload = bytes(told.trained[-1].payload[:-DIGEST_BYTES]) + digest(begins)
    found = told.examine([began, sent, *inbox, begins], payload=payload, sent=digest(sent))
    assert found.fault
    assert "commit" not in found.fault
    assert told.examine().fault == ""  # the auditor is as it was


def test_an_audit_leaves_no_trace_in_the_auditor() -> None:
    one, other = Story.of(3), Story.of(3)
    one.examine()
    assert one.auditor.train(4).payload == other.auditor.train(4).payload


def test_an_interrupted_audit_says_nothing() -> None:
    """It leaves: whether it was about to take another's place, or still has to."""
    for is_made in (False, True):
        story = Story.of(3)
        if is_made:
            assert story.examine() == Examined(PeerId("a"), 3)
        story.auditor.interrupt()
        for _ in range(2):
            assert story.examine() == Examined(PeerId("a"), 3, hindered="we leave")


def test_an_interrupt_reaches_an_audit_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    story = Story.of(3)
    load = AuditedTrainer._load

    def interrupted(bench: AuditedTrainer, start: memoryview) -> None:
        story.auditor.interrupt()
        load(bench, start)

    monkeypatch.setattr(AuditedTrainer, "_load", interrupted)
    assert story.examine() == Examined(PeerId("a"), 3, hindered="we leave")


@pytest.mark.parametrize("where", ["_bench_of", "_load"])
def test_too_little_memory_says_nothing(told: Story, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(AuditedTrainer, where, full)
    assert told.examine() == Examined(PeerId("a"), 3, hindered="there is no memory for its steps")


@pytest.mark.parametrize("is_ours", [True, False])
def test_an_error_in_its_steps_is_no_fault(told: Story, is_ours: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch's, where there is no memory; but it may be its doing if our own first start does without."""
    loads = 0

    def fails(*_: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] can't allocate memory\nand more")

    def load(bench: AuditedTrainer, start: memoryview) -> None:
        nonlocal loads
        loads += 1
        whole_load(bench, start)
        if is_ours or loads == 1:
            monkeypatch.setattr(bench, "_step", fails)
        else:
            monkeypatch.undo()

    whole_load = AuditedTrainer._load
    told.auditor._bench = None
    monkeypatch.setattr(AuditedTrainer, "_load", load)
    found = told.examine()
    told.auditor._bench = None
    why = "its local steps end with RuntimeError: [enforce fail at alloc_cpu.cpp] can't allocate memory"
    assert found == Examined(PeerId("a"), 3, hindered=why, theirs=not is_ours)


@pytest.mark.parametrize("error", [ConfigError("no such file"), OSError("no such file")])
def test_no_task_no_audit(told: Story, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: object) -> None:
        raise error

    told.auditor._bench = None
    monkeypatch.setattr("murmurate.peer.learning.audits.make_task", fails)
    why = f"its place cannot be taken: {type(error).__name__}: no such file"
    assert told.examine() == Examined(PeerId("a"), 3, hindered=why)


def test_divergence_is_told(told: Story) -> None:
    began, sent, *inbox, begins = told.parts()
    at = DIGEST_BYTES + 1
    began = began[:at] + torch.full((4,), float("nan")).numpy().tobytes() + began[at + 16 :]
    sent = sent[:-DIGEST_BYTES] + digest(began)
    named = zip(sources_of(2, told.inbox()), map(digest, told.inbox().values()), strict=True)
    begins = came_of(digest(sent), named) + begins[DIGEST_BYTES:]
    payload = bytes(told.trained[-1].payload[:-DIGEST_BYTES]) + digest(begins)
    found = told.examine([began, sent, *inbox, begins], payload=payload, sent=digest(sent))
    assert found.fault.startswith("its local steps in round 2 are not possible: DivergedError: training diverged")


# Refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        ({"mixing": {"gossip_steps": 2}}, "gossip_steps = 1"),
        ({"exchange": {"dtype": "float16"}}, "exchange.dtype = 'float32'"),
        ({"exchange": {"name": "seeds"}}, "models are audited"),
        ({"exchange": {"parameters": "4"}}, "exchange.parameters = ''"),
        ({"task": {"data": "x"}}, "task.data"),
        ({"mixing": {"rule": "foolsgold"}}, "remembers"),
        ({"local": {"optimizer": "lion"}}, "numbers that change"),
    ],
    ids=str,
)
def test_what_cannot_be_audited_is_refused(tables: dict[str, Any], says: str) -> None:
    if tables.get("local"):
        pytest.importorskip("pytorch_optimizer")
    with pytest.raises(ConfigError, match=says):
        trainer_of("a", **tables)


def test_a_task_has_to_say_that_its_data_are_public(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits.Digits, "public", False)
    with pytest.raises(ConfigError, match="public"):
        trainer_of("a")


def test_without_audits_payloads_are_as_they_were() -> None:
    plain = make_trainer(config_of("a", audit={"rate": 0.0}), degree_min=3)
    trained = plain.train(1)
    assert not isinstance(plain, AuditedTrainer)
    assert trained.proof is None
    assert trained.payload == trainer_of("a").train(1).payload[:-DIGEST_BYTES]
    assert Proof(b"", b"") != trained.proof
