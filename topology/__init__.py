"""Who may talk to whom, with which mixing weights, and how fast that mixes.

    rules.py  files.py    graphs by name; graphs from a file
    weights.py            mixing weights from degrees
    graph.py              `Topology`: rows for a daemon, graphs for people
    spectrum.py  draw.py  what a graph is worth; how it looks

    >>> ring = Topology("ring", 16)
    >>> ring.row(0, round=1).outs
    (1, 15)
    >>> describe(ring).rounds_to_1e3
    133

Imports nothing else of murmurate. Impossible parameters are ValueErrors that name the parameter, its value and a
value that would do.
"""

from .graph import Row, Topology
from .rules import RULES, Option, Rule
from .spectrum import (
    Contraction,
    Summary,
    contraction,
    describe,
    min_eigenvalue,
    mixing_matrix,
    rounds_to_consensus,
    second_eigenvalue,
    spectral_gap,
)
from .weights import WEIGHTS

__all__ = [
    "RULES",
    "WEIGHTS",
    "Contraction",
    "Option",
    "Row",
    "Rule",
    "Summary",
    "Topology",
    "contraction",
    "describe",
    "min_eigenvalue",
    "mixing_matrix",
    "rounds_to_consensus",
    "second_eigenvalue",
    "spectral_gap",
]
