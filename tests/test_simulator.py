"""Whole swarms in virtual time: safe in a storm, alive after it, and the same every time."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from murmurate.peer.config import parse
from murmurate.peer.lab.consensus import Consensus, rate
from murmurate.peer.lab.drill import PACING, drill, drill_plan, drills
from murmurate.peer.lab.quadratic import Field
from murmurate.peer.lab.referee import Parcel, Referee
from murmurate.peer.lab.simulator import Outcome, simulate
from murmurate.peer.lab.weather import FAIR, STORM, Weather
from murmurate.peer.protocol.core import Peer
from murmurate.peer.protocol.events import Adopt, Effect, Leave, Mix, PeerId, Save, Send, Train, Turn, Update
from murmurate.peer.protocol.inbox import SLOTS_MAX, Neighbour
from murmurate.peer.protocol.neighbourhood import Neighbourhood
from murmurate.peer.protocol.rounds import Pacing, Phase, Rounds
from murmurate.topology import Topology, contraction

ROUGH = replace(STORM, crash=0.5)


def small(
    seed: int, peers: int = 16, *, weather: Weather = ROUGH, pacing: Pacing = PACING, topology: Topology | None = None
) -> Outcome:
    """Half a minute of storm, half a minute of calm."""
    plan = drill_plan(seed, peers, weather=weather, pacing=pacing, topology=topology, storm_s=30.0, calm_s=30.0)
    return simulate(plan)


def assert_sound(outcome: Outcome) -> None:
    found = (outcome.violations, outcome.stalled, outcome.apart)
    assert found == ((), (), ()), f"SEED={outcome.seed}"
    assert outcome.safe
    assert outcome.live


# Storms -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_swarm_survives_a_storm(seed: int) -> None:
    outcome = small(seed)
    assert_sound(outcome)
    assert outcome.crashes > 0
    assert outcome.rounds_max - outcome.rounds_min <= PACING.stale_max


@pytest.mark.parametrize(
    "topology",
    [
        Topology("exponential", 16),
        Topology("one_peer_exponential", 16),
        Topology("random_matching", 16),
        Topology("star", 16),
        Topology("ring", 16),
    ],
    ids=lambda topology: topology.rule,
)
def test_every_kind_of_graph_survives_a_storm(topology: Topology) -> None:
    assert_sound(small(2, topology=topology))


# Stories that once went wrong. SEED, peers, graph, liars assumed, crashes.
STORIES = {
    "a replayed old update takes a restarted peer back to its own past": (1, 16, Topology("star", 16), 0, 0.5),
    "one peer runs ahead alone, and with f = 1 nobody may follow it": (102, 24, None, 1, 0.4),
    "half of a neighbourhood runs ahead of the other half": (9, 8, None, 2, 0.4),
    "a ring falls apart into arcs": (100, 12, Topology("ring", 12), 1, 0.4),
}


@pytest.mark.parametrize(("seed", "peers", "topology", "f", "crash"), STORIES.values(), ids=STORIES)
def test_story_ends_well(seed: int, peers: int, topology: Topology | None, f: int, crash: float) -> None:
    storm_s = 30.0 if f == 0 else 60.0
    weather, pacing = replace(STORM, crash=crash), replace(PACING, f=f)
    plan = drill_plan(seed, peers, weather=weather, pacing=pacing, topology=topology, storm_s=storm_s, calm_s=storm_s)
    assert_sound(simulate(plan))


def test_two_hops_per_round_survive_a_storm() -> None:
    assert_sound(small(1, pacing=replace(PACING, gossip_steps=2)))


def test_swarm_lives_on_without_those_gone_for_ever() -> None:
    outcome = small(3, weather=replace(ROUGH, crash=0.6, gone=0.5, polite=0.0))
    assert outcome.safe
    assert outcome.stalled == ()


def test_drills_are_one_outcome_a_seed() -> None:
    first, second = drills(range(2), peers=6)
    assert (first.seed, second.seed) == (0, 1)
    assert first.virtual_s == 120.0


# Repetition ---------------------------------------------------------------------------------------


def test_one_seed_is_one_story() -> None:
    plan = drill_plan(5, 12, weather=ROUGH, storm_s=20.0, calm_s=5.0)
    first, second = simulate(plan), simulate(plan)
    assert first.digest == second.digest
    assert replace(first, wall_s=0.0) == replace(second, wall_s=0.0)
    assert simulate(replace(plan, seed=6)).digest != first.digest


def test_other_processes_tell_the_same_story() -> None:
    root = Path(__file__).resolve().parents[1]
    program = "from murmurate.peer.lab.drill import drill; print(drill(7, 8).digest)"
    environment = {**os.environ, "PYTHONPATH": str(root / ".src"), "PYTHONHASHSEED": "4711", "PYTHONSAFEPATH": "1"}
    told = subprocess.run(
        [sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True, timeout=60
    )
    assert told.stdout.strip() == drill(7, 8).digest


# Consensus ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("topology", "gossip_steps"),
    [
        (Topology("random_regular", 24, {"degree": 4}), 1),
        (Topology("random_regular", 24, {"degree": 4}), 2),
        (Topology("torus", 25), 1),
    ],
    ids=["random_regular", "two hops", "torus"],
)
def test_consensus_falls_as_the_spectral_gap_predicts(topology: Topology, gossip_steps: int) -> None:
    weather = replace(ROUGH, slow=0.0)
    pacing = replace(PACING, gossip_steps=gossip_steps)
    plan = drill_plan(2, topology.n, weather=weather, pacing=pacing, topology=topology, storm_s=20.0, calm_s=60.0)
    outcome = simulate(plan)
    predicted = contraction(topology, gossip_steps).per_round
    assert outcome.rate == pytest.approx(predicted, rel=0.02)


def test_everybody_finds_the_common_optimum() -> None:
    outcome = small(4, weather=replace(FAIR, loss=0.1))
    alone = Field(16, 4)
    apart = max(float(((alone.optima_nD[i] - alone.optimum_D) ** 2).sum()) ** 0.5 for i in range(16))
    assert max(figures["error"] for figures in outcome.figures) < apart / 5


def test_nearest_neighbours_bear_liars_that_the_mean_does_not() -> None:
    def error(rule: str, f: int) -> float:
        topology = Topology("complete", 10)
        field = Field(10, 1, rule=rule, f=f, liars=frozenset({3, 7}))
        plan = drill_plan(1, 10, weather=FAIR, topology=topology, field=field, storm_s=40.0, calm_s=10.0)
        outcome = simulate(plan)
        assert outcome.safe
        return max(figures["error"] for i, figures in enumerate(outcome.figures) if i not in field.liars)

    assert error("nna", 2) < 1.0
    assert error("mean", 0) > error("nna", 2)


def test_rate_is_fitted_to_later_rounds_only() -> None:
    distances = [(round, 8.0 if round < 10 else 0.5**round) for round in range(40)]
    assert rate(distances, 10) == pytest.approx(0.5)
    assert rate(distances[:12], 10) is None
    assert rate([(1, 0.0)], 0) is None


def test_distance_is_measured_when_all_honest_have_sent() -> None:
    consensus = Consensus(frozenset({0, 1}), "<f4")
    for peer, value in ((0, 1.0), (2, 9.0), (1, 4.0)):
        assert consensus.distances == []
        consensus.sent(peer, 1, struct.pack("<f", value))
    assert consensus.distances == [(1, pytest.approx(4.5**0.5))]


# Ends ---------------------------------------------------------------------------------------------


def test_run_ends_when_all_have_left() -> None:
    outcome = small(0, 6, weather=FAIR, pacing=replace(PACING, rounds_max=5))
    assert (outcome.rounds_min, outcome.rounds_max) == (5, 5)
    assert outcome.live
    assert outcome.virtual_s < 30.0


def test_history_has_every_round_of_every_peer() -> None:
    plan = replace(drill_plan(0, 4, weather=FAIR, topology=Topology("ring", 4), storm_s=9.0, calm_s=1.0), history=True)
    outcome = simulate(plan)
    for milestones in outcome.history:
        assert [milestone.round for milestone in milestones] == list(range(1, len(milestones) + 1))
        assert all({"loss", "error"} <= set(milestone.figures) for milestone in milestones)


# What breaks is found -----------------------------------------------------------------------------


def _fold_anything(self: Neighbour, turn: Turn, oldest_round: int) -> object:
    return next(reversed(self.payloads.values()), None)


def _keep_everything(self: Neighbour, turn: Turn, payload: bytes, oldest_round: int) -> None:
    self.turn = self.sent = max(self.sent, turn)
    self.payloads[turn] = payload


@pytest.mark.parametrize(
    ("method", "broken", "complaint"),
    [
        ("fold", _fold_anything, "after"),
        ("fold", _fold_anything, "from the future"),
        ("keep", _keep_everything, "keeps"),
    ],
)
def test_broken_inbox_is_found(
    monkeypatch: pytest.MonkeyPatch, method: str, broken: Callable[..., object], complaint: str
) -> None:
    monkeypatch.setattr(Neighbour, method, broken)
    outcome = small(0, 8, weather=replace(ROUGH, slow=0.3))
    assert any(complaint in violation for violation in outcome.violations), outcome.violations[:5]
    assert not outcome.safe


def test_peer_that_waits_for_ever_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rounds, "_on_deadline", lambda self, now: [])  # type: ignore[misc]  # a stub of any shape
    monkeypatch.setattr(Rounds, "_upcoming", lambda self: self.complete + 1)  # type: ignore[misc]  # the same
    outcome = small(0, weather=replace(FAIR, loss=0.5, partition_s=20.0, whole_s=3.0))
    assert not outcome.live
    assert outcome.stalled or outcome.apart


A, B, C = PeerId("a"), PeerId("b"), PeerId("c")


def mix(turn: Turn, *parcels: tuple[PeerId, Parcel], weights: dict[PeerId, float] | None = None) -> Mix:
    inbox = dict(parcels)
    return Mix(turn, inbox, dict.fromkeys(inbox, 0.25) if weights is None else weights)


def parcel(origin: PeerId, round: int, incarnation: int = 1) -> tuple[PeerId, Parcel]:
    return B, Parcel.of(b"", origin, incarnation, Turn(round))


@pytest.mark.parametrize(
    ("effects", "complaint"),
    [
        ([Train(3), Train(4)], "while another one is running"),
        ([Train(3), None, Train(3)], "trains round 3 after round 3"),
        ([Train(2)], "trains round 2 after round 2"),
        ([mix(Turn(4)), None, mix(Turn(4))], "mixes turn (4, 0) after turn (4, 0)"),
        (
            [mix(Turn(9), parcel(B, 9)), None, mix(Turn(10), parcel(B, 9))],
            "folds b's payload 1:(9, 0) in (10, 0) after",
        ),
        ([mix(Turn(9), parcel(B, 9)), None, mix(Turn(10), parcel(B, 8))], "after 1:(9, 0)"),
        ([mix(Turn(9), parcel(B, 8, 2)), None, mix(Turn(10), parcel(B, 10))], "after 2:(8, 0)"),
        ([mix(Turn(4), parcel(B, 5))], "from the future"),
        ([mix(Turn(20), parcel(B, 11))], "stale"),
        ([mix(Turn(4), parcel(C, 4))], "folds c's payload 1:(4, 0) in (4, 0) as b's"),
        ([mix(Turn(4), (C, parcel(C, 4)[1]))], "as c's"),
        ([mix(Turn(4), parcel(B, 4), weights={B: 1.5})], "weights"),
        ([mix(Turn(4), parcel(B, 4), weights={B: -0.5})], "weights"),
        ([mix(Turn(4), parcel(B, 4), weights={})], "weights"),
        ([Send(C, Update(Turn(4), b""))], "sends to c, no neighbour"),
        ([Train(4), Save()], "snapshot while a job is running"),
        ([Leave(), Save()], "asks for Save after Leave"),
        ([Adopt(Turn(1), {})], "mixes turn (1, 0) after turn (2, 0)"),
    ],
)
def test_referee_objects(effects: list[Effect | None], complaint: str) -> None:
    violations = judge(effects)
    assert len(violations) == 1
    assert complaint in violations[0]


def test_referee_accepts_an_ordinary_life() -> None:
    effects: list[Effect | None] = [
        Train(3),
        None,
        mix(Turn(3), parcel(B, 2)),
        None,
        mix(Turn(3, 1), parcel(B, 3)),
        None,
    ]
    effects += [Save(), Train(5), None, Send(B, Update(Turn(5), b"")), mix(Turn(5), parcel(B, 1, 2)), None, Leave()]
    assert judge(effects) == []


def judge(effects: list[Effect | None]) -> list[str]:
    """The violations of a life that began with a snapshot of round 2; None answers the running job."""
    violations: list[str] = []
    core = Peer(Neighbourhood(A, [A, B], Topology("complete", 2)), Pacing(), 1.0, 3.0)
    core.rounds.phase = Phase.MIXING
    referee = Referee("a:1", core, frozenset({B}), 8, violations)
    referee.started(2)
    for effect in effects:
        if effect is None:
            referee.answered()
        else:
            referee.asked(effect)
    return violations


def test_inbox_bound_is_the_cores() -> None:
    assert SLOTS_MAX == 3


@pytest.mark.parametrize(("field", "value"), [("loss", 1.5), ("crash", -0.1), ("latency_s", -1.0), ("stranger_s", 0.0)])
def test_impossible_weather_is_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        replace(FAIR, **{field: value})


def test_calm_has_no_faults() -> None:
    calm = STORM.calm()
    faults = (calm.loss, calm.duplication, calm.replay, calm.garbage, calm.break_s, calm.crash, calm.partition_s)
    assert faults == (0,) * 7
    assert (calm.latency_s, calm.stranger_s, calm.slow) == (STORM.latency_s, STORM.stranger_s, STORM.slow)


# Real models --------------------------------------------------------------------------------------


def test_torch_repeats_its_story() -> None:
    from murmurate.peer.lab.tasks import task_plan

    names = [f"p{i}" for i in range(8)]
    table = {
        "peers": dict.fromkeys(names, "127.0.0.1:0"),
        "local": {"steps": 5},
        "mixing": {"rule": "nna", "f": 2},
        "topology": {"rule": "random_regular", "options": {"degree": 4}},
        "rounds": {"max": 4, "deadline_s": 4.0},
        "runtime": {"threads": 1, "snapshot_s": 1.0},
    }
    lies = {"attack": {"name": "sign_flip", "scale": 4.0}}
    configs = [parse({**table, **(lies if i in (2, 5) else {}), "name": name}) for i, name in enumerate(names)]
    weather = replace(FAIR, loss=0.1, crash=0.5, amnesia=0.0, restart_s=0.5)
    first, second = (simulate(task_plan(configs, seed=3, weather=weather, storm_s=3.0)) for _ in range(2))
    assert first.digest == second.digest
    assert_sound(first)
    assert first.crashes > 0
    assert (first.rounds_min, first.rounds_max) == (4, 4)
    assert all(0 < milestones[-1].figures["accuracy"] < 1 for milestones in first.history)
