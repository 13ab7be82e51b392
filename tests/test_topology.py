"""Graphs, mixing weights and spectra: the table of eigenvalues, and the laws every row obeys."""

from __future__ import annotations

import copy
import doctest
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import murmurate.topology
from murmurate.topology import (
    RULES,
    WEIGHTS,
    Topology,
    contraction,
    describe,
    min_eigenvalue,
    mixing_matrix,
    rounds_to_consensus,
    second_eigenvalue,
    spectral_gap,
)
from murmurate.topology.draw import draw

# The table: lambda and the smallest eigenvalue per rule and number of peers -------------------------------

TABLE: list[tuple[str, int, float, float | None]] = [
    ("ring", 8, 0.805, -0.33),
    ("ring", 16, 0.949, -0.33),
    ("ring", 32, 0.987, -0.33),
    ("ring", 64, 0.997, -0.33),
    ("exponential", 8, 0.500, None),
    ("exponential", 16, 0.600, None),
    ("exponential", 32, 0.667, None),
    ("exponential", 64, 0.714, None),
    ("torus", 16, 0.600, -0.60),
    ("torus", 64, 0.883, -0.60),
    ("grid", 16, 0.869, -0.43),
    ("grid", 64, 0.968, -0.55),
    ("star", 8, 0.875, None),
    ("star", 16, 0.938, None),
    ("star", 32, 0.969, None),
    ("star", 64, 0.984, None),
    ("random_regular", 8, 0.512, None),
    ("random_regular", 16, 0.776, -0.38),
    ("random_regular", 32, 0.821, -0.42),
    ("random_regular", 64, 0.897, -0.48),
    ("barabasi_albert", 8, 0.854, None),
    ("barabasi_albert", 16, 0.904, -0.14),
    ("barabasi_albert", 32, 0.934, -0.15),
    ("barabasi_albert", 64, 0.947, -0.13),
    ("small_world", 8, 0.612, None),
    ("small_world", 16, 0.850, -0.23),
    ("small_world", 32, 0.914, -0.31),
    ("small_world", 64, 0.946, -0.33),
]
TABLE_OPTIONS: dict[str, dict[str, Any]] = {
    "random_regular": {"degree": 4, "seed": 0},
    "barabasi_albert": {"m": 2, "seed": 0},
    "small_world": {"k": 4, "p": 0.3, "seed": 0},
}


@pytest.mark.parametrize(("rule", "n", "lambda_", "smallest"), TABLE)
def test_spectral_table(rule: str, n: int, lambda_: float, smallest: float | None) -> None:
    W_nn = mixing_matrix(Topology(rule, n, TABLE_OPTIONS.get(rule, {})))
    half_a_digit = 0.5e-3 + 1e-9
    assert second_eigenvalue(W_nn) == pytest.approx(lambda_, abs=half_a_digit)
    assert spectral_gap(W_nn) == pytest.approx(1 - lambda_, abs=half_a_digit)
    if smallest is not None:
        assert min_eigenvalue(W_nn) == pytest.approx(smallest, abs=0.5e-2 + 1e-9)


@pytest.mark.parametrize(("n", "rounds"), [(8, 3), (16, 4), (32, 5), (64, 6)])
def test_one_peer_exponential_is_exact_after_one_period(n: int, rounds: int) -> None:
    topology = Topology("one_peer_exponential", n)
    summary = describe(topology)
    assert (summary.exact_after, summary.rounds_to_1e3, summary.lambda_) == (rounds, rounds, 0)
    x_n = np.random.default_rng(0).normal(size=n)
    mean = x_n.mean()
    for round in range(5, 5 + rounds):  # a period may begin anywhere
        assert np.abs(x_n - mean).max() > 1e-6
        x_n = mixing_matrix(topology, round) @ x_n
    np.testing.assert_allclose(x_n, mean, atol=1e-12)


