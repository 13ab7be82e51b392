"""Real daemons of the `seeds` exchange with the real replica, one process each, and a liar among them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from murmurate.peer.build import build_manifest, build_topology
from murmurate.peer.config import Config
from murmurate.peer.lab.cohort import Cohort, loopback_configs
from murmurate.peer.learning.prober import Prober, make_prober
from murmurate.peer.protocol.events import Fold, PeerId
from murmurate.peer.protocol.records import Origin
from murmurate.peer.runtime.control import ControlClient
from murmurate.peer.runtime.identity import open_identity
from murmurate.peer.runtime.log import Log

LIMIT_S = 150.0  # a safety net
STEPS, PROBES = 4, 16
ROUNDS = 120
LIES = 1000  # records to be undone, at the least
LIAR = "p2"
TABLE: dict[str, Any] = {
    "task": {"name": "digits"},
    "local": {"steps": STEPS, "batch_size": 16, "lr": 0.01},
    "exchange": {"name": "seeds"},
    "seeds": {"probes": PROBES},
    # Who is done stays, so that we can ask it.
    "rounds": {"max": ROUNDS, "eval_every": 0, "deadline_s": 3600.0},
    "runtime": {"threads": 1},
}


def configs_of(folder: Path) -> list[Config]:
    """Four peers, of which p0 may retract and p2 lies."""
    configs = loopback_configs(folder, ["p0", "p1", "p2", "p3"], TABLE)
    authority = [open_identity(configs[0].state_dir).origin.hex()]
    lie = {"attack": configs[0].attack.model_copy(update={"name": "max_flip"})}
    return [
        config.model_copy(
            update={
                "seeds": config.seeds.model_copy(update={"authority": authority}),
                **(lie if config.name == LIAR else {}),
            }
        )
        for config in configs
    ]


def never_heard(config: Config, voided: Origin) -> Prober:
    """A replica of this peer's log but for one feed."""
    prober = make_prober(config)
    swarm_id = build_manifest(config, build_topology(config), prober.schema, prober.base).swarm_id
    prober.begin(swarm_id, open_identity(config.state_dir).origin)
    log = Log(config.state_dir, swarm_id, lambda _: True)
    batches = tuple(batch for batch in log.open().batches if batch.origin != voided and batch.number)
    log.close()
    names = dict.fromkeys((batch.origin for batch in batches), PeerId("whoever"))
    prober.fold(Fold(0, batches, (), tuple(names.items())))
    return prober


def test_a_liars_thousand_records_are_undone_as_if_nobody_had_heard_them(tmp_path: Path) -> None:
    configs = configs_of(tmp_path)
    with Cohort(tmp_path, configs) as cohort:
        cohort.start()
        client = ControlClient(configs[0].state_dir)

        def of_the_liar(name: str) -> int:
            status = cohort.status(name) or {"records": {"origins": []}}
            return sum(origin["records"] for origin in status["records"]["origins"] if origin["peer"] == LIAR)

        cohort.wait(lambda: all(of_the_liar(name) >= LIES for name in cohort.configs), LIMIT_S)
        voided = bytes.fromhex(client.retract(LIAR, 0)["origin"])
        rounds_then = {name: cohort.round(name) for name in ("p0", "p1", "p3")}

        def weights() -> set[str]:
            statuses = [cohort.status(name) for name in cohort.configs]
            if any(status is None or status["phase"] != "idle" for status in statuses):
                return set()
            return {status["records"]["weights"] for status in statuses if status is not None}

        cohort.wait(lambda: len(found := weights()) == 1 and "" not in found, LIMIT_S)
        (digest,) = weights()
        for name in cohort.configs:
            (row,) = cohort.rows(name, "voided")
            assert (row["peer"], row["from_seq"], row["forked"]) == (LIAR, 0, False)
            assert of_the_liar(name) == 0
        assert max(rounds_then.values()) < ROUNDS, "all was over before the retraction: more rounds"
        records = (cohort.status("p1") or {})["records"]["records"]
        assert records == 3 * ROUNDS * STEPS * PROBES
    assert never_heard(configs[0], Origin(voided)).weights_digest().hex() == digest
