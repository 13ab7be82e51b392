"""How fast a graph mixes: the spectrum of its mixing matrix, and the rounds to consensus that follow from it.

Rules
* One round of mixing is x <- W x. Its distance to the mean shrinks by at most lambda = ||W - 11'/n||_2 each time;
  by exactly lambda in the end when W is symmetric. The spectral gap is 1 - lambda.
* A time-varying graph is judged by the product of its rounds: one period, or when aperiodic up to
  `SAMPLE_ROUNDS` rounds. Its lambda is that product's norm, spread evenly (geometrically) over those rounds.
* Q gossip steps per round (DFedSAM-MGS, Shi et al. 2023) apply a round's W Q times: lambda^Q.
* Matrices are dense, float64, [n, n], row i what peer i hears: for people and tests, up to a few thousand peers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from .graph import Topology
from .weights import UNIFORM

Matrix = NDArray[np.float64]

# Long enough to average out single draws, short enough to compute. (a guess)
SAMPLE_ROUNDS = 32
# Multiplying on below this would measure rounding errors (1e-16) instead of the graph.
SAMPLE_NORM_MIN = 1e-6
# A distance that is only rounding errors: float64's 1e-16, times room for sums over a few thousand peers.
EXACT = 1e-12


def mixing_matrix(topology: Topology, round: int = 0) -> Matrix:
    """W_nn of one round: row i holds the weights of what peer i hears, and its own on the diagonal."""
    W_nn = np.zeros((topology.n, topology.n))
    for i in range(topology.n):
        weights = topology.row(i, round).weights
        W_nn[i, list(weights)] = list(weights.values())
        W_nn[i, i] = 1 - sum(weights.values())
    return W_nn


def second_eigenvalue(W_nn: Matrix) -> float:
    """lambda = ||W - 11'/n||_2; for a symmetric W the largest modulus of the eigenvalues but the first, 1."""
    distance_nn = W_nn - 1 / len(W_nn)
    if np.array_equal(W_nn, W_nn.T):
        return float(np.abs(np.linalg.eigvalsh(distance_nn)).max())
    return float(np.linalg.norm(distance_nn, 2))


def min_eigenvalue(W_nn: Matrix) -> float:
    """The smallest real part of an eigenvalue. Near -1, models swing from side to side instead of settling."""
    symmetric_nn = (W_nn + W_nn.T) / 2
    if np.allclose(W_nn @ W_nn.T, W_nn.T @ W_nn, rtol=0, atol=EXACT):
        # A normal matrix (symmetric, circulant): its symmetric part has exactly the real parts, and is faster.
        return float(np.linalg.eigvalsh(symmetric_nn)[0])
    return float(np.linalg.eigvals(W_nn).real.min())


def spectral_gap(W_nn: Matrix) -> float:
    """1 - lambda: 0 never mixes, 1 is the exact mean at once."""
    return 1 - second_eigenvalue(W_nn)


@dataclass(frozen=True, slots=True)
class Contraction:
    """How much the distance to the mean shrinks over some rounds."""

    norm: float
    """||W_rounds ... W_2 W_1 - 11'/n||_2; 0 when the mean is exact up to float64 rounding."""
    rounds: int
    """How many rounds that is: the period, or the sample of an aperiodic graph."""

    @property
    def per_round(self) -> float:
        """The lambda of one round (geometric mean)."""
        return self.norm ** (1 / self.rounds)


def contraction(topology: Topology, gossip_steps: int = 1) -> Contraction:
    """The contraction over one period (a sample when aperiodic) with `gossip_steps` exchanges per round."""
    if gossip_steps < 1:
        raise ValueError(f"gossip_steps = {gossip_steps}, but a round has at least 1")
    if topology.period == 1:
        lambda_ = second_eigenvalue(mixing_matrix(topology)) ** gossip_steps
        return Contraction(0.0 if lambda_ < EXACT else lambda_, 1)
    product_nn = np.eye(topology.n)
    rounds = 0
    for round in range(topology.period or SAMPLE_ROUNDS):
        product_nn = np.linalg.matrix_power(mixing_matrix(topology, round), gossip_steps) @ product_nn
        rounds += 1
        if topology.period is None and np.linalg.norm(product_nn - 1 / topology.n) < SAMPLE_NORM_MIN:
            break
    norm = second_eigenvalue(product_nn)
    return Contraction(0.0 if norm < EXACT else norm, rounds)


