"""Whatever is wrong with a configuration is one line that names the key, the value and what would be right."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from murmurate.peer import config as module
from murmurate.peer.config import Config, load, parse, split_address
from murmurate.peer.errors import ConfigError

PEERS = {"a": "127.0.0.1:7000", "b": "127.0.0.1:7001"}
SECTIONS = {
    name: field.annotation
    for name, field in Config.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
}


def table(**sections: Any) -> dict[str, Any]:
    return {"name": "a", "peers": PEERS, **sections}


def fault(**sections: Any) -> str:
    with pytest.raises(ConfigError) as raised:
        parse(table(**sections), "swarm.toml")
    line = str(raised.value)
    assert "\n" not in line
    return line.removeprefix("swarm.toml: ")


# Every kind of fault ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        ({"rounds": {"maximum": 3}}, "rounds.maximum: unknown key; did you mean max?"),
        ({"swarms": {}}, "swarms: unknown key; did you mean swarm?"),
        ({"batch_size": 8}, "batch_size: unknown key; did you mean local.batch_size?"),
        ({"exchange": {"zzz": 1}}, "exchange.zzz: unknown key; known here: name, dtype, parameters"),
        ({"attack": {"a\nb": 1}}, r'attack."a\nb": unknown key; known here: name, scale, accomplices, omniscient'),
    ],
)
def test_an_unknown_key_is_named_with_what_was_probably_meant(sections: dict[str, Any], line: str) -> None:
    assert fault(**sections) == line


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        ({"rounds": {"max": "3"}}, "rounds.max = '3': should be a valid integer"),
        ({"rounds": {"max": 3.0}}, "rounds.max = 3.0: should be a valid integer"),
        ({"local": {"steps": True}}, "local.steps = True: should be a valid integer"),
        ({"runtime": {"insecure": 1}}, "runtime.insecure = 1: should be a valid boolean"),
        ({"runtime": {"listen": 7000}}, "runtime.listen = 7000: should be a valid string"),
        ({"swarm": 3}, "swarm = 3: should be a table: [swarm]"),
        ({"peers": "a"}, "peers = 'a': should be a table: [peers]"),
        ({"peers": {"a": 7000}}, "peers.a = 7000: should be a valid string"),
        ({"task": {"options": 3}}, "task.options = 3: should be a table: [task.options]"),
        ({"name": "a" * 99 + " "}, f"name = '{'a' * 56}...: {module.NAME_RULE}"),
    ],
)
def test_a_wrong_type_is_named_with_the_right_one(sections: dict[str, Any], line: str) -> None:
    assert fault(**sections) == line


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [1.0, float("nan")], [1, "x"], {"deep": 1}, None])
def test_an_option_should_be_plain_and_finite(value: object) -> None:
    shown = f"local.options.k = {value!r}"
    assert fault(local={"options": {"k": value}}) == (
        f"{shown}: should be a string, a finite number, a list of finite numbers, true or false"
    )


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        ({"rounds": {"deadline_s": 0.0}}, "rounds.deadline_s = 0.0: should be greater than 0"),
        ({"rounds": {"deadline_s": float("inf")}}, "rounds.deadline_s = inf: should be a finite number"),
        ({"rounds": {"deadline_s": float("nan")}}, "rounds.deadline_s = nan: should be a finite number"),
        ({"rounds": {"stale_max": -1}}, "rounds.stale_max = -1: should be greater than or equal to 0"),
        ({"mixing": {"gossip_steps": 65}}, "mixing.gossip_steps = 65: should be less than or equal to 64"),
        ({"swarm": {"seed": 2**63}}, f"swarm.seed = {2**63}: should be less than {2**63}"),
        ({"task": {"partition": "even"}}, "task.partition = 'even': should be 'iid', 'dirichlet' or 'shards'"),
        ({"swarm": {"name": ""}}, f"swarm.name = '': {module.NAME_RULE}"),
        ({"swarm": {"name": "-x"}}, f"swarm.name = '-x': {module.NAME_RULE}"),
        (
            {"liveness": {"timeout_s": 1.0}},
            "liveness: timeout_s = 1.0 should be at least 3 x heartbeat_s = 0.5",
        ),
    ],
)
def test_a_value_out_of_range_is_named_with_the_range(sections: dict[str, Any], line: str) -> None:
    assert fault(**sections) == line


def test_a_peer_should_be_in_the_roster() -> None:
    assert fault(name="c") == "name = 'c' should be one of [peers]: a, b"
    assert fault(peers={}) == "name = 'a' should be one of [peers]: none"


def test_what_is_required_is_named() -> None:
    with pytest.raises(ConfigError) as raised:
        parse({}, "x")
    assert str(raised.value).splitlines() == [
        "x: name: is required, and missing; a file for several peers is told it with --name",
        "x: peers: is required, and missing",
    ]


def test_every_fault_of_a_file_has_its_line() -> None:
    with pytest.raises(ConfigError) as raised:
        parse(table(rounds={"max": -1, "oops": 2}, local={"lr": 0.0}), "x")
    assert len(str(raised.value).splitlines()) == 3


# Addresses --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        ("127.0.0.1:7000", "127.0.0.1", 7000),
        ("peer-1.lan:65535", "peer-1.lan", 65535),
        ("[::1]:7000", "::1", 7000),
        ("[fe80::1%eth0]:7000", "fe80::1%eth0", 7000),
        ("localhost:0", "localhost", 0),
    ],
)
def test_an_address_is_a_host_and_a_port(address: str, host: str, port: int) -> None:
    assert split_address(address, "k") == (host, port)
    assert parse(table(peers={"a": address})).listen == address


BAD_ADDRESSES = [
    *("", "7000", ":7000", "host", "host:", "host:x", "host:70000", "host:-1", "host:7_0", "host:²", "h h:1"),
    *("::1:7000", "[::1]", "[:::1]:7000", "[host]:7000", "http://host:7000", "host:7000/", "host:7000\n"),
]


@pytest.mark.parametrize("address", BAD_ADDRESSES)
def test_a_bad_address_is_named_with_good_ones(address: str) -> None:
    right = "should be host:port, e.g. 192.168.1.5:7000 or [::1]:7000"
    assert fault(peers={"a": address}) == f"peers.a = {address!r}: {right}"
    if address:  # empty has a meaning for these two
        assert fault(runtime={"listen": address}) == f"runtime.listen = {address!r}: {right}"
        assert fault(runtime={"prometheus": address}) == f"runtime.prometheus = {address!r}: {right}"


def test_two_peers_have_two_addresses() -> None:
    line = "peers.b = 'HOST:7000': is the address of a too; each peer should have its own"
    assert fault(peers={"a": "host:7000", "b": "HOST:7000"}) == line
    parse(table(peers={"a": "host:7000", "b": "host:7001", "c": "host2:7000"}))
    parse(table(peers={"a": "127.0.0.1:0", "b": "127.0.0.1:0"}))  # any free port


def test_every_peer_has_a_proper_name() -> None:
    assert fault(peers={"a": "host:1", "b c": "host:2"}) == f'peers."b c": the name {module.NAME_RULE}'
    assert fault(peers={"a": "host:1", "b\n": "host:2"}) == f'peers."b\\n": the name {module.NAME_RULE}'


def test_a_peer_may_have_the_name_of_a_key() -> None:
    assert fault(peers={"a": "host:1", "options": 2}) == "peers.options = 2: should be a valid string"


# Files ------------------------------------------------------------------------------------------------


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


MINIMAL = '[peers]\na = "host:1"\nb = "host:2"\n'


def file_fault(path: Path) -> str:
    with pytest.raises(ConfigError) as raised:
        load(path)
    line = str(raised.value)
    assert line.startswith(f"{path}: ")
    assert "\n" not in line
    return line.removeprefix(f"{path}: ")


def test_a_missing_file_says_how_to_get_one(tmp_path: Path) -> None:
    assert file_fault(tmp_path / "swarm.toml") == "no such file; `murmurate init` writes one"


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    assert file_fault(tmp_path) == "cannot be read: Is a directory"


def test_an_unreadable_file_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, os.strerror(13), "x")

    monkeypatch.setattr(Path, "read_text", refuse)  # real permissions would not stop root
    assert file_fault(tmp_path / "swarm.toml") == "cannot be read: Permission denied"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("name = ", "not valid TOML: Invalid value (at end of document)"),
        ("name = 'a'\nname = 'b'", "not valid TOML: Cannot overwrite a value (at end of document)"),
        (b"name = '\xff'", "not a text file in UTF-8: invalid start byte at byte 8"),
        ("seed = " + "9" * 5000, "not valid TOML: Exceeds the limit"),
        ("x = " + "[" * 5000, "not valid TOML: maximum recursion depth exceeded"),
    ],
    ids=["syntax", "duplicate", "encoding", "huge", "deep"],
)
def test_a_garbled_file_says_where(tmp_path: Path, text: str | bytes, why: str) -> None:
    assert file_fault(write(tmp_path / "swarm.toml", text)).startswith(why)


def test_a_fault_in_a_file_names_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "swarm.toml", "name = 'a'\n" + MINIMAL + "[rounds]\nmax = nan\n")
    assert file_fault(path) == "rounds.max = nan: should be a valid integer"


def test_one_file_serves_several_peers(tmp_path: Path) -> None:
    path = write(tmp_path / "swarm.toml", "\ufeff" + MINIMAL)  # with the mark that some editors write
    assert [load(path, name).index for name in ("a", "b")] == [0, 1]
    assert load(path, "b").listen == "host:2"
    with pytest.raises(ConfigError, match="name = 'c' should be one of"):
        load(path, "c")


def test_relative_paths_count_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    folder = tmp_path / "here"
    folder.mkdir()
    text = (
        "name = 'a'\n" + MINIMAL + "[task]\ndata = 'texts'\nweights = '~/w'\n[topology]\noptions = {path = 'g.xml'}\n"
    )
    monkeypatch.chdir(folder)
    write(Path("swarm.toml"), text)
    config = load(Path("swarm.toml"))
    monkeypatch.chdir("/")
    assert config.state_dir == folder / "runs" / "a"
    assert config.task.data == str(folder / "texts")
    assert config.task.weights == "/home/me/w"
    assert config.topology.options["path"] == str(folder / "g.xml")

    absolute = write(folder / "b.toml", "name = 'b'\n" + MINIMAL + "[runtime]\nstate_dir = '/var/murmurate'\n")
    config = load(absolute)
    assert config.state_dir == Path("/var/murmurate")
    assert (config.task.data, config.task.weights) == ("", "")


# Documentation ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("section", ["", *SECTIONS])
def test_every_key_is_documented(section: str) -> None:
    model = SECTIONS[section] if section else Config
    assert model is not None
    assert (model.__doc__ or "").strip()
    undocumented = [name for name, field in model.model_fields.items() if not field.description]
    assert undocumented == ([] if section else list(SECTIONS))  # a section's text is that of its class


def test_a_configuration_cannot_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse(table()).rounds.max = 3  # pyright: ignore[reportAttributeAccessIssue]: that is the point
