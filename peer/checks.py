"""What must fit together across the sections of a configuration."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from murmurate.peer.config import Config

ROBUST = ("median", "trimmed_mean", "nna", "nnm_trimmed_mean")
LIES_WITH_SEEDS = ("none", "sign_flip", "max_flip", "label_flip", "backdoor")
LIES_OF_ROUNDS = ("alie", "foe", "mimic", "stale", "free_rider")
RECORDS_MAX = 65536  # per batch: what a peer publishes at once stays far below a megabyte (a guess)
EPSILON_MIN, EPSILON_MAX = 2.0**-100, 2.0**20  # float32 has it, and the way there and back (a guess)
LEAN_STEPS_MAX = 2**22  # units of a probe; with weights below 2^23 the sum is still exact in float32


def faults(whole: Any) -> Iterator[str]:
    """What is wrong with a `Config`, the value first, each with what would be right.

    Its type is Any because that module imports this one, and a type checker then knows the class by two paths.
    """
    config: Config = whole
    if config.local.schedule != "constant" and not (config.local.schedule_rounds or config.rounds.max):
        yield f"local.schedule = {config.local.schedule!r}: needs an end: schedule_rounds or rounds.max"
    try:
        re.compile(config.exchange.parameters)
    except re.error as error:
        yield f"exchange.parameters = {config.exchange.parameters!r}: not a regular expression: {error}"
    if config.exchange.name == "seeds":
        if config.exchange.parameters:
            yield "exchange.parameters: selects parts of models; with exchange.name = 'seeds' there is seeds.parameters"
        yield from _seeds(config)
        yield from _liars(config)
    yield from _attack(config)
    if config.audit.rate:
        yield from _audit(config)


def _audit(config: Config) -> Iterator[str]:
    """What can be recomputed from what was heard."""
    audit, exchange, mixing = f"audit.rate = {config.audit.rate}", config.exchange, config.mixing
    if exchange.name != "models":
        yield f"{audit}: models are audited; with exchange.name = {exchange.name!r} it should be 0"
        return
    if exchange.dtype != "float32":
        yield f"{audit}: needs models as they are, so exchange.dtype = 'float32', not {exchange.dtype!r}"
    if exchange.parameters:
        yield f"{audit}: needs whole models, so exchange.parameters = '', not {exchange.parameters!r}"
    if config.audit.deadline_s <= config.liveness.timeout_s:
        yield (
            f"audit.deadline_s = {config.audit.deadline_s}: should be above liveness.timeout_s = "
            f"{config.liveness.timeout_s}, or who is dead and not known to be is banned"
        )
    if mixing.gossip_steps != 1:
        yield f"{audit}: needs mixing.gossip_steps = 1, not {mixing.gossip_steps}"
    if config.task.data:
        yield f"{audit}: nobody else has task.data = {config.task.data!r}; only tasks whose data all peers hold can be"


def _attack(config: Config) -> Iterator[str]:
    attack, seeds = config.attack, config.exchange.name == "seeds"
    if attack.name == "max_flip" and not seeds:
        yield "attack.name = 'max_flip': is a lie about scalars; it needs exchange.name = 'seeds'"
    if seeds and attack.name not in LIES_WITH_SEEDS:
        yield f"attack.name = {attack.name!r}: with exchange.name = 'seeds' it should be {' or '.join(LIES_WITH_SEEDS)}"
    if attack.omniscient and seeds:
        yield "attack.omniscient: is for models; with exchange.name = 'seeds' all hear all records anyway"
    if config.mixing.gossip_steps > 1 and attack.name in LIES_OF_ROUNDS:
        yield f"attack.name = {attack.name!r}: speaks once a round; it needs mixing.gossip_steps = 1"
    for name in attack.accomplices:
        if name not in config.peers:
            yield f"attack.accomplices: {name!r} should be one of [peers]"


def _seeds(config: Config) -> Iterator[str]:
    seeds, local = config.seeds, config.local
    if config.records > RECORDS_MAX:
        yield f"local.steps x seeds.probes = {config.records}: should be at most {RECORDS_MAX} records a round"
    if not -100 <= config.unit_log2 <= 0:
        yield f"local.lr = {local.lr}: no unit of 2^{config.unit_log2} is allowed for it; set seeds.unit_log2"
    if seeds.probe == "ferret" and seeds.directions != "shared":
        yield f"seeds.probe = 'ferret': needs directions = 'shared', not {seeds.directions!r}"
    if seeds.objective == "score" and seeds.probe in ("ferret", "forward"):
        yield f"seeds.objective = 'score': has no derivative, which probe = {seeds.probe!r} needs; use 'spsa'"
    if seeds.sampling == "pro" and seeds.directions != "pool":
        yield f"seeds.sampling = 'pro': draws from a pool; it needs directions = 'pool', not {seeds.directions!r}"
    if seeds.directions == "pool" and seeds.pool < seeds.parts:
        yield (
            f"seeds.pool = {seeds.pool}: with seeds.parts = {seeds.parts} it should be at least that, or some parts "
            "are never trained: a direction moves the part numbered index mod parts"
        )
    if not EPSILON_MIN <= seeds.epsilon <= EPSILON_MAX:
        yield f"seeds.epsilon = {seeds.epsilon}: should be from 2^-100 to 2^20"
    if seeds.memory == "lean" and not 0.5 <= seeds.epsilon / 2.0**config.unit_log2 <= LEAN_STEPS_MAX:
        yield (
            f"seeds.epsilon = {seeds.epsilon}: with memory = 'lean' a probe should be 1 to 2^22 steps of "
            f"2^{config.unit_log2} (seeds.unit_log2) long"
        )
    try:
        re.compile(seeds.parameters)
    except re.error as error:
        yield f"seeds.parameters = {seeds.parameters!r}: not a regular expression: {error}"
    if local.sam_rho and seeds.probe != "ferret":
        yield f"local.sam_rho = {local.sam_rho}: needs gradients, which probe = {seeds.probe!r} does without"
    for key in seeds.authority:
        if not re.fullmatch("[0-9a-f]{64}", key):
            yield f"seeds.authority: {key!r} should be a public key of 64 hexadecimal digits (`murmurate key`)"


def _liars(config: Config) -> Iterator[str]:
    """Who can bear how many."""
    seeds, mixing = config.seeds, config.mixing
    if mixing.rule != "mean" or mixing.gossip_steps != 1:
        yield "mixing.rule, mixing.gossip_steps: mix models; with exchange.name = 'seeds' there is seeds.rule"
    if mixing.before or mixing.options or mixing.keep_variance:
        yield "mixing.before, .options, .keep_variance: mix models; with exchange.name = 'seeds' there is seeds.rule"
    if seeds.rule in ROBUST and seeds.directions != "shared":
        yield f"seeds.rule = {seeds.rule!r}: compares scalars, so it needs directions = 'shared'"
    elif mixing.f and (seeds.rule not in ROBUST or seeds.directions != "shared"):
        yield f"mixing.f = {mixing.f}: liars are borne by directions = 'shared' with seeds.rule = {' or '.join(ROBUST)}"
    elif len(config.peers) <= 2 * mixing.f:
        yield f"mixing.f = {mixing.f}: needs more than {2 * mixing.f} peers, and there are {len(config.peers)}"