def rounds_to_consensus(lambda_: float, factor: float = 1e-3) -> int | None:
    """Predicted rounds until the distance to the mean is `factor` of what it was; None: never (lambda is 1)."""
    if not 0 < factor < 1:
        raise ValueError(f"factor = {factor} is outside 0 to 1")
    if lambda_ >= 1 - EXACT:
        return None
    if lambda_ <= factor:
        return 1
    # The subtraction undoes a rounding up of exact powers, e.g. lambda = 0.1.
    return math.ceil(math.log(factor) / math.log(lambda_) - 1e-9)


@dataclass(frozen=True, slots=True)
class Summary:
    """What people want to know of a graph before they run it. Edges and degrees are those of round 0."""

    rule: str
    n: int
    weights: str
    """The weight rule in use; `uniform` for directed graphs whatever was asked."""
    directed: bool
    period: int | None
    """1: never changes. None: never repeats."""
    edges: int
    degree_min: int
    degree_mean: float
    degree_max: int
    """Degrees count whom a peer sends to in one round, so they are payloads per exchange."""
    connected: bool
    """Whether every peer reaches every other, over the rounds looked at."""
    diameter: int | None
    """Longest shortest path in the union of one period's edges; None for aperiodic or unconnected graphs."""
    gossip_steps: int
    lambda_: float
    """Contraction of the distance to the mean per round, all gossip steps together; 0: exact after one period."""
    min_eigenvalue: float
    """Smallest real part of an eigenvalue of one exchange's W, over the rounds looked at."""
    gap: float
    """1 - lambda_."""
    rounds_to_1e3: int | None
    """Predicted rounds until the distance to the mean is a thousandth; None: never."""
    exact_after: int | None
    """After so many rounds everybody holds the exact mean; None: only in the limit."""


def describe(topology: Topology, gossip_steps: int = 1) -> Summary:
    """Judge a graph. Dense linear algebra: about a second at n = 500, minutes at several thousand peers."""
    measured = contraction(topology, gossip_steps)
    graphs = [topology.at(round) for round in range(measured.rounds)]
    union: nx.Graph[int] = nx.compose_all(graphs) if len(graphs) > 1 else graphs[0]
    connected = nx.is_strongly_connected(union) if isinstance(union, nx.DiGraph) else nx.is_connected(union)
    degrees = [len(topology.row(i, 0).outs) for i in range(topology.n)]
    exact = measured.norm == 0
    return Summary(
        rule=topology.rule,
        n=topology.n,
        weights=UNIFORM if topology.directed else topology.weights,
        directed=topology.directed,
        period=topology.period,
        edges=topology.at(0).number_of_edges(),
        degree_min=min(degrees),
        degree_mean=sum(degrees) / topology.n,
        degree_max=max(degrees),
        connected=connected,
        diameter=_diameter(topology, union) if connected and topology.period else None,
        gossip_steps=gossip_steps,
        lambda_=measured.per_round,
        min_eigenvalue=min(min_eigenvalue(mixing_matrix(topology, r)) for r in range(measured.rounds)),
        gap=1 - measured.per_round,
        rounds_to_1e3=measured.rounds if exact else rounds_to_consensus(measured.per_round),
        exact_after=measured.rounds if exact else None,
    )


def _diameter(topology: Topology, union: nx.Graph[int]) -> int:
    if not topology.directed:
        return int(nx.diameter(union, usebounds=True))
    # Our directed rules are circulant, so every peer sees the same distances; a file's graph need not be.
    sources = range(topology.n) if topology.rule == "file" else [0]
    return max(max(nx.single_source_shortest_path_length(union, i).values()) for i in sources)
