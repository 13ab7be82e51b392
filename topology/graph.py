"""`Topology`: who may talk to whom in which round, and with which mixing weights.

Rules
* A frozen value. Constructing it builds the graph of round 0, so what is impossible is refused there and then.
* Peers are 0..n-1. A directed edge i -> j means that i sends to j, and j mixes what it hears.
* A daemon needs rows only: `row(i, round)`. There is no n x n matrix here; `spectrum` makes one for people.
* Deterministic: equal values give equal graphs on every machine; `digest` lets two peers make sure.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import networkx as nx

from .rules import RULES, Option, Rule, static
from .weights import UNIFORM, WEIGHTS, max_degree

# Peers of a simulation are spread over a few rounds (about ten); a period is at most log2 n. (a guess)
GRAPHS_KEPT_MAX = 64
# `digest` covers this many rounds of a graph that never repeats: any slip of a generator shows in one. (a guess)
DIGEST_ROUNDS = 8


@dataclass(frozen=True, slots=True)
class Row:
    """What one peer has to know of one round."""

    outs: tuple[int, ...]
    """Whom it sends to, ascending."""
    weights: Mapping[int, float]
    """The mixing weights of those it hears, ascending; what they leave of 1 is its own. Shared: do not change it."""


@dataclass(slots=True)
class _Drawn:
    """A graph that was built, with the rows that were asked for."""

    graph: nx.Graph[int]
    degree_max: int
    rows: dict[int, Row] = field(default_factory=dict[int, Row])


@dataclass(frozen=True)
class Topology:
    """A graph rule with its parameters. Raises ValueError when no such graph exists, saying what would do."""

    rule: str
    """A name in `rules.RULES`."""
    n: int
    """Number of peers."""
    options: Mapping[str, object] = field(default_factory=dict[str, object], hash=False)
    """The rule's options; after construction complete, with the defaults of those not given. Do not change it."""
    weights: str = "metropolis"
    """A name in `weights.WEIGHTS`, for undirected graphs; directed ones are always uniform."""
    names: tuple[str, ...] = ()
    """The peers' names by number, or none. Only the rule `file` and drawings read them."""

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ValueError(f"topology rule = {self.rule!r} is unknown; {_choose(self.rule, RULES)}")
        if self.weights not in WEIGHTS:
            raise ValueError(f"topology weights = {self.weights!r} is unknown; {_choose(self.weights, WEIGHTS)}")
        if self.n < 1:
            raise ValueError(f"{self.rule}: n = {self.n}, but a swarm has at least 1 peer")
        if self.names and len(set(self.names)) != self.n:
            raise ValueError(f"{self.rule}: {len(set(self.names))} different names for n = {self.n} peers")
        object.__setattr__(self, "options", _complete(self.rule, RULES[self.rule], self.options))
        self.at(0)

    @cached_property
    def period(self) -> int | None:
        """After how many rounds the graph repeats: 1 when it never changes, None when it never repeats."""
        return RULES[self.rule].period(self.n)

    @cached_property
    def directed(self) -> bool:
        """Whether a peer may send to somebody it does not hear."""
        return self.at(0).is_directed()

    @cached_property
    def fixed(self) -> bool:
        """Whether the rule's graph is the same in every round."""
        return RULES[self.rule].period is static

    def at(self, round: int) -> nx.Graph[int]:
        """The graph of a round (0, 1, ...), frozen; an `nx.DiGraph` when directed. Cached."""
        return self._drawn(round).graph

    def row(self, i: int, round: int) -> Row:
        """What peer `i` does in `round`. Cached: the first call of a round builds its graph, O(edges)."""
        drawn = self._drawn(round)
        row = drawn.rows.get(i)
        if row is None:
            row = drawn.rows[i] = self._row(drawn, i)
        return row

    def links(self, i: int) -> tuple[int, ...]:
        """Everybody whom peer `i` ever sends to or hears, ascending: the links its daemon keeps open."""
        if self.period is None:
            return tuple(j for j in range(self.n) if j != i)
        rows = [self.row(i, round) for round in range(self.period)]
        return tuple(sorted({j for row in rows for j in (*row.outs, *row.weights)}))

    def digest(self) -> str:
        """SHA-256 (hex) of weights and edges over one period, at most or when aperiodic `DIGEST_ROUNDS` rounds.

        Peers that compare it notice a different file, or a different networkx with other random draws.
        """
        rounds = range(min(self.period or DIGEST_ROUNDS, DIGEST_ROUNDS))
        lines = [f"{self.n} {self.period} {UNIFORM if self.directed else self.weights}"]
        for round in rounds:
            graph = self.at(round)
            ends = sorted((i, j) if self.directed else (min(i, j), max(i, j)) for i, j in graph.edges)
            lines.append(" ".join(f"{i}-{j}" for i, j in ends))
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    @cached_property
    def _graphs(self) -> dict[int, _Drawn]:
        return {}

    def _drawn(self, round: int) -> _Drawn:
        if round < 0:
            raise ValueError(f"{self.rule}: round = {round}, but rounds begin at 0")
        phase = round % self.period if self.period else round
        drawn = self._graphs.get(phase)
        if drawn is None:
            drawn = self._draw(phase)
            if len(self._graphs) >= GRAPHS_KEPT_MAX:
                del self._graphs[next(iter(self._graphs))]  # the oldest
            self._graphs[phase] = drawn
        return drawn

    def _draw(self, phase: int) -> _Drawn:
        arguments: dict[str, object] = dict(self.options)
        if not self.fixed:
            arguments["round"] = phase
        if self.rule == "file":
            arguments["names"] = self.names
        graph = RULES[self.rule].build(self.n, **arguments)
        assert set(graph) == set(range(self.n))
        degrees: Iterable[tuple[int, int]] = graph.in_degree if isinstance(graph, nx.DiGraph) else graph.degree
        return _Drawn(nx.freeze(graph), max(degree for _, degree in degrees))

    def _row(self, drawn: _Drawn, i: int) -> Row:
        if not 0 <= i < self.n:
            raise ValueError(f"{self.rule}: there is no peer {i} among n = {self.n}")
        graph = drawn.graph
        if isinstance(graph, nx.DiGraph):
            share = max_degree(0, 0, drawn.degree_max)
            outs = tuple(sorted(graph.successors(i)))
            return Row(outs, dict.fromkeys(sorted(graph.predecessors(i)), share))
        outs = tuple(sorted(graph.neighbors(i)))
        weight, adjacent = WEIGHTS[self.weights], graph.adj
        own = len(outs)
        return Row(outs, {j: weight(own, len(adjacent[j]), drawn.degree_max) for j in outs})


def _choose(given: str, table: Iterable[str]) -> str:
    close = difflib.get_close_matches(given, list(table), n=1)
    return f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(table)}"


def _complete(name: str, rule: Rule, given: Mapping[str, object]) -> dict[str, Option]:
    """The options in the rule's order, defaults filled in, types checked."""
    for option in given:
        if option not in rule.options:
            takes = ", ".join(rule.options) or "none"
            raise ValueError(f"{name}: there is no option {option!r}; its options are: {takes}")
    complete: dict[str, Option] = {}
    for option, default in rule.options.items():
        value = given.get(option, default)
        accepted = (int, float) if isinstance(default, float) else type(default)
        if isinstance(value, bool) or not isinstance(value, accepted):
            want = {int: "a whole number", float: "a number", str: "a text"}[type(default)]
            raise ValueError(f"{name}: {option} = {value!r} should be {want}, e.g. {default!r}")
        complete[option] = float(value) if isinstance(default, float) else value
    if int(complete.get("seed", 0)) < 0:
        raise ValueError(f"{name}: seed = {complete['seed']} is negative; use 0 or more")
    return complete
