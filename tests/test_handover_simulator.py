"""Swarms in which joiners take states, through storms: all end with one set and one state, whatever gets lost."""

from __future__ import annotations

from dataclasses import replace

import pytest

from murmurate.peer.lab.liars import Lies
from murmurate.peer.lab.seeds_drill import seeds_plan
from murmurate.peer.lab.seeds_simulator import SeedsSwarm
from murmurate.peer.lab.swarm import Outcome
from murmurate.peer.lab.weather import STORM
from murmurate.peer.protocol.events import Took

WEATHER = replace(STORM, amnesia=0.7)  # who returns has most often lost everything


def run(seed: int, **options: object) -> tuple[Outcome, int]:
    """What became of it, and how many states were taken."""
    took: list[Took] = []

    class Noting(SeedsSwarm):
        def reported(self, life: object, fact: object) -> None:
            if isinstance(fact, Took):
                took.append(fact)
            super().reported(life, fact)  # type: ignore[arg-type]: passed on as they are

    outcome = Noting(seeds_plan(seed, weather=WEATHER, train_s=1.0, **options)).run()  # type: ignore[arg-type]: passed on as they are
    assert outcome.violations == (), seed
    assert outcome.live, (seed, outcome.stalled)
    return outcome, len(took)


def test_storms_with_states() -> None:
    assert sum(run(seed, vouchers=2)[1] for seed in range(20)) > 5


def test_retractions_below_the_states() -> None:
    """Who cannot follow one takes another state, as soon as somebody has it."""
    assert sum(run(seed, vouchers=1, retractions=3, calm_s=120.0, rest_s=90.0)[1] for seed in range(8)) > 3


@pytest.mark.parametrize("lies", Lies)
def test_liars_do_not_keep_states_from_spreading(lies: Lies) -> None:
    plan = {"liars": ((3, lies),), "calm_s": 60.0, "rest_s": 40.0}
    assert sum(run(seed, vouchers=2, **plan)[1] for seed in range(100, 104)) > 0


def test_a_run_repeats() -> None:
    assert run(3, vouchers=2)[0].digest == run(3, vouchers=2)[0].digest
