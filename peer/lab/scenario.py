"""A scenario: one swarm under every combination of mixing rules, attacks, data splits and seeds.

The file is a peer's configuration without `name` and [peers], and a table [lab] that says what varies.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path
from random import Random
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, field_validator

from murmurate.peer.build import build_topology, degree_min
from murmurate.peer.config import Attack, Config, Mixing, Option, checked, located, parse, read_table
from murmurate.peer.errors import ConfigError, LocalError
from murmurate.peer.learning.mixing.rules import RULES, check
from murmurate.peer.sections import Section
from murmurate.topology import Topology

NOWHERE = "127.0.0.1:0"  # simulated peers have no address

Backend = Literal["simulator", "daemons"]

DECIDED: dict[str, frozenset[str]] = {
    "name": frozenset(),
    "peers": frozenset(),
    "attack": frozenset(),
    "mixing": frozenset({"rule", "before", "options", "f"}),
    "swarm": frozenset({"seed"}),
    "task": frozenset({"partition", "alpha"}),
    "runtime": frozenset({"state_dir"}),
}
"""What [lab] decides, so that the file may not: whole tables, or keys of them."""


class Lie(Section):
    """An attack, as a peer's [attack] has it; who the accomplices are follows from the scenario."""

    name: str = "none"
    scale: float = Attack.model_fields["scale"].default
    omniscient: bool = False

    @property
    def label(self) -> str:
        """As figures name it."""
        scale = "" if self.scale == Attack.model_fields["scale"].default else f"_x{self.scale:g}"
        return f"{'omniscient_' if self.omniscient else ''}{self.name}{scale}"


class Lab(Section):
    """What varies, and what it runs on."""

    backend: Backend = "simulator"
    """`simulator`: in virtual time, many runs side by side; `daemons`: real processes on this machine, one run at a
    time."""
    peers: int = Field(default=8, ge=2)
    """Size of the swarm, liars included."""
    liars: int = Field(default=2, ge=0)
    """How many of them lie, spread evenly over the roster (with `phi` its last names); under `none` they are honest."""
    f: int = Field(default=-1, ge=-1)
    """mixing.f for every rule that bears liars; -1: as many as lie."""
    phi: int = Field(default=0, ge=0)
    """0: liars sit in the graph like anybody else. Else they are Sybils outside it: the graph is drawn without them,
    and each is linked to so many honest peers, drawn by the seed (SybilWall's attack edges)."""
    rules: list[str] = Field(min_length=1)
    """Mixing rules by name; `nnm+NAME` and `bucketing+NAME` with what comes before."""
    options: dict[str, dict[str, Option]] = Field(default_factory=dict)
    """What a rule of that list has as mixing.options, e.g. [lab.options.krum]."""
    attacks: list[Lie] = Field(min_length=1)
    """By name, or as tables { name, scale, omniscient }."""
    alphas: list[Annotated[float, Field(gt=0)]] = Field(min_length=1)
    """Concentrations of the Dirichlet split."""
    seeds: int = Field(default=5, ge=1)
    """Runs of every combination, with swarm.seed 0, 1, ..."""
    timeout_s: float = Field(default=600.0, gt=0)
    """Longest time for one run of daemons."""

    @field_validator("attacks", mode="before")
    @classmethod
    def _named(cls, attacks: Any) -> Any:
        if not isinstance(attacks, list):
            return attacks
        entries: list[Any] = attacks
        return [{"name": entry} if isinstance(entry, str) else entry for entry in entries]


class Cell(NamedTuple):
    """One run."""

    rule: str
    attack: str
    alpha: float
    seed: int


