"""Lies about models: what each sends, from what it may know; the line search; poisoned data under many names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from murmurate.peer.config import Mixing, parse
from murmurate.peer.errors import ConfigError
from murmurate.peer.learning.attacks import Board, Liar, make_liar, task_of
from murmurate.peer.learning.attacks.lies import LIES, Means
from murmurate.peer.learning.attacks.search import maximum, strongest
from murmurate.peer.learning.attacks.view import Heard, View
from murmurate.peer.learning.exchange.models import Models
from murmurate.peer.learning.make import make_trainer
from murmurate.peer.learning.mixing import make_mixer

D = 300
NAMES = ("a", "b", "c", "d")


def exchange() -> Models:
    return Models(D, "float32")


def models(count: int = 4, seed: int = 0, spread: float = 0.1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(D, generator=generator) + spread * torch.randn(count, D, generator=generator)


def view_of(honest_HD: Tensor, round: int = 1, liars: int = 1, mixed: Tensor | None = None) -> View:
    mine_D = models(1, seed=9)[0]
    return View(round, mine_D, mixed, NAMES[: len(honest_HD)], honest_HD, liars)


def say(name: str, view: View, scale: float = 1.0, rule: Mixing | None = None) -> Any:
    mixer = make_mixer(rule, 5) if rule else None
    return LIES[name](Means(scale, 7, exchange().pack, mixer))(view)


def liar(board: Board | None = None, **attack: Any) -> Liar:
    made = make_liar(config_of(attack), None, exchange().pack, exchange().unpack, board)
    assert made is not None
    return made


def config_of(attack: dict[str, Any], **tables: Any) -> Any:
    peers = dict.fromkeys("abcdef", "127.0.0.1:0")
    return parse({"name": "f", "peers": peers, "attack": attack, **tables})


def test_an_honest_peer_has_no_liar() -> None:
    assert make_liar(config_of({}), None, exchange().pack, exchange().unpack) is None


def test_who_knows_nobody_yet_sends_an_honest_model() -> None:
    view = view_of(models(0))
    for name in set(LIES) - {"sign_flip", "noise", "bomb"}:
        assert torch.equal(say(name, view), view.mine), name


def test_plain_lies() -> None:
    view = view_of(models())
    assert torch.equal(say("sign_flip", view, scale=3.0), -3 * view.mine)
    noise_D = say("noise", view, scale=2.0) - view.mine
    assert float(noise_D.std()) == pytest.approx(2 * float(view.mine.std()), rel=0.2)
    assert torch.equal(say("noise", view), say("noise", view)), "the same round, the same noise"
    assert not torch.equal(say("noise", view), say("noise", view_of(models(), round=2)))


def test_a_little_is_enough_stays_within_the_spread_of_honest_models_and_on_one_side() -> None:
    view = view_of(models(4))
    lie_D = say("alie", view, scale=1.5)
    mean_D, std_D = view.honest.mean(0), view.honest.std(0)
    assert torch.allclose((lie_D - mean_D) / std_D, torch.full((D,), 1.5), atol=1e-3)


def test_fall_of_empires_shrinks_or_turns_the_mean() -> None:
    view = view_of(models(4))
    assert torch.allclose(say("foe", view, scale=1.5), -0.5 * view.honest.mean(0), atol=1e-6)


def test_mimics_repeat_one_honest_peer_and_stay_with_it() -> None:
    honest_HD = models(4)
    honest_HD[2] += 3.0  # the odd one
    mimic = LIES["mimic"](Means(1.0, 7, exchange().pack))
    for round in range(1, 4):
        assert torch.equal(mimic(view_of(honest_HD, round)), honest_HD[2])  # pyright: ignore[reportArgumentType]: a mimic's lie is a model


def test_a_stale_peer_repeats_what_it_had() -> None:
    stale = LIES["stale"](Means(2.0, 7, exchange().pack))
    said = [stale(View(r, torch.full((D,), float(r)), None, (), models(0), 1)) for r in range(1, 6)]
    assert [float(model[0]) for model in said] == [1, 1, 1, 2, 3]


def test_a_free_rider_does_not_train() -> None:
    rider = LIES["free_rider"](Means(1.0, 7, exchange().pack))
    first_D, second_D = models(2, spread=0.01)
    assert torch.equal(_model(rider(view_of(models(), 2, mixed=first_D))), first_D)
    change = float((second_D - first_D).square().mean().sqrt())
    noise_D = _model(rider(view_of(models(), 3, mixed=second_D))) - second_D
    assert 0.5 * change < float(noise_D.std()) < 2 * change


def test_model_replacement_takes_longer_steps() -> None:
    mixed_D = models(1)[0]
    view = view_of(models(), mixed=mixed_D)
    assert torch.allclose(say("backdoor", view, scale=5.0), mixed_D + 5 * (view.mine - mixed_D))
    assert torch.equal(say("label_flip", view), view.mine)


def test_bombs_are_no_models_or_hardly() -> None:
    said = [say("bomb", view_of(models(), round)) for round in range(1, 8)]
    finite = [bytes_or.isfinite().all() if isinstance(bytes_or, Tensor) else None for bytes_or in said]
    assert finite.count(None) == 2
    assert sum(value is not None and not value for value in finite) == 3
    assert {len(b) for b in said if isinstance(b, bytes)} == {0, 2 * D}


def _model(said: Any) -> Tensor:
    assert isinstance(said, Tensor)
    return said


# The line search -----------------------------------------------------------------------------------


@pytest.mark.parametrize("top", [0.02, 0.7, 1.0, 3.3, 40.0])
def test_the_search_finds_the_top_of_a_hill(top: float) -> None:
    asked: list[float] = []

    def height(x: float) -> float:
        asked.append(x)
        return -abs(math.log(x / top))

    assert maximum(height, 16) == pytest.approx(top, rel=0.05)
    assert len(asked) == 16


@pytest.mark.parametrize("rule", ["nna", "trimmed_mean", "multi_krum", "geometric_median"])
def test_a_searched_lie_harms_more_than_one_of_a_fixed_strength(rule: str) -> None:
    honest_HD = models(7, spread=0.3)
    mixer = make_mixer(Mixing(rule=rule, f=2), 8)
    view = View(0, honest_HD[0], None, tuple("abcdefg"), honest_HD, 2)
    mean_D, std_D = honest_HD.mean(0), honest_HD.std(0)
    others_HD, weights_K = honest_HD[1:], torch.full((8,), 1 / 9)

    def harm(lie_D: Tensor) -> float:
        mixed_D = mixer(honest_HD[0], torch.cat([others_HD, lie_D.expand(2, D)]), weights_K)
        return float((mixed_D - mean_D).norm())

    found = strongest(mixer, view, lambda z: mean_D + z * std_D)
    assert harm(mean_D + found * std_D) >= max(harm(mean_D + z * std_D) for z in (0.5, 1.0, 2.0, 4.0)) * 0.999


def test_a_strength_serves_for_a_few_rounds() -> None:
    tried: list[int] = []

    def mixer(mine_D: Tensor, theirs_KD: Tensor, weights_K: Tensor, *, refused: int = 0) -> Tensor:
        tried.append(len(theirs_KD))
        return theirs_KD.mean(0)

    lie = LIES["alie"](Means(1.0, 7, exchange().pack, mixer, search_every=3))
    searched: list[int] = []
    for round in range(1, 8):
        lie(view_of(models(4), round))
        searched.append(len(tried) // 16)
    assert searched == [1, 1, 1, 2, 2, 2, 3]


# What a liar knows ---------------------------------------------------------------------------------


def test_a_liar_hears_its_neighbours_but_not_its_accomplices_and_moves_them_on() -> None:
    heard = Heard(frozenset("b"))
    theirs_KD = models(3)
    mine_D = torch.zeros(D)
    assert not len(heard.look(1, mine_D).honest)
    heard.mixed(["a", "b", "c"], theirs_KD, torch.ones(D))
    view = heard.look(2, mine_D + 0.25)
    assert view.names == ("a", "c")
    assert torch.allclose(view.honest, theirs_KD[[0, 2]] + 0.25)
    assert view.liars == 2
    assert view.mixed is not None
    assert view.mixed.tolist() == [1.0] * D
    theirs_KD.zero_()  # the trainer's buffer is used again
    assert torch.allclose(heard.look(3, mine_D + 0.25).honest, view.honest)


def test_only_an_omniscient_liar_sees_the_round_that_is_under_way() -> None:
    honest_HD = models(3)
    board = Board(frozenset("abc"))
    for name, model_D in zip("abc", honest_HD, strict=True):
        board.sent(name, 5, exchange().pack(model_D))
    board.sent("f", 5, exchange().pack(torch.zeros(D)))  # a liar's own lie is not honest
    attack = {"name": "foe", "scale": 2.0, "accomplices": ["e", "f"]}
    said = liar(board, omniscient=True, **attack).say(5, torch.zeros(D))
    assert np.allclose(np.frombuffer(said, "<f4"), -honest_HD.mean(0), atol=1e-6)
    assert liar(board, **attack).say(5, torch.zeros(D)) == exchange().pack(torch.zeros(D))


def test_no_real_peer_is_omniscient() -> None:
    with pytest.raises(ConfigError, match=r"attack\.omniscient: no real peer"):
        make_trainer(config_of({"name": "alie", "omniscient": True}), 2)


@pytest.mark.parametrize(
    ("tables", "expected"),
    [
        ({"attack": {"name": "alie", "accomplices": ["x"]}}, "attack.accomplices: 'x' should be one of"),
        ({"attack": {"name": "alie"}, "exchange": {"name": "seeds"}}, "with exchange.name = 'seeds' it should be"),
        ({"attack": {"name": "aile"}}, "attack.name = 'aile': should be"),
    ],
)
def test_impossible_attacks_are_refused(tables: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        config_of(**{"attack": {}, **tables})


def test_poison_needs_labels() -> None:
    with pytest.raises(ConfigError, match="label"):
        task_of(config_of({"name": "label_flip"}, task={"name": "examples.sines:make_task"}))


def test_sybils_train_on_the_same_flipped_labels() -> None:
    def labels(name: str, attack: str) -> Sequence[int]:
        config = config_of({"name": attack, "accomplices": ["e", "f"]}).model_copy(update={"name": name})
        return task_of(config).batch(torch.arange(20))[1].tolist()

    honest = [9 - label for label in labels("e", "label_flip")]
    assert labels("e", "sybil") == labels("f", "sybil") == labels("e", "label_flip")
    assert honest == labels("e", "none")
    assert labels("f", "label_flip") != labels("e", "label_flip")
