"""What is written as TOML is read back as the same configuration, and docs/configuration.md shows every key."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from murmurate.peer.config import Config, load, parse
from murmurate.peer.toml import reference, to_toml

ROOT = Path(__file__).resolve().parents[1]

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,9}", fullmatch=True)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)  # surrogates are no text in TOML
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
OPTIONS = st.dictionaries(
    TEXTS, TEXTS | st.integers() | FLOATS | st.booleans() | st.lists(FLOATS, max_size=3), max_size=3
)


@st.composite
def tables(draw: st.DrawFn) -> dict[str, Any]:
    names = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    positive = FLOATS.filter(lambda value: value > 0)
    task = {"name": TEXTS, "options": OPTIONS, "data": TEXTS, "alpha": positive, "weights": TEXTS}
    local = {"lr": positive, "options": OPTIONS, "steps": st.integers(1)}
    swarm = {"name": NAMES, "seed": st.integers(0, 2**63 - 1)}
    runtime = {"insecure": st.booleans(), "state_dir": TEXTS, "prometheus": st.just("[::1]:9")}
    return {
        "name": draw(st.sampled_from(names)),
        "peers": {name: f"host:{port}" for port, name in enumerate(names, start=1)},
        "swarm": draw(st.fixed_dictionaries({}, optional=swarm)),
        "task": draw(st.fixed_dictionaries({}, optional=task)),
        "local": draw(st.fixed_dictionaries({}, optional=local)),
        "topology": draw(st.fixed_dictionaries({}, optional={"options": OPTIONS})),
        "runtime": draw(st.fixed_dictionaries({}, optional=runtime)),
    }


@given(tables(), st.booleans())
def test_a_configuration_comes_back_equal(table: dict[str, Any], comments: bool) -> None:
    config = parse(table)
    assert parse(tomllib.loads(to_toml(config, comments))) == config


@pytest.mark.parametrize("key", ["", "degree", "a-b_c", "a.b", "a b", "ü", "²", "😀", '"', "\\", "\n", "\x00", "\x7f"])
def test_an_option_may_have_any_name(key: str) -> None:
    config = parse({"name": "a", "peers": {"a": "host:1"}, "topology": {"options": {key: key}}})
    assert parse(tomllib.loads(to_toml(config))) == config


def test_a_file_comes_back_equal(tmp_path: Path) -> None:
    (tmp_path / "one.toml").write_text(to_toml(parse({"name": "a", "peers": {"a": "host:1"}})), encoding="utf-8")
    config = load(tmp_path / "one.toml")
    (tmp_path / "two.toml").write_text(to_toml(config), encoding="utf-8")
    assert load(tmp_path / "two.toml") == config


def test_every_key_stands_under_its_documentation() -> None:
    lines = to_toml(parse({"name": "a", "peers": {"a": "host:1"}})).splitlines()
    keys = [at for at, line in enumerate(lines) if line and not line.startswith(("#", "["))]
    models = [Config, *(type(value) for _, value in parse({"name": "a", "peers": {"a": "h:1"}}))]
    expected = sum(len(model.model_fields) for model in models if issubclass(model, BaseModel))
    assert len(keys) == expected - len(models) + 3  # [peers] has one key here, the sections of Config are tables
    assert all(lines[at - 1].startswith("#") for at in keys if lines[at] != 'a = "host:1"')
    assert max(map(len, lines)) <= 100


def test_comments_can_be_left_out() -> None:
    assert "#" not in to_toml(parse({"name": "a", "peers": {"a": "host:1"}}), comments=False)


def test_what_toml_has_no_word_for_is_refused() -> None:
    config = parse({"name": "a", "peers": {"a": "host:1"}})
    with pytest.raises(TypeError, match="no TOML for NoneType"):
        to_toml(config.model_copy(update={"name": None}))


def test_the_reference_is_up_to_date() -> None:
    again = "python -c 'from murmurate.peer.toml import reference as r; print(r(), end=str())' > docs/configuration.md"
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == reference(), again


def test_the_reference_is_a_configuration() -> None:
    block = reference().split("```toml\n")[1].split("```")[0]
    assert parse(tomllib.loads(block)).roster == ("a", "b")
