"""Whatever neighbours send, a finite model stays finite; and up to f of them move it no farther than theory lets.

Rows first (any mixture of poison, copies and lies, for every rule and what may come before it), then payloads through
the real trainer, then updates of any age and life through the protocol.
"""

from __future__ import annotations

import math
import struct
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from murmurate.peer.config import Mixing, parse
from murmurate.peer.errors import ConfigError
from murmurate.peer.learning.flat import FlatModel
from murmurate.peer.learning.make import make_trainer
from murmurate.peer.learning.mixing import RULES, Mixer, keeping_variance, make_mixer
from murmurate.peer.learning.trainer import TorchTrainer
from murmurate.peer.learning.undo import Kept
from murmurate.peer.protocol.events import Adopt, Heartbeat, Mix, Payload, PeerId, TimerFired, Train, Turn, Update
from murmurate.peer.protocol.rounds import Phase

from .scene import JOIN, SETTLE, B, C, D, mixed, started, told, too_late, trained, up, update

BEARS_NONE = ("mean", "flag")
BEFORES = ("", "nnm", "bucketing")
SIZE = 13  # parameters: a whole vector of 8, and a ragged end
HONEST_ROWS = 11  # enough for every rule, with buckets of two, to bear f = 2
F = 2

LARGEST = torch.finfo(torch.float32).max
POISON = [math.nan, -math.nan, math.inf, -math.inf, 1e38, -1e38, LARGEST, -LARGEST, 1e-45, -1e-39, 0.0, -0.0]
Row = tuple[str, float, int]
"""What a liar does, a number for it, and from which parameter on."""
poison = st.tuples(st.just("poison"), st.sampled_from(POISON), st.integers(0, SIZE - 1))
lies = st.tuples(st.sampled_from(["copy", "echo", "scale", "shift"]), st.floats(-1e9, 1e9), st.just(0))
rows = st.one_of(poison, lies)


def mixer_of(rule: str, f: int, degree: int, **values: Any) -> Mixer:
    return make_mixer(Mixing(rule=rule, f=f, **values), degree)


def works(rule: str, before: str, f: int, degree: int) -> bool:
    try:
        mixer_of(rule, f, degree, before=before)
    except ConfigError:
        return False
    return True


CASES = [
    (rule, before)
    for rule in RULES
    for before in BEFORES
    if works(rule, before, 0 if rule in BEARS_NONE else F, HONEST_ROWS)
]


