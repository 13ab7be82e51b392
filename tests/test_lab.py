"""Scenarios: what a file means, what is refused, that nothing is run twice, and that both backends do the same."""

from __future__ import annotations

import fcntl
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from murmurate.peer.cli import main
from murmurate.peer.config import parse
from murmurate.peer.errors import ConfigError, LocalError
from murmurate.peer.lab.grid import Grid, simulated, summary
from murmurate.peer.lab.heatmap import draw_grid
from murmurate.peer.lab.scenario import Cell, Scenario, load_scenario
from murmurate.peer.lab.simulator import simulate
from murmurate.peer.lab.tasks import task_plan
from murmurate.peer.toml import to_toml

EXAMPLES = Path(__file__).parent.parent / "examples"

LAB = """
[lab]
peers = 5
liars = 1
alphas = [1.0]
seeds = 1
rules = ["mean", "nna"]
attacks = ["none", "sign_flip"]
[task]
name = "digits"
[local]
steps = 2
lr = 0.2
[topology]
rule = "complete"
[rounds]
max = 12
eval_every = 12
"""


def scenario_of(folder: Path, text: str = LAB) -> Scenario:
    path = folder / "small.toml"
    path.write_text(text, encoding="utf-8")
    return load_scenario(path)


def rounds_of(count: int, text: str) -> str:
    return text.replace("max = 12", f"max = {count}").replace("eval_every = 12", f"eval_every = {count}")


def run(scenario: Scenario, out: Path) -> list[dict[str, Any]]:
    return list(Grid(scenario, out).run(jobs=2))


# What a file means -----------------------------------------------------------------------------------


def test_cells_are_all_combinations_seed_after_seed(tmp_path: Path) -> None:
    text = LAB.replace("[1.0]", "[1.0, 5.0]").replace("seeds = 1", "seeds = 2")
    cells = list(scenario_of(tmp_path, text).cells())
    assert len(cells) == len(set(cells)) == 2 * 2 * 2 * 2
    assert [cell.seed for cell in cells] == [0] * 8 + [1] * 8


def test_a_cell_is_a_swarm(tmp_path: Path) -> None:
    scenario = scenario_of(tmp_path, LAB.replace("liars = 1", "liars = 2").replace("peers = 5", "peers = 11"))
    configs = scenario.configs(Cell("nna", "sign_flip", 1.0, 3), tmp_path)
    assert [config.name for config in configs] == [f"peer-{i:02}" for i in range(11)]
    assert sorted(scenario.liars()) == [2, 8]
    assert [i for i, config in enumerate(configs) if config.attack.name == "sign_flip"] == [2, 8]
    assert configs[2].attack.accomplices == ["peer-02", "peer-08"]
    for config in configs:
        assert (config.mixing.rule, config.mixing.f, config.task.alpha, config.swarm.seed) == ("nna", 2, 1.0, 3)
        assert parse({**config.model_dump()}) == config
        assert to_toml(config)
    assert scenario.key(Cell("nna", "sign_flip", 1.0, 3)) != scenario.key(Cell("nna", "sign_flip", 1.0, 2))
    assert all(config.attack.name == "none" for config in scenario.configs(Cell("mean", "none", 1.0, 0), tmp_path))
    assert scenario.configs(Cell("mean", "none", 1.0, 0), tmp_path)[0].mixing.f == 0  # bears nobody, and promises it


