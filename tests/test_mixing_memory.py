"""Mixing rules that remember, by themselves: formulas, behaviour, and whatever may come."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from murmurate.peer.errors import ConfigError
from murmurate.peer.learning.mixing import Memory, Received, make_memory
from murmurate.peer.learning.mixing.bristle import f1_scores, integrate
from murmurate.peer.learning.mixing.histories import FoolsGold, SybilWall, trust
from murmurate.peer.learning.mixing.memory import Place
from murmurate.peer.learning.mixing.reputation import Reputations

from .mixing_memory_scene import (
    VECTORS,
    PlainReputations,
    config_of,
    drawn,
    heard,
    mean_of,
    memory_of,
    plain_integrate,
    plain_trust,
    reputations_of,
    swarm,
)

# Formulas --------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 10**6), n=st.integers(1, 9), D=st.integers(1, 12), kappa=st.sampled_from([1.0, 0.3, 5.0]))
def test_trust_is_its_formula(seed: int, n: int, D: int, kappa: float) -> None:
    histories = drawn(seed, n, D).numpy()
    if n > 3:
        histories[1] = histories[2] * 2 + 1e-3  # nearly Sybils
        histories[3] = 0.0
    expected = plain_trust(list(histories), kappa)
    np.testing.assert_allclose(trust(histories @ histories.T, kappa), expected, atol=1e-5)


def test_trust_where_a_division_by_nothing_waits() -> None:
    assert trust(np.ones((4, 4)), 1.0).tolist() == [0] * 4
    assert trust(np.zeros((3, 3)), 1.0).tolist() == [1] * 3
    assert trust(np.eye(1), 1.0).tolist() == [1]
    gram = np.eye(3)
    gram[1] = gram[:, 1] = np.nan
    assert trust(gram, 1.0).tolist() == [1, 0, 1]
    gram[1] = gram[:, 1] = np.inf
    assert trust(gram, 1.0).tolist() == [1, 0, 1]


def test_foolsgold_is_its_formula() -> None:
    D, start_D = 7, drawn(1, 7)
    memory = memory_of("foolsgold", start_D)
    histories = {0: np.zeros(D)}
    start = start_D.numpy()
    for round, senders in enumerate([(1, 2, 4), (2, 4), (1, 2, 5), ()], 1):
        mine_D = drawn(10 * round, D) * 0.3 + torch.from_numpy(start)
        theirs = [drawn(100 * round + sender, D) * 0.3 + torch.from_numpy(start) for sender in senders]
        received = heard(theirs, senders) if senders else Received(round, (), torch.empty(0, D), torch.empty(0, 0))
        mixed_D = memory.mix(mine_D, received)
        for peer, model in zip((0, *senders), (mine_D, *theirs), strict=True):
            histories[peer] = histories.get(peer, np.zeros(D)) + model.numpy() - start
        weights = dict(
            zip(sorted(histories), plain_trust([histories[peer] for peer in sorted(histories)]), strict=True)
        )
        start = mean_of(mine_D.numpy(), [model.numpy() for model in theirs], [weights[peer] for peer in senders])
        np.testing.assert_allclose(mixed_D.numpy(), start, atol=1e-5)
        start = mixed_D.numpy()


def test_sybilwall_is_its_formula() -> None:
    """A distant history counts beside the neighbours' own, and only they are mixed."""
    D = 6
    start_D, mine_D = drawn(1, D, dtype=torch.float32), drawn(2, D, dtype=torch.float32)
    models, histories = drawn(3, 2, D, dtype=torch.float32), drawn(4, 2, D, dtype=torch.float32)
    distant_D = histories[0] + 0.05 * drawn(5, D, dtype=torch.float32)
    memory = memory_of("sybilwall", start_D)
    notes = [
        torch.cat([histories[0], histories[0], torch.tensor([1.0, 1.0])]),
        torch.cat([histories[1], distant_D, torch.tensor([4.0, 2.0])]),
    ]
    mixed_D = memory.mix(mine_D, heard(list(models), (1, 2), notes))
    known = [(mine_D - start_D), *histories, distant_D]
    weights = plain_trust([vector.double().numpy() for vector in known])
    assert weights[1] == 0 < weights[2]
    expected = mean_of(mine_D.double().numpy(), [model.double().numpy() for model in models], weights[1:3])
    np.testing.assert_allclose(mixed_D.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"clip": 0.5, "memory": 0.7}])
