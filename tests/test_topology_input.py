"""What people feed it: options that no graph has, and graphs from files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from murmurate.topology import Topology, describe, mixing_matrix

# Errors ---------------------------------------------------------------------------------------------------

IMPOSSIBLE: list[tuple[str, int, dict[str, Any], str]] = [
    ("rign", 8, {}, r"rule = 'rign' is unknown; did you mean 'ring'\?"),
    ("zzz", 8, {}, "choose from ring, torus"),
    ("ring", 0, {}, "n = 0.*at least 1 peer"),
    ("ring", 8, {"degree": 3}, "no option 'degree'; its options are: none"),
    ("random_regular", 8, {"degre": 3}, "no option 'degre'; its options are: degree, seed"),
    ("random_regular", 8, {"degree": 3.5}, r"degree = 3\.5 should be a whole number"),
    ("random_regular", 8, {"degree": True}, "degree = True should be a whole number"),
    ("random_regular", 8, {"seed": -1}, "seed = -1 is negative"),
    ("random_regular", 7, {"degree": 3}, "degree = 3 times n = 7 is odd.*use degree = 2"),
    ("random_regular", 4, {"degree": 4}, "degree = 4 is not within 1 to 3"),
    ("random_regular", 8, {"degree": 1}, "unconnected; raise degree = 1"),
    ("redrawn_regular", 5, {"degree": 3}, "degree = 3 times n = 5 is odd"),
    ("erdos_renyi", 8, {"p": 1.5}, r"p = 1\.5 is not within 0 to 1"),
    ("erdos_renyi", 8, {"p": [0.5]}, r"p = \[0\.5\] should be a number"),
    ("erdos_renyi", 8, {"p": "much"}, "p = 'much' should be a number, e.g. 0.3"),
    ("erdos_renyi", 64, {"p": 0.01}, r"seeds 0 to 31 all leave.*raise p = 0\.01, about 0\.13 is enough"),
    ("small_world", 8, {"k": 3}, "k = 3 is odd.*use 2 or 4"),
    ("small_world", 8, {"k": 8}, "k = 8 is not within 2 to 7"),
    ("small_world", 2, {}, "n = 2 is too few peers"),
    ("barabasi_albert", 4, {"m": 4}, "m = 4 is not within 1 to 3"),
    ("random_geometric", 32, {"radius": 0.05}, r"raise radius = 0\.05, about 0\.26 is enough"),
    ("hypercube", 12, {}, "n = 12 is not a power of two; use 8 or 16"),
    ("torus", 7, {}, "n = 7 is not a product of two sides of at least 3 peers; use 9 peers"),
    ("torus", 14, {}, "use 12 or 15 peers"),
    ("torus", 16, {"rows": 8}, "rows = 8 does not fit n = 16; possible: 4"),
    ("grid", 7, {}, "use 6 or 8 peers"),
    ("grid", 12, {"rows": 5}, "rows = 5 does not fit n = 12; possible: 2, 3, 4, 6"),
    ("file", 4, {}, "path = '' is empty"),
    ("file", 4, {"path": "no/such.graphml"}, r"cannot read path = 'no/such\.graphml': No such file"),
]


@pytest.mark.parametrize(("rule", "n", "options", "message"), IMPOSSIBLE)
def test_impossible_graphs_are_refused_by_name_and_value(
    rule: str, n: int, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Topology(rule, n, options)


def test_other_refusals() -> None:
    with pytest.raises(ValueError, match="weights = 'metropols' is unknown; did you mean 'metropolis'"):
        Topology("ring", 4, weights="metropols")
    with pytest.raises(ValueError, match="2 different names for n = 3"):
        Topology("ring", 3, names=("a", "b", "a"))
    with pytest.raises(ValueError, match="round = -1"):
        Topology("ring", 4).row(0, -1)
    for stranger in (4, -1):
        with pytest.raises(ValueError, match=f"no peer {stranger} among n = 4"):
            Topology("ring", 4).row(stranger, 0)


# Files --------------------------------------------------------------------------------------------------


def _file(tmp_path: Path, text: str, name: str = "graph.edges") -> dict[str, str]:
    (tmp_path / name).write_text(text)
    return {"path": str(tmp_path / name)}


def test_names_of_a_file_become_peers(tmp_path: Path) -> None:
    options = _file(tmp_path, "ann bob\nbob cid\n")
    assert Topology("file", 3, options, names=("bob", "ann", "cid")).row(0, 0).outs == (1, 2)  # by name
    assert Topology("file", 3, options).row(1, 0).outs == (0, 2)  # sorted
    assert Topology("file", 3, options, names=("x", "y", "z")).row(1, 0).outs == (0, 2)  # sorted
    numbers = _file(tmp_path, "9 10\n10 11\n")
    assert Topology("file", 3, numbers).row(1, 0).outs == (0, 2)  # as numbers: 9 < 10
    with pytest.raises(ValueError, match="'cid' is unknown, 'cod' not in the file"):
        Topology("file", 3, _file(tmp_path, "ann bob\nbob cid\n"), names=("ann", "bob", "cod"))


TWO_WAYS = '<graphml><graph edgedefault="directed">{nodes}{edges}</graph></graphml>'


def _graphml(*edges: str) -> str:
    nodes = "".join(f'<node id="{name}"/>' for name in sorted({name for edge in edges for name in edge}))
    return TWO_WAYS.format(nodes=nodes, edges="".join(f'<edge source="{a}" target="{b}"/>' for a, b in edges))


def test_directed_files(tmp_path: Path) -> None:
    both_ways = Topology("file", 3, _file(tmp_path, _graphml("ab", "ba", "bc", "cb", "aa"), "g.graphml"))
    assert not both_ways.directed
    assert both_ways.row(0, 0).outs == (1,)
    # Balanced, not regular, not circulant: two cycles through a.
    eight = Topology("file", 5, _file(tmp_path, _graphml("ab", "bc", "ca", "ad", "de", "ea"), "g.xml"))
    assert eight.directed
    W_nn = mixing_matrix(eight)
    np.testing.assert_allclose(W_nn.sum(axis=0), 1)
    np.testing.assert_allclose(W_nn.sum(axis=1), 1)
    summary = describe(eight)
    assert (summary.diameter, summary.degree_max) == (4, 2)
    assert summary.min_eigenvalue == pytest.approx(np.linalg.eigvals(W_nn).real.min())


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("g.edges", "a b\nc\n", "line 2 of path = .* has one name"),
        ("g.edges", "a b\n", "has 2 names, but there are n = 4 peers"),
        ("g.edges", "a b\nc d\n", "holds 2 parts without an edge between"),
        ("g.graphml", "<graphml", "is not valid GraphML"),
        ("g.graphml", "a b", "is not valid GraphML"),
        ("g.graphml", _graphml("ab", "bc", "cd"), "peer 0 sends to 1 and hears 0"),
        ("g.graphml", _graphml("ab", "ba", "cd", "dc"), "holds 2 parts"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Topology("file", 4, _file(tmp_path, text, name))


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "graph.bin").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not a text file in UTF-8"):
        Topology("file", 4, {"path": str(tmp_path / "graph.bin")})