def models(K: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ours, theirs and weights that leave us something; 1e-2 or 1 apart."""
    draw = torch.Generator().manual_seed(seed)
    common_D = torch.randn(SIZE, generator=draw)
    X_ND = common_D + (1e-2 if seed % 2 else 1.0) * torch.randn(K + 1, SIZE, generator=draw)
    return X_ND[0].clone(), X_ND[1:].clone(), torch.rand(K, generator=draw) / (K + 1)


def lie(row: Row, mine_D: Tensor, theirs_KD: Tensor, at: int) -> None:
    """Replace the row at `at` by what the liar sends."""
    kind, number, start = row
    match kind:
        case "poison":
            theirs_KD[at, start:] = number
        case "copy":
            theirs_KD[at] = mine_D
        case "echo":
            theirs_KD[at] = theirs_KD[int(abs(number)) % len(theirs_KD)]
        case "scale":
            theirs_KD[at] = mine_D * number
        case _:
            theirs_KD[at] += number


def checked(mixer: Mixer, mine_D: Tensor, theirs_KD: Tensor, weights_K: Tensor) -> Tensor:
    """Mix, and see that the result is finite and new, and that no argument changed by a bit."""
    arguments = mine_D, theirs_KD, weights_K
    before = [value.view(torch.int32).clone() for value in arguments]
    mixed_D = mixer(*arguments)
    assert mixed_D.isfinite().all()
    assert mixed_D.data_ptr() not in (value.data_ptr() for value in arguments)
    for value, copy in zip(arguments, before, strict=True):
        assert torch.equal(value.view(torch.int32), copy)
    return mixed_D


# Rows ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "before"), CASES)
@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), K=st.sampled_from([0, 1, 2, 3, 5, HONEST_ROWS]), data=st.data())
def test_a_finite_model_stays_finite(rule: str, before: str, seed: int, K: int, data: st.DataObject) -> None:
    """Any number of liars, among fewer neighbours than f and more."""
    mixer = mixer_of(rule, 0 if rule in BEARS_NONE else F, HONEST_ROWS, before=before)
    mine_D, theirs_KD, weights_K = models(K, seed)
    for at in range(K):
        if (row := data.draw(st.none() | rows)) is not None:
            lie(row, mine_D, theirs_KD, at)
    checked(mixer, mine_D, theirs_KD, weights_K)


@settings(max_examples=100)
@given(seed=st.integers(0, 10**6), sent=st.lists(st.none() | rows, min_size=3, max_size=3))
def test_with_its_variance_kept_a_finite_model_stays_finite(seed: int, sent: list[Row | None]) -> None:
    mixer = keeping_variance(mixer_of("mean", 0, 3), [5, 1, SIZE - 6])
    mine_D, theirs_KD, weights_K = models(3, seed)
    for at, row in enumerate(sent):
        if row is not None:
            lie(row, mine_D, theirs_KD, at)
    checked(mixer, mine_D, theirs_KD, weights_K)


def bound(rule: str, n: int, f: int) -> float:
    """How far from some honest vector the mixture of n vectors with f liars may be, in diameters of the honest ones.

    nna, mda: what is kept is no farther from a kept honest vector than honest ones can be from each other. Krum's score
    of an honest vector is at most n - f squared diameters, and the chosen one's contains a distance to an honest one;
    mva alike, with pairs. Centred clipping: 1 + 2 + 4 diameters in three steps. The geometric median's is that of its
    docstring.
    """
    match rule:
        case "nna" | "mda" | "self_centred_clipping":
            return 1.0
        case "krum" | "multi_krum":
            return math.sqrt(n - f)
        case "mva":
            return n - f
        case "geometric_median":
            return 2 * (n - f) / (n - 2 * f)
        case "centred_clipping":
            return 7.0
        case _:  # each parameter for itself: meamed and phocas leave the honest range by its width at most
            return 2 * math.sqrt(SIZE)


ROBUST = [(rule, before) for rule, before in CASES if rule not in BEARS_NONE]


@pytest.mark.parametrize(("rule", "before"), ROBUST)
@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    sent=st.lists(rows, min_size=1, max_size=F),
    order=st.permutations(range(HONEST_ROWS)),
)
def test_f_liars_move_a_model_by_no_more_than_theory_lets(
    rule: str, before: str, seed: int, sent: list[Row], order: list[int]
) -> None:
    """Before it, NNM triples the diameter of the honest points, each of which is within a diameter of its vector; the
    honest buckets lie among the honest vectors, and at most f others have a liar."""
    mixer = mixer_of(rule, F, HONEST_ROWS, before=before)
    mine_D, theirs_KD, weights_K = models(HONEST_ROWS, seed)
    liars, honest = order[: len(sent)], order[len(sent) :]
    honest_HD = torch.cat([mine_D[None], theirs_KD[honest]])
    for at, row in zip(liars, sent, strict=True):
        lie(row, mine_D, theirs_KD, at)
    mixed_D = checked(mixer, mine_D, theirs_KD, weights_K)
    diameter = (honest_HD[:, None] - honest_HD).norm(dim=2).max().item()
    n = HONEST_ROWS + 1 if before != "bucketing" else 1 + -(-HONEST_ROWS // 2)
    times = 3 * bound(rule, n, F) + 1 if before == "nnm" else bound(rule, n, F)
    nearest = (honest_HD - mixed_D).norm(dim=1).min().item()
    slack = 1e-5 * (1 + honest_HD.abs().max().item())
    assert nearest <= (times + (before == "bucketing")) * diameter + slack
    if rule in ("trimmed_mean", "median") and not before:
        assert (mixed_D >= honest_HD.amin(0) - slack).all()
        assert (mixed_D <= honest_HD.amax(0) + slack).all()


# Payloads --------------------------------------------------------------------------------------------

FORMATS = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2"), "bfloat16": np.dtype("<u2")}
WAYS: list[dict[str, Any]] = [
    {"mixing": {"rule": "mean"}},
    {"mixing": {"rule": "mean", "keep_variance": True}},
    {"mixing": {"rule": "nna", "f": 1}},
    {"mixing": {"rule": "median", "f": 1}, "exchange": {"dtype": "float16"}},
    {"mixing": {"rule": "mean"}, "exchange": {"dtype": "bfloat16"}},
    {"mixing": {"rule": "krum", "before": "nnm", "f": 1}, "exchange": {"dtype": "bfloat16"}},
]


def trainer_of(**tables: Any) -> TorchTrainer:
    addresses = {name: f"localhost:{7000 + i}" for i, name in enumerate("abcdef")}
    table = {"name": "a", "peers": addresses, "local": {"steps": 3, "batch_size": 8}, **tables}
    return make_trainer(parse(table), degree_min=5)


def words_of(payload: Payload, dtype: str) -> Tensor:
    """A payload's numbers."""
    wire = torch.frombuffer(bytearray(payload), dtype=getattr(torch, dtype))
    return wire.float()


def constant(value: float, numbers: int, dtype: str) -> bytes:
    """A model of one value; what the format cannot hold becomes infinite."""
    one = torch.tensor([value], dtype=torch.float64).to(getattr(torch, dtype)).view(torch.uint8).numpy().tobytes()
    return one * numbers


def payloads(size: int, dtype: str) -> st.SearchStrategy[bytes]:
    """What strangers may send where `size` bytes are right."""
    numbers = size // FORMATS[dtype].itemsize
    noise = st.integers(0, 2**32 - 1).map(lambda seed: np.random.default_rng(seed).bytes(size))
    return st.one_of(
        st.sampled_from([*POISON, 1e4, -1e12, 1e37]).map(lambda value: constant(value, numbers, dtype)),
        st.binary(max_size=64),
        st.sampled_from([size - 1, size + 1, 2 * size]).map(bytes),
        noise,  # any bits: most often with some NaN
        noise.map(
            lambda some: b"".join(struct.pack("<H", word & 0xBFFF) for (word,) in struct.iter_unpack("<H", some))
        ),
    )


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_no_payload_ends_or_spoils_a_trainer(way: dict[str, Any]) -> None:
    """Rounds of training and mixing with strangers, one after the other: each begins with what the last one left.

    A rule that bears f liars meets f, beside any number that are honest; one that bears none meets five.
    """
    trainer = trainer_of(**way)
    dtype = way.get("exchange", {}).get("dtype", "float32")
    honest = trainer.train(1).payload
    assert len(honest) == trainer.payload_bytes
    round = [1]

    @settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
    @given(
        st.lists(payloads(trainer.payload_bytes, dtype), max_size=way.get("mixing", {}).get("f", 0) or 5),
        st.integers(0, 5),
        st.randoms(use_true_random=False),
    )
    def rounds(hostile: list[bytes], others: int, random: Random) -> None:
        sent = (hostile + [bytes(honest)] * others)[:5]
        random.shuffle(sent)
        inbox: dict[PeerId, Payload] = {PeerId("bcdef"[i]): payload for i, payload in enumerate(sent)}
        mine = trainer.mix(Mix(Turn(round[0]), inbox, dict.fromkeys(inbox, 1 / 6), pack=True))
        assert words_of(mine.payload, dtype).isfinite().all()
        for peer, payload in inbox.items():
            if len(payload) != trainer.payload_bytes or not words_of(payload, dtype).isfinite().all():
                assert peer in mine.malformed
            else:
                assert peer not in mine.malformed
        round[0] += 1
        assert words_of(trainer.train(round[0]).payload, dtype).isfinite().all()
        assert math.isfinite(trainer.figures()["loss"])

    rounds()


def test_a_mix_that_cannot_be_trained_is_undone() -> None:
    """Under the mean one neighbour's weights of 1e37 are finite, and end the next step."""
    trainer = trainer_of()
    trainer.train(1)
    alone = trainer_of()
    alone.train(1)
    bomb = {B: torch.full((trainer.payload_bytes // 4,), 1e37).numpy().tobytes()}
    trainer.mix(Mix(Turn(1), bomb, {B: 0.5}))
    trained_ = trainer.train(2)
    assert trained_.complete
    assert trainer.figures()["mixes_undone"] == 1
    alone._reset_optimizer()  # pyright: ignore[reportPrivateUsage]: what the undoing does beside
    assert trained_.payload == alone.train(2).payload
    assert "mixes_undone" not in alone.figures()


def test_what_is_kept_comes_back_once_and_is_never_huge() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    model = FlatModel(module)
    kept = Kept(model)
    assert not kept.bring_back()
    kept.keep()
    first = {name: value.clone() for name, value in module.state_dict().items()}
    model.flat_D.mul_(1e6)
    kept.keep()  # finite, and on its way to overflow
    model.flat_D.fill_(math.nan)
    for buffer in module.buffers():
        buffer.fill_(7)
    assert kept.bring_back()
    assert all(torch.equal(value, first[name]) for name, value in module.state_dict().items())
    assert not kept.bring_back()


def test_a_joiner_falls_back_on_its_pivot() -> None:
    """A mean of what it is offered, with one liar among them."""
    trainer, teacher = trainer_of(), trainer_of()
    honest = teacher.train(1).payload
    bomb = torch.full((trainer.payload_bytes // 4,), 1e37).numpy().tobytes()
    trainer.adopt(Adopt(Turn(1), {B: honest, C: bomb}))
    assert words_of(trainer.train(2).payload, "float32").abs().max() < 10
    assert trainer.figures()["mixes_undone"] == 1


@pytest.mark.parametrize("way", [{"mixing": {"rule": rule, "before": before, "f": 0 if rule in BEARS_NONE else 1}}
                                 for rule in RULES for before in BEFORES
                                 if works(rule, before, 0 if rule in BEARS_NONE else 1, 5)], ids=str)  # fmt: skip
def test_the_order_of_arrival_does_not_change_a_bit(way: dict[str, Any]) -> None:
    """An inbox is sorted by peer, whatever came first."""
    mixed_: set[bytes] = set()
    trainer = trainer_of(**way)
    flat_D = trainer._model.flat_D  # pyright: ignore[reportPrivateUsage]: to begin again
    first_D = flat_D.clone()
    draw = torch.Generator().manual_seed(0)
    sent = {
        PeerId(name): (first_D + 1e-3 * torch.randn(len(first_D), generator=draw)).numpy().tobytes() for name in "bcdef"
    }
    for names in ("bcdef", "fedcb", "dbfce"):
        flat_D.copy_(first_D)
        inbox: dict[PeerId, Payload] = {PeerId(name): sent[PeerId(name)] for name in names}
        weights = {PeerId(name): (1 + "bcdef".index(name)) / 20 for name in reversed(names)}
        mixed_.add(bytes(trainer.mix(Mix(Turn(1), inbox, weights, pack=True)).payload))
    assert len(mixed_) == 1


# Age -------------------------------------------------------------------------------------------------

turns = st.builds(Turn, st.integers(-3, 40), st.integers(-1, 3))
spoken = st.tuples(st.sampled_from([B, C, D]), turns, st.integers(0, 3), st.sampled_from(["update", "heartbeat"]))
steps = st.lists(spoken | st.sampled_from(["deadline", "answer", "link", "join", "settle"]), max_size=60)


@settings(max_examples=200)
@given(steps, st.integers(0, 3), st.integers(0, 1), st.sampled_from([0, 9]), st.integers(1, 2))
def test_what_is_mixed_is_never_older_than_stale_max(
    events: list[Any], stale_max: int, f: int, round: int, gossip_steps: int
) -> None:
    """Neighbours that say anything of any round, hop and life, to a peer that joins and one that is in its rounds.

    Nor is it from the future, nor of an earlier life than the newest we met, nor mixed twice.
    """
    peer = started(round=round, stale_max=stale_max, f=f, gossip_steps=gossip_steps)
    now, used = 1.0, set[bytes]()
    lives = dict.fromkeys((B, C, D), 0)
    pending: Any = None

    def take(effects: list[Any]) -> None:
        nonlocal pending
        for effect in effects:
            if isinstance(effect, Train | Mix | Adopt):
                pending = effect
            if isinstance(effect, Mix | Adopt):
                for sender, payload in effect.inbox.items():
                    life, at, hop = map(int, bytes(payload).split())
                    assert life == lives[sender]
                    joining = peer.phase is Phase.ADOPTING
                    assert joining or Turn(at, hop) <= effect.turn
                    assert at >= effect.turn.round - stale_max
                    assert bytes(payload) + sender.encode() not in used
                    used.add(bytes(payload) + sender.encode())

    for event in events:
        now += 0.01
        if event == "deadline":
            take(peer.handle(too_late(peer.round), now))
        elif event == "link":
            for sender in (B, C, D):
                lives[sender] = max(lives[sender], 1)
                take(peer.handle(up(sender), now))
        elif event in ("join", "settle"):
            take(peer.handle(TimerFired(JOIN if event == "join" else SETTLE), now))
        elif event == "answer" and pending is not None:
            job, pending = pending, None
            take(peer.handle(trained(job.round) if isinstance(job, Train) else mixed_of(job), now))
        elif event != "answer":
            sender, turn, life, kind = event
            lives[sender] = max(lives[sender], life)
            body = Update(turn, f"{life} {turn.round} {turn.hop}".encode()) if kind == "update" else Heartbeat(turn)
            take(peer.handle(told(sender, body, life), now))


def mixed_of(job: Mix | Adopt) -> Any:
    return mixed(job.turn.round, job.turn.hop)


@pytest.mark.parametrize("round", [0, 9])
def test_a_joiner_leaves_out_what_is_stale(round: int) -> None:
    """C says that it is ahead, and sent what nobody needs any more."""
    peer = started(round=round, stale_max=3)
    for sender, at in ((B, 30), (C, 12)):
        peer.handle(up(sender, 30), 1.0)
        peer.handle(update(sender, at), 1.1)
    (taken, *_) = peer.handle(TimerFired(JOIN), 11.0)
    assert isinstance(taken, Mix | Adopt)
    assert taken.turn.round == 30
    assert taken.inbox.keys() == {B}
