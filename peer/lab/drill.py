"""Storm drills: a swarm of quadratics on a random graph goes through a storm and must come out sound.

One drill is one seed; the caller spreads a range of seeds over processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from murmurate.peer.protocol.core import Peer
from murmurate.peer.protocol.events import PeerId
from murmurate.peer.protocol.neighbourhood import Neighbourhood
from murmurate.peer.protocol.rounds import Pacing
from murmurate.peer.protocol.seams import Trainer
from murmurate.topology import Topology

from .quadratic import Field, Quadratic
from .simulator import Outcome, Plan, simulate
from .weather import STORM, Weather

# A second of training, a beat each second, and a deadline that a lost update makes felt but not ruinous.
PACING = Pacing(deadline_s=4.0, join_s=5.0, settle_s=1.0, save_s=5.0)
HEARTBEAT_S = 1.0
TIMEOUT_S = 3.5


def drill_plan(
    seed: int,
    peers: int = 64,
    *,
    weather: Weather = STORM,
    topology: Topology | None = None,
    pacing: Pacing = PACING,
    field: Field | None = None,
    storm_s: float = 60.0,
    calm_s: float = 60.0,
) -> Plan:
    """A swarm that learns a quadratic in the storm and only mixes in the calm. The graph: 4 random neighbours each."""
    topology = topology or Topology("random_regular", peers, {"degree": 4, "seed": seed})
    roster = tuple(PeerId(f"p{i:04}") for i in range(peers))
    field = field or Field(peers, seed)

    def make_core(i: int) -> Peer:
        return Peer(Neighbourhood(roster[i], roster, topology), pacing, HEARTBEAT_S, TIMEOUT_S)

    return Plan(
        seed=seed,
        roster=roster,
        topology=topology,
        make_core=make_core,
        make_trainer=lambda i: Quadratic(field, i),
        stale_max=pacing.stale_max,
        weather=weather,
        storm_s=storm_s,
        calm_s=calm_s,
        honest=frozenset(range(peers)) - field.liars,
        on_calm=_rest,
    )


def _rest(trainer: Trainer) -> None:
    """Only mix from now on."""
    assert isinstance(trainer, Quadratic)
    trainer.lr = 0.0


def drill(seed: int, peers: int = 64, weather: Weather = STORM) -> Outcome:
    """One seed through a storm and a calm of a virtual minute each."""
    return simulate(drill_plan(seed, peers, weather=weather))


def drills(seeds: Iterable[int], peers: int = 64, weather: Weather = STORM) -> Iterator[Outcome]:
    """Seed after seed; those that are unsafe or stalled are the interesting ones."""
    for seed in seeds:
        yield drill(seed, peers, weather)