def test_sybils_are_linked_to_a_few_honest_peers_only(tmp_path: Path) -> None:
    text = LAB.replace("liars = 1", "liars = 3\nphi = 2\nf = 1").replace("peers = 5", "peers = 8")
    text = text.replace('"sign_flip"', '"sybil"').replace('"complete"', '"ring"')
    scenario = scenario_of(tmp_path, text)
    configs = scenario.configs(Cell("mean", "sybil", 1.0, 0), tmp_path)
    edges = [line.split() for line in Path(str(configs[0].topology.options["path"])).read_text().splitlines()]
    sybils = {"peer-5", "peer-6", "peer-7"}
    assert all(sum(sybil in edge for edge in edges) == 2 for sybil in sybils)
    assert not any(set(edge) <= sybils for edge in edges)
    assert {config.name for config in configs if config.attack.name == "sybil"} == sybils


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.stem)
def test_examples_are_scenarios(path: Path, tmp_path: Path) -> None:
    assert len(Grid(load_scenario(path), tmp_path)) > 1


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("[lab]", "[lob]", r"has no table \[lab\]"),
        ("peers = 5", "piers = 5", r"piers: unknown key; did you mean peers\?"),
        ("[lab]", 'name = "x"\n[lab]', "name: follows from"),
        ("[task]", "[swarm]\nseed = 3\n[task]", "swarm.seed: follows from"),
        ("[task]", "[mixing]\nf = 3\n[task]", "mixing.f: follows from"),
        ('name = "digits"', 'name = "digits"\npartition = "iid"', "task.partition: follows from"),
        ("[lab]", "swarm = 3\n[lab]", "swarm: should be a table"),
        ("[task]", "[lab.options.krum]\nless = 1\n[task]", "lab.options.krum: is not one of lab.rules: mean, nna"),
        ('"nna"]', '"mean"]', "lab.rules: names something twice"),
        ("[1.0]", "[1.0, -1.0]", "alphas.1 = -1.0: should be greater than 0"),
        ("max = 12", "stale_max = 9", "rounds.max, rounds.eval_every: should be at least 1"),
        ("eval_every = 12", "eval_every = 0", "rounds.max, rounds.eval_every: should be at least 1"),
        ('"nna"]', '"nnna"]', "mixing.rule = 'nnna': unknown"),
        ('"nna"]', '"mnn+nna"]', "lab.rules: mnn.nna: before"),
        ('"sign_flip"]', '"sign"]', "attack.name = 'sign': should be"),
        ('"sign_flip"]', '{ name = "alie", omniscent = true }]', r"attacks.1.omniscent: unknown key"),
        ("liars = 1", "liars = 3", "less than half"),
        ("liars = 1", "liars = 1\nphi = 5", "only 4 honest peers"),
        ("liars = 1", "liars = 1\nf = 3", "mixing.f = 3: nna needs more than 5 neighbours"),
        ('"complete"', '"compleet"', "topology: "),
        ("[task]", '[exchange]\nname = "seeds"\n[task]', "a scenario mixes models"),
        ("[task]", "[task", "not valid TOML"),
    ],
)
def test_what_could_not_run_is_refused_before_anything_has(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert old in LAB
    with pytest.raises(ConfigError, match=expected):
        Grid(scenario_of(tmp_path, LAB.replace(old, new)), tmp_path / "out")
    assert not (tmp_path / "out" / "runs.jsonl").exists()


def test_no_daemon_is_omniscient(tmp_path: Path) -> None:
    text = LAB.replace('"sign_flip"]', '{ name = "foe", omniscient = true }]').replace(
        "[lab]", '[lab]\nbackend="daemons"'
    )
    with pytest.raises(ConfigError, match="omniscient foe needs backend = 'simulator'"):
        Grid(scenario_of(tmp_path, text), tmp_path)


# Runs ------------------------------------------------------------------------------------------------


def test_runs_are_kept_and_never_repeated(tmp_path: Path) -> None:
    scenario, out = scenario_of(tmp_path), tmp_path / "out"
    rows = run(scenario, out)
    assert {(row["rule"], row["attack"]) for row in rows} == {
        (r, a) for r in ("mean", "nna") for a in ("none", "sign_flip")
    }
    accuracy = {(row["rule"], row["attack"]): row["accuracy"] for row in rows}
    assert accuracy["mean", "sign_flip"] < accuracy["nna", "sign_flip"]
    before = (out / "runs.jsonl").read_bytes()
    assert sorted(row["key"] for row in run(scenario, out)) == sorted(row["key"] for row in rows)
    assert (out / "runs.jsonl").read_bytes() == before

    # A crash in the middle of a line costs that run and nothing else.
    lines = before.splitlines(keepends=True)
    (out / "runs.jsonl").write_bytes(b"".join(lines[:-1]) + lines[-1][:20])
    again = {row["key"]: row["accuracy"] for row in run(scenario, out)}
    assert again == {row["key"]: row["accuracy"] for row in rows}
    assert len((out / "runs.jsonl").read_bytes().splitlines()) == 4

    # Another scenario's runs are others, though they lie in the same folder.
    other = scenario_of(tmp_path, LAB.replace("lr = 0.2", "lr = 0.1").replace('["mean", "nna"]', '["mean"]'))
    assert not {row["key"] for row in run(other, out)} & again.keys()


def test_a_folder_belongs_to_one_process(tmp_path: Path) -> None:
    grid = Grid(scenario_of(tmp_path), tmp_path / "out")
    with (tmp_path / "out" / "runs.jsonl").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(LocalError, match="another process is at work"):
            next(grid.run(1))


def test_a_foreign_file_is_not_written_to(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for text in "my notes\n", "my notes", '{"key": 3}\n', "[1]\n":
        (out / "runs.jsonl").write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match="not a scenario's results"):
            run(scenario_of(tmp_path), out)
        assert (out / "runs.jsonl").read_text(encoding="utf-8") == text


DEADLY = """
import os
from murmurate.peer.learning.tasks.digits import make_task as make_digits

def make_task(config):
    if config.mixing.rule == "nna":
        os._exit(7)
    return make_digits(config)
"""


def test_results_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    (tmp_path / "out" / "runs.jsonl").mkdir(parents=True)
    with pytest.raises(LocalError, match=r"runs\.jsonl: cannot be written: Is a directory"):
        run(scenario_of(tmp_path), tmp_path / "out")


def test_a_scenario_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "odd.toml").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ConfigError, match="not a text file in UTF-8"):
        load_scenario(tmp_path / "odd.toml")
    with pytest.raises(ConfigError, match=r"none\.toml: no such file$"):
        load_scenario(tmp_path / "none.toml")


