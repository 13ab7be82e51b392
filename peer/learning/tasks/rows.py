"""Text files of a peer: JSON lines and plain text, split into training data and a held-out share by a hash of the text.

`task.data` is this peer's own file or folder, all of it its own. With option `shared = true` every peer holds the same
files, and their rows are split by `task.partition`. A tenth of the rows is held out, by a hash of what they say: where
two peers have the same row, neither trains on it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from murmurate.peer import config
from murmurate.peer.errors import ConfigError
from murmurate.peer.learning.randomness import derive

from .partition import shard

T = TypeVar("T")

HELD_OUT = 10  # one row in so many
ENCODING = "utf-8-sig"  # some editors begin a file with a byte order mark
EVAL_ROWS_MAX = 512  # a standard error of 2 points of accuracy (a guess)


class Row(NamedTuple):
    """An object with named fields."""

    where: str
    """The file, and its line."""
    fields: Mapping[str, Any]


def read_rows(task: config.Task, text_field: str) -> list[Row]:
    """The objects of all *.jsonl files; a *.txt file is one row with its text in `text_field`.

    In the order of the files' names. Raises ConfigError that names the file and the line.
    """
    if not task.data:
        raise ConfigError(f"task.data: {task.name} needs this peer's data: a .jsonl or .txt file, or a folder of them")
    where = Path(task.data)
    if not where.exists():
        raise ConfigError(f"task.data = {task.data!r}: there is no such file or folder")
    paths = sorted(path for path in where.rglob("*") if path.is_file()) if where.is_dir() else [where]
    rows: list[Row] = []
    try:
        for path in paths:
            if path.suffix == ".jsonl":
                rows += _objects(path)
            elif path.suffix == ".txt":
                rows.append(Row(str(path), {text_field: path.read_text(encoding=ENCODING)}))
    except OSError as error:
        raise ConfigError(f"task.data = {task.data!r}: {error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"task.data = {task.data!r}: not a text file in UTF-8: {error}") from None
    if not rows:
        raise ConfigError(f"task.data = {task.data!r}: holds no rows: should be a .jsonl or .txt file, or have some")
    return rows


def text_of(row: Row, field: str, right: str = "a text") -> str:
    """A field of a row that should be text. Raises ConfigError."""
    if field not in row.fields:
        raise ConfigError(f"{row.where}: has no field {field!r}, but {', '.join(row.fields) or 'nothing'}")
    value = row.fields[field]
    if not isinstance(value, str):
        found = "more than that" if isinstance(value, (dict, list)) else json.dumps(value)
        raise ConfigError(f"{row.where}: {field!r} should be {right}, not {found}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{row.where}: {field!r} is no text: {error}") from None
    return value


def split_rows(
    config: config.Config, rows: Sequence[T], labels: Sequence[int], shared: bool
) -> tuple[list[T], list[T]]:
    """This peer's training rows, and those held out. Raises ConfigError when there are too few."""
    held_out = np.array([_hash(row) % HELD_OUT == 0 for row in rows])
    if held_out.all() or not held_out.any():  # too few rows for a hash to choose any
        held_out = np.arange(len(rows)) >= len(rows) - max(1, len(rows) // HELD_OUT)
    mine = np.flatnonzero(~held_out)
    if shared:
        seed = derive(config.swarm.seed, config.task.name, "partition")
        marks = np.array(labels, np.int64)[mine]
        mine = mine[shard(config.task, marks, len(config.peers), config.index, seed)]
    if not len(mine):
        raise ConfigError(f"task.data = {config.task.data!r}: {len(rows)} rows are too few to train and to evaluate")
    return [rows[i] for i in mine.tolist()], [rows[i] for i in np.flatnonzero(held_out).tolist()]


def spread(count: int, device: torch.device) -> Tensor:
    """Positions of at most `EVAL_ROWS_MAX` of `count` rows, evenly spread."""
    return torch.linspace(0, count - 1, min(EVAL_ROWS_MAX, count), device=device).long()


def _objects(path: Path) -> Iterator[Row]:
    for number, line in enumerate(path.read_text(encoding=ENCODING).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path}:{number}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise ConfigError(f'{path}:{number}: should be an object with named fields, as {{"text": ...}}')
        yield Row(f"{path}:{number}", cast("Mapping[str, Any]", row))


def _hash(row: object) -> int:
    return hashlib.blake2b(repr(row).encode(), digest_size=8).digest()[0]
