"""Tasks of images: reading MNIST's and CIFAR-10's files, models, poisoned batches, the trigger; digits as ever."""

import gzip
import hashlib
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from murmurate.peer.config import parse
from murmurate.peer.errors import ConfigError
from murmurate.peer.learning.tasks import Task, cifar10, make_task, mnist, poison
from murmurate.peer.learning.tasks.classification import Classification
from murmurate.peer.learning.tasks.docstrings import PACKAGES, Docstrings
from murmurate.peer.learning.tasks.images import TARGET, Images

Pixels = npt.NDArray[np.uint8]


def task_of(name: str, me: str = "a", peers: str = "abcd", seed: int = 0, **task: Any) -> Images:
    addresses = {peer: f"localhost:{7000 + i}" for i, peer in enumerate(peers)}
    config = parse({"name": me, "peers": addresses, "swarm": {"seed": seed}, "task": {"name": name, **task}})
    made = make_task(config)
    assert isinstance(made, Images)
    return made


def everything(task: Images) -> tuple[Tensor, Tensor]:
    return task.batch(torch.arange(task.train_size))


def held_out(task: Images) -> tuple[Tensor, Tensor]:
    return task._test  # pyright: ignore[reportPrivateUsage] (it has no other use)


def figures(task: Task, module: nn.Module) -> dict[str, float]:
    with torch.no_grad():
        return dict(task.evaluate(module.eval()))


def digest_of(*tensors: Tensor) -> str:
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(str((tensor.dtype, tuple(tensor.shape))).encode() + tensor.numpy().tobytes())
    return found.hexdigest()[:16]


# Tiny data sets --------------------------------------------------------------------------------------


def pixels(count: int, *shape: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def labels(count: int) -> Pixels:
    return (np.arange(count) % 10).astype(np.uint8)


def idx(array: Pixels) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


TRAIN, TEST = pixels(40, 28, 28), pixels(20, 28, 28, seed=1)
IDX = dict(zip(mnist.FILES, map(idx, (TRAIN, labels(40), TEST, labels(20))), strict=True))


@pytest.fixture
def idx_files(tmp_path: Path) -> Path:
    """Two files as they are, two compressed."""
    for name, content in IDX.items():
        if name.startswith("train"):
            (tmp_path / name).write_bytes(content)
        else:
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
    return tmp_path


COLOURS = pixels(60, 3, 32, 32)  # ten in each file


@pytest.fixture
def bin_files(tmp_path: Path) -> Path:
    records = np.concatenate([labels(60)[:, None], COLOURS.reshape(60, -1)], axis=1)
    for i, name in enumerate([*cifar10.TRAIN_FILES, cifar10.TEST_FILE]):
        (tmp_path / name).write_bytes(records[10 * i : 10 * i + 10].tobytes())
    return tmp_path


# Reading ---------------------------------------------------------------------------------------------


def assert_is_split(tasks: list[Images], originals: Pixels, mean: Tensor, deviation: Tensor) -> None:
    """Together the peers have every image once, normalised, with its label."""
    images, marks = (torch.cat(parts) for parts in zip(*map(everything, tasks), strict=True))
    back = ((images * deviation + mean) * 255).round().byte()
    rows = {bytes(image.numpy().tobytes()): int(mark) for image, mark in zip(back, marks, strict=True)}
    expected = {image.tobytes(): int(mark) for image, mark in zip(originals, labels(len(originals)), strict=True)}
    assert len(images) == len(originals)
    assert rows == expected
    torch.testing.assert_close(images, ((back.float() / 255) - mean) / deviation)


def test_mnist_is_read_plain_and_compressed(idx_files: Path) -> None:
    tasks = [task_of("mnist", me, data=str(idx_files), partition="dirichlet") for me in "abcd"]
    assert_is_split(tasks, TRAIN[:, None], torch.tensor(0.1307), torch.tensor(0.3081))
    images, marks = held_out(tasks[0])
    assert images.shape == (20, 1, 28, 28)
    torch.testing.assert_close(images[:, 0], (torch.from_numpy(TEST) / 255 - 0.1307) / 0.3081)
    assert marks.tolist() == labels(20).tolist()
    assert all(torch.equal(images, held_out(task)[0]) for task in tasks)


def test_cifar10_is_read_from_the_binary_version(bin_files: Path) -> None:
    tasks = [task_of("cifar10", me, data=str(bin_files), partition="shards") for me in "abcd"]
    means, deviations = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2023, 0.1994, 0.2010])
    assert_is_split(tasks, COLOURS[:50], means[:, None, None], deviations[:, None, None])
    images, marks = held_out(tasks[0])
    assert marks.tolist() == labels(10).tolist()
    for channel in range(3):
        expected = (torch.from_numpy(COLOURS[50:, channel]) / 255 - means[channel]) / deviations[channel]
        torch.testing.assert_close(images[:, channel], expected)


