"""Tasks: splitting data, the built-in tasks, and a user's own."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from murmurate.peer.config import Config, parse
from murmurate.peer.errors import ConfigError
from murmurate.peer.learning.tasks import Task, make_task, partition
from murmurate.peer.learning.tasks.chars import Chars
from murmurate.peer.learning.tasks.digits import Digits
from murmurate.peer.learning.tasks.gpt import GPT


def config_of(me: str = "a", peers: str = "abcd", seed: int = 0, **task: Any) -> Config:
    addresses = {name: f"localhost:{7000 + i}" for i, name in enumerate(peers)}
    return parse({"name": me, "peers": addresses, "swarm": {"seed": seed}, "task": task})


def evaluate(task: Task, module: nn.Module) -> Mapping[str, float]:
    with torch.no_grad():
        return task.evaluate(module.eval())


# Partitions ------------------------------------------------------------------------------------------

RULES: dict[str, Callable[[partition.Indices, int, int], list[partition.Indices]]] = {
    "iid": partition.iid,
    "dirichlet": functools.partial(partition.dirichlet, alpha=0.05),
    "shards": partition.shards,
}


@pytest.mark.parametrize("rule", RULES)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(1, 12), st.integers(0, 100))
def test_shards_are_disjoint_cover_everything_and_are_not_tiny(
    rule: str, labels: list[int], count: int, seed: int
) -> None:
    count = min(count, len(labels))
    parts = RULES[rule](np.array(labels), count, seed)
    assert len(parts) == count
    assert sorted(np.concatenate(parts)) == list(range(len(labels)))
    assert min(map(len, parts)) >= max(1, int(partition.SHARE_MIN * len(labels) / count))
    again = RULES[rule](np.array(labels), count, seed)
    assert all(np.array_equal(*pair) for pair in zip(parts, again, strict=True))


def test_rules_skew_the_labels_as_they_say() -> None:
    labels = np.repeat(np.arange(10), 200)

    def kinds(parts: list[partition.Indices]) -> float:
        """The mean number of labels that make up at least 2 % of a shard."""
        return float(np.mean([(np.bincount(labels[part], minlength=10) >= 0.02 * len(part)).sum() for part in parts]))

    assert kinds(partition.iid(labels, 10, 0)) == 10
    assert kinds(partition.dirichlet(labels, 10, 0, 100.0)) > 9
    assert kinds(partition.dirichlet(labels, 10, 0, 0.1)) < 4
    assert kinds(partition.shards(labels, 10, 0)) <= 3


def test_seeds_give_other_partitions() -> None:
    labels = np.zeros(50, dtype=np.int64)
    assert not np.array_equal(partition.iid(labels, 2, 0)[0], partition.iid(labels, 2, 1)[0])


# Digits ----------------------------------------------------------------------------------------------


def digits(me: str = "a", **arguments: Any) -> Digits:
    task = make_task(config_of(me, **arguments))
    assert isinstance(task, Digits)
    return task


def everything(task: Digits) -> torch.Tensor:
    return task.batch(torch.arange(task.train_size))[0]


def test_digits_models_are_as_large_as_they_say() -> None:
    sizes = {
        name: sum(p.numel() for p in digits(options={"model": name}).model().parameters()) for name in ("mlp", "cnn")
    }
    assert sizes == {"mlp": 6570, "cnn": 10026}


def test_digits_shards_and_test_set_are_the_data_set() -> None:
    tasks = [digits(me, partition="dirichlet", seed=3) for me in "abcd"]
    tests = [task._test for task in tasks]  # pyright: ignore[reportPrivateUsage] (it has no other use)
    assert all(torch.equal(tests[0][0], other[0]) for other in tests)
    images = torch.cat([*(everything(task) for task in tasks), tests[0][0]])
    assert images.shape == (1797, 64)
    assert images.min() == 0
    assert images.max() == 1
    assert len(images.unique(dim=0)) == 1797
    assert all(33 <= count <= 37 for count in tests[0][1].bincount().tolist())
    assert not torch.equal(digits(seed=4)._test[0], tests[0][0])  # pyright: ignore[reportPrivateUsage] (as above)


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_digits_can_be_learnt(model: str) -> None:
    torch.manual_seed(0)
    task = digits(peers="ab", options={"model": model})
    module = task.model()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    before = evaluate(task, module)
    for start in range(0, 640, 64):
        optimizer.zero_grad()
        task.loss(module, task.batch(torch.arange(start, start + 64))).backward()
        optimizer.step()
    after = evaluate(task, module)
    assert after["loss"] < before["loss"] - 0.5
    assert after["accuracy"] > before["accuracy"] + 0.2


# Chars -----------------------------------------------------------------------------------------------

TINY = {"n_layer": 1, "n_head": 2, "n_embd": 8, "block": 8}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    for i in range(40):
        file = tmp_path / f"part{i % 3}" / f"text{i}.txt"
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"{i:02d}" + "abcdefgh" * 10)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "secret").write_bytes(b"\xff" * 999)
    return tmp_path


def chars(me: str = "a", **arguments: Any) -> Chars:
    options = {**TINY, **arguments.pop("options", {})}
    task = make_task(config_of(me, name="chars", options=options, **arguments))
    assert isinstance(task, Chars)
    return task


def test_chars_batches_are_text_and_its_continuation(corpus: Path) -> None:
    task = chars(data=str(corpus))
    batch = task.batch(torch.arange(task.train_size))
    assert batch.shape == (task.train_size, 9)
    assert batch.dtype == torch.int64
    assert torch.equal(batch[:-1, 8], batch[1:, 0])
    assert batch.max() < 128
    assert bytes(batch[0].tolist()).endswith(b"abcdefg")


def test_chars_own_folder_is_not_split_and_a_shared_one_is(corpus: Path) -> None:
    own = [chars(me, data=str(corpus)).train_size for me in "abcd"]
    split = [chars(me, data=str(corpus), partition="shards", options={"shared": True}).train_size for me in "abcd"]
    assert len(set(own)) == 1
    assert own[0] - 8 <= sum(split) <= own[0]


def test_chars_one_file_is_enough(tmp_path: Path) -> None:
    (tmp_path / "only.txt").write_text("x" * 900 + "y" * 100)
    task = chars(data=str(tmp_path))
    assert task.train_size == 899 // 8
    assert set(task.batch(torch.arange(task.train_size)).unique().tolist()) == {ord("x")}


def test_chars_can_be_learnt(corpus: Path) -> None:
    torch.manual_seed(0)
    task = chars(data=str(corpus))
    module = task.model()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    assert evaluate(task, module)["loss"] > 5
    for _ in range(40):
        optimizer.zero_grad()
        task.loss(module, task.batch(torch.arange(64))).backward()
        optimizer.step()
    assert evaluate(task, module)["accuracy"] > 0.8


def test_chars_without_a_folder_reads_the_standard_library() -> None:
    sizes = [chars(me, peers="ab").train_size for me in "ab"]
    assert min(sizes) * 8 > 1e6


def test_gpt_does_not_see_the_future() -> None:
    torch.manual_seed(0)
    model = GPT(256, n_layer=2, n_head=2, n_embd=16, block=8, dropout=0.1).eval()
    one = torch.randint(256, (1, 8))
    other = one.clone()
    other[0, 5] = (other[0, 5] + 1) % 256
    same = (model(one) == model(other)).all(2)[0]
    assert same.tolist() == [True] * 5 + [False] * 3
    assert model.head.weight is model.token.weight


# A user's own ----------------------------------------------------------------------------------------

OWN = """
import torch
class Own:
    train_size = {size}
    def __init__(self, config): self.rate = config.task.options["rate"]
    def model(self): return torch.nn.Linear(1, 1)
    def batch(self, indices): return indices
    def loss(self, model, batch): return model(batch[:, None].float()).mean()
    def evaluate(self, model): return {{}}
