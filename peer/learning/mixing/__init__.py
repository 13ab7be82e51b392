"""How neighbours' models become part of ours: the `Mixer` seam, and the promise that each rule is used only where it
can keep it.

Two kinds of rules. Those that weigh whole vectors (shares.py) need the vectors' Gram matrix only; those that look at
single parameters (places.py) sort. Both may come after a pre-aggregation (geometry.py). rules.py knows them by name.
"""

from __future__ import annotations

from murmurate.peer import config

from .mixer import Fold, Guarded, Mixer, Plan, mean, nna
from .rules import RULES, check, numbers_of
from .variance import keeping_variance

__all__ = ["RULES", "Mixer", "keeping_variance", "make_mixer"]


def make_mixer(mixing: config.Mixing, degree_min: int) -> Mixer:
    """The configured rule, without `mixing.keep_variance`, which has to know the model.

    Raises ConfigError for a rule, an option or a pre-aggregation that cannot work, and if the rule cannot bear
    `mixing.f` liars among `degree_min` neighbours.
    """
    check(mixing, degree_min)
    return Guarded(_fold(mixing), mixing.f)


def _fold(mixing: config.Mixing) -> Fold:
    rule = RULES[mixing.rule]
    plan = Plan(rule, numbers_of(mixing), mixing.before)
    if rule.places is not None:
        return plan.by_parameters
    if rule.shares is None:
        return mean
    if mixing.rule == "nna" and not mixing.before:
        return nna
    return plan.by_vectors
