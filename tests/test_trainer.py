"""The trainer as the protocol sees it: rounds, mixing, joining, and restarts that lose nothing."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from murmurate.peer.config import Config, parse
from murmurate.peer.errors import ConfigError, LocalError
from murmurate.peer.learning import snapshot
from murmurate.peer.learning.make import make_trainer, prepare
from murmurate.peer.learning.tasks import make_task
from murmurate.peer.learning.trainer import TorchTrainer
from murmurate.peer.protocol.events import Adopt, Mix, Mixed, Payload, PeerId, Turn
from murmurate.peer.protocol.seams import Trainer

STEPS = 4
SKEWED = {"partition": "dirichlet"}


def config_of(me: str = "a", **tables: Any) -> Config:
    addresses = {name: f"localhost:{7000 + i}" for i, name in enumerate("abcd")}
    tables["local"] = {"steps": STEPS, "batch_size": 16, **tables.get("local", {})}
    return parse({"name": me, "peers": addresses, **tables})


def trainer_of(me: str = "a", **tables: Any) -> TorchTrainer:
    return make_trainer(config_of(me, **tables), degree_min=4)


def inbox_of(*vectors: Tensor) -> dict[PeerId, Payload]:
    return {PeerId(f"p{i}"): vector.numpy().tobytes() for i, vector in enumerate(vectors)}


def mix(trainer: Trainer, round: int, *vectors: Tensor, pack: bool = False, weight: float = 0.25) -> Mixed:
    inbox = inbox_of(*vectors)
    return trainer.mix(Mix(Turn(round), inbox, dict.fromkeys(inbox, weight), pack))


def weights_of(payload: Payload) -> Tensor:
    return torch.frombuffer(bytearray(payload), dtype=torch.float32)


def first_weights(trainer: TorchTrainer) -> Tensor:
    return weights_of(mix(trainer, 0, pack=True).payload)


# Rounds ----------------------------------------------------------------------------------------------


def test_peers_begin_alike_and_learn_apart() -> None:
    one, other = trainer_of("a"), trainer_of("b")
    assert torch.equal(first_weights(one), first_weights(other))
    assert not torch.equal(first_weights(one), first_weights(trainer_of(swarm={"seed": 1})))
    payloads = [trainer.train(1).payload for trainer in (one, other, trainer_of("a"))]
    assert payloads[0] == payloads[2] != payloads[1]
    assert len(payloads[0]) == one.payload_bytes == 4 * 6570
    assert (one.schema, one.base) == (other.schema, "seed:0")
    assert one.schema[0] == ("0.weight", (64, 64), "float32")


def test_training_helps() -> None:
    trainer = trainer_of()
    for round in range(1, 26):
        assert trainer.train(round).complete
        mix(trainer, round)
    figures = trainer.figures()
    assert figures["accuracy"] > 0.7
    assert figures["loss"] < 1.5
    assert figures["examples_per_s"] > 0
    assert set(figures) == {"loss", "accuracy", "test_loss", "examples_per_s"}


def test_every_example_has_its_turn() -> None:
    trainer = trainer_of()
    seen: list[Tensor] = []
    task = trainer._task  # pyright: ignore[reportPrivateUsage] (to watch what is asked of it)
    original = task.batch

    def watched(indices_B: Tensor) -> Any:
        seen.append(indices_B)
        return original(indices_B)

    task.batch = watched
    per_pass = task.train_size // 16
    for round in range(1, 2 + 2 * per_pass // STEPS):
        trainer.train(round)
    passes = torch.cat(seen[: 2 * per_pass]).view(2, -1)
    assert all(len(one.unique()) == per_pass * 16 for one in passes)
    assert not torch.equal(*passes)


def test_small_shard_is_one_batch() -> None:
    trainer = trainer_of(local={"batch_size": 100_000})
    assert trainer.train(1).complete
    assert trainer.train(2).complete


def test_evaluation_is_due_every_so_often_and_at_the_end() -> None:
    trainer = trainer_of(rounds={"eval_every": 3, "max": 5})
    accuracies: list[float | None] = []
    for round in range(1, 6):
        trainer.train(round)
        mix(trainer, round)
        accuracies.append(trainer.figures().get("test_loss"))
    assert accuracies[:2] == [None, None]
    assert accuracies[2] == accuracies[3] != accuracies[4]
    assert "accuracy" not in trainer_of(rounds={"eval_every": 0}).figures()


def test_divergence_says_what_to_do() -> None:
    trainer = trainer_of(local={"lr": 1e12, "steps": 50})
    with pytest.raises(LocalError, match=r"training diverged in round 1.*lower local.lr \(now 1e\+12\)"):
        trainer.train(1)


def test_interruption_ends_after_the_current_step() -> None:
    trainer = trainer_of(local={"steps": 1000})
    task = trainer._task  # pyright: ignore[reportPrivateUsage] (to interrupt in the midst of a step)
    original, calls = task.batch, [0]

    def interrupting(indices_B: Tensor) -> Any:
        calls[0] += 1
        if calls[0] == 3:
            other = threading.Thread(target=trainer.interrupt)
            other.start()
            other.join()
        return original(indices_B)

    task.batch = interrupting
    interrupted = trainer.train(1)
    assert (interrupted.complete, interrupted.payload, calls[0]) == (False, b"", 3)
    assert trainer.train(1).complete
    assert calls[0] == 1000


def test_an_interruption_that_came_too_late_harms_no_later_round() -> None:
    trainer = trainer_of()
    trainer.train(1)
    trainer.interrupt()
    mix(trainer, 1)
    assert trainer.train(2).complete
    trainer.interrupt()
    assert not trainer.train(3).complete
    assert trainer.train(3).complete


# Mixing ----------------------------------------------------------------------------------------------


def test_mean_uses_the_weights() -> None:
    trainer = trainer_of()
    mine = first_weights(trainer)
    theirs = [torch.full_like(mine, 1.0), torch.full_like(mine, 5.0)]
    mixed = weights_of(mix(trainer, 1, *theirs, pack=True).payload)
    torch.testing.assert_close(mixed, 0.5 * mine + 0.25 * 1.0 + 0.25 * 5.0)
    assert trainer.figures() == {}
    assert mix(trainer, 1, *theirs).payload == b""
    assert "accuracy" in trainer.figures()


def test_nna_ignores_liars_and_ties_go_to_the_first_id() -> None:
    trainer = trainer_of(mixing={"rule": "nna", "f": 1})
    mine = first_weights(trainer)
    liar, near, far = -100 * mine, 2 * mine, 0 * mine  # the last two exactly as far, without rounding
    mixed = weights_of(mix(trainer, 1, liar, near, far, pack=True).payload)
    torch.testing.assert_close(mixed, mine)
    tied = weights_of(mix(trainer_of(mixing={"rule": "nna", "f": 1}), 1, near, far, pack=True).payload)
    torch.testing.assert_close(tied, 1.5 * mine)


def test_malformed_payloads_are_named_and_their_weight_is_ours() -> None:
    trainer = trainer_of()
    mine = first_weights(trainer)
    inbox: dict[PeerId, Payload] = {
        PeerId("c"): b"short",
        PeerId("b"): torch.full_like(mine, torch.nan).numpy().tobytes(),
        PeerId("a"): torch.ones_like(mine).numpy().tobytes(),
    }
    answer = trainer.mix(Mix(Turn(1), inbox, dict.fromkeys(inbox, 0.25), pack=True))
    assert answer.malformed == ("b", "c")
    torch.testing.assert_close(weights_of(answer.payload), 0.75 * mine + 0.25)
    assert trainer.mix(Mix(Turn(2), {PeerId("b"): b""}, {PeerId("b"): 0.5})).malformed == ("b",)


def test_buffer_grows_and_is_reused() -> None:
    trainer = trainer_of()
    mine = first_weights(trainer)
    for count in (1, 3, 2):
        theirs = [torch.full_like(mine, float(i)) for i in range(count)]
        before = first_weights(trainer)
        mixed = weights_of(mix(trainer, 1, *theirs, pack=True, weight=0.1).payload)
        torch.testing.assert_close(mixed, before * (1 - 0.1 * count) + 0.1 * sum(range(count)))


def test_liar_sends_a_lie_and_stays_honest_itself() -> None:
    liar, honest = (trainer_of(attack=attack) for attack in ({"name": "sign_flip", "scale": 2.0}, {}))
    assert torch.equal(weights_of(liar.train(1).payload), -2 * weights_of(honest.train(1).payload))
    assert torch.equal(first_weights(liar), -2 * first_weights(honest))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bit_exchange(dtype: str) -> None:
    one, other = (trainer_of(me, exchange={"dtype": dtype}) for me in "ab")
    payloads = {PeerId(me): trainer.train(1).payload for me, trainer in (("a", one), ("b", other))}
    assert len(payloads[PeerId("a")]) == one.payload_bytes == 2 * 6570
    mixed = [trainer.mix(Mix(Turn(1), payloads, dict.fromkeys(payloads, 0.5), pack=True)) for trainer in (one, other)]
    assert mixed[0].payload == mixed[1].payload


# Joining ---------------------------------------------------------------------------------------------


def test_joiner_takes_an_honest_model_and_folds_the_others_around_it() -> None:
    teacher = trainer_of("b")
    for round in range(1, 16):
        teacher.train(round)
    honest = weights_of(teacher.train(16).payload)
    lies = [-honest, torch.full_like(honest, 3e38), 0 * honest + 50]
    joiner = trainer_of("a", mixing={"rule": "nna", "f": 2})
    joiner.train(1)
    inbox = inbox_of(lies[0], honest + 1e-3, lies[1], honest - 1e-3) | {PeerId("x"): b"rubbish"}
    answer = joiner.adopt(Adopt(Turn(16), inbox))
    assert answer == Mixed(Turn(16), malformed=(PeerId("x"),))
    torch.testing.assert_close(first_weights(joiner), honest, rtol=0, atol=2e-3)
    assert joiner.figures()["accuracy"] > 0.5
    plain = trainer_of("a")
    plain.adopt(Adopt(Turn(16), inbox_of(honest, honest + 1, honest + 2)))
    torch.testing.assert_close(first_weights(plain), honest + 1)


def test_joiner_begins_with_a_new_optimizer() -> None:
    one, other = trainer_of(), trainer_of()
    start = first_weights(one)
    one.train(7)
    for trainer in (one, other):
        trainer.adopt(Adopt(Turn(8), inbox_of(start)))
    assert one.train(9).payload == other.train(9).payload


def test_joiner_without_a_usable_offer_keeps_its_own() -> None:
    joiner = trainer_of()
    mine = first_weights(joiner)
    assert joiner.adopt(Adopt(Turn(3), {PeerId("b"): b""})).malformed == ("b",)
    assert torch.equal(first_weights(joiner), mine)
    assert joiner.adopt(Adopt(Turn(4), {})) == Mixed(Turn(4))


# Restarts --------------------------------------------------------------------------------------------

DROPOUT = {
    "name": "chars",
    "data": str(Path(__file__).parent),
    "options": {"n_layer": 1, "n_embd": 8, "block": 8, "dropout": 0.3},
}
CASES: dict[str, dict[str, Any]] = {
    "momentum": {"local": {"lr": 0.1}},
    "polyak": {"local": {"optimizer": "polyak"}},
    "adam": {"local": {"optimizer": "adam", "lr": 1e-3}},
    "sam": {"local": {"sam_rho": 0.05}, "mixing": {"rule": "nna", "f": 1}},
    "library": {"local": {"optimizer": "adamp", "lr": 1e-2}},
    "library with lists": {"local": {"optimizer": "soap", "lr": 1e-2}},
    "dropout": {"task": DROPOUT},
    "sixteen bits": {"exchange": {"dtype": "bfloat16"}},
}


def rounds(trainers: Sequence[TorchTrainer], interrupt: tuple[int, int] | None, path: Path) -> list[Payload]:
    """Three rounds of two peers; the first peer may be interrupted in a round before a step, and start anew."""
    payloads: list[Payload] = []
    first, second = trainers
    for round in (1, 2, 3):
        if interrupt and interrupt[0] == round:
            first = _restarted(first, round, interrupt[1], path)
        payloads = [trainer.train(round).payload for trainer in (first, second)]
        for trainer, payload in ((first, payloads[1]), (second, payloads[0])):
            trainer.mix(Mix(Turn(round), {PeerId("x"): payload}, {PeerId("x"): 0.5}))
    first.snapshot()(path)
    return payloads


def _restarted(trainer: TorchTrainer, round: int, step: int, path: Path) -> TorchTrainer:
    task = trainer._task  # pyright: ignore[reportPrivateUsage] (to interrupt before a given step)
    original, calls = task.batch, [0]

    def interrupting(indices_B: Tensor) -> Any:
        calls[0] += 1
        if calls[0] == step:
            trainer.interrupt()
        return original(indices_B)

    task.batch = interrupting
    if step == 0:
        trainer.interrupt()
    assert trainer.train(round).complete == (step == STEPS)
    write = trainer.snapshot()
    trainer.train(round + 5)  # what was copied does not change any more
    write(path)
    task.batch = original
    config = trainer._config  # pyright: ignore[reportPrivateUsage] (the same one again)
    torch.manual_seed(12345)  # whatever the new process did before
    restarted = TorchTrainer(config, task, trainer._mixer)  # pyright: ignore[reportPrivateUsage] (as above)
    assert restarted.restore(path) == round - 1
    return restarted


@pytest.mark.parametrize("case", CASES)
def test_a_restart_loses_nothing(case: str, tmp_path: Path) -> None:
    """Straight through and interrupted anywhere: the same bytes of weights, optimizer and all."""
    configs = [config_of(me, **CASES[case]) for me in "ab"]
    tasks = [make_task(config) for config in configs]

    def trainers() -> list[TorchTrainer]:
        mixer = trainer_of(**{key: value for key, value in CASES[case].items() if key == "mixing"})._mixer  # pyright: ignore[reportPrivateUsage] (made once)
        return [TorchTrainer(config, task, mixer) for config, task in zip(configs, tasks, strict=True)]

    straight = rounds(trainers(), None, tmp_path / "straight")
    for interrupt in ((1, 0), (2, 1), (3, STEPS - 1), (2, STEPS)):
        assert rounds(trainers(), interrupt, tmp_path / "anew") == straight
        saved, anew = (snapshot.load(tmp_path / name) for name in ("straight", "anew"))
        assert saved[1] == anew[1]
        assert saved[0].keys() == anew[0].keys()
        assert all(torch.equal(value, anew[0][name]) for name, value in saved[0].items())


def test_configuration_decides_over_the_snapshot(tmp_path: Path) -> None:
    old = trainer_of(local={"optimizer": "adam", "lr": 0.1})
    old.train(1)
    old.snapshot()(tmp_path / "s")
    still = trainer_of(local={"optimizer": "adam", "lr": 1e-9})
    still.restore(tmp_path / "s")
    moved = (weights_of(still.train(2).payload) - first_weights(old)).abs().max()
    assert moved < 1e-6
    other = trainer_of(local={"optimizer": "sgd"})
    assert other.restore(tmp_path / "s") == 0
    assert torch.equal(first_weights(other), first_weights(old))


class Counting(nn.Module):
    """Has a buffer that changes in training."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(64)
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(images))


