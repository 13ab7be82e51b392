"""A peer's configuration: the tables of sections.py in one file, read, checked once, frozen.

An unknown key or an impossible value is one `ConfigError` naming the key, the value and what would be right.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import re
import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from murmurate.peer.checks import faults
from murmurate.peer.errors import ConfigError
from murmurate.peer.sections import (
    NAME_PATTERN,
    Attack,
    Audit,
    Exchange,
    Liveness,
    Local,
    Mixing,
    Option,
    Rounds,
    Runtime,
    Section,
    Seeds,
    Swarm,
    Task,
    Topology,
    shown,
    split_address,
)

__all__ = [
    "Attack",
    "Audit",
    "Config",
    "Exchange",
    "Liveness",
    "Local",
    "Mixing",
    "Option",
    "Rounds",
    "Runtime",
    "Seeds",
    "Swarm",
    "Task",
    "Topology",
    "checked",
    "load",
    "located",
    "parse",
    "read_table",
    "split_address",
]

Kind = TypeVar("Kind", bound=BaseModel)

NAME_RULE = "should be 1 to 64 letters, digits, dots, dashes or underscores, the first a letter or a digit"


class Config(Section):
    """Everything one peer is told."""

    name: str = Field(pattern=NAME_PATTERN)
    """This peer's name, unique in the swarm."""
    peers: dict[str, str]
    """All peers of the swarm, name = "host:port", this one included. The names must agree in all peers."""
    swarm: Swarm = Swarm()
    task: Task = Task()
    local: Local = Local()
    exchange: Exchange = Exchange()
    seeds: Seeds = Seeds()
    mixing: Mixing = Mixing()
    audit: Audit = Audit()
    topology: Topology = Topology()
    rounds: Rounds = Rounds()
    liveness: Liveness = Liveness()
    runtime: Runtime = Runtime()
    attack: Attack = Attack()

    @field_validator("peers")
    @classmethod
    def _addresses(cls, peers: dict[str, str]) -> dict[str, str]:
        owners: dict[tuple[str, int], str] = {}
        for name, address in peers.items():
            key = f"peers.{_shown_key(name)}"
            if not re.fullmatch(NAME_PATTERN, name):
                raise ValueError(f"{key}: the name {NAME_RULE}")
            host, port = split_address(address, key)
            if port and (other := owners.setdefault((host.lower(), port), name)) != name:
                raise ValueError(f"{key} = {address!r}: is the address of {other} too; each peer should have its own")
        return peers

    @model_validator(mode="after")
    def _is_in_the_roster(self) -> Config:
        if self.name not in self.peers:
            raise ValueError(
                f"name = {self.name!r} should be one of [peers]: {', '.join(sorted(self.peers)) or 'none'}"
            )
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        for fault in faults(self):
            raise ValueError(fault)
        return self

    @property
    def records(self) -> int:
        """Records per batch of the seeds exchange (R)."""
        return self.local.steps * self.seeds.probes

    @property
    def unit_log2(self) -> int:
        """`seeds.unit_log2`, resolved: a probe with a slope of 1 is worth about 256 units."""
        return self.seeds.unit_log2 or round(math.log2(self.local.lr / self.seeds.probes)) - 8

    @property
    def roster(self) -> tuple[str, ...]:
        """All names in canonical order: position i is vertex i of the graph and shard i of the data."""
        return tuple(sorted(self.peers))

    @property
    def index(self) -> int:
        """This peer's position in the roster."""
        return self.roster.index(self.name)

    @property
    def listen(self) -> str:
        """host:port to bind."""
        return self.runtime.listen or self.peers[self.name]

    @property
    def state_dir(self) -> Path:
        """Where this peer keeps its files."""
        return Path(self.runtime.state_dir or f"runs/{self.name}")


def load(path: Path, name: str = "") -> Config:
    """Read and check a TOML file; `name` replaces the file's, so that one file can serve all peers.

    A relative path in it (state_dir, task.data, task.weights, a graph's file) counts from the file's folder, and `~` is
    the user's home.
    """
    table = read_table(path, "; `murmurate init` writes one")
    config = parse({**table, "name": name} if name else table, str(path))
    return located(config, path.resolve().parent)


