"""What the README, docs/ and examples/ show is so: tasks train, tables name what there is."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from murmurate.peer.config import parse
from murmurate.peer.errors import ConfigError
from murmurate.peer.learning.make import make_trainer
from murmurate.peer.learning.mixing.rules import BUCKET, KNOWN
from murmurate.peer.learning.prober import make_prober
from murmurate.peer.protocol.events import Mix, Turn

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MODULES = {
    "my_task": README.split("```python\n")[1].split("```")[0],
    "sines": (ROOT / "examples" / "sines.py").read_text(encoding="utf-8"),
}


@pytest.mark.parametrize("module", MODULES)
def test_the_task_that_is_shown_trains(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"{module}.py").write_text(MODULES[module], encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    table = {"name": "a", "peers": {"a": "127.0.0.1:0"}, "task": {"name": f"{module}:make_task"}}
    trainer = make_trainer(parse(table), degree_min=0)
    losses: list[float] = []
    for round in range(1, 6):
        trainer.train(round)
        trainer.mix(Mix(Turn(round), {}, {}))
        losses.append(trainer.figures()["test_loss"])
    assert losses[-1] < losses[0]


def test_the_large_model_that_is_shown_is_a_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to its weights: their folder is empty."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_texts").mkdir()
    (tmp_path / "my_texts" / "train.txt").write_text("one text\n\nanother\n", encoding="utf-8")
    (tmp_path / "models" / "llama-1b").mkdir(parents=True)
    table = tomllib.loads(README.split("```toml\n")[-1].split("```")[0])
    config = parse(table)
    assert config.records == 64
    with pytest.raises(ConfigError, match="models/llama-1b"):
        make_prober(config)


def test_every_number_of_a_mixing_rule_is_explained() -> None:
    table = (ROOT / "docs" / "mixing.md").read_text(encoding="utf-8").split("## Numbers\n")[1].split("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("| `")
    ]
    told = {
        (rule.strip("` "), number.strip("`"), float(default))
        for number, of, default, _ in rows
        for rule in of.split(",")
    }
    known = {(name, number, it.default) for name, rule in KNOWN.items() for number, it in rule.numbers.items()}
    assert told == known | {('before = "bucketing"', number, it.default) for number, it in BUCKET.items()}