"""


def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, text: str, name: str = "Own") -> Task:
    (tmp_path / f"{module}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))  # make_task adds the same entry; this takes it out again
    return make_task(config_of(name=f"{module}:{name}", options={"rate": 3}))


def test_own_task_is_found_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task: Any = own(tmp_path, monkeypatch, "own_good", OWN.format(size=5))
    assert (task.train_size, task.rate) == (5, 3)


@pytest.mark.parametrize(
    ("module", "text", "name", "expected"),
    [
        ("own_broken", "import no_such_module", "Own", "importing own_broken .* failed: ModuleNotFoundError"),
        ("own_empty", "x = 1", "Own", "own_empty.py has no function 'Own'"),
        ("own_raises", "def make(config): return {}['key']", "make", "failed: KeyError: 'key'"),
        ("own_no_data", OWN.format(size=0), "Own", "train_size >= 1"),
    ],
)
def test_own_task_that_fails_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, text: str, name: str, expected: str
) -> None:
    with pytest.raises(ConfigError, match=expected):
        own(tmp_path, monkeypatch, module, text, name)


# Faults ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (
            {"name": "digit"},
            "unknown; known are digits, mnist, cifar10, chars, docstrings, classification, causal_lm, or your own",
        ),
        ({"options": {"modell": "cnn"}}, "task.options.modell: digits has no such option; it has model"),
        ({"options": {"model": "vit"}}, "should be one of mlp, cnn"),
        ({"options": {"model": 3}}, "should be of type str"),
        ({"name": "chars", "data": "/no/such/folder"}, "no such folder"),
        ({"name": "chars", "options": {"n_layer": 0}}, "n_layer = 0: should be at least 1"),
        ({"name": "chars", "options": {"n_layer": True}}, "should be of type int"),
        ({"name": "chars", "options": {"n_embd": 6, "n_head": 4}}, "should be a multiple of n_head"),
        ({"name": "chars", "options": {"dropout": 1.0}}, r"should be in \[0, 1\)"),
    ],
)
def test_impossible_tasks_are_refused(task: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        make_task(config_of(**task))


def test_too_little_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no files"):
        chars(data=str(tmp_path))
    (tmp_path / "short").write_text("too short")
    with pytest.raises(ConfigError, match="too little text"):
        chars(data=str(tmp_path))
    with pytest.raises(ConfigError, match="too few for 3 peers"):
        partition.shard(config_of().task, np.zeros(2, dtype=np.int64), 3, 0, 0)