def test_rffl_is_its_formula(options: dict[str, float]) -> None:
    D, start_D = 8, drawn(1, 8)
    memory = memory_of("rffl", start_D, "a", **options)
    plain = PlainReputations(4, options.get("memory", 0.95), options.get("clip", 0.0))
    common_D = drawn(2, D)
    for round in range(1, 16):
        steps = [common_D + drawn(100 * round + peer, D) * (0.5 + (peer == 1)) for peer in range(4)]
        models = [start_D + (-step if peer == 3 else step) for peer, step in enumerate(steps)]
        expected = plain.mix(start_D.numpy(), [model.numpy() for model in models])
        start_D = memory.mix(models[0], heard(models[1:], (1, 2, 3), round=round))
        np.testing.assert_allclose(start_D.numpy(), expected, atol=1e-6)
    assert memory.removed == ["d"]


@given(seed=st.integers(0, 10**6), J=st.integers(1, 4), C=st.integers(1, 5))
def test_bristle_weighs_by_its_formula(seed: int, J: int, C: int) -> None:
    rng = np.random.default_rng(seed)
    familiar = np.sort(rng.permutation(C)[: rng.integers(1, C + 1)])
    own, theirs = rng.random(len(familiar)).round(1), rng.random((J, len(familiar))).round(1)
    expected = plain_integrate(own.tolist(), theirs.tolist(), familiar.tolist(), C)
    np.testing.assert_allclose(integrate(own, theirs, familiar, C), expected, atol=1e-9)


def test_f1_scores() -> None:
    labels, predicted = np.array([0, 0, 0, 2, 2, 5]), np.array([0, 0, 2, 2, 1, 1])
    expected = [2 * 2 / (2 * 2 + 0 + 1), 2 * 1 / (2 * 1 + 1 + 1), 0.0]
    np.testing.assert_allclose(f1_scores(labels, predicted, np.array([0, 2, 5])), expected)


# Sybils ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["foolsgold", "sybilwall"])
def test_sybils_lose_their_weight(rule: str) -> None:
    """Three of five neighbours send nearly the same; the others, unlike each other, stay."""
    D, start_D = 200, torch.zeros(200)
    memory = memory_of(rule, start_D)
    lie_D = drawn(7, D, dtype=torch.float32)
    sums = torch.zeros(5, D)
    for round in range(1, 4):
        steps = drawn(round, 5, D, dtype=torch.float32)
        steps[2:] = lie_D + 0.02 * steps[2:]
        sums += steps
        notes = [torch.cat([row, row, torch.tensor([float(peer), 1.0])]) for peer, row in enumerate(sums, 1)]
        mine_D = start_D + drawn(50 + round, D, dtype=torch.float32)
        models = [start_D + step for step in steps]
        received = heard(models, range(1, 6), notes if rule == "sybilwall" else (), round)
        expected = (mine_D + models[0] + models[1]) / 3
        start_D = memory.mix(mine_D, received)
        torch.testing.assert_close(start_D, expected)


def test_a_history_travels_and_betrays_a_distant_sybil() -> None:
    """a - b - c: with c a Sybil of a. b is in between; what b passes on makes a's neighbour c's twin known to d."""
    D = 50
    start_D, lie_D = torch.zeros(D), drawn(7, D, dtype=torch.float32)
    walls = {name: cast("SybilWall", memory_of("sybilwall", start_D, name)) for name in "bd"}
    sybil = lie_D + 0.01 * drawn(8, D, dtype=torch.float32)
    # b hears the Sybil a (0); d hears the Sybil c (2), which is like nobody else there, and b (1).
    own = {name: drawn(seed, D, dtype=torch.float32) for name, seed in (("b", 1), ("d", 2))}
    walls["b"].mix(own["b"], heard([lie_D], (0,), [torch.cat([lie_D, lie_D, torch.tensor([0.0, 1.0])])]))
    note_b = walls["b"].attach(1, own["b"])
    assert note_b[-2:].tolist() == [0, 1]
    assert torch.equal(note_b[D:-2], lie_D)
    quiet_b = torch.cat([note_b[:D], note_b[:D], torch.tensor([1.0, 1.0])])
    note_c = torch.cat([sybil, sybil, torch.tensor([2.0, 1.0])])
    deceived = memory_of("sybilwall", start_D, "d").mix(own["d"], heard([own["b"], sybil], (1, 2), [quiet_b, note_c]))
    warned = walls["d"].mix(own["d"], heard([own["b"], sybil], (1, 2), [note_b, note_c]))
    assert float(deceived @ lie_D) > 10
    torch.testing.assert_close(warned, (own["d"] + own["b"]) / 2)
    assert walls["d"].state()["owners"].tolist() == [0, 1, 2, 3]
    assert walls["d"].state()["distances"].tolist() == [2, 1, 1, 0]