def test_buffers_are_saved_and_stay_local(tmp_path: Path) -> None:
    config = config_of()
    task = make_task(config)
    cast("Any", task).model = Counting
    old, new = (TorchTrainer(config, task, trainer_of()._mixer) for _ in range(2))  # pyright: ignore[reportPrivateUsage] (made once)
    old.train(1)
    assert old.payload_bytes == 4 * (64 + 64 + 640 + 10)
    old.snapshot()(tmp_path / "s")
    new.restore(tmp_path / "s")
    new.export()(tmp_path / "e")
    assert load_file(tmp_path / "e")["norm.num_batches_tracked"] == STEPS


def test_snapshots_that_do_not_fit_name_the_file_and_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    trainer = trainer_of()
    trainer.snapshot()(path)
    whole = path.read_bytes()
    way_out = f"{path}: cannot be restored: .*; move the file away"
    for content in (b"", b"rubbish", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(LocalError, match=f"{way_out}"):
            trainer.restore(path)
    path.write_bytes(whole)
    for other, what in (
        (trainer_of(swarm={"seed": 1}), "swarm"),
        (trainer_of(task={"options": {"model": "cnn"}}), "schema"),
    ):
        with pytest.raises(LocalError, match=f"its {what} is .* and ours is"):
            other.restore(path)
    trainer.export()(path)
    with pytest.raises(LocalError, match="was not written by murmurate"):
        trainer.restore(path)
    tensors, document = {"model.0.weight": torch.zeros(1)}, {"identity": trainer._identity()}  # pyright: ignore[reportPrivateUsage] (ours)
    snapshot.save(path, tensors, document)
    with pytest.raises(LocalError, match="its contents do not fit"):
        trainer.restore(path)
    with pytest.raises(LocalError, match="cannot be written"):
        trainer.snapshot()(tmp_path / "no" / "folder")


def test_exported_model_is_a_state_dict_and_can_be_the_first_weights(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    teacher = trainer_of(task=DROPOUT)  # has tied parameters
    teacher.train(1)
    teacher.export()(path)
    module = make_task(config_of(task=DROPOUT)).model()
    module.load_state_dict(load_file(path))
    pupil = trainer_of(task={**DROPOUT, "weights": str(path)})
    assert pupil.base.startswith("sha256:")
    assert torch.equal(first_weights(pupil), first_weights(teacher))
    with pytest.raises(ConfigError, match=r"task.weights"):
        trainer_of(task={"weights": str(path)})


# This machine ----------------------------------------------------------------------------------------


def test_prepare_applies_threads_and_refuses_unknown_devices() -> None:
    before = torch.get_num_threads()
    try:
        prepare(config_of(runtime={"threads": 2}))
        assert torch.get_num_threads() == 2
        prepare(config_of())
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    for device in ("gpu", "cpu:x", "meta7"):
        with pytest.raises(ConfigError, match=f"runtime.device = '{device}': cannot be used here"):
            prepare(config_of(runtime={"device": device}))
