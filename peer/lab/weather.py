"""What may go wrong in a simulated swarm: probabilities, and how long each fault lasts. All of it drawn from one seed.

A run has two phases: the storm, in which faults happen, and the calm, in which the network is whole, whoever is to
return has returned, and only speeds, latencies and strangers remain.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

CHANCES = (
    "loss",
    "duplication",
    "replay",
    "garbage",
    "crash",
    "silent",
    "polite",
    "amnesia",
    "gone",
    "severed",
    "slow",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Weather:
    """Chances are 0 to 1; times are virtual seconds, and `mean` ones are exponentially distributed."""

    latency_s: float = 0.05
    """Shortest time an envelope travels."""
    jitter_s: float = 0.01
    """Mean of what comes on top, drawn for each envelope: later ones overtake earlier ones."""
    loss: float = 0.0
    """Chance that an envelope or a handshake is lost."""
    duplication: float = 0.0
    """Chance that an envelope arrives twice."""
    replay: float = 0.0
    """Chance that an envelope arrives once more, much later, perhaps in another life of its receiver."""
    replay_s: float = 20.0
    """Longest time after which it does."""
    garbage: float = 0.0
    """Chance that an update's payload is replaced by bytes that are no model."""
    break_s: float = 0.0
    """Mean pause between two breaks of a random open link, noticed at each end on its own; 0: never."""
    redial_s: float = 1.0
    """Longest pause before a broken link is dialled again."""
    crash: float = 0.0
    """Chance that a peer crashes at some time in the storm; drawn again after each return."""
    silent: float = 0.5
    """Of the crashes, how many are pulled cables: links look open, and only silence tells."""
    polite: float = 0.0
    """Of the crashes, how many are no crash: the peer is asked to leave, and later started again."""
    amnesia: float = 0.2
    """Of the crashes, how many lose the snapshot as well."""
    gone: float = 0.0
    """Of the crashes, how many are for ever."""
    restart_s: float = 5.0
    """Mean time until a crashed peer is started again."""
    write_s: float = 0.2
    """Time until a snapshot is on the disk; a crash before that leaves the one before it."""
    partition_s: float = 0.0
    """Mean length of a partition into two random halves, silent and symmetric; 0: no partitions."""
    whole_s: float = 20.0
    """Mean time between two partitions."""
    severed: float = 0.5
    """Chance that a link across a partition is found broken by its ends, rather than only silent."""
    slow: float = 0.0
    """Share of peers that train `slow_factor` times slower."""
    slow_factor: float = 4.0
    stranger_s: float = 2.0
    """Mean pause between two updates from strangers; they never stop."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value: float = getattr(self, field.name)
            if value < 0 or (field.name in CHANCES and value > 1):
                limit = "0 to 1" if field.name in CHANCES else "0 or more"
                raise ValueError(f"weather: {field.name} = {value} should be {limit}")
        if self.stranger_s <= 0:
            raise ValueError(
                f"weather: stranger_s = {self.stranger_s} should be above 0: strangers are part of every run"
            )

    def calm(self) -> Weather:
        """The same network without its faults."""
        return replace(
            self, loss=0.0, duplication=0.0, replay=0.0, garbage=0.0, break_s=0.0, crash=0.0, partition_s=0.0
        )


FAIR = Weather()
"""No faults but strangers."""

STORM = Weather(
    loss=0.1,
    duplication=0.05,
    replay=0.02,
    garbage=0.01,
    break_s=2.0,
    crash=0.2,
    polite=0.2,
    partition_s=5.0,
    slow=0.05,
    slow_factor=3.0,
)
"""Everything at once: what the seeds of the tests go through."""