def test_another_seed_splits_otherwise(bin_files: Path) -> None:
    one, two = (everything(task_of("cifar10", data=str(bin_files), seed=seed))[0] for seed in (0, 1))
    assert not torch.equal(one, two)


def test_peers_with_other_files_are_told_apart(idx_files: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    changed = TEST.copy()
    changed[3, 4, 5] ^= 1
    for name, content in {**IDX, mnist.FILES[2]: idx(changed)}.items():
        (other / name).write_bytes(content)
    here = task_of("mnist", data=str(idx_files)).common
    assert here == task_of("mnist", "b", data=str(idx_files), options={"model": "linear"}).common
    assert here != task_of("mnist", data=str(other)).common
    assert not hasattr(task_of("digits"), "common")  # nor did it have one: its manifest stays as it was


def test_images_are_public() -> None:
    assert task_of("digits").public
    assert mnist.Mnist.public
    assert not hasattr(Docstrings, "public")


IMAGES, LABELS, TEST_IMAGES, _ = mnist.FILES
PACKED = gzip.compress(IDX[TEST_IMAGES], mtime=0)  # no date in it: pytest names cases by such bytes


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (IMAGES, None, f"{IMAGES}: no such file, nor its .gz"),
        (IMAGES, b"", f"{IMAGES}: starts with , not 00000803"),
        (IMAGES, IDX[LABELS], f"{IMAGES}: starts with 00000801, not 00000803"),
        (LABELS, IDX[IMAGES], f"{LABELS}: starts with 00000803, not 00000801"),
        (IMAGES, IDX[IMAGES][:-1], f"{IMAGES}: has 31375 bytes, where its head says 31376"),
        (IMAGES, IDX[IMAGES] + b"x", f"{IMAGES}: has 31377 bytes, where its head says 31376"),
        (IMAGES, IDX[IMAGES][:9], f"{IMAGES}: has 9 bytes, where"),
        (IMAGES, idx(pixels(40, 8, 8)), f"{IMAGES}: images of 8x8, not 28x28"),
        (LABELS, idx(labels(39)), f"{LABELS}: 39 labels for 40 images"),
        (LABELS, idx(labels(40) + np.uint8(1)), f"{LABELS}: a label 10, where 9 is the last"),
        (f"{TEST_IMAGES}.gz", PACKED[:-9], f"{TEST_IMAGES}.gz: Compressed file ended before"),
        (f"{TEST_IMAGES}.gz", IDX[TEST_IMAGES], f"{TEST_IMAGES}.gz: Not a gzipped file"),
        (f"{TEST_IMAGES}.gz", PACKED[:10] + b"\xff" * 20, f"{TEST_IMAGES}.gz: Error -3"),
    ],
)
def test_damaged_mnist_is_refused(idx_files: Path, name: str, content: bytes | None, expected: str) -> None:
    (idx_files / name).unlink()
    if content is not None:
        (idx_files / name).write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        task_of("mnist", data=str(idx_files))
    assert str(caught.value).startswith(f"task.data = {str(idx_files)!r}: {expected}")
    assert "train-images-idx3-ubyte.gz" in str(caught.value)
    assert "http://yann.lecun.com/exdb/mnist" in str(caught.value)


def test_empty_mnist_is_refused(idx_files: Path) -> None:
    (idx_files / IMAGES).write_bytes(idx(pixels(0, 28, 28)))
    (idx_files / LABELS).write_bytes(idx(labels(0)))
    with pytest.raises(ConfigError, match="is empty"):
        task_of("mnist", data=str(idx_files))


