"""The rules over integer votes, against the same rules in fractions, one direction at a time."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from murmurate.kernels import noise
from murmurate.peer.learning.exchange.votes import RULES, combine, divide

Vote = Sequence[int | None]  # one peer's: None where it abstained

scalars = st.integers(-noise.CODE_MAX, noise.CODE_MAX) | st.integers(-3, 3)


@st.composite
def ballots(draw: st.DrawFn) -> list[Vote]:
    """1 to 7 votes over 1 to 4 directions, some abstaining somewhere."""
    size = draw(st.integers(1, 4))
    return draw(st.lists(st.lists(scalars | st.none(), min_size=size, max_size=size), min_size=1, max_size=7))


def combined(rule: str, votes: Sequence[Vote], f: int) -> list[int]:
    given_NP = np.array([[value is not None for value in vote] for vote in votes])
    votes_NP = np.array([[value or 0 for value in vote] for vote in votes], dtype=np.int64)
    return combine(rule, votes_NP, given_NP, f).tolist()


# The rules again, slowly -----------------------------------------------------------------------------


def columns(votes: Sequence[Vote]) -> list[list[int]]:
    return [[value for value in column if value is not None] for column in zip(*votes, strict=True)]


def by_column(one: Callable[[list[int], int], Fraction]) -> Callable[[Sequence[Vote], int], list[int]]:
    return lambda votes, f: [round(one(column, f)) if len(column) > 2 * f else 0 for column in columns(votes)]


def mean(values: Sequence[int], f: int) -> Fraction:
    return Fraction(sum(values), len(values)) if values else Fraction(0)


def median(values: Sequence[int], f: int) -> Fraction:
    return statistics.median([Fraction(value) for value in values]) if values else Fraction(0)


def trimmed(values: Sequence[int], f: int) -> Fraction:
    return mean(sorted(values)[f : len(values) - f], 0)


def filled(votes: Sequence[Vote]) -> tuple[list[list[int]], list[int]]:
    middle = [round(median(column, 0)) for column in columns(votes)]
    heard = [vote for vote in votes if any(value is not None for value in vote)]
    return [[m if v is None else v for v, m in zip(vote, middle, strict=True)] for vote in heard], middle


def nearest(rows: Sequence[list[int]], pivot: Sequence[int], f: int) -> list[list[int]]:
    def square(row: Sequence[int]) -> int:
        return sum((a - b) ** 2 for a, b in zip(row, pivot, strict=True))

    return sorted(rows, key=square)[: max(0, len(rows) - f)]


def nna(votes: Sequence[Vote], f: int) -> list[int]:
    rows, middle = filled(votes)
    kept = nearest(rows, middle, f)
    found = [round(mean([row[p] for row in kept], 0)) for p in range(len(votes[0]))]
    return [value if len(c) > 2 * f else 0 for value, c in zip(found, columns(votes), strict=True)]


def nnm(votes: Sequence[Vote], f: int) -> list[int]:
    rows, _ = filled(votes)
    mixed = [
        [Fraction(sum(near), max(1, len(near))) for near in zip(*nearest(rows, row, f), strict=True)] for row in rows
    ]
    found: list[int] = []
    for p, column in enumerate(columns(votes)):
        values = sorted(row[p] for row in mixed if row)
        kept = values[f : len(values) - f]
        found.append(round(sum(kept, Fraction(0)) / len(kept)) if len(column) > 2 * f and kept else 0)
    return found


SLOWLY: dict[str, Callable[[Sequence[Vote], int], list[int]]] = {
    "sum": lambda votes, f: [sum(column) for column in columns(votes)],
    "mean": lambda votes, f: [round(mean(column, 0)) for column in columns(votes)],
    "median": by_column(median),
    "trimmed_mean": by_column(trimmed),
    "nna": nna,
    "nnm_trimmed_mean": nnm,
}


@pytest.mark.parametrize("rule", RULES)
@given(votes=ballots(), f=st.integers(0, 3))
def test_rules_are_what_they_are_called(rule: str, votes: list[Vote], f: int) -> None:
    assert combined(rule, votes, f) == SLOWLY[rule](votes, f)


@pytest.mark.parametrize("rule", ["sum", "mean", "median", "trimmed_mean"])
@given(votes=ballots(), f=st.integers(0, 3), data=st.data())
def test_the_order_of_votes_does_not_matter(rule: str, votes: list[Vote], f: int, data: st.DataObject) -> None:
    """The other two break ties by the order, which is therefore canonical: see the ledger's tests."""
    assert combined(rule, data.draw(st.permutations(votes)), f) == combined(rule, votes, f)


@pytest.mark.parametrize("rule", ["median", "trimmed_mean", "nna", "nnm_trimmed_mean"])
@given(
    honest=st.lists(st.lists(st.integers(-50, 50), min_size=3, max_size=3), min_size=5, max_size=6),
    lies=st.lists(st.lists(scalars, min_size=3, max_size=3), min_size=2, max_size=2),
)
def test_liars_cannot_leave_the_honest(rule: str, honest: list[list[int]], lies: list[list[int]]) -> None:
    """What two lies among seven or eight can do is bounded by the honest votes, whatever they say."""
    limit = {"median": 50, "trimmed_mean": 50}.get(rule, 50 * 8)  # a distance says less than an order
    for votes in (honest + lies, lies + honest):
        assert all(abs(value) <= limit for value in combined(rule, votes, 2))


@pytest.mark.parametrize("rule", ["sum", "mean"])
def test_one_liar_moves_a_mean(rule: str) -> None:
    assert abs(combined(rule, [[1], [1], [1], [-noise.CODE_MAX]], 0)[0]) > 50_000


def test_two_f_votes_are_too_few() -> None:
    for rule in ("median", "trimmed_mean", "nna", "nnm_trimmed_mean"):
        assert combined(rule, [[7, 7]] * 4, 2) == [0, 0]
        assert combined(rule, [[7, 7]] * 5, 2) == [7, 7]
        assert combined(rule, [[7, 7]] * 4 + [[None, 7]], 2) == [0, 7]


@given(st.lists(st.integers(-(10**9), 10**9), min_size=1), st.integers(1, 1000))
def test_halves_go_to_the_even_number(numerators: list[int], denominator: int) -> None:
    found = divide(np.array(numerators, dtype=np.int64), denominator)
    assert found.tolist() == [round(Fraction(value, denominator)) for value in numerators]