@dataclass(frozen=True)
class Scenario:
    """All runs of a file."""

    name: str
    lab: Lab
    table: dict[str, Any]
    """What all runs have in common: the tables of a peer."""
    where: Path
    """The file; relative paths in it count from its folder."""

    def cells(self) -> Iterator[Cell]:
        """All of them; seed after seed, so that a part of them is a grid already."""
        for seed, alpha, (attack, rule) in product(
            range(self.lab.seeds), self.lab.alphas, product(self._attacks(), self._rules())
        ):
            yield Cell(rule, attack, alpha, seed)

    def liars(self) -> frozenset[int]:
        """Who lies, by place in the roster."""
        n, liars = self.lab.peers, self.lab.liars
        if self.lab.phi:
            return frozenset(range(n - liars, n))
        return frozenset((2 * k + 1) * n // (2 * liars) for k in range(liars))

    def names(self) -> list[str]:
        """The roster."""
        return [f"peer-{i:0{len(str(self.lab.peers - 1))}}" for i in range(self.lab.peers)]

    def configs(self, cell: Cell, folder: Path) -> list[Config]:
        """The configuration of every peer of a run; `folder` gets the graph where it has to be written down."""
        topology = self._topology(cell.seed, folder)
        return [self._config(cell, topology, i) for i in range(self.lab.peers)]

    def key(self, cell: Cell) -> str:
        """Names a run by its backend, the configurations of its peers with all defaults, and murmurate's version.

        What files hold that these name is not in it.
        """
        lab = self.lab.model_dump(include={"backend", "peers", "liars", "phi"})
        ends = {0, max(self.liars(), default=0)}  # one that is honest, unless all lie, and one that lies
        peers = [self._config(cell, self.table.get("topology", {}), i) for i in sorted(ends)]
        tables = [config.model_dump(exclude={"peers": True, "runtime": {"state_dir"}}) for config in peers]
        text = json.dumps([version("murmurate"), lab, cell.attack, tables], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _config(self, cell: Cell, topology: dict[str, Any], i: int) -> Config:
        table = {
            **self.table,
            "name": self.names()[i],
            "attack": self._attack(cell) if i in self.liars() else {},
            "peers": dict.fromkeys(self.names(), NOWHERE),
            "swarm": {"name": self.name, **self.table.get("swarm", {}), "seed": cell.seed},
            "task": {**self.table.get("task", {}), "partition": "dirichlet", "alpha": cell.alpha},
            "mixing": self._rules()[cell.rule].model_dump(),
            "topology": topology,
            "runtime": {"threads": 1, **self.table.get("runtime", {})},
        }
        return located(parse(table, str(self.where)), self.where.resolve().parent)

    def _attack(self, cell: Cell) -> dict[str, Any]:
        lie, names = self._attacks()[cell.attack], self.names()
        if lie.name == "none":
            return {}
        return {**lie.model_dump(), "accomplices": [names[i] for i in sorted(self.liars())]}

    def check(self, folder: Path) -> None:
        """Raises ConfigError for what could not run, before anything has run."""
        lab = self.lab
        if 2 * lab.liars >= lab.peers and not lab.phi:
            raise ConfigError(f"lab.liars = {lab.liars}: should be less than half of lab.peers = {lab.peers}")
        if lab.phi > lab.peers - lab.liars:
            raise ConfigError(f"lab.phi = {lab.phi}: there are only {lab.peers - lab.liars} honest peers to link to")
        for lie in lab.attacks:
            if lie.omniscient and lab.backend != "simulator":
                raise ConfigError(f"lab.attacks: omniscient {lie.name} needs backend = 'simulator': no real peer is")
        for what, names in ("rules", lab.rules), ("attacks", [lie.label for lie in lab.attacks]):
            if len(set(names)) < len(names):
                raise ConfigError(f"lab.{what}: names something twice: {', '.join(names)}")
        for rule in lab.options:
            if rule not in lab.rules:
                raise ConfigError(f"lab.options.{rule}: is not one of lab.rules: {', '.join(lab.rules)}")
        topology = self._topology(0, folder)
        for cell in self.cells():
            if cell.seed == 0 and cell.alpha == lab.alphas[0]:
                self._check_cell(self._config(cell, topology, max(self.liars(), default=0)))

    def _check_cell(self, config: Config) -> None:
        if config.exchange.name != "models":
            raise ConfigError("exchange.name: a scenario mixes models; `murmurate bench liars` has scalars")
        if not config.rounds.max or not config.rounds.eval_every:
            raise ConfigError("rounds.max, rounds.eval_every: should be at least 1: a run is judged by its end")
        check(config.mixing, degree_min(build_topology(config)))

    def _attacks(self) -> dict[str, Lie]:
        return {lie.label: lie for lie in self.lab.attacks}

    def _rules(self) -> dict[str, Mixing]:
        lab, rules = self.lab, dict[str, Mixing]()
        for name in lab.rules:
            before, _, rule = name.rpartition("+")
            bears = rule in RULES and RULES[rule].bears
            table = {
                **self.table.get("mixing", {}),  # gossip_steps, keep_variance
                "rule": rule,
                "before": before,
                "f": (lab.liars if lab.f < 0 else lab.f) if bears else 0,
                "options": lab.options.get(name, {}),
            }
            rules[name] = checked(Mixing, table, f"lab.rules: {name}")
        return rules

    def _topology(self, seed: int, folder: Path) -> dict[str, Any]:
        common = self.table.get("topology", {})
        if not self.lab.phi:
            return common
        honest = self.lab.peers - self.lab.liars
        rule, options = str(common.get("rule", "ring")), dict(common.get("options", {}))
        try:
            inside = Topology(rule, honest, options)
        except ValueError as error:
            raise ConfigError(f"topology: {error}") from None
        random, names = Random(f"sybils {seed}"), self.names()
        edges = [(names[i], names[j]) for i in range(honest) for j in inside.links(i) if i < j]
        for sybil in names[honest:]:
            edges += [(sybil, names[i]) for i in sorted(random.sample(range(honest), self.lab.phi))]
        text = "".join(f"{one} {other}\n" for one, other in edges)
        path = folder.resolve() / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.txt"
        if not path.exists():  # others may read it at any time, and write the same
            draft = path.with_suffix(f".{os.getpid()}")
            try:
                draft.write_text(text, encoding="utf-8")
                draft.replace(path)
            except OSError as error:
                raise LocalError(f"{path}: cannot be written: {error.strerror}") from None
        return {**common, "rule": "file", "options": {"path": str(path)}}


def load_scenario(path: Path, backend: Backend | None = None) -> Scenario:
    """Read and check a scenario file; `backend` replaces the file's. Raises ConfigError."""
    table = read_table(path)
    lab = table.pop("lab", None)
    if lab is None:
        raise ConfigError(f"{path}: has no table [lab], which says what varies; examples/robust.toml has one")
    for section, keys in DECIDED.items():
        found = table.get(section, {})
        if section in table and not keys:
            raise ConfigError(f"{path}: {section}: follows from [lab] in a scenario; leave it out")
        if not isinstance(found, dict):
            raise ConfigError(f"{path}: {section}: should be a table: [{section}]")
        for key in keys & found.keys():
            raise ConfigError(f"{path}: {section}.{key}: follows from [lab] in a scenario; leave it out")
    checked_lab = checked(Lab, lab, f"{path}: [lab]")
    if backend is not None:
        checked_lab = checked_lab.model_copy(update={"backend": backend})
    return Scenario(path.stem, checked_lab, table, path)
