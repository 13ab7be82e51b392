"""Pictures of graphs as PNG files.

Rules
* No display and no pyplot state: figures are made and rendered with Agg directly, so it works on any server.
* One panel for a graph that never changes; else one per round of the period, at most `PANELS_MAX`.
* The places of the peers say what the graph is: a ring is round, a grid square, a random graph sprung.
"""

from __future__ import annotations

import math
from pathlib import Path

import networkx as nx
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from .graph import Topology
from .spectrum import describe

Places = NDArray[np.float64]
Edge = tuple[int, int]

PANELS_MAX = 8
LABELS_PEERS_MAX = 64  # above it, names would cover the picture
ARROWS_MAX = 800  # above it, arrowheads would, and each costs about a millisecond
SPRING_PEERS_MAX = 120  # above it, the better layout (Kamada and Kawai) takes seconds
SPECTRUM_PEERS_MAX = 600  # above it, the caption does without eigenvalues, which would take longer than the picture
INK, FAINT, LINE, PAPER = "#1f2933", "#7b8794", "#9aa5b1", "#ffffff"
COLOURS = "viridis"
CIRCULAR = ("ring", "exponential", "one_peer_exponential", "complete", "random_matching", "redrawn_regular")


def draw(topology: Topology, path: str | Path, title: str = "") -> Path:
    """Draw a graph into the PNG file `path` and return it. Raises OSError when it cannot be written."""
    fixed = topology.period == 1
    panels = 1 if fixed else min(topology.period or PANELS_MAX, PANELS_MAX)
    columns = panels if panels <= 4 else math.ceil(panels / 2)
    rows = math.ceil(panels / columns)
    side = 7.0 if fixed else 3.2
    width, height = max(side * columns, 7.0), side * rows + 0.95
    figure = Figure(figsize=(width, height), dpi=130, facecolor=PAPER)
    FigureCanvasAgg(figure)
    places_n2 = _places(topology)
    degrees = [[len(topology.row(i, round).outs) for i in range(topology.n)] for round in range(panels)]
    low, high = min(map(min, degrees)), max(map(max, degrees))
    # Where all degrees are equal the colour says nothing: the middle of the palette will do.
    scale = Normalize(low, high) if low < high else Normalize(low - 1, high + 1)
    colour = ScalarMappable(scale, COLOURS)
    right = 0.90 if low < high else 0.98
    figure.subplots_adjust(left=0.02, right=right, bottom=0.02, top=1 - 0.95 / height, wspace=0.05, hspace=0.12)
    for round in range(panels):
        axes = figure.add_subplot(rows, columns, round + 1)
        _panel(axes, topology, round, places_n2, colour.to_rgba(np.array(degrees[round])), inches=side)
        if not fixed:
            axes.set_title(f"round {round}", fontsize=10, color=INK, pad=2)
    name = title or f"{topology.rule.replace('_', ' ')}, {topology.n} {'peer' if topology.n == 1 else 'peers'}"
    figure.text(0.5, 1 - 0.16 / height, name, ha="center", va="top", fontsize=15, color=INK)
    figure.text(0.5, 1 - 0.50 / height, _caption(topology), ha="center", va="top", fontsize=10, color=FAINT)
    if low < high:
        bar = figure.colorbar(colour, cax=figure.add_axes((0.92, 0.3, 0.014, 0.35)), ticks=MaxNLocator(6, integer=True))
        bar.set_label("neighbours", color=FAINT)
        bar.ax.tick_params(colors=FAINT, length=0)
        for spine in bar.ax.spines.values():
            spine.set_visible(False)
    figure.savefig(path, format="png")
    return Path(path)


def _caption(topology: Topology) -> str:
    edges = topology.at(0).number_of_edges()
    links = f"{edges} {'directed ' if topology.directed else ''}{'edge' if edges == 1 else 'edges'}"
    if topology.period != 1:
        links += " a round"
    if topology.n > SPECTRUM_PEERS_MAX:
        return links
    summary = describe(topology)
    if summary.exact_after is not None:
        after = "1 round" if summary.exact_after == 1 else f"{summary.exact_after} rounds"
        return f"{links}  ·  exact mean after {after}"
    rounds = "never" if summary.rounds_to_1e3 is None else f"{summary.rounds_to_1e3} rounds"
    return f"{links}  ·  λ = {summary.lambda_:.3f}  ·  differences fall to 1/1000 in {rounds}"


def _panel(
    axes: Axes, topology: Topology, round: int, places_n2: Places, colours: NDArray[np.float64], inches: float
) -> None:
    graph = topology.at(round)
    reach = float(np.abs(places_n2).max()) + 0.18
    axes.set_xlim(-reach, reach)
    axes.set_ylim(-reach, reach)
    axes.set_aspect("equal")
    axes.axis("off")
    # Diameter of a peer in points: a third of the room each would have, between a dot and a label's size.
    largest = inches * (4.2 if max(map(len, _names(topology))) <= 2 else 7)
    size = min(max(inches * 72 / 3 / math.sqrt(topology.n), 3.0), largest)
    edges = [(i, j) for i, j in graph.edges]
    if topology.directed and len(edges) <= ARROWS_MAX:
        _arrows(axes, edges, places_n2, shrink=size / 2 + 1)
    else:
        _lines(axes, graph, edges, places_n2)
    axes.scatter(
        places_n2[:, 0], places_n2[:, 1], s=size**2, c=colours, edgecolors=PAPER, linewidths=size / 14, zorder=3
    )
    if topology.n <= LABELS_PEERS_MAX:
        _labels(axes, topology, places_n2, colours, size)