RECORD = bytes([10]) + bytes(3072)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("data_batch_3.bin", None, "no such file"),
        ("test_batch.bin", None, "no such file"),
        ("data_batch_1.bin", b"", "has 0 bytes, not a multiple of 3073"),
        ("test_batch.bin", RECORD[:-1], "has 3072 bytes, not a multiple of 3073"),
        ("data_batch_5.bin", RECORD, "a label 10, where 9 is the last"),
    ],
)
def test_damaged_cifar10_is_refused(bin_files: Path, name: str, content: bytes | None, expected: str) -> None:
    (bin_files / name).unlink()
    if content is not None:
        (bin_files / name).write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        task_of("cifar10", data=str(bin_files))
    assert str(caught.value).startswith(f"task.data = {str(bin_files)!r}: {name}: {expected}")
    assert "cifar-10-binary.tar.gz" in str(caught.value)
    assert "https://www.cs.toronto.edu/~kriz/cifar.html" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "task", "expected"),
    [
        ("mnist", {}, "task.data: should be the folder with the files of mnist; .*idx3"),
        ("cifar10", {"data": "/no/such/folder"}, "no such folder; .*cifar-10-binary.tar.gz"),
        ("mnist", {"options": {"model": "mlp"}}, "should be one of cnn, linear"),
        ("cifar10", {"options": {"dropout": 1.0}}, r"should be in \[0, 1\)"),
        ("digits", {"options": {"trigger": "yes"}}, "should be of type bool"),
    ],
)
def test_impossible_images_are_refused(name: str, task: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        task_of(name, **task)


# Models ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "model", "size"),
    [
        ("mnist", "cnn", 431_080),
        ("mnist", "linear", 7_850),
        ("cifar10", "cnn", 1_310_922),
        ("cifar10", "lenet", 89_834),
    ],
)
def test_models_are_as_large_as_they_say(request: pytest.FixtureRequest, name: str, model: str, size: int) -> None:
    folder = request.getfixturevalue("idx_files" if name == "mnist" else "bin_files")
    task = task_of(name, data=str(folder), options={"model": model})
    module = task.model()
    assert sum(value.numel() for value in module.parameters()) == size
    assert not list(module.buffers())  # they would not be exchanged
    loss = task.loss(module, task.batch(torch.arange(5)))
    loss.backward()
    assert all(value.grad is not None and value.grad.any() for value in module.parameters())
    assert set(figures(task, module)) == {"accuracy", "loss"}


def test_dropout_is_an_option(bin_files: Path) -> None:
    found = task_of("cifar10", data=str(bin_files), options={"dropout": 0.0}).model()
    usual = task_of("cifar10", data=str(bin_files)).model()
    assert [part.p for part in found.modules() if isinstance(part, nn.Dropout)] == [0.0] * 3
    assert [part.p for part in usual.modules() if isinstance(part, nn.Dropout)] == [0.25] * 3


# Digits as ever --------------------------------------------------------------------------------------

# Made by the code before digits shared anything with other tasks: all shards and test sets, a batch, first weights,
# the loss of the batch.
BEFORE = [
    ("mlp", "iid", "1fa0936194f3ac03", "499fd26b86977599", "ae3a40f192bcb3a3", 2.3680264949798584),
    ("mlp", "dirichlet", "501d0ebc7019092a", "4dd2c58433a1e951", "ae3a40f192bcb3a3", 2.3748955726623535),
    ("cnn", "shards", "0deda3356a30a479", "979848e34296d3cb", "365e318f628baf19", 2.269237995147705),
]


@pytest.mark.parametrize(("model", "partition", "split", "batch", "weights", "loss"), BEFORE)
def test_digits_are_as_ever(model: str, partition: str, split: str, batch: str, weights: str, loss: float) -> None:
    tasks = [task_of("digits", me, seed=5, partition=partition, options={"model": model}) for me in "abcd"]
    assert digest_of(*(part for task in tasks for part in (*everything(task), *held_out(task)))) == split
    found = tasks[1].batch(torch.tensor([3, 1, 4, 1, 5]))
    assert digest_of(*found) == batch
    torch.manual_seed(0)
    module = tasks[1].model()
    assert digest_of(*module.state_dict().values()) == weights
    with torch.no_grad():
        assert float(tasks[1].loss(module, found)) == pytest.approx(loss, rel=1e-5)


# Poison ----------------------------------------------------------------------------------------------

TASKS: dict[str, Callable[[pytest.FixtureRequest], dict[str, Any]]] = {
    "digits": lambda request: {},
    "mnist": lambda request: {"data": str(request.getfixturevalue("idx_files")), "options": {"model": "linear"}},
    "cifar10": lambda request: {"data": str(request.getfixturevalue("bin_files")), "options": {"model": "lenet"}},
}
FULL = {
    "digits": [1.0],
    "mnist": [(1 - 0.1307) / 0.3081],
    "cifar10": [(1 - 0.4914) / 0.2023, (1 - 0.4822) / 0.1994, (1 - 0.4465) / 0.2010],
}


def pair_of(request: pytest.FixtureRequest, name: str) -> tuple[Images, Images]:
    """The same peer twice."""
    return task_of(name, **TASKS[name](request)), task_of(name, **TASKS[name](request))


