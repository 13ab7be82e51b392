"""Graphs from a file: GraphML (`.graphml`, `.xml`) or an edge list (every other suffix).

Rules
* An edge list has one edge per line: two names, separated by blanks or a comma; what follows them is ignored,
  and so are empty lines and everything after `#`.
* Names in the file become peers in one of two ways. If the peers are named and the file uses exactly their names,
  name goes to name. If the file uses none of them, the k-th name in sorted order goes to the k-th peer; names
  that are all whole numbers are sorted as numbers. Anything between the two is a typing error, and is refused.
* A loop is ignored (every peer mixes its own model anyway), and so are repeated edges and edge weights.
* A directed file whose every edge has its reverse is undirected.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from xml.etree.ElementTree import ParseError

import networkx as nx

GRAPHML = (".graphml", ".xml")
NAMES_SHOWN_MAX = 5  # how many names an error lists (a guess)


def read_graph(path: Path, n: int, names: Sequence[str] = ()) -> nx.Graph[int]:
    """Read a graph of `n` peers, directed (`nx.DiGraph`) only if the file is.

    Raises ValueError when the file is missing or malformed, or does not fit `n` or `names`.
    """
    try:
        drawn = _read_graphml(path) if path.suffix.lower() in GRAPHML else _read_edges(path)
    except OSError as error:
        raise ValueError(f"file: cannot read path = {str(path)!r}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"file: path = {str(path)!r} is not a text file in UTF-8: {error}") from error
    index = _index(path, list(drawn.nodes), n, names)
    edges = [(index[one], index[other]) for one, other in drawn.edges if one != other]
    directed = drawn.is_directed() and not {(j, i) for i, j in edges} <= set(edges)
    graph: nx.Graph[int] = nx.DiGraph() if directed else nx.Graph()
    graph.add_nodes_from(range(n))
    graph.add_edges_from(edges)
    return graph


def _read_graphml(path: Path) -> nx.Graph[str]:
    try:
        with path.open("rb") as file:
            return nx.read_graphml(file)
    except (ParseError, nx.NetworkXError, KeyError, ValueError) as error:
        raise ValueError(f"file: path = {str(path)!r} is not valid GraphML: {error}") from error


def _read_edges(path: Path) -> nx.Graph[str]:
    graph: nx.Graph[str] = nx.Graph()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        words = line.partition("#")[0].replace(",", " ").split()
        if len(words) == 1:
            raise ValueError(f"file: line {number} of path = {str(path)!r} has one name, an edge needs two")
        if words:
            graph.add_edge(words[0], words[1])
    return graph


def _index(path: Path, found: list[str], n: int, names: Sequence[str]) -> dict[str, int]:
    """Which peer each name of the file is."""
    if len(found) != n:
        raise ValueError(f"file: path = {str(path)!r} has {len(found)} names, but there are n = {n} peers")
    strange = set(found) - set(names)
    if not strange:
        return {name: i for i, name in enumerate(names)}
    if len(strange) < n:
        missing = set(names) - set(found)
        raise ValueError(
            f"file: path = {str(path)!r} names some peers, but not all: "
            f"{_some(strange)} {'is' if len(strange) == 1 else 'are'} unknown, {_some(missing)} not in the file"
        )
    numbers = all(name.isascii() and name.isdigit() for name in found)
    ordered = sorted(found, key=lambda name: (int(name), name)) if numbers else sorted(found)
    return {name: i for i, name in enumerate(ordered)}


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = len(ordered) - NAMES_SHOWN_MAX
    return ", ".join(map(repr, ordered[:NAMES_SHOWN_MAX])) + (f" and {more} more" if more > 0 else "")
