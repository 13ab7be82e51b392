"""What a configuration of the seeds exchange may not ask for, and what it comes to."""

from __future__ import annotations

from typing import Any

import pytest

from murmurate.peer.config import parse
from murmurate.peer.errors import ConfigError

from .seeds_peers import config_of


@pytest.mark.parametrize(
    ("tables", "expected"),
    [
        (
            {"seeds": {"probes": 4096}, "local": {"steps": 17}},
            "local.steps x seeds.probes = 69632: should be at most 65536",
        ),
        ({"local": {"lr": 1000.0}}, r"local.lr = 1000.0: no unit of 2\^2 is allowed for it; set seeds.unit_log2"),
        ({"seeds": {"probe": "ferret"}}, "seeds.probe = 'ferret': needs directions = 'shared', not 'private'"),
        ({"seeds": {"objective": "score", "probe": "forward"}}, "seeds.objective = 'score': has no derivative"),
        ({"seeds": {"sampling": "pro"}}, "seeds.sampling = 'pro': draws from a pool"),
        ({"local": {"schedule": "linear"}}, "local.schedule = 'linear': needs an end: schedule_rounds or rounds.max"),
        (
            {"seeds": {"memory": "lean", "epsilon": 1e-9}},
            "seeds.epsilon = 1e-09: with memory = 'lean' a probe should be",
        ),
        ({"seeds": {"memory": "lean", "epsilon": 1e5}}, r"1 to 2\^22 steps of 2\^-15"),
        ({"seeds": {"epsilon": 1e-50}}, r"seeds.epsilon = 1e-50: should be from 2\^-100 to 2\^20"),
        ({"seeds": {"epsilon": 2.0**21}}, r"seeds.epsilon = 2097152.0: should be from 2\^-100 to 2\^20"),
        (
            {"seeds": {"directions": "pool", "pool": 7, "parts": 8}},
            "seeds.pool = 7: with seeds.parts = 8 it should be at least that, or some parts are never trained",
        ),
        ({"seeds": {"parameters": "("}}, r"seeds.parameters = '\(': not a regular expression"),
        ({"seeds": {"authority": ["xyz"]}}, "seeds.authority: 'xyz' should be a public key of 64 hexadecimal digits"),
        ({"local": {"sam_rho": 0.1}}, "local.sam_rho = 0.1: needs gradients"),
        ({"mixing": {"rule": "nna"}}, "mixing.rule, mixing.gossip_steps: mix models; .* there is seeds.rule"),
        ({"mixing": {"gossip_steps": 2}}, "mixing.rule, mixing.gossip_steps"),
        ({"seeds": {"rule": "median"}}, "seeds.rule = 'median': compares scalars, so it needs directions = 'shared'"),
        ({"mixing": {"f": 1}}, "mixing.f = 1: liars are borne by directions = 'shared' with seeds.rule = median or"),
        ({"mixing": {"f": 1}, "seeds": {"directions": "shared"}}, "mixing.f = 1: liars are borne by"),
        (
            {"mixing": {"f": 1}, "seeds": {"directions": "shared", "rule": "nna"}},
            "mixing.f = 1: needs more than 2 peers, and there are 2",
        ),
        ({"seeds": {"momentum": 0.999}}, "seeds.momentum = 0.999: should be less than or equal to 0.99"),
    ],
)
def test_what_does_not_fit_together_is_one_line(tables: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected) as raised:
        config_of(**tables)
    assert "\n" not in str(raised.value)


def test_the_other_exchange_does_not_care() -> None:
    base = {"name": "a", "peers": {"a": "127.0.0.1:0"}}
    parse({**base, "seeds": {"probe": "ferret"}, "mixing": {"rule": "nna", "gossip_steps": 2}})
    with pytest.raises(ConfigError, match=r"attack\.name = 'max_flip': is a lie about scalars; it needs exchange"):
        parse({**base, "attack": {"name": "max_flip"}})


def test_what_fits_is_accepted() -> None:
    config_of(seeds={"probe": "ferret", "directions": "shared"}, local={"sam_rho": 0.1})
    config_of(local={"schedule": "cosine"}, rounds={"max": 9})
    config_of(seeds={"memory": "lean", "authority": ["0f" * 32]})
    config_of(seeds={"directions": "pool", "pool": 8, "parts": 8})
    config_of(seeds={"pool": 7, "parts": 8})
    config_of(names="abc", seeds={"directions": "shared", "rule": "trimmed_mean"}, mixing={"f": 1})


@pytest.mark.parametrize(
    ("lr", "probes", "unit_log2", "expected"),
    [(1.0, 1, 0, -8), (0.01, 1, 0, -15), (0.01, 64, 0, -21), (1e-6, 1, 0, -28), (0.01, 64, -12, -12)],
)
def test_a_slope_of_one_is_worth_about_256_units(lr: float, probes: int, unit_log2: int, expected: int) -> None:
    config = config_of(local={"lr": lr}, seeds={"probes": probes, "unit_log2": unit_log2})
    assert config.unit_log2 == expected
    assert config.records == 2 * probes