def read_table(path: Path, advice: str = "") -> dict[str, Any]:
    """A TOML file, not yet checked; `advice` for when there is none. Raises ConfigError."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # some editors begin a file with a byte order mark
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file{advice}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text file in UTF-8: {error.reason} at byte {error.start}") from None
    except (ValueError, RecursionError) as error:  # tomllib's own, and what it lets through: huge integers, deep lists
        raise ConfigError(f"{path}: not valid TOML: {error}") from None


def located(config: Config, base: Path) -> Config:
    """The same with absolute paths, for a file in the folder `base`."""

    def found(value: str) -> str:
        return str(base / os.path.expanduser(value)) if value else ""

    runtime = config.runtime.model_copy(update={"state_dir": found(str(config.state_dir))})
    task = config.task.model_copy(update={"data": found(config.task.data), "weights": found(config.task.weights)})
    topology = config.topology
    if isinstance(path_of_graph := topology.options.get("path"), str):
        options = {**topology.options, "path": found(path_of_graph)}
        topology = topology.model_copy(update={"options": options})
    return config.model_copy(update={"runtime": runtime, "task": task, "topology": topology})


def parse(table: dict[str, Any], where: str = "config") -> Config:
    """Check a table. Raises ConfigError with one line for every fault found."""
    return checked(Config, table, where)


def checked(model: type[Kind], table: dict[str, Any], where: str) -> Kind:
    """A table as a model of its own. Raises ConfigError with one line for every fault found."""
    try:
        return model.model_validate(table)
    except ValidationError as error:
        lines = dict.fromkeys(_explain(fault, table, model) for fault in error.errors(include_url=False))
        raise ConfigError("\n".join(f"{where}: {line}" for line in lines)) from None


def _explain(fault: Any, table: dict[str, Any], model: type[BaseModel]) -> str:
    """One pydantic fault -> `key = value: what would be right`."""
    path, value = [str(part) for part in fault["loc"]], fault["input"]
    if in_options := path[1:2] == ["options"] and path[0] != "peers" and len(path) > 2:
        path = path[:3]  # what follows is a member of the union: one fault for all of them
        value = table[path[0]]["options"][path[2]]
    key = ".".join(map(_shown_key, path))
    message = str(fault["msg"]).removeprefix("Value error, ").removeprefix("Input ").removeprefix("String ")
    match fault["type"]:
        case "extra_forbidden":
            return f"{key}: unknown key; {_suggest(path, model)}"
        case "missing" if key == "name":
            return "name: is required, and missing; a file for several peers is told it with --name"
        case "missing":
            return f"{key}: is required, and missing"
        case "value_error":
            return f"{key}: {message}" if key and not message.startswith(key) else message
        case "model_type" | "dict_type":
            message = f"should be a table: [{key}]"
        case "string_pattern_mismatch":
            message = NAME_RULE
        case _ if in_options:
            message = "should be a string, a finite number, a list of finite numbers, true or false"
        case _:
            pass
    return f"{key} = {shown(value)}: {message}"


def _suggest(path: list[str], model: type[BaseModel]) -> str:
    """For a key that nobody knows: the one that was probably meant, or all there are."""
    known, wanted = _keys_at(path[:-1], model), path[-1]
    if close := difflib.get_close_matches(wanted, known, n=1):
        return f"did you mean {close[0]}?"
    for section in model.model_fields:
        if wanted in _keys_at([section], model):
            return f"did you mean {section}.{wanted}?"
    return f"known here: {', '.join(known)}"


def _shown_key(part: str) -> str:
    return part if re.fullmatch(NAME_PATTERN, part) else json.dumps(part)


def _keys_at(path: list[str], model: type[BaseModel]) -> list[str]:
    for part in path:
        annotation = model.model_fields[part].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)