def test_a_run_whose_process_is_killed_is_named_and_the_others_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deadly.py").write_text(DEADLY, encoding="utf-8")
    scenario = scenario_of(tmp_path, LAB.replace('"digits"', '"deadly:make_task"').replace(', "sign_flip"', ""))
    grid = Grid(scenario, tmp_path / "out")
    rows: list[dict[str, Any]] = []
    with pytest.raises(LocalError, match="nna under none, alpha 1, seed 0: its process"):
        rows.extend(grid.run(jobs=1))
    kept = (tmp_path / "out" / "runs.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["rule"] for line in kept] == ["mean"]


def test_a_task_without_accuracy_is_the_users_to_change(tmp_path: Path) -> None:
    text = LAB.replace('name = "digits"', 'name = "examples.sines:make_task"')
    with pytest.raises(ConfigError, match="compares accuracies, and this task has"):
        simulated(scenario_of(tmp_path, text), Cell("mean", "none", 1.0, 0), "key", tmp_path)


def test_paths_count_from_the_scenarios_folder(tmp_path: Path) -> None:
    scenario = scenario_of(tmp_path, LAB.replace('name = "digits"', 'name = "chars"\ndata = "texts"'))
    assert scenario.configs(Cell("mean", "none", 1.0, 0), tmp_path)[0].task.data == str(tmp_path / "texts")


def test_an_omniscient_liar_speaks_last_and_of_this_round(tmp_path: Path) -> None:
    text = LAB.replace('"sign_flip"', '{ name = "foe", omniscient = true }')
    configs = scenario_of(tmp_path, text).configs(Cell("mean", "omniscient_foe", 1.0, 0), tmp_path)
    plan = task_plan(configs)
    sent: dict[int, list[tuple[int, bytes]]] = {}

    def on_sent(i: int, round: int, payload: bytes) -> None:
        assert plan.on_sent is not None
        plan.on_sent(i, round, payload)
        sent.setdefault(round, []).append((i, bytes(payload)))

    simulate(replace(plan, on_sent=on_sent))
    assert len(sent) == 12
    for order in sent.values():
        (liar, lie), honest = order[-1], [np.frombuffer(payload, "<f4") for _, payload in order[:-1]]
        assert liar == 2
        mean = np.mean(honest, axis=0)
        factor = float(np.frombuffer(lie, "<f4") @ mean / (mean @ mean))  # 1 - z
        assert factor < 1
        assert np.allclose(np.frombuffer(lie, "<f4"), factor * mean, rtol=1e-3, atol=1e-5)


def test_a_lone_liar_searches_its_strength_by_itself(tmp_path: Path) -> None:
    scenario = scenario_of(tmp_path, rounds_of(4, LAB.replace('"sign_flip"', '"alie"')))
    honest = simulated(scenario, Cell("mean", "none", 1.0, 0), "key", tmp_path)
    lied = simulated(scenario, Cell("mean", "alie", 1.0, 0), "key", tmp_path)
    assert lied["accuracy"] < honest["accuracy"]


def test_refused_payloads_count_among_the_f(tmp_path: Path) -> None:
    text = LAB.replace('"sign_flip"', '"bomb"').replace('"nna"', '"trimmed_mean"')
    text = rounds_of(35, text.replace("liars = 1", "liars = 2"))
    row = simulated(scenario_of(tmp_path, text), Cell("trimmed_mean", "bomb", 1.0, 0), "key", tmp_path)
    alone = simulated(scenario_of(tmp_path, text), Cell("trimmed_mean", "none", 1.0, 0), "key", tmp_path)
    assert row["accuracy"] > alone["accuracy"] - 0.1


@pytest.mark.parametrize("backend", ["simulator", "daemons"])
def test_a_swarm_that_diverges_counts_as_0(tmp_path: Path, backend: str) -> None:
    text = LAB.replace("lr = 0.2", "lr = 1e30").replace("[lab]", f'[lab]\nbackend = "{backend}"')
    text = text.replace('["mean", "nna"]', '["mean"]').replace('["none", "sign_flip"]', '["none"]')
    (row,) = run(scenario_of(tmp_path, text), tmp_path / "out")
    assert row["accuracy"] == 0
    assert "diverged" in row["failure"]
    assert ("ended with code 3:" in row["failure"]) == (backend == "daemons")


def test_a_run_repeats(tmp_path: Path) -> None:
    cell = Cell("nna", "sign_flip", 1.0, 0)
    one, two = (simulated(scenario_of(tmp_path), cell, "key", tmp_path) for _ in range(2))
    assert {**one, "wall_s": 0} == {**two, "wall_s": 0}


def test_summary() -> None:
    rows = [
        {"rule": "nna", "attack": "foe", "alpha": 1.0, "seed": s, "accuracy": a, "triggered": 0.5}
        for s, a in enumerate((0.8, 0.9))
    ]
    assert summary(rows) == [
        {
            "rule": "nna",
            "attack": "foe",
            "alpha": 1.0,
            "accuracy_mean": 0.85,
            "accuracy_std": 0.0707,
            "seeds": 2,
            "triggered_mean": 0.5,
        }
    ]


def test_the_command_ends_with_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scenario_of(tmp_path)
    assert main(["lab", "run", str(tmp_path / "small.toml"), "--out", str(tmp_path / "out"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {tuple(row) for row in rows} == {("rule", "attack", "alpha", "accuracy_mean", "accuracy_std", "seeds")}
    assert len(rows) == 4
    assert (tmp_path / "out" / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_that_cannot_be_written_is_an_oserror(tmp_path: Path) -> None:
    row = {"rule": "nna", "attack": "foe", "alpha": 1.0, "accuracy_mean": 0.5, "accuracy_std": 0.1, "seeds": 2}
    with pytest.raises(OSError, match="No such file"):
        draw_grid([row], tmp_path / "nowhere" / "plot.png", "title")


def test_daemons_run_the_same_scenario(tmp_path: Path) -> None:
    text = LAB.replace("[lab]", '[lab]\nbackend = "daemons"').replace('["mean", "nna"]', '["nna"]')
    text = (
        text.replace('["none", "sign_flip"]', '["sign_flip"]')
        .replace("peers = 5", "peers = 4")
        .replace("f = 1", "f = 1")
    )
    text = text.replace("[lab]", "[lab]\ntimeout_s = 150.0") + "[liveness]\njoin_s = 60.0\ntimeout_s = 60.0\n"
    stale = tmp_path / "out" / "daemons" / scenario_of(tmp_path, text).key(Cell("nna", "sign_flip", 1.0, 0))
    (stale / "peer-0").mkdir(parents=True)
    (stale / "peer-0" / "snapshot.safetensors").write_bytes(b"of a run that was interrupted")
    rows = run(scenario_of(tmp_path, text), tmp_path / "out")
    assert len(rows) == 1
    assert rows[0]["backend"] == "daemons"
    assert not stale.exists()
    simulation = scenario_of(tmp_path, text.replace('backend = "daemons"', 'backend = "simulator"'))
    (twin,) = run(simulation, tmp_path / "out")
    assert twin["key"] != rows[0]["key"]
    assert abs(twin["accuracy"] - rows[0]["accuracy"]) < 0.1
