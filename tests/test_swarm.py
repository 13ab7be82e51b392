"""Real daemons, one process each, over loopback with a real task: churn, in the plain.

Nothing here asserts a duration. Where a rule must not depend on a timeout, the timeouts are set to an hour: a daemon
that relied on them would run into the test's own limit.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from murmurate.peer.lab.cohort import Cohort, loopback_configs

HOUR_S = 3600.0
LIMIT_S = 150.0  # a safety net, far above what any of these needs

TABLE: dict[str, Any] = {
    "task": {"name": "digits"},
    "local": {"steps": 5, "lr": 0.1},
    "rounds": {"max": 30, "deadline_s": HOUR_S, "eval_every": 10},
    "liveness": {"join_s": HOUR_S, "timeout_s": HOUR_S},
    "runtime": {"threads": 1, "snapshot_s": 0.0},
}


@contextmanager
def swarm(folder: Path, count: int, **changes: dict[str, Any]) -> Generator[Cohort, None, None]:
    table = {key: {**section, **changes.get(key, {})} for key, section in TABLE.items()}
    table |= {key: section for key, section in changes.items() if key not in TABLE}
    with Cohort(folder, loopback_configs(folder, [f"p{i}" for i in range(count)], table)) as cohort:
        yield cohort


def test_a_swarm_trains_and_every_daemon_leaves_cleanly(tmp_path: Path) -> None:
    with swarm(tmp_path, 4) as cohort:
        cohort.start()
        cohort.wait(lambda: not cohort.running(), LIMIT_S)
        for name, process in cohort.processes.items():
            assert process.returncode == 0, cohort.log(name)
            rounds = cohort.rows(name)
            assert [row["round"] for row in rounds] == list(range(1, 31))
            assert all(len(row["folded"]) == 2 and not row["missing"] for row in rounds)  # nobody ever waited in vain
            assert rounds[-1]["accuracy"] > 0.8


def test_survivors_of_a_kill_go_on_without_waiting_for_any_timeout(tmp_path: Path) -> None:
    with swarm(tmp_path, 4, rounds={"max": 0}) as cohort:
        cohort.start()
        cohort.wait(lambda: cohort.round("p1") >= 5, LIMIT_S)
        cohort.kill("p1")
        goal = cohort.round("p1") + 20
        cohort.wait(lambda: all(cohort.round(name) >= goal for name in ("p0", "p2", "p3")), LIMIT_S)
        for name in ("p0", "p2"):
            assert {row["state"] for row in cohort.rows(name, "peer") if row["peer"] == "p1"} == {"alive", "suspect"}


def test_a_frozen_peer_costs_one_liveness_timeout(tmp_path: Path) -> None:
    """SIGSTOP leaves the links open: only silence tells, and it tells once."""
    with swarm(tmp_path, 4, rounds={"max": 0}, liveness={"timeout_s": 2.0, "heartbeat_s": 0.2}) as cohort:
        cohort.start()
        cohort.wait(lambda: cohort.round("p1") >= 5, LIMIT_S)
        os.kill(cohort.processes["p1"].pid, signal.SIGSTOP)
        goal = cohort.round("p1") + 20
        cohort.wait(lambda: all(cohort.round(name) >= goal for name in ("p0", "p2", "p3")), LIMIT_S)
        states = [row["state"] for row in cohort.rows("p0", "peer") if row["peer"] == "p1"]
        assert "dead" in states


def test_a_killed_peer_returns_from_its_snapshot_and_joins_the_others_round(tmp_path: Path) -> None:
    with swarm(tmp_path, 4, rounds={"max": 0, "eval_every": 1}) as cohort:
        cohort.start()
        cohort.wait(lambda: cohort.round("p1") >= 5, LIMIT_S)
        cohort.kill("p1")
        killed = cohort.round("p1")
        cohort.wait(lambda: cohort.round("p0") >= killed + 10, LIMIT_S)
        cohort.start("p1")
        cohort.wait(lambda: bool(cohort.rows("p1", "joined")) and cohort.round("p1") > killed, LIMIT_S)
        lives = cohort.rows("p1", "started")
        assert lives[0]["incarnation"] < lives[1]["incarnation"]
        assert 0 < lives[1]["round"] <= killed + 1
        assert cohort.rows("p1", "joined")[0]["round"] >= killed + 5
        cohort.wait(lambda: "p1" in cohort.rows("p0")[-1]["folded"], LIMIT_S)


def test_a_late_joiner_takes_over_the_model_and_harms_nobody(tmp_path: Path) -> None:
    late = "p4"
    with swarm(tmp_path, 5, rounds={"max": 0, "eval_every": 1}, liveness={"join_s": 2.0}) as cohort:
        cohort.start("p0", "p1", "p2", "p3")
        cohort.wait(lambda: bool(cohort.rows("p0")) and cohort.rows("p0")[-1]["accuracy"] > 0.9, LIMIT_S)
        before = cohort.round("p0")
        cohort.start(late)
        cohort.wait(lambda: cohort.round(late) > 0 and late in cohort.rows("p0")[-1]["folded"], LIMIT_S)
        joined = cohort.rows(late, "joined")[0]
        assert joined["round"] >= before
        assert set(joined["sources"]) == {"p0", "p3"}  # its neighbours on the ring
        assert cohort.rows(late)[0]["accuracy"] > 0.85  # after its first round of its own
        assert all(row["accuracy"] > 0.8 for row in cohort.rows("p0") if row["round"] > before)


def test_liars_are_outvoted_by_nearest_neighbour_mixing(tmp_path: Path) -> None:
    graph = {"rule": "random_regular", "options": {"degree": 4}}
    with swarm(tmp_path, 6, mixing={"rule": "nna", "f": 1}, topology=graph) as cohort:
        liar = cohort.configs["p2"]
        lie = liar.attack.model_copy(update={"name": "sign_flip", "scale": 3.0})
        cohort.reconfigure(liar.model_copy(update={"attack": lie}))
        cohort.start()
        cohort.wait(lambda: not cohort.running(), LIMIT_S)
        honest = [cohort.rows(name)[-1]["accuracy"] for name in cohort.configs if name != "p2"]
        assert min(honest) > 0.8


def test_another_swarms_peer_is_refused_with_the_field_that_differs(tmp_path: Path) -> None:
    def refused(cohort: Cohort, name: str) -> bool:
        return any("mixing.gossip_steps" in row["reason"] for row in cohort.rows(name, "refused"))

    # Without an end to their rounds: the first could be through before the second has started.
    with swarm(tmp_path, 2, liveness={"join_s": 1.0}, rounds={"max": 0}) as cohort:
        odd = cohort.configs["p1"]
        cohort.reconfigure(odd.model_copy(update={"mixing": odd.mixing.model_copy(update={"gossip_steps": 2})}))
        cohort.start()
        # Each goes on alone.
        cohort.wait(lambda: all(refused(cohort, name) and cohort.round(name) >= 30 for name in ("p0", "p1")), LIMIT_S)


def test_killed_at_any_instant_and_resumed_a_lone_peer_ends_with_the_same_bits(tmp_path: Path) -> None:
    def digest(folder: Path, kills: int) -> bytes:
        with swarm(folder, 1, rounds={"max": 60}) as cohort:
            cohort.start()
            for life in range(kills):
                # Killed as soon as it has got a little further, wherever that finds it.
                cohort.wait(lambda life=life: len(cohort.rows("p0", "started")) > life, LIMIT_S)
                cohort.wait(lambda goal=9 * (life + 1): cohort.round("p0") >= goal, LIMIT_S)
                cohort.kill("p0")
                cohort.start("p0")
            cohort.wait(lambda: not cohort.running(), LIMIT_S)
            assert len(cohort.rows("p0", "started")) == kills + 1
            return cohort.configs["p0"].state_dir.joinpath("snapshot.safetensors").read_bytes()

    assert digest(tmp_path / "straight", 0) == digest(tmp_path / "killed", 6)