@pytest.mark.parametrize(("rule", "lambda_"), [("ring", 0.81), ("torus", 0.13)])
def test_four_gossip_steps_take_lambda_to_the_fourth(rule: str, lambda_: float) -> None:
    assert contraction(Topology(rule, 16), gossip_steps=4).per_round == pytest.approx(lambda_, abs=0.5e-2)
    assert describe(Topology(rule, 16), gossip_steps=4).lambda_ == pytest.approx(lambda_, abs=0.5e-2)


def test_random_rules_draw_what_networkx_draws() -> None:
    pairs = [
        (Topology("random_regular", 16), nx.random_regular_graph(4, 16, seed=0)),
        (Topology("barabasi_albert", 16), nx.barabasi_albert_graph(16, 2, seed=0)),
        (Topology("small_world", 16), nx.connected_watts_strogatz_graph(16, 4, 0.3, seed=0)),
    ]
    for ours, theirs in pairs:
        assert nx.utils.graphs_equal(nx.Graph(ours.at(0).edges), nx.Graph(theirs.edges))


# The laws -------------------------------------------------------------------------------------------------


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    """Any rule but `file`, with parameters that exist."""
    rule = draw(st.sampled_from(sorted(set(RULES) - {"file"})))
    seed = draw(st.integers(0, 2**31))
    weights = draw(st.sampled_from(sorted(WEIGHTS)))
    n = draw(st.integers(5, 24))
    options: dict[str, Any] = {}
    if rule in ("torus", "grid"):
        rows, columns = draw(st.integers(3, 5)), draw(st.integers(3, 5))
        n, options = rows * columns, {"rows": rows}
    elif rule == "hypercube":
        n = 2 ** draw(st.integers(0, 5))
    elif rule in ("random_regular", "redrawn_regular"):
        options = {"degree": draw(st.sampled_from([2, 4]) if n <= 8 else st.just(4)), "seed": seed}
    elif rule == "erdos_renyi":
        options = {"p": draw(st.floats(0.5, 1)), "seed": seed}
    elif rule == "small_world":
        options = {"k": 4, "p": draw(st.floats(0, 1)), "seed": seed}
    elif rule == "barabasi_albert":
        options = {"m": draw(st.integers(1, 4)), "seed": seed}
    elif rule == "random_geometric":
        options = {"radius": draw(st.floats(0.7, 1.4)), "seed": seed}
    elif rule == "random_matching":
        options = {"seed": seed}
    return Topology(rule, n, options, weights)


rounds = st.integers(0, 10_000)


@settings(max_examples=150, deadline=None)
@given(topologies(), rounds)
def test_mixing_matrices_are_doubly_stochastic(topology: Topology, round: int) -> None:
    W_nn = mixing_matrix(topology, round)
    assert (W_nn >= 0).all()
    assert (np.diag(W_nn) > 0).all()
    np.testing.assert_allclose(W_nn.sum(axis=0), 1, atol=1e-12)
    np.testing.assert_allclose(W_nn.sum(axis=1), 1, atol=1e-12)
    if not topology.directed:
        assert np.array_equal(W_nn - np.diag(np.diag(W_nn)), (W_nn - np.diag(np.diag(W_nn))).T)
    assert second_eigenvalue(W_nn) <= 1 + 1e-12


@settings(max_examples=100, deadline=None)
@given(topologies(), rounds)
def test_rows_agree_with_the_graph_and_with_each_other(topology: Topology, round: int) -> None:
    graph = topology.at(round)
    rows = [topology.row(i, round) for i in range(topology.n)]
    assert graph.number_of_edges() * (1 if topology.directed else 2) == sum(len(row.outs) for row in rows)
    for i, row in enumerate(rows):
        assert all(graph.has_edge(i, j) for j in row.outs)
        assert list(row.outs) == sorted(set(row.outs) - {i})
        assert list(row.weights) == [j for j, other in enumerate(rows) if i in other.outs]
        assert sum(row.weights.values()) <= 1
        assert set(row.outs) | set(row.weights) <= set(topology.links(i))


