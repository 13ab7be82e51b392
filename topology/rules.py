"""The graphs by name: `RULES` is the one table, a row per rule.

Rules
* A builder gets the number of peers and the options of its row, and returns a graph on 0..n-1. One that varies with
  time also gets the round. It raises ValueError, naming the parameter, its value and what would do.
* The same arguments give the same graph everywhere: randomness comes only from `seed` (and the round).
* A graph that never changes is connected. A random rule tries `seed`, `seed + 1`, ... and takes the first connected
  graph, so peers agree on it without a word; after `DRAWS_MAX` it refuses.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import networkx as nx

from .files import read_graph

Option = int | float | str
Period = Callable[[int], int | None]

# At the threshold p = ln(n)/n, one draw of erdos_renyi in three is connected (Erdos and Renyi 1960): 32 draws
# all fail once in half a million times there, and far below it trying longer would not help.
DRAWS_MAX = 32


def static(n: int) -> int:  # noqa: ARG001  every period is a function of n, this one a constant
    """The graph never changes."""
    return 1


def log2_ceil(n: int) -> int:
    """The number of powers of two below n, at least 1: the hops of the exponential graphs."""
    return max(1, (n - 1).bit_length())


def aperiodic(n: int) -> None:
    """The graph changes every round and never repeats."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of the table."""

    build: Callable[..., nx.Graph[int]]
    """`(n, **options)` gives the graph; when it varies with time, `(n, round=..., **options)`."""
    about: str
    """One line for people."""
    options: Mapping[str, Option] = field(default_factory=dict[str, Option])
    """The options with their defaults; a default also fixes the option's type."""
    period: Period = static
    """After how many rounds the graph repeats, as a function of n; None: never."""


# Deterministic graphs --------------------------------------------------------------------------------


def ring(n: int) -> nx.Graph[int]:
    """Peer i and peer i + 1 are neighbours."""
    return _graph(n, ((i, (i + 1) % n) for i in range(n)))


def complete(n: int) -> nx.Graph[int]:
    """Everybody is everybody's neighbour."""
    return nx.complete_graph(n)


def star(n: int) -> nx.Graph[int]:
    """Peer 0 is everybody's only neighbour."""
    return _graph(n, ((0, i) for i in range(n)))


def torus(n: int, *, rows: int) -> nx.Graph[int]:
    """Rows x columns with wrap-around: four neighbours each. Sides below 3 would repeat edges."""
    return _lattice(n, _sides("torus", n, rows, side_min=3), wrap=True)


def grid(n: int, *, rows: int) -> nx.Graph[int]:
    """Rows x columns without wrap-around: two to four neighbours each."""
    return _lattice(n, _sides("grid", n, rows, side_min=2), wrap=False)


def hypercube(n: int) -> nx.Graph[int]:
    """Peers whose numbers differ in one bit are neighbours."""
    if n & (n - 1):
        low = 1 << (n.bit_length() - 1)
        raise ValueError(f"hypercube: n = {n} is not a power of two; use {low} or {2 * low} peers")
    return _graph(n, ((i, i ^ 1 << k) for i in range(n) for k in range(n.bit_length() - 1)))


def exponential(n: int) -> nx.Graph[int]:
    """Peer i sends to i + 1, i + 2, i + 4, ... (Ying et al. 2021, "Exponential graph is provably efficient")."""
    return _digraph(n, ((i, (i + (1 << k)) % n) for i in range(n) for k in range(log2_ceil(n))))


def one_peer_exponential(n: int, *, round: int) -> nx.Graph[int]:
    """Peer i sends to i + 2^(round mod log2 n) only (Ying et al. 2021, section 4)."""
    hop = 1 << (round % log2_ceil(n))
    return _digraph(n, ((i, (i + hop) % n) for i in range(n)))


# Random graphs ---------------------------------------------------------------------------------------


def random_regular(n: int, *, degree: int, seed: int) -> nx.Graph[int]:
    """Every peer has `degree` neighbours, uniformly at random."""
    _check_degree("random_regular", n, degree)
    draw = partial(nx.random_regular_graph, degree, n)
    return _connected("random_regular", n, draw, seed, f"raise degree = {degree}")


def erdos_renyi(n: int, *, p: float, seed: int) -> nx.Graph[int]:
    """Every pair is an edge with probability `p`."""
    _check("erdos_renyi", n, "p", p, 0, 1)
    enough = min(1.0, 2 * math.log(max(n, 2)) / n)
    hint = f"raise p = {p}, about {enough:.2g} is enough"
    return _connected("erdos_renyi", n, partial(nx.erdos_renyi_graph, n, p), seed, hint)