def test_who_is_near_is_not_replaced_by_hearsay() -> None:
    D = 4
    wall = memory_of("sybilwall", torch.zeros(D), "c")

    def note(own: float, other: float, owner: int, distance: int) -> Tensor:
        return torch.tensor([own] * D + [other] * D + [owner, distance])

    def hear(*notes: tuple[int, Tensor]) -> dict[int, float]:
        wall.mix(
            torch.ones(D), heard([torch.ones(D)] * len(notes), [peer for peer, _ in notes], [each for _, each in notes])
        )
        state = wall.state()
        return dict(zip(state["owners"].tolist(), state["histories"][:, 0].tolist(), strict=True))

    assert hear((0, note(10, 99, 2, 1)), (1, note(11, 99, 0, 1))) == {0: 10, 1: 11, 2: 1}
    assert hear((0, note(20, 50, 4, 2))) == {0: 20, 1: 11, 2: 1, 4: 50}
    assert hear((0, note(20, 99, 4, 3)), (1, note(21, 98, 4, 6)))[4] == 50  # from farther away
    assert hear((0, note(20, 51, 4, 2)))[4] == 51  # newer
    assert hear((4, note(52, 52, 4, 1)))[4] == 52
    assert hear((0, note(20, 51, 4, 1)))[4] == 52


def test_near_histories_are_passed_on_more_often() -> None:
    D = 2
    wall = memory_of("sybilwall", torch.zeros(D), "a", spread=0.8)
    assert wall.attach(1, torch.ones(D)).tolist() == [1, 1, 1, 1, 0, 1]  # knows nobody's: names itself
    note = torch.tensor([1.0] * D + [2.0] * D + [2, 2])
    wall.mix(torch.ones(D), heard([torch.ones(D)], (1,), [note]))
    chosen = [wall.attach(round, torch.ones(D))[-2:].tolist() for round in range(2000)]
    assert chosen == [wall.attach(round, torch.ones(D))[-2:].tolist() for round in range(2000)]
    near, far = chosen.count([1, 1]), chosen.count([2, 3])
    assert near + far == 2000
    assert near / far == pytest.approx(math.exp(0.8 * 2), rel=0.15)


# Reputations -----------------------------------------------------------------------------------------


def test_rffl_removes_a_sign_flipper_and_nobody_else() -> None:
    trainers = swarm("rffl", 16, name="sign_flip")
    assert [reputations_of(trainer).removed for trainer in trainers[:-1]] == [["f"]] * 5
    assert min(trainer.figures()["accuracy"] for trainer in trainers[:-1]) > 0.7
    assert reputations_of(swarm("rffl", 14)[0]).removed == []


def test_rffl_keeps_the_standing_of_the_silent_and_welcomes_newcomers() -> None:
    D, start_D = 40, torch.zeros(40)
    memory = cast("Reputations", memory_of("rffl", start_D))
    common_D = drawn(1, D, dtype=torch.float32)

    def round_of(*senders: int) -> None:
        nonlocal start_D
        steps = {
            peer: common_D + drawn(1000 * peer + int(start_D.sum()), D, dtype=torch.float32) for peer in (0, *senders)
        }
        models = [start_D + steps[peer] for peer in senders]
        start_D = memory.mix(start_D + steps[0], heard(models, senders))

    for _ in range(15):
        round_of(1, 2, 3)
    before = memory.state()["reputations"]
    for _ in range(30):
        round_of(1, 2)
    assert memory.state()["reputations"][3] == before[3] > 0.5
    round_of(1, 2, 3, 4)
    assert memory.removed == []
    assert memory.state()["reputations"][4] == pytest.approx(1.0, abs=0.2)


