"""Audits in whole swarms: liars are banned by all that hear them, and nobody else is, whatever the weather."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import pytest

from murmurate.peer.config import parse
from murmurate.peer.errors import ConfigError
from murmurate.peer.lab.simulator import Outcome, simulate
from murmurate.peer.lab.tasks import task_plan
from murmurate.peer.lab.weather import FAIR, STORM, Weather
from murmurate.peer.protocol.events import AuditDone, Banned, Fact

LIAR = 0
# Crashes with and without a snapshot, returns, losses, broken links, and goodbyes in the middle of a round.
ROUGH = replace(STORM, loss=0.05, crash=0.5, partition_s=0.0, slow=0.0)


def run(
    seed: int,
    attack: str = "sign_flip",
    weather: Weather = FAIR,
    degree: int = 3,
    rounds: int = 40,
    **tables: dict[str, Any],
) -> tuple[Outcome, list[tuple[int, Fact]]]:
    """What became of eight peers, the first a liar that only its neighbours may ban, and who told which facts."""
    names = [f"p{i}" for i in range(8)]
    table: dict[str, Any] = {
        "peers": dict.fromkeys(names, "127.0.0.1:0"),
        "swarm": {"seed": seed},
        "topology": {"rule": "random_regular", "options": {"degree": degree}},
        "local": {"steps": 3},
        "audit": {"rate": 0.5},
        "rounds": {"max": rounds, "eval_every": 0},
        "runtime": {"threads": 1, "snapshot_s": 2.0},
        **tables,
    }
    lies = [attack if i == LIAR else "none" for i in range(8)]
    configs = [parse({**table, "name": name, "attack": {"name": lie}}) for name, lie in zip(names, lies, strict=True)]
    facts: list[tuple[int, Fact]] = []
    storm_s = 30.0 if weather is not FAIR else 0.0
    plan = task_plan(configs, seed=seed, weather=weather, storm_s=storm_s)

    def on_fact(i: int, fact: Fact) -> None:
        facts.append((i, fact))

    outcome = simulate(replace(plan, on_fact=on_fact))
    assert outcome.violations == (), f"SEED={seed}"
    assert outcome.live, f"SEED={seed}"
    assert bans(facts) <= {(i, names[LIAR]) for i in plan.topology.links(LIAR)}, f"SEED={seed}"
    return outcome, facts


def bans(facts: Collection[tuple[int, Fact]]) -> set[tuple[int, str]]:
    """Who banned whom, but for what the liar says."""
    return {(i, fact.peer) for i, fact in facts if isinstance(fact, Banned) and i != LIAR}


@pytest.mark.parametrize("seed", range(2))
def test_a_liar_is_banned_by_all_that_hear_it(seed: int) -> None:
    outcome, facts = run(seed, rounds=60)  # who is banned by one waits for it, and the others rarely hear it in time
    assert len(bans(facts)) == 3
    assert sum(isinstance(fact, AuditDone) and not fact.open for _, fact in facts) > 50
    assert outcome.rounds_min == 60  # nobody waits for the banned one, which goes on alone


@pytest.mark.parametrize("seed", range(10, 13))
def test_crashes_losses_and_returns_make_nobody_guilty(seed: int) -> None:
    outcome, facts = run(seed, weather=ROUGH, rounds=70)
    assert outcome.crashes > 0
    assert bans(facts)


def test_one_that_went_on_from_a_trained_round_is_not_guilty() -> None:
    """Asked to leave between training and mixing, it trains that round again."""
    _, facts = run(6, weather=replace(STORM, crash=0.4), degree=7, rounds=60, mixing={"rule": "nna", "f": 1})
    assert bans(facts)


def test_honest_swarms_ban_nobody() -> None:
    _, facts = run(1, attack="none", weather=ROUGH, rounds=50)
    assert not bans(facts)


def test_an_audited_run_repeats() -> None:
    first, second = run(2, rounds=5, audit={"rate": 1.0})[0], run(2, rounds=5, audit={"rate": 1.0})[0]
    assert first.digest == second.digest


def test_the_consensus_distance_is_that_of_the_models() -> None:
    """The commitments behind the models are no numbers."""
    audited, plain = run(3, attack="none", rounds=6)[0], run(3, attack="none", rounds=6, audit={"rate": 0.0})[0]
    assert audited.distances == plain.distances


def test_a_graph_that_changes_cannot_be_audited() -> None:
    with pytest.raises(ConfigError, match=r"audit\.rate = 0\.5"):
        run(0, topology={"rule": "random_matching"})
