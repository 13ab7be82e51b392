"""Storm drills of the `seeds` exchange: one seed, one swarm; liars, retractions, states handed over, shared directions.

One drill is one seed; the caller spreads a range of seeds over processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from random import Random

from murmurate.peer.protocol.core import Peer, Seeds
from murmurate.peer.protocol.events import PeerId
from murmurate.peer.protocol.feeds import Rules
from murmurate.peer.protocol.neighbourhood import Neighbourhood
from murmurate.peer.protocol.records import Origin
from murmurate.peer.protocol.rounds import Pacing
from murmurate.topology import Topology

from .liars import Lies
from .seeds_life import verify
from .seeds_simulator import AUTHORITY, SeedsPlan, simulate_seeds
from .swarm import Outcome
from .weather import STORM, Weather

RECORDS = 3
PACING = Pacing(deadline_s=3.0, join_s=4.0, settle_s=1.0)
HEARTBEAT_S = 1.0
TIMEOUT_S = 3.5
GOSSIP_S = 2.0
STATE_BYTES = 256  # a few batches


def seeds_plan(
    seed: int,
    peers: int = 8,
    *,
    weather: Weather = STORM,
    topology: Topology | None = None,
    pacing: Pacing = PACING,
    shared: bool = False,
    liars: tuple[tuple[int, Lies], ...] = (),
    retractions: int = 0,
    storm_s: float = 30.0,
    calm_s: float = 30.0,
    rest_s: float = 15.0,
    halves_s: float = 0.0,
    train_s: float = 2.5,
    records: int = RECORDS,
    vouchers: int = 0,
) -> SeedsPlan:
    """A swarm of tallies. `vouchers`: as in core.Seeds; 0: no state is handed over.

    The graph: 3 random neighbours each, where it has so many peers.
    """
    topology = topology or _graph(peers, seed)
    roster = tuple(PeerId(f"p{i:04}") for i in range(peers))
    rules = Rules(roster=frozenset(roster), records=records, codes=records, authorities=frozenset({AUTHORITY}))

    def make_core(i: int, origin: Origin) -> Peer:
        seeds = Seeds(
            me=roster[i],
            origin=origin,
            rules=rules,
            verify=verify,
            shared=shared,
            gossip_s=GOSSIP_S,
            state_bytes=STATE_BYTES if vouchers else None,
            vouchers=vouchers,
        )
        return Peer(Neighbourhood(roster[i], roster, topology), pacing, HEARTBEAT_S, TIMEOUT_S, seeds)

    return SeedsPlan(
        seed=seed,
        roster=roster,
        topology=topology,
        weather=weather,
        storm_s=storm_s,
        calm_s=calm_s,
        rest_s=rest_s,
        halves_s=halves_s,
        train_s=train_s,
        records=records,
        make_core=make_core,
        liars=liars,
        retractions=retractions,
    )


def _graph(peers: int, seed: int) -> Topology:
    if peers > 4 and peers % 2 == 0:
        return Topology("random_regular", peers, {"degree": 3, "seed": seed})
    return Topology("complete", peers)


def seeds_drill(seed: int, peers: int = 8, weather: Weather = STORM) -> Outcome:
    """One seed: every other one with a liar, every third with shared directions, every fifth with retractions; of the
    rest every fourth hands states over.
    """
    random = Random(f"seeds drill {seed}")
    liars = ((random.randrange(peers), random.choice(list(Lies))),) if seed % 2 else ()
    shared, judged = seed % 3 == 0, seed % 5 == 0
    plan = seeds_plan(
        seed,
        peers,
        weather=weather,
        shared=shared,
        liars=liars,
        retractions=2 if judged else 0,
        vouchers=2 if seed % 4 == 0 and not (shared or judged) else 0,
    )
    return simulate_seeds(plan)


def seeds_drills(seeds: Iterable[int], peers: int = 8, weather: Weather = STORM) -> Iterator[Outcome]:
    """Seed after seed; those that are unsafe or stalled are the interesting ones."""
    for seed in seeds:
        yield seeds_drill(seed, peers, weather)