def test_rffl_moves_no_farther_than_the_clip() -> None:
    D, start_D = 30, torch.zeros(30)
    for clip, limit in ((0.25, 0.25), (0.0, 1.3)):  # 0: the median of six, five of which are near 1
        memory = memory_of("rffl", start_D, clip=clip)
        models = [nn.functional.normalize(drawn(i, D, dtype=torch.float32), dim=0) for i in range(5)]
        mixed_D = memory.mix(models[0], heard([*models[1:], torch.full((D,), 1e6)], (1, 2, 3, 4, 5)))
        assert float(mixed_D.norm()) <= limit


def test_a_history_without_end_is_told_in_a_length_that_others_take() -> None:
    memory = memory_of("sybilwall", torch.zeros(2))
    mine_D = torch.tensor([3e30, 4e30])
    note = memory.attach(1, mine_D)
    memory.check(note)
    torch.testing.assert_close(note[:2] / note[:2].norm(), torch.tensor([0.6, 0.8]))


# Bristle ---------------------------------------------------------------------------------------------


def bristle_of(labels: Sequence[int], predictions: Mapping[float, Sequence[int]], schema: Any, **options: float) -> Any:
    """Whose judge knows a head by its first number."""
    config = config_of("bristle", options=options)

    def judge(head_D: Tensor) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return np.array(labels), np.array(predictions.get(float(head_D[0]), labels))

    return make_memory(config, torch.zeros(1), schema, judge)


def test_bristle_takes_what_is_better_class_by_class() -> None:
    schema = (("w", (3, 2), "float32"), ("b", (3,), "float32"))
    labels = [0] * 10 + [1] * 10
    says = {
        1.0: [0] * 10 + [0] * 10,  # ours has not learnt class 1
        2.0: labels,
        3.0: [1] * 10 + [0] * 10,  # a liar
    }
    mine_D, good_D, liar_D = (torch.full((9,), value) for value in (1.0, 2.0, 3.0))
    mixed_D = bristle_of(labels, says, schema).mix(mine_D, heard([good_D, liar_D], (1, 2)))
    own = [2 / 3, 0.0]
    weights = plain_integrate(own, [[1.0, 1.0], [0.0, 0.0]], [0, 1], 3)
    assert (weights[1] == 0).all()
    assert 1 < weights[0, 0] < weights[0, 1]
    expected = [(1 + 2 * weight) / (1 + weight) for weight in weights[0]]
    np.testing.assert_allclose(
        mixed_D.view(-1)[:6].view(3, 2).numpy(), np.repeat(np.array(expected)[:, None], 2, 1), 1e-6
    )
    np.testing.assert_allclose(mixed_D[6:].numpy(), expected, 1e-6)
    alone_D = bristle_of(labels, says, schema).mix(mine_D, heard([liar_D, liar_D], (1, 2)))
    assert torch.equal(alone_D, mine_D)


def test_bristle_needs_examples_of_classes_that_the_layer_knows() -> None:
    schema = (("w", (2, 1), "float32"),)
    with pytest.raises(ConfigError, match="none is of a class from 0 to 1"):
        bristle_of([2, -1], {0.0: [0, 1]}, schema)


def test_bristle_looks_at_so_many_near_and_far() -> None:
    schema = (("w", (2, 1), "float32"),)
    looked: list[int] = []
    config = config_of("bristle", options={"models": 10, "explore": 0.4})

    def judge(head_D: Tensor) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        looked.append(int(head_D[0]))
        return np.array([0, 1]), np.array([0, 1])

    memory = cast("Memory", make_memory(config, torch.zeros(2), schema, judge))
    models = [torch.full((2,), float(i)) for i in range(1, 31)]
    counts: list[list[int]] = []
    for round in range(5):
        looked.clear()
        memory.mix(torch.zeros(2), heard(models, [1] * 30, round=round))
        assert looked == sorted(looked)
        counts.append([sum(1 for i in looked[1:] if low < i <= low + 10) for low in (0, 10, 20)])
        first = list(looked)
        looked.clear()
        memory.mix(torch.zeros(2), heard(models, [1] * 30, round=round))
        assert looked == first
    assert counts == [[3, 5, 2]] * 5
    for received in (models[:10], models[:12]):  # all, and thirds too small for their part
        looked.clear()
        memory.mix(torch.zeros(2), heard(received, [1] * len(received)))
        assert len(looked) == 11


def test_bristle_in_a_swarm_resists_a_sign_flipper() -> None:
    """Heads alone travel; the bodies here are trained apart, so it is no more than a test of the parts together."""
    trainers = swarm("bristle", 8, name="sign_flip", scale=5.0)
    assert trainers[0].payload_bytes == 4 * (320 + 10)
    assert min(trainer.figures()["accuracy"] for trainer in trainers[:-1]) > 0.6


