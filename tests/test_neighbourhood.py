"""Our place in the graph: rows by name, round by round."""

from __future__ import annotations

import pytest

from murmurate.peer.protocol.neighbourhood import Neighbourhood
from murmurate.topology import Topology

from .scene import B, C, D, Z


def test_a_neighbourhood_is_our_rows_of_the_graph_by_name() -> None:
    around = Neighbourhood(B, (B, C, D, Z), Topology("ring", 4))
    assert around.links == (C, Z)
    assert around.edges(1).outs == (C, Z)
    assert around.edges(1).weights == {C: pytest.approx(1 / 3), Z: pytest.approx(1 / 3)}
    assert around.edges(7) is around.edges(1)  # one period, kept


def test_a_neighbourhood_follows_the_round_of_a_graph_that_changes() -> None:
    topology = Topology("one_peer_exponential", 4)
    around = Neighbourhood(B, (B, C, D, Z), topology)
    for round in range(6):
        row = topology.row(0, round)
        assert around.edges(round).outs == tuple((B, C, D, Z)[i] for i in row.outs)
        assert around.edges(round).weights == {(B, C, D, Z)[i]: weight for i, weight in row.weights.items()}
    assert around.edges(1) != around.edges(2)


def test_a_graph_of_another_size_does_not_fit() -> None:
    with pytest.raises(ValueError, match="a graph of 5 vertices does not fit 4 peers"):
        Neighbourhood(B, (B, C, D, Z), Topology("ring", 5))
