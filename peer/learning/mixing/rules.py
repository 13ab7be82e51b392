"""All mixing rules by name, what each needs, and whether a configuration gives it; numbers only, never torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from murmurate.peer import config
from murmurate.peer.errors import ConfigError

from . import places, shares
from .geometry import Floats, Points, buckets
from .places import Places
from .shares import Numbers


@dataclass(frozen=True)
class Number:
    """One of a rule's own numbers."""

    default: float
    least: float
    most: float = 1e6
    whole: bool = False

    def read(self, value: config.Option) -> float | None:
        """What a configuration says; None if it may not."""
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            return None
        return float(value) if self.least <= value <= self.most else None

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        return f"{kind} from {self.least:g} to {self.most:g}"


@dataclass(frozen=True)
class Rule:
    """What is known of a rule before it mixes."""

    shares: Callable[[Points, int, Numbers], Floats] | None = None
    """Of whole vectors, from the Gram matrix."""
    places: Callable[[int, int], Places] | None = None
    """Of single parameters: n, f -> places."""
    numbers: Mapping[str, Number] = field(default_factory=dict[str, Number])
    bears: bool = True
    """Whether it bears any liar."""
    pivot: bool = False
    """Starts from our own vector, so that it is safe to go on with fewer vectors than it needs to bear f."""
    more: Callable[[Numbers], int] = lambda _numbers: 1
    """How many vectors it needs above 2 f."""

    def least(self, f: int, numbers: Numbers) -> int:
        """The fewest vectors, ours among them, with which it bears f liars."""
        return 2 * f + self.more(numbers)


RADIUS = Number(0.0, 0.0, 1e30)
"""0: adaptive (see shares.py)."""
LESS = Number(2, 1, 2, whole=True)
"""Blanchard et al. 2017: 2; Allouah et al. 2023: 1."""

RULES: dict[str, Rule] = {
    "mean": Rule(bears=False),
    "nna": Rule(shares=shares.nna, pivot=True),
    "krum": Rule(shares=shares.krum, numbers={"less": LESS}, more=lambda numbers: 2 * int(numbers["less"]) - 1),
    "multi_krum": Rule(
        shares=shares.multi_krum,
        numbers={"less": LESS, "keep": Number(0, 0, whole=True)},
        more=lambda numbers: 2 * int(numbers["less"]) - 1,
    ),
    "mda": Rule(shares=shares.mda),
    "mva": Rule(shares=shares.mva),
    "geometric_median": Rule(
        shares=shares.geometric_median,
        # RFA's smoothing; far more steps than Weiszfeld needs (a guess), because they are cheap here.
        numbers={"smoothing": Number(1e-6, 1e-30), "steps": Number(1000, 1, whole=True)},
    ),
    "centred_clipping": Rule(
        shares=shares.centred_clipping,
        numbers={"radius": RADIUS, "steps": Number(3, 1, whole=True)},  # MoNNA's experiments take 3 steps
        pivot=True,
    ),
    "self_centred_clipping": Rule(shares=shares.self_centred_clipping, numbers={"radius": RADIUS}, pivot=True),
    "flag": Rule(
        shares=shares.flag,
        numbers={"rank": Number(0, 0, whole=True), "steps": Number(5, 1, whole=True)},  # Flag's code: 1 to 5
        bears=False,
    ),
    "trimmed_mean": Rule(places=places.trimmed_mean),
    "median": Rule(places=places.median),
    "meamed": Rule(places=places.meamed),
    "phocas": Rule(places=places.phocas),
}

CONFIDENCE = Number(1.0, 1e-3, 1e3)
"""FoolsGold's kappa; its authors' code: 1."""

MEMORIES: dict[str, Rule] = {
    "foolsgold": Rule(numbers={"confidence": CONFIDENCE}, bears=False),
    # SybilWall's lambda is 1/1.25.
    "sybilwall": Rule(numbers={"confidence": CONFIDENCE, "spread": Number(0.8, 0.0, 1e3)}, bears=False),
    "rffl": Rule(numbers={"memory": Number(0.95, 0.0, 1.0), "clip": Number(0.0, 0.0, 1e30)}, bears=False),
    # The authors' code: 10 models, alpha 0.4.
    "bristle": Rule(numbers={"models": Number(10, 1, whole=True), "explore": Number(0.4, 0.0, 1.0)}, bears=False),
}
"""Rules that remember, or have to be told more than vectors (see memory.py)."""

KNOWN = {**RULES, **MEMORIES}

BUCKET = {"bucket_size": Number(2, 2, whole=True)}
"""Karimireddy et al. 2022 find 2 the best."""