def small_world(n: int, *, k: int, p: float, seed: int) -> nx.Graph[int]:
    """A ring of `k` nearest neighbours with a part `p` of the edges rewired (Watts and Strogatz 1998)."""
    _check("small_world", n, "k", k, 2, n - 1)
    _check("small_world", n, "p", p, 0, 1)
    if k % 2:
        other = f" or {k + 1}" if k + 1 < n else ""
        raise ValueError(f"small_world: k = {k} is odd, but half sit on each side: use {k - 1}{other}")
    draw = partial(nx.watts_strogatz_graph, n, k, p)
    return _connected("small_world", n, draw, seed, f"raise k = {k} or lower p = {p}")


def barabasi_albert(n: int, *, m: int, seed: int) -> nx.Graph[int]:
    """Peers arrive one by one and take `m` neighbours, popular ones first (Barabasi and Albert 1999): hubs."""
    _check("barabasi_albert", n, "m", m, 1, n - 1)
    return _connected("barabasi_albert", n, partial(nx.barabasi_albert_graph, n, m), seed, f"raise m = {m}")


def random_geometric(n: int, *, radius: float, seed: int) -> nx.Graph[int]:
    """Peers at random places of the unit square, neighbours up to `radius` apart: radio links."""
    _check("random_geometric", n, "radius", radius, 0, math.sqrt(2))
    enough = min(math.sqrt(2), math.sqrt(2 * math.log(max(n, 2)) / (math.pi * n)))
    hint = f"raise radius = {radius}, about {enough:.2g} is enough"
    return _connected("random_geometric", n, partial(nx.random_geometric_graph, n, radius), seed, hint)


def random_matching(n: int, *, seed: int, round: int) -> nx.Graph[int]:
    """Every round pairs the peers anew at random; when n is odd, one pauses (gossip of Boyd et al. 2006)."""
    order = list(range(n))
    _round_random(seed, round).shuffle(order)
    return _graph(n, zip(order[::2], order[1::2], strict=False))


def redrawn_regular(n: int, *, degree: int, seed: int, round: int) -> nx.Graph[int]:
    """A new `random_regular` every round (as in epidemic learning, de Vos et al. 2023, but undirected)."""
    _check_degree("redrawn_regular", n, degree)
    return nx.random_regular_graph(degree, n, seed=_round_random(seed, round))


def from_file(n: int, *, path: str, names: Sequence[str]) -> nx.Graph[int]:
    """The graph of a file, see `files`. It is connected; a directed one is balanced, so that mixing keeps the mean."""
    if not path:
        raise ValueError("file: path = '' is empty; give a GraphML file or an edge list")
    graph = read_graph(Path(path), n, names)
    if not graph.is_directed():
        if not nx.is_connected(graph):
            parts = nx.number_connected_components(graph)
            raise ValueError(f"file: path = {path!r} holds {parts} parts without an edge between; join them")
        return graph
    assert isinstance(graph, nx.DiGraph)
    for i in graph:
        sends, hears = graph.out_degree(i), graph.in_degree(i)
        if sends != hears:
            raise ValueError(
                f"file: in path = {path!r} peer {i} sends to {sends} and hears {hears}; the swarm would not agree on "
                "the mean. Give every peer as many edges out as in, or make the graph undirected"
            )
    if not nx.is_strongly_connected(graph):
        raise ValueError(f"file: path = {path!r} holds parts without a directed edge between; join them")
    return graph


_SEED = {"seed": 0}

RULES: dict[str, Rule] = {
    "ring": Rule(ring, "two neighbours each; the cheapest and slowest"),
    "torus": Rule(torus, "rows x columns with wrap-around, four neighbours each", {"rows": 0}),
    "grid": Rule(grid, "rows x columns without wrap-around", {"rows": 0}),
    "exponential": Rule(exponential, "directed: i sends to i + 1, i + 2, i + 4, ..."),
    "one_peer_exponential": Rule(
        one_peer_exponential, "directed: one neighbour a round, i + 2^(round mod log2 n)", period=log2_ceil
    ),
    "hypercube": Rule(hypercube, "neighbours differ in one bit; n is a power of two"),
    "random_regular": Rule(random_regular, "`degree` random neighbours each", {"degree": 4} | _SEED),
    "erdos_renyi": Rule(erdos_renyi, "every pair with probability `p`", {"p": 0.3} | _SEED),
    "small_world": Rule(
        small_world,
        "a ring of `k` neighbours, a part `p` rewired (Watts-Strogatz)",
        {"k": 4, "p": 0.3} | _SEED,
    ),
    "barabasi_albert": Rule(barabasi_albert, "hubs: newcomers take `m` popular neighbours", {"m": 2} | _SEED),
    "random_geometric": Rule(
        random_geometric, "places in a unit square, neighbours up to `radius` apart", {"radius": 0.4} | _SEED
    ),
    "random_matching": Rule(random_matching, "random pairs, new every round", _SEED, aperiodic),
    "redrawn_regular": Rule(
        redrawn_regular, "`degree` random neighbours each, new every round", {"degree": 4} | _SEED, aperiodic
    ),
    "complete": Rule(complete, "everybody with everybody; the fastest and dearest"),
    "star": Rule(star, "everybody with peer 0; for comparisons only"),
    "file": Rule(from_file, "GraphML or an edge list from `path`", {"path": ""}),
}