# Whatever comes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", VECTORS)
@settings(max_examples=30)
@given(data=st.data())
def test_whatever_comes_the_model_stays_finite(rule: str, data: st.DataObject) -> None:
    """1e38 and 3e38 in models and histories, whose squares float32 cannot hold; and they do no lasting harm."""
    D = 5
    start_D = drawn(1, D, dtype=torch.float32)
    memory = memory_of(rule, start_D)
    sizes = st.sampled_from([1.0, 0.0, 1e-38, 1e17, 1e19, 1e38, -3e38])
    for round in range(1, 4):
        rows = drawn(round, 3, D, dtype=torch.float32)
        models = [row.clamp(-1, 1) * data.draw(sizes) for row in rows]
        notes = [torch.cat([row, row, torch.tensor([float(peer), 1.0])]) for peer, row in enumerate(rows, 1)]
        start_D = memory.mix(start_D + 0.1 * rows[0], heard(models, (1, 2, 3), notes, round))
        assert start_D.isfinite().all()
        assert memory.attach(round, start_D).isfinite().all() or rule == "sybilwall"
    quiet = [start_D + 0.1 * row for row in drawn(9, 3, D, dtype=torch.float32)]
    notes = [torch.cat([row, row, torch.tensor([float(peer), 1.0])]) for peer, row in enumerate(quiet, 1)]
    assert memory.mix(start_D, heard(quiet, (1, 2, 3), notes, 4)).isfinite().all()


@pytest.mark.parametrize("rule", VECTORS)
def test_who_sends_what_has_no_length_might_as_well_be_silent(rule: str) -> None:
    """Now and in the next round."""
    D = 5
    with_bomb, without = (memory_of(rule, torch.zeros(D)) for _ in range(2))
    for round, bomb in enumerate((1e38, -3e38), 1):
        mine_D, *models = drawn(round, 3, D, dtype=torch.float32)
        notes = [torch.cat([row, row, torch.tensor([float(peer), 1.0])]) for peer, row in enumerate(models, 1)]
        expected_D = without.mix(mine_D, heard(models, (1, 2), notes, round))
        all_notes = [*notes, torch.cat([models[0], models[1], torch.tensor([4.0, 1.0])])]
        mixed_D = with_bomb.mix(mine_D, heard([*models, torch.full((D,), bomb)], (1, 2, 3), all_notes, round))
        assert torch.equal(mixed_D, expected_D)
        assert not torch.equal(mixed_D, mine_D)


@pytest.mark.parametrize("rule", VECTORS)
def test_states_that_do_not_fit_are_refused(rule: str) -> None:
    memory = memory_of(rule, torch.zeros(3))
    memory.mix(torch.ones(3), heard([torch.ones(3) * 2], (2,), [torch.tensor([1.0, 1, 1, 2, 2, 2, 2, 1])]))
    state = memory.state()
    for name, value in state.items():
        changed = value[:-1] if value.ndim else value
        with pytest.raises((ValueError, KeyError)):
            memory_of(rule, torch.zeros(3)).load(state | {name: changed})
        with pytest.raises(KeyError):
            memory_of(rule, torch.zeros(3)).load({key: part for key, part in state.items() if key != name})
    if rule != "rffl":
        for owners in ([2, 0], [0, 9], [1, 2], [0, 0]):
            with pytest.raises(ValueError, match="owners"):
                memory_of(rule, torch.zeros(3)).load(state | {"owners": torch.tensor(owners)})
    same = memory_of(rule, torch.zeros(3))
    same.load(state)
    assert all(torch.equal(value, state[name]) for name, value in same.state().items())


def test_memory_is_bounded_by_the_roster() -> None:
    place = Place(0, 0, tuple("abc"))
    numbers = {"confidence": 1.0, "spread": 0.8}
    for make in (FoolsGold, SybilWall):
        memory = make(place, torch.zeros(4), numbers)
        for round in range(20):
            owner = float(round % 3)
            note = torch.cat([torch.ones(8), torch.tensor([owner, 1.0 + round % 3])])
            memory.mix(torch.ones(4), heard([torch.ones(4)] * 2, (1, 2), [note] * 2, round))
        assert len(memory.state()["histories"]) == 3
