"""How neighbours' models become part of ours: the `Mixer` seam, and the promise that each rule is used only where it
can keep it.

Two kinds of rules. Those that weigh whole vectors (shares.py) need the vectors' Gram matrix only; those that look at
single parameters (places.py) sort. Both may come after a pre-aggregation (geometry.py). A third kind remembers who sent
what, or has to be told more than vectors: the `Memory` seam (memory.py). rules.py knows all of them by name.
"""

from __future__ import annotations

from torch import Tensor

from murmurate.peer import config
from murmurate.peer.errors import ConfigError
from murmurate.peer.learning.flat import Schema

from .bristle import Bristle, Judge
from .histories import FoolsGold, SybilWall
from .memory import Memory, Place, Received
from .mixer import Fold, Guarded, Mixer, Plan, mean, nna, ours
from .reputation import Reputations
from .rules import MEMORIES, RULES, check, numbers_of
from .variance import keeping_variance

__all__ = [
    "MEMORIES",
    "RULES",
    "Memory",
    "Mixer",
    "Received",
    "keeping_variance",
    "make_memory",
    "make_mixer",
]


def make_mixer(mixing: config.Mixing, degree_min: int) -> Mixer:
    """The configured rule, without `mixing.keep_variance`, which has to know the model.

    Raises ConfigError for a rule, an option or a pre-aggregation that cannot work, and if the rule cannot bear
    `mixing.f` liars among `degree_min` neighbours.

    For a rule that remembers it keeps our own model as it is: so a joiner takes the best model that it is offered, and
    nothing of the others, whom it does not know yet.
    """
    check(mixing, degree_min)
    return Guarded(_fold(mixing), mixing.f)


def make_memory(whole: config.Config, mine_D: Tensor, schema: Schema, judge: Judge | None) -> Memory | None:
    """The configured rule if it is one that remembers; None for the others. `mine_D` are the first weights, as far as
    they are exchanged, and `schema` says what they are; `judge` is for bristle, and may be None for all others.

    Raises ConfigError for an exchange with which it cannot work.
    """
    mixing = whole.mixing
    if mixing.rule not in MEMORIES:
        return None
    numbers = numbers_of(mixing)
    place = Place(whole.swarm.seed, whole.index, whole.roster)
    match mixing.rule:
        case "foolsgold":
            return FoolsGold(place, mine_D, numbers)
        case "sybilwall":
            if whole.exchange.dtype != "float32":
                raise ConfigError(
                    f"exchange.dtype = {whole.exchange.dtype!r}: mixing.rule = 'sybilwall' sends whole numbers behind "
                    "the model, which need 'float32'"
                )
            return SybilWall(place, mine_D, numbers)
        case "rffl":
            return Reputations(place, mine_D, numbers)
        case _:
            assert judge is not None
            return Bristle(place, mine_D, schema, judge, numbers)


def _fold(mixing: config.Mixing) -> Fold:
    if mixing.rule in MEMORIES:
        return ours
    rule = RULES[mixing.rule]
    plan = Plan(rule, numbers_of(mixing), mixing.before)
    if rule.places is not None:
        return plan.by_parameters
    if rule.shares is None:
        return mean
    if mixing.rule == "nna" and not mixing.before:
        return nna
    return plan.by_vectors