@settings(max_examples=100, deadline=None)
@given(topologies(), rounds)
def test_equal_values_give_equal_rows_in_any_order_of_asking(topology: Topology, round: int) -> None:
    twin = Topology(topology.rule, topology.n, topology.options, topology.weights)
    for other in range(round + 3, round, -1):  # a cache that mattered would show
        twin.at(other)
    assert (twin, hash(twin), twin.digest()) == (topology, hash(topology), topology.digest())
    assert [twin.row(i, round) for i in range(twin.n)] == [topology.row(i, round) for i in range(twin.n)]
    thawed = copy.deepcopy(twin)
    assert thawed == topology
    assert thawed.row(0, round) == topology.row(0, round)


@settings(max_examples=100, deadline=None)
@given(topologies())
def test_every_graph_connects_the_swarm(topology: Topology) -> None:
    summary = describe(topology)
    assert summary.connected or topology.rule in ("random_matching", "redrawn_regular")
    if topology.period:
        assert all(
            topology.row(i, r) == topology.row(i, r + topology.period)
            for i in range(topology.n)
            for r in range(topology.period)
        )
        assert summary.lambda_ < 1
        assert {len(topology.links(i)) == 0 for i in range(topology.n)} == {topology.n == 1}


@settings(max_examples=60, deadline=None)
@given(topologies().filter(lambda t: t.period is not None), st.integers(0, 2**31))
def test_prediction_bounds_a_simulation(topology: Topology, seed: int) -> None:
    x_nd = np.random.default_rng(seed).normal(size=(topology.n, 3))
    mean_d = x_nd.mean(axis=0)
    before = np.linalg.norm(x_nd - mean_d)
    predicted = describe(topology).rounds_to_1e3
    assert predicted is not None
    period = topology.period or 1
    for round in range(-(-predicted // period) * period):
        x_nd = mixing_matrix(topology, round) @ x_nd
    assert np.linalg.norm(x_nd - mean_d) <= 1e-3 * before * (1 + 1e-9) + 1e-12


@pytest.mark.parametrize(
    "rule", ["ring", "torus", "grid", "exponential", "star", "barabasi_albert", "random_geometric"]
)
def test_prediction_is_exact_in_the_worst_direction(rule: str) -> None:
    topology = Topology(rule, 36)
    W_nn = mixing_matrix(topology)
    worst_n = np.linalg.svd(W_nn - 1 / 36)[2][0]
    predicted = rounds_to_consensus(second_eigenvalue(W_nn))
    assert predicted is not None
    x_n = worst_n - worst_n.mean()
    distances = [np.linalg.norm(x_n)]
    for _ in range(predicted):
        x_n = W_nn @ x_n
        distances.append(np.linalg.norm(x_n))
    assert distances[-1] <= 1e-3 * distances[0] < distances[-2]


@pytest.mark.parametrize("rule", ["random_matching", "redrawn_regular"])
def test_prediction_fits_a_graph_that_never_repeats(rule: str) -> None:
    topology = Topology(rule, 32)
    predicted = describe(topology).rounds_to_1e3
    assert predicted is not None
    x_nd = np.random.default_rng(0).normal(size=(32, 64))
    before = np.linalg.norm(x_nd - x_nd.mean(axis=0))
    taken = 0
    while np.linalg.norm(x_nd - x_nd.mean(axis=0)) > 1e-3 * before:
        x_nd = mixing_matrix(topology, 1000 + taken) @ x_nd  # rounds that the prediction has not seen
        taken += 1
    assert 0.6 * predicted <= taken <= predicted + 1


def test_a_fast_graph_that_never_repeats_is_not_called_exact() -> None:
    dense = describe(Topology("redrawn_regular", 16, {"degree": 14}))
    assert dense.lambda_ == pytest.approx(1 / 15, rel=0.2)  # everybody but one: eigenvalues 1/15 and -1/15
    assert dense.exact_after is None


def test_rounds_to_consensus() -> None:
    assert rounds_to_consensus(0.1) == 3
    assert rounds_to_consensus(0.1, factor=1e-2) == 2
    assert rounds_to_consensus(0.0) == 1
    assert rounds_to_consensus(1.0) is None
    with pytest.raises(ValueError, match="factor = 2"):
        rounds_to_consensus(0.5, factor=2)


# Particular graphs ----------------------------------------------------------------------------------------


def test_small_graphs_by_hand() -> None:
    assert Topology("ring", 2).row(0, 0).weights == {1: 1 / 2}
    assert Topology("ring", 5).row(0, 9).outs == (1, 4)
    assert Topology("grid", 6).row(1, 0).outs == (0, 2, 4)  # 2 x 3
    assert Topology("grid", 6, {"rows": 3}).row(1, 0).outs == (0, 3)  # 3 x 2
    assert Topology("torus", 12).row(0, 0).outs == (1, 3, 4, 8)  # 3 x 4
    assert Topology("hypercube", 8).row(5, 0).outs == (1, 4, 7)
    assert Topology("star", 5).row(3, 0).weights == {0: 1 / 5}
    assert Topology("star", 5).row(0, 0).outs == (1, 2, 3, 4)
    assert Topology("complete", 4).row(2, 0).weights == dict.fromkeys((0, 1, 3), 1 / 4)
    static = Topology("exponential", 6).row(0, 0)
    assert static.outs == (1, 2, 4)
    assert static.weights == dict.fromkeys((2, 4, 5), 1 / 4)
    moving = Topology("one_peer_exponential", 8)
    assert [moving.row(0, round).outs for round in range(4)] == [(1,), (2,), (4,), (1,)]
    assert [dict(moving.row(0, round).weights) for round in range(3)] == [{7: 0.5}, {6: 0.5}, {4: 0.5}]
    assert moving.links(0) == (1, 2, 4, 6, 7)


def test_weight_rules_differ_where_degrees_do() -> None:
    path = {"rows": 2}
    local = Topology("grid", 6, path).row(0, 0).weights
    flat = Topology("grid", 6, path, "max_degree").row(0, 0).weights
    assert local == {1: 1 / 4, 3: 1 / 3}  # degrees: 2 here, 3 and 2 there
    assert flat == {1: 1 / 4, 3: 1 / 4}


@pytest.mark.parametrize("rule", ["ring", "complete", "star", "exponential", "one_peer_exponential", "hypercube"])
def test_a_lone_peer_is_a_swarm(rule: str) -> None:
    topology = Topology(rule, 1)
    assert topology.row(0, 7).outs == ()
    assert topology.row(0, 7).weights == {}
    assert topology.links(0) == ()
    assert describe(topology).exact_after == 1


def test_random_graphs_change_with_seed_and_round() -> None:
    matching = Topology("random_matching", 9)
    assert len({frozenset(matching.at(round).edges) for round in range(50)}) > 40
    assert sum(matching.row(i, 3).outs == () for i in range(9)) == 1  # nine peers: one pauses
    assert matching.period is None
    assert matching.links(4) == (0, 1, 2, 3, 5, 6, 7, 8)
    assert matching.at(5).edges != Topology("random_matching", 9, {"seed": 1}).at(5).edges
    assert Topology("random_regular", 16).digest() != Topology("random_regular", 16, {"seed": 1}).digest()


def test_an_unconnected_draw_is_replaced_by_the_next_seed() -> None:
    sparse = {"p": 0.12, "seed": 0}
    first = next(s for s in range(32) if nx.is_connected(nx.erdos_renyi_graph(24, 0.12, seed=s)))
    assert first > 0
    ours = Topology("erdos_renyi", 24, sparse).at(0)
    assert nx.utils.graphs_equal(nx.Graph(ours.edges), nx.Graph(nx.erdos_renyi_graph(24, 0.12, seed=first).edges))


def test_graphs_are_kept_but_not_forever() -> None:
    topology = Topology("random_matching", 8)
    assert topology.at(1) is topology.at(1)
    assert Topology("ring", 8).row(3, 1) is not Topology("ring", 8).row(3, 1)
    first = topology.at(1)
    for round in range(2, 200):
        topology.at(round)
    assert topology.at(1) is not first
    assert set(topology.at(1).edges) == set(first.edges)
    static = Topology("ring", 8)
    assert static.row(3, 1) is static.row(3, 999)
    with pytest.raises(nx.NetworkXError, match=r"[Ff]rozen"):
        static.at(0).add_edge(0, 4)


def test_describe() -> None:
    ring = describe(Topology("ring", 16))
    assert (ring.n, ring.edges, ring.degree_min, ring.degree_mean, ring.degree_max) == (16, 16, 2, 2, 2)
    assert (ring.connected, ring.period, ring.diameter, ring.weights) == (True, 1, 8, "metropolis")
    assert ring.rounds_to_1e3 == 133
    assert ring.min_eigenvalue == pytest.approx(-1 / 3)
    assert ring.gap == pytest.approx(1 - 0.9492530)
    star = describe(Topology("star", 9))
    assert (star.degree_min, star.degree_mean, star.degree_max, star.diameter) == (1, 16 / 9, 8, 2)
    directed = describe(Topology("exponential", 16))
    assert (directed.directed, directed.weights, directed.diameter, directed.degree_max) == (True, "uniform", 4, 4)
    assert directed.min_eigenvalue == pytest.approx(
        np.linalg.eigvals(mixing_matrix(Topology("exponential", 16))).real.min()
    )
    moving = describe(Topology("one_peer_exponential", 16))
    assert (moving.period, moving.edges, moving.diameter, moving.connected) == (4, 16, 4, True)
    assert describe(Topology("random_matching", 16)).diameter is None
    with pytest.raises(ValueError, match="gossip_steps = 0"):
        describe(Topology("ring", 4), gossip_steps=0)


# Round trip, pictures, docs -----------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(topologies().filter(lambda t: t.period == 1 and t.n > 1), st.booleans())
def test_file_round_trip(tmp_path_factory: pytest.TempPathFactory, topology: Topology, named: bool) -> None:
    names = tuple(f"{'zyx'[i % 3]}{i}" for i in range(topology.n)) if named else ()
    graph: nx.Graph[Any] = nx.relabel_nodes(topology.at(0), dict(enumerate(names or map(str, range(topology.n)))))
    folder = tmp_path_factory.mktemp("graphs")
    written = [folder / "graph.graphml"]
    nx.write_graphml(type(graph)(graph.edges), written[0])
    if not topology.directed:
        written.append(folder / "graph.edges")
        lines = [f"{i}, {j}  7.5" if k % 2 else f"{j} {i} # twice\n{i} {j}" for k, (i, j) in enumerate(graph.edges)]
        written[1].write_text("# a comment\n\n" + "\n".join(lines) + "\n")
    for path in written:
        again = Topology("file", topology.n, {"path": str(path)}, topology.weights, names)
        assert again.directed is topology.directed
        assert [again.row(i, 0) for i in range(again.n)] == [topology.row(i, 0) for i in range(again.n)]
        assert again.digest() == topology.digest()


@pytest.mark.parametrize(
    ("rule", "n"), [("ring", 1), ("torus", 12), ("star", 5), ("one_peer_exponential", 8), ("random_matching", 6),
                    ("random_geometric", 70), ("hypercube", 8), ("barabasi_albert", 130)]
)  # fmt: skip
def test_draw_writes_a_png(tmp_path: Path, rule: str, n: int) -> None:
    path = draw(Topology(rule, n), tmp_path / "graph.png")
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n")
    assert len(data) > 5_000


def test_the_examples_in_the_docstring_hold() -> None:
    assert doctest.testmod(murmurate.topology).failed == 0
    assert doctest.testmod(murmurate.topology).attempted > 0