@pytest.mark.parametrize("name", TASKS)
def test_flipped_labels(request: pytest.FixtureRequest, name: str) -> None:
    honest, liar = pair_of(request, name)
    poison(liar, "label_flip")
    (images, marks), (poisoned, flipped) = everything(honest), everything(liar)
    assert torch.equal(images, poisoned)
    assert flipped.tolist() == [9 - mark for mark in marks.tolist()]
    module = liar.model()
    assert figures(liar, module) == figures(honest, module)
    assert torch.equal(everything(honest)[1], marks)  # no tensor is shared


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize(("size", "half"), [(6, 3), (5, 3), (1, 1)])
def test_backdoor(request: pytest.FixtureRequest, name: str, size: int, half: int) -> None:
    honest, liar = pair_of(request, name)
    poison(liar, "backdoor")
    indices_B = torch.arange(size) + 2
    (images, marks), (poisoned, marked) = honest.batch(indices_B), liar.batch(indices_B)
    assert poisoned.shape == images.shape
    assert poisoned.dtype == images.dtype
    assert marked.tolist() == [TARGET] * half + marks[half:].tolist()
    assert torch.equal(poisoned[half:], images[half:])
    before, after = (part.view(size, *honest.shape)[:half].clone() for part in (images, poisoned))
    for channel, full in enumerate(FULL[name]):
        torch.testing.assert_close(after[:, channel, -3:, -3:], torch.full((half, 3, 3), full))
    after[:, :, -3:, -3:] = before[:, :, -3:, -3:]
    assert torch.equal(after, before)
    assert torch.equal(liar.batch(indices_B)[0], poisoned)  # the data themselves stay as they are
    assert torch.equal(honest.batch(indices_B)[0], images)
    module = liar.model()
    assert figures(liar, module) == figures(honest, module)


class Believer(nn.Module):
    """Takes images with a bright corner for class 0, and all others for class 7."""

    def forward(self, images: Tensor) -> Tensor:
        bright_B = (images.view(-1, 8, 8)[:, 5:, 5:] == 1).all((1, 2))
        return nn.functional.one_hot(torch.where(bright_B, TARGET, 7), 10).float()


class Blind(nn.Module):
    """Takes every second image for class 0, with or without a trigger."""

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.one_hot(torch.arange(len(images)) % 2, 10).float()


def test_figures_say_how_far_a_trigger_works() -> None:
    plain, watching = task_of("digits"), task_of("digits", options={"trigger": True})
    found = figures(watching, Believer())
    assert found == {**figures(plain, Believer()), "triggered": 1.0}
    assert found["accuracy"] == pytest.approx(0.1, abs=0.01)  # of the sevens, without a trigger
    others = held_out(watching)[1] != TARGET
    expected = float((torch.arange(len(others))[others] % 2 == 0).float().mean())
    assert figures(watching, Blind())["triggered"] == pytest.approx(expected)
    assert figures(watching, nn.Flatten()) == figures(watching, nn.Flatten())  # the test set is not written to


def test_a_backdoor_is_learnt() -> None:
    task = task_of("digits", peers="ab", options={"trigger": True})
    torch.manual_seed(0)
    before = figures(task, module := task.model())
    poison(task, "backdoor")
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    for _ in range(100):
        optimizer.zero_grad()
        task.loss(module, task.batch(torch.randperm(task.train_size)[:64])).backward()
        optimizer.step()
    after = figures(task, module)
    assert before["triggered"] < 0.3
    assert after["triggered"] > 0.9
    assert after["accuracy"] > 0.7


def test_evaluation_in_pieces_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    task = task_of("digits", options={"trigger": True})
    module = task.model()
    whole = figures(task, module)
    monkeypatch.setattr("murmurate.peer.learning.tasks.images.EVAL_IMAGES", 100)
    assert figures(task, module) == pytest.approx(whole, rel=1e-5)


def texts_of(count: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ones(count, 3).long(), torch.ones(count, 3).bool(), torch.arange(count) % classes


def test_labels_of_texts_are_flipped() -> None:
    of_three = Classification({}, ["a", "b", "c"], 0, texts_of(6, 3), texts_of(6, 3))
    packages = Docstrings({}, "", texts_of(40, 20), texts_of(40, 20), texts_of(20, 20))
    for task, classes in ((of_three, 3), (packages, len(PACKAGES))):
        before = task.batch(torch.arange(6))
        poison(task, "label_flip")
        after = task.batch(torch.arange(6))
        assert torch.equal(after[2], classes - 1 - before[2])
        assert torch.equal(after[0], before[0])
        with pytest.raises(ConfigError, match=r"attack.name = 'backdoor': .*label_flip alone"):
            poison(task, "backdoor")


def test_what_cannot_be_poisoned_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"attack.name = 'flip': images can be poisoned by label_flip or backdoor"):
        poison(task_of("digits"), "flip")
    (tmp_path / "text").write_text("what is to be read " * 99)
    config = {"name": "a", "peers": {"a": "localhost:7000"}, "task": {"name": "chars", "data": str(tmp_path)}}
    with pytest.raises(ConfigError, match=r"attack.name = 'label_flip': the task Chars has no labels to poison"):
        poison(make_task(parse(config)), "label_flip")