def _labels(axes: Axes, topology: Topology, places_n2: Places, colours: NDArray[np.float64], size: float) -> None:
    names = _names(topology)
    # Letters are about 0.6 of the font size wide: the longest name fills four fifths of its circle.
    font = min(size * 0.8 / (0.6 * max(map(len, names))), size * 0.5, 13)
    for (x, y), name, rgba in zip(places_n2, names, colours, strict=True):
        bright = float(rgba[:3] @ (0.299, 0.587, 0.114)) > 0.6
        axes.text(
            x, y, name, ha="center", va="center_baseline", fontsize=font, color=INK if bright else PAPER, zorder=4
        )


def _names(topology: Topology) -> tuple[str, ...]:
    return topology.names or tuple(str(i) for i in range(topology.n))


def _arrows(axes: Axes, edges: list[Edge], places_n2: Places, shrink: float) -> None:
    for i, j in edges:
        axes.add_patch(
            FancyArrowPatch(
                (places_n2[i, 0], places_n2[i, 1]),
                (places_n2[j, 0], places_n2[j, 1]),
                arrowstyle="-|>",
                mutation_scale=9,
                connectionstyle="arc3,rad=0.12",  # so that i -> j and j -> i are two lines
                shrinkA=shrink,
                shrinkB=shrink,
                color=LINE,
                linewidth=1.0,
                zorder=1,
            )
        )


def _lines(axes: Axes, graph: nx.Graph[int], edges: list[Edge], places_n2: Places) -> None:
    sides: tuple[int, int] | None = graph.graph.get("sides")
    wraps = [edge for edge in edges if sides and _wraps(edge, sides)]
    inner = sorted(set(edges) - set(wraps))
    width = 1.4 if len(edges) <= 400 else 0.5
    lines = [places_n2[[i, j]] for i, j in inner]
    axes.add_collection(LineCollection(lines, colors=LINE, linewidths=width, zorder=1))
    # An edge around a torus would cover its whole row: a dashed stub at either end shows it instead.
    stubs = [stub for i, j in wraps for stub in _stubs(places_n2[i], places_n2[j])]
    axes.add_collection(LineCollection(stubs, colors=LINE, linewidths=width, linestyles="dashed", zorder=1))


def _wraps(edge: Edge, sides: tuple[int, int]) -> bool:
    (row, column), (other_row, other_column) = (divmod(i, sides[1]) for i in edge)
    return abs(row - other_row) > 1 or abs(column - other_column) > 1


def _stubs(here_2: Places, there_2: Places) -> list[Places]:
    outward_2 = (here_2 - there_2) / np.linalg.norm(here_2 - there_2) * 0.18
    return [np.stack([here_2, here_2 + outward_2]), np.stack([there_2, there_2 - outward_2])]


def _places(topology: Topology) -> Places:
    """Where each peer is, [n, 2], centred and scaled to -1..1."""
    graph = topology.at(0)
    sides: tuple[int, int] | None = graph.graph.get("sides")
    if sides:
        places_n2 = np.array([(i % sides[1], -(i // sides[1])) for i in range(topology.n)], dtype=np.float64)
    elif topology.rule == "hypercube":
        places_n2 = _shadow(topology.n)
    elif topology.rule == "random_geometric":
        places_n2 = np.array([graph.nodes[i]["pos"] for i in range(topology.n)])
    elif topology.rule in CIRCULAR or topology.rule == "star":
        places_n2 = _circle(topology.n, hub=topology.rule == "star")
    else:
        near = topology.n <= SPRING_PEERS_MAX
        places = nx.kamada_kawai_layout(graph) if near else nx.spring_layout(graph, seed=0)
        places_n2 = np.array([places[i] for i in range(topology.n)])
    if topology.rule != "star":  # whose hub is the centre already
        places_n2 = places_n2 - (places_n2.max(axis=0) + places_n2.min(axis=0)) / 2
    return places_n2 / max(float(np.abs(places_n2).max()), 1e-9)


def _circle(n: int, hub: bool) -> Places:
    """Clockwise from the top; with a hub, peer 0 is the centre."""
    rim = n - 1 if hub else n
    angles = math.pi / 2 - 2 * math.pi * np.arange(rim) / max(rim, 1)
    places_n2 = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return np.concatenate([np.zeros((1, 2)), places_n2]) if hub else places_n2


def _shadow(n: int) -> Places:
    """A hypercube's shadow: every bit moves a peer along its own direction, a little longer than the one before."""
    bits = n.bit_length() - 1
    angles = math.pi * np.arange(bits) / max(bits, 1)
    steps_b2 = np.stack([np.cos(angles), np.sin(angles)], axis=1) * (1.3 ** np.arange(bits))[:, None]
    bits_nb = (np.arange(n)[:, None] >> np.arange(bits)) & 1
    return bits_nb @ steps_b2