def numbers_of(mixing: config.Mixing) -> dict[str, float]:
    """The options of the rule and of what comes before it, defaults filled in. Raises ConfigError."""
    known = {**KNOWN[mixing.rule].numbers, **(BUCKET if mixing.before == "bucketing" else {})}
    numbers = {name: number.default for name, number in known.items()}
    for name, value in mixing.options.items():
        if name not in known:
            about = f"{mixing.before} before {mixing.rule}" if mixing.before else mixing.rule
            raise ConfigError(f"mixing.options.{name}: unknown; {about} knows {', '.join(known) or 'no options'}")
        if (number := known[name].read(value)) is None:
            raise ConfigError(f"mixing.options.{name} = {value!r}: should be {known[name]}")
        numbers[name] = number
    return numbers


def check(mixing: config.Mixing, degree_min: int) -> None:
    """Raises ConfigError if the rule cannot bear `mixing.f` liars among `degree_min` neighbours."""
    if mixing.rule not in KNOWN:
        raise ConfigError(f"mixing.rule = {mixing.rule!r}: unknown; known are {', '.join(KNOWN)}")
    numbers_of(mixing)
    _check_liars(mixing)
    _check_memory(mixing)
    _check_neighbours(mixing, degree_min)


def _check_liars(mixing: config.Mixing) -> None:
    """Whether liars are borne at all."""
    rule, f = mixing.rule, mixing.f
    if f and rule == "mean":
        raise ConfigError(f"mixing.f = {f}: one liar is enough to move a mean anywhere; use mixing.rule = 'nna'")
    if f and not KNOWN[rule].bears:
        raise ConfigError(
            f"mixing.f = {f}: {rule} promises nothing against liars; use mixing.rule = 'nna', or f = 0 to compare"
        )
    if f and mixing.keep_variance:
        raise ConfigError(f"mixing.keep_variance: a liar's variance counts in full; it needs mixing.f = 0, not {f}")
    if mixing.before and rule == "mean":
        raise ConfigError(f"mixing.before = {mixing.before!r}: changes nothing before a mean; use mixing.before = ''")
    if mixing.before == "nnm" and not f:
        raise ConfigError("mixing.before = 'nnm': is the plain mean with mixing.f = 0; choose f >= 1 or before = ''")


def _check_memory(mixing: config.Mixing) -> None:
    """What rules that remember cannot be combined with."""
    if mixing.rule not in MEMORIES:
        return
    if mixing.before:
        raise ConfigError(f"mixing.before = {mixing.before!r}: {mixing.rule} has to know whose models it mixes; use ''")
    if mixing.keep_variance:
        raise ConfigError(f"mixing.keep_variance: is for rules of vectors alone, which {mixing.rule} is not")
    if mixing.gossip_steps != 1:
        raise ConfigError(
            f"mixing.gossip_steps = {mixing.gossip_steps}: {mixing.rule} judges what peers learnt, once a round; use 1"
        )


def _check_neighbours(mixing: config.Mixing, degree_min: int) -> None:
    """Whether the smallest neighbourhood is large enough, and not too large for rules that try all subsets."""
    rule, f = mixing.rule, mixing.f
    needed = neighbours_needed(mixing, f)
    if degree_min < needed:
        borne = max((less for less in range(f) if neighbours_needed(mixing, less) <= degree_min), default=None)
        advice = "choose another rule" if borne is None else f"choose f <= {borne}"
        about = f"{mixing.before} before {rule}" if mixing.before else rule
        raise ConfigError(
            f"mixing.f = {f}: {about} needs more than {needed - 1} neighbours at every peer, and the graph has a peer "
            f"with {degree_min}; {advice} or a denser graph"
        )
    if rule in ("mda", "mva"):
        least = points_of_degree(mixing, degree_min)
        if (subsets := math.comb(least, f)) > shares.SUBSETS_MAX:
            raise ConfigError(
                f"mixing.rule = {rule!r}: would try {subsets} subsets of {least} vectors each round, and "
                f"{shares.SUBSETS_MAX} is the most; choose a smaller f, a sparser graph, or nna"
            )


def neighbours_needed(mixing: config.Mixing, f: int) -> int:
    """The fewest neighbours with which `f` liars are borne."""
    numbers = numbers_of(mixing)
    points = KNOWN[mixing.rule].least(f, numbers)
    if mixing.before == "bucketing":
        return max(0, points - 2) * int(numbers["bucket_size"]) + min(1, points - 1)
    return points - 1


def points_of_degree(mixing: config.Mixing, degree: int) -> int:
    """How many points the rule sees of a peer with so many neighbours."""
    if mixing.before == "bucketing":
        return buckets(degree + 1, int(numbers_of(mixing)["bucket_size"]))
    return degree + 1