# Helpers ---------------------------------------------------------------------------------------------


def _graph(n: int, edges: Iterable[tuple[int, int]]) -> nx.Graph[int]:
    return _fill(nx.Graph(), n, edges)


def _digraph(n: int, edges: Iterable[tuple[int, int]]) -> nx.Graph[int]:
    return _fill(nx.DiGraph(), n, edges)


def _fill(graph: nx.Graph[int], n: int, edges: Iterable[tuple[int, int]]) -> nx.Graph[int]:
    graph.add_nodes_from(range(n))
    graph.add_edges_from((i, j) for i, j in edges if i != j)
    return graph


def _lattice(n: int, sides: tuple[int, int], *, wrap: bool) -> nx.Graph[int]:
    rows, columns = sides
    right = ((i, i - i % columns + (i + 1) % columns) for i in range(n) if wrap or (i + 1) % columns)
    down = ((i, (i + columns) % n) for i in range(n) if wrap or i + columns < n)
    graph = _graph(n, [*right, *down])
    graph.graph["sides"] = (rows, columns)  # for drawing
    return graph


def _sides(rule: str, n: int, rows: int, side_min: int) -> tuple[int, int]:
    """Rows and columns; `rows` = 0 chooses the squarest. ValueError when a side would be below `side_min`."""
    possible = [r for r in range(side_min, n // side_min + 1) if n % r == 0]
    if not possible:
        near = [m for m in range(n + 1, 2 * n + side_min**2) if _splits(m, side_min)][:1]
        below = [m for m in range(n - 1, 0, -1) if _splits(m, side_min)][:1]
        raise ValueError(
            f"{rule}: n = {n} is not a product of two sides of at least {side_min} peers; "
            f"use {' or '.join(map(str, below + near))} peers, or another rule"
        )
    if rows == 0:
        rows = max(r for r in possible if r * r <= n)
    if rows not in possible:
        listed = ", ".join(map(str, possible))
        raise ValueError(f"{rule}: rows = {rows} does not fit n = {n}; possible: {listed} (or 0, the squarest)")
    return rows, n // rows


def _splits(n: int, side_min: int) -> bool:
    return any(n % r == 0 for r in range(side_min, math.isqrt(n) + 1))


def _check(rule: str, n: int, name: str, value: float, low: float, high: float) -> None:
    if high < low:
        raise ValueError(f"{rule}: n = {n} is too few peers for this rule; use ring or complete")
    if not low <= value <= high:
        raise ValueError(f"{rule}: {name} = {value} is not within {low:.4g} to {high:.4g} (n = {n} peers)")


def _check_degree(rule: str, n: int, degree: int) -> None:
    _check(rule, n, "degree", degree, 1, n - 1)
    if degree * n % 2:
        raise ValueError(
            f"{rule}: degree = {degree} times n = {n} is odd, and every edge has two ends: "
            f"use degree = {degree - 1 if degree > 1 else 2}, or an even number of peers"
        )


def _connected(rule: str, n: int, draw: Callable[..., nx.Graph[int]], seed: int, hint: str) -> nx.Graph[int]:
    """The first connected graph among `draw(seed=seed)`, `draw(seed=seed + 1)`, ..."""
    for attempt in range(DRAWS_MAX):
        graph = draw(seed=seed + attempt)
        if nx.is_connected(graph):
            return graph
    last = seed + DRAWS_MAX - 1
    raise ValueError(f"{rule}: seeds {seed} to {last} all leave some of the n = {n} peers unconnected; {hint}")


def _round_random(seed: int, round: int) -> random.Random:
    """Text is hashed with SHA-512, so neighbouring seeds and rounds are unrelated and every machine agrees."""
    return random.Random(f"{seed}/{round}")
