"""The command line: exit codes, messages without a traceback, and JSON on the last line."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import pytest
import shtab
from rich.console import Console

from murmurate.peer import cli, console
from murmurate.peer.cli import main
from murmurate.peer.config import load
from murmurate.peer.errors import LocalError
from murmurate.peer.runtime.control import ControlClient
from murmurate.peer.toml import to_toml

from .toy import MAKER, Life, living, make_config, maker_module

DAEMON_COMMANDS = ("run", "status", "peers", "leave", "export", "retract", "key", "config")
ARGUMENTS = {"export": ["model"], "retract": ["b", "--from", "0"]}  # of those that need some
COMMANDS = ("demo", "init", *DAEMON_COMMANDS, "topology", "sim", "bench", "completion")

Capture = pytest.CaptureFixture[str]
pytestmark = pytest.mark.usefixtures("here")


def config_file(folder: Path, **tables: Any) -> str:
    (folder / "swarm.toml").write_text(to_toml(make_config(folder, "a", {"a": 0}, **tables)), encoding="utf-8")
    return "swarm.toml"


def complaint(capsys: Capture, code: int, *argv: str) -> str:
    """What a command that fails says: on stderr, and no traceback."""
    assert main([*argv]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    return err.removeprefix("murmurate: ").rstrip("\n")


def answer(capsys: Capture, *argv: str) -> Any:
    """The last line of what a command says on stdout, read as JSON."""
    assert main([*argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


# Help and completion ----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["", *COMMANDS, "topology list", "topology show", "bench link", "bench rounds"])
def test_every_command_explains_itself(capsys: Capture, command: str) -> None:
    with pytest.raises(SystemExit) as raised:
        main([*command.split(), "--help"])
    assert raised.value.code == 0
    out = capsys.readouterr().out
    assert f"usage: murmurate {command}".rstrip() in out
    if not command:
        assert all(f"    {name}" in out for name in COMMANDS)


def test_the_version_is_that_of_the_package(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["--version"])
    assert raised.value.code == 0
    assert capsys.readouterr().out == f"murmurate {version('murmurate')}\n"


@pytest.mark.parametrize("shell", shtab.SUPPORTED_SHELLS)
def test_there_is_a_completion_for_every_shell(capsys: Capture, shell: str) -> None:
    assert main(["completion", shell]) == 0
    out = capsys.readouterr().out
    assert all(command in out for command in COMMANDS)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["run", "--fast"], "unrecognized arguments: --fast"),
        (["topology", "show", "ring", "--peers", "0"], "argument --peers: '0' should be a whole number, at least 1"),
        (["topology", "show", "ring", "--peers", "x"], "argument --peers: 'x' should be a whole number, at least 1"),
        (["sim", "--loss", "2"], "argument --loss: '2' should be a number from 0 to 1"),
        (["retract", "b", "--from", "-1"], "argument --from: '-1' should be a whole number from 0 to 2^53"),
        (["retract", "b"], "the following arguments are required: --from"),
        (["sim", "--seconds", "nan"], "argument --seconds: 'nan' should be a number of seconds, at least 0"),
        (["sim", "--calm", "-5"], "argument --calm: '-5' should be a number of seconds, at least 0"),
        (["sim", "--loss", "nan"], "argument --loss: 'nan' should be a number from 0 to 1"),
    ],
)
def test_what_cannot_be_parsed_is_named(capsys: Capture, argv: list[str], words: str) -> None:
    with pytest.raises(SystemExit) as raised:
        main(argv)
    assert raised.value.code == 2
    assert words in capsys.readouterr().err


# Faults of the configuration --------------------------------------------------------------------------


@pytest.mark.parametrize("command", DAEMON_COMMANDS)
def test_a_missing_configuration_is_named(capsys: Capture, command: str) -> None:
    argv = [command, "nowhere.toml", *ARGUMENTS.get(command, [])]
    assert complaint(capsys, 2, *argv) == "nowhere.toml: no such file; `murmurate init` writes one"


@pytest.mark.parametrize("command", ["run", "status"])
def test_a_garbled_configuration_is_named(capsys: Capture, here: Path, command: str) -> None:
    (here / "swarm.toml").write_text("name = \n")
    assert complaint(capsys, 2, command) == "swarm.toml: not valid TOML: Invalid value (at line 1, column 8)"


def test_an_unknown_key_is_named(capsys: Capture, here: Path) -> None:
    path = here / config_file(here)
    path.write_text(path.read_text().replace("stale_max", "stail_max"))
    assert complaint(capsys, 2, "config") == "swarm.toml: rounds.stail_max: unknown key; did you mean stale_max?"


def test_words_that_look_like_markup_are_shown_as_they_are(capsys: Capture) -> None:
    assert complaint(capsys, 2, "config", "[/red]:smile:[b].toml").startswith("[/red]:smile:[b].toml: no such file")


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"topology": {"rule": "rign"}}, "topology: topology rule = 'rign' is unknown; did you mean 'ring'?"),
        ({"topology": {"rule": "hypercube"}, "ports": 3}, "topology: hypercube: n = 3 is not a power of two"),
        ({"runtime": {"listen": "0.0.0.0:0"}}, "runtime.listen = '0.0.0.0:0': reaches beyond this machine"),
        ({"task": {"name": "diggits"}}, "task.name = 'diggits': unknown; known are digits, "),
        ({"task": {"name": "no.such:task"}}, "task.name = 'no.such:task': importing no.such from"),
        ({"mixing": {"rule": "medain"}}, "mixing.rule = 'medain': unknown; known are mean, nna"),
        ({"runtime": {"device": "abacus"}}, "runtime.device = 'abacus': cannot be used here: "),
    ],
)
def test_what_no_registry_knows_is_named(capsys: Capture, here: Path, tables: dict[str, Any], words: str) -> None:
    ports = dict.fromkeys("abc"[: tables.pop("ports", 1)], 0)
    (here / "swarm.toml").write_text(to_toml(make_config(here, "a", ports, **tables)))
    assert complaint(capsys, 2, "run").splitlines()[0].startswith(words)


# run --------------------------------------------------------------------------------------------------


@pytest.fixture
def toy_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, MAKER, maker_module())


@pytest.mark.usefixtures("toy_trainer")
def test_run_ends_well(capsys: Capture, here: Path) -> None:
    assert main(["run", config_file(here, rounds={"max": 2})]) == 0
    out, err = capsys.readouterr()
    first, *lines = out.splitlines()
    assert first.startswith("a of swarm swarm ")
    assert [line.split()[0] for line in lines] == ["started", "round", "round"]
    assert err == ""


@pytest.mark.usefixtures("toy_trainer")
def test_every_line_of_run_is_json_when_asked(capsys: Capture, here: Path) -> None:
    assert main(["run", config_file(here, rounds={"max": 2}), "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["kind"] for row in rows] == ["started", "round", "round"]


@pytest.mark.usefixtures("toy_trainer")
def test_a_port_in_use_is_named(capsys: Capture, here: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        config_file(here, runtime={"listen": address})
        assert main(["run", "--json"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"murmurate: {address}: cannot listen there; the port may be in use")
    assert "Traceback" not in err


@pytest.mark.parametrize("place", ["before", "behind", "nowhere"])
def test_a_fault_of_the_task_can_be_looked_into(
    capsys: Capture, here: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setitem(sys.modules, MAKER, maker_module("failing"))
    config_file(here)
    flag = ["--traceback"]
    argv = {"before": [*flag, "run", "--json"], "behind": ["run", "--json", *flag], "nowhere": ["run", "--json"]}
    assert main(argv[place]) == 1
    err = capsys.readouterr().err
    assert "murmurate: the task failed in round 1: ZeroDivisionError: a fault of the task\n" in err
    assert ('raise ZeroDivisionError("a fault of the task")' in err) == (place != "nowhere")
    assert ("murmurate: --traceback shows where it came from" in err) == (place == "nowhere")


@pytest.mark.usefixtures("toy_trainer")
def test_training_goes_on_when_nobody_reads(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    config_file(here, rounds={"max": 2})
    with os.fdopen(writer, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert main(["run", "--json"]) == 0
    assert (here / "a" / "metrics.jsonl").read_text().count('"kind": "round"') == 2


def test_nobody_reading_an_answer_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert main(["topology", "list", "--json"]) == 1


# A running daemon -------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["status", "peers", "leave", "export", "retract"])
def test_without_a_daemon_there_is_no_answer(capsys: Capture, here: Path, command: str) -> None:
    argv = [command, config_file(here), *ARGUMENTS.get(command, [])]
    assert complaint(capsys, 1, *argv) == f"{here / 'a'}: no daemon is running here"


def test_the_commands_for_a_daemon(capsys: Capture, here: Path) -> None:
    """All in one, because each needs a daemon that runs."""
    file = config_file(here, rounds={"eval_every": 7})

    def ask() -> None:
        assert answer(capsys, "status")["peer"] == "a"
        assert answer(capsys, "peers") == []
        assert answer(capsys, "config", "--running")["rounds"]["eval_every"] == 7
        reply = answer(capsys, "export", file, "[b]model")
        round = json.loads((here / "[b]model").read_text())["round"]
        assert reply == {"path": str(here / "[b]model"), "round": round, "cut": ""}
        for argv in (["status"], ["peers"], ["config", "--running", "--comments"], ["export", file, "[b]model"]):
            assert main(argv) == 0
        out = capsys.readouterr().out
        assert all(word in out for word in ("loss", "traffic", "heard", "eval_every = 7", "# "))
        assert f"{here / '[b]model'}: the model as it is now, after " in out
        assert complaint(capsys, 1, "export", file, "no folder/model").endswith("No such file or directory")
        assert complaint(capsys, 1, "retract", file, "b", "--from", "3").startswith(
            "only the seeds exchange has records"
        )
        assert complaint(capsys, 1, "export", file, "model", "--at", "a:1").startswith("--at 'a:1': only the seeds")
        assert answer(capsys, "leave") == {"leaving": True}

    async def scenario() -> None:
        life = Life(load(Path(file)))
        async with living(life):
            await asyncio.to_thread(ask)
            await life.end()

    asyncio.run(scenario())


def test_a_peers_words_are_shown_as_they_are(capsys: Capture, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peer = {
        "peer": "b",
        "state": "dead",
        "address": "[::1]:7000",
        "linked": False,
        "round": 3,
        "bytes_sent": 1,
        "bytes_received": 2_000_000,
        "heard_ago_s": -1.0,
        "refusals": 1,
        "last_refusal": "[/red] :smile:",
        "trouble": "",
    }

    def status(_: ControlClient) -> dict[str, Any]:
        return {"peers": [peer]}

    monkeypatch.setattr(ControlClient, "status", status)
    monkeypatch.setattr(cli, "OUT", Console(width=200, markup=False, emoji=False))
    assert main(["peers", config_file(here)]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("[::1]:7000", "[/red] :smile:", "2.0 MB", "never"))


# init and config --------------------------------------------------------------------------------------


def test_init_writes_what_load_reads(capsys: Capture, here: Path) -> None:
    peers = ["--peer", "a=10.0.0.1:7000", "--peer", "b=10.0.0.2:7000", "--peer", "c=10.0.0.3:7000"]
    options = ["--name", "b", "--task", "chars", "--data", "texts", "--rule", "nna", "--f", "1", "--insecure"]
    assert main(["init", "my.toml", *peers, *options, "--topology", "complete"]) == 0
    assert capsys.readouterr().out == "my.toml is written: `murmurate run my.toml` starts this peer\n"
    config = load(Path("my.toml"))
    assert (config.name, config.roster, config.listen) == ("b", ("a", "b", "c"), "10.0.0.2:7000")
    assert (config.task.name, config.task.data) == ("chars", str(here / "texts"))
    assert (config.mixing.rule, config.mixing.f, config.topology.rule) == ("nna", 1, "complete")
    assert config.runtime.insecure
    assert "# Learning rate.\n" in Path("my.toml").read_text()


def test_init_needs_nothing(here: Path) -> None:
    assert main(["init"]) == 0
    assert load(Path("swarm.toml")).peers == {"a": "127.0.0.1:7000"}


def test_init_keeps_a_file_that_exists(capsys: Capture, here: Path) -> None:
    (here / "swarm.toml").write_text("mine")
    assert complaint(capsys, 2, "init") == "swarm.toml: exists; --force replaces it"
    assert (here / "swarm.toml").read_text() == "mine"
    assert main(["init", "--force"]) == 0
    assert load(Path("swarm.toml"))


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["--peer", "a"], 2, "--peer 'a': should be NAME=VALUE"),
        (["--peer", "a=host"], 2, "init: peers.a = 'host': should be host:port"),
        (["--peer", "b=host:1"], 2, "init: name = 'a' should be one of [peers]: b"),
        (["--name", "a b"], 2, "init: name = 'a b': should be 1 to 64 letters"),
        (["--f", "-1"], 2, "init: mixing.f = -1: should be greater than or equal to 0"),
        (["--topology", "rign"], 2, "topology: topology rule = 'rign' is unknown; did you mean 'ring'?"),
        (["no folder/swarm.toml"], 1, "no folder/swarm.toml: cannot be written: No such file or directory"),
    ],
)
def test_init_refuses_what_no_peer_could_run(
    capsys: Capture, here: Path, argv: list[str], code: int, words: str
) -> None:
    assert complaint(capsys, code, "init", *argv).startswith(words)
    assert not [*here.iterdir()]


def test_config_prints_what_a_file_comes_to(capsys: Capture, here: Path) -> None:
    (here / "swarm.toml").write_text('name = "a"\n[peers]\na = "host:1"\nb = "host:2"\n')
    assert main(["config", "--name", "b"]) == 0
    plain = capsys.readouterr().out
    assert "#" not in plain
    assert tomllib.loads(plain) == load(Path("swarm.toml"), "b").model_dump()
    assert answer(capsys, "config") == load(Path("swarm.toml")).model_dump()
    assert complaint(capsys, 2, "config", "--name", "c") == "swarm.toml: name = 'c' should be one of [peers]: a, b"


# topology ---------------------------------------------------------------------------------------------


def test_topology_list_and_show(capsys: Capture, here: Path) -> None:
    rules = answer(capsys, "topology", "list")
    assert {"ring", "complete", "random_regular"} <= set(rules)
    shown = answer(capsys, "topology", "show", "random_regular", "--peers", "8", "--option", "degree=3")
    assert (shown["n"], shown["degree_min"], shown["connected"]) == (8, 3, True)
    assert main(["topology", "list"]) == main(["topology", "show", "ring"]) == 0
    out = capsys.readouterr().out
    assert all(rule in out for rule in rules)
    assert "ring, 16 peers" in out


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["rign"], 2, "topology: topology rule = 'rign' is unknown; did you mean 'ring'?"),
        (["ring", "--weights", "equal"], 2, "topology: topology weights = 'equal' is unknown"),
        (["ring", "--option", "degree=3"], 2, "topology: ring: there is no option 'degree'"),
        (["random_regular", "--option", "degree"], 2, "--option 'degree': should be NAME=VALUE"),
        (["random_regular", "--option", "degree=x"], 2, "topology: random_regular: degree = 'x' should be"),
        (["file", "--option", "path=nowhere"], 2, "topology: file: cannot read path = 'nowhere'"),
        (["ring", "--peers", "3", "--plot", "no folder/x.png"], 1, "no folder/x.png: cannot be written: No such file"),
    ],
)
def test_topology_show_names_what_is_wrong(capsys: Capture, argv: list[str], code: int, words: str) -> None:
    assert complaint(capsys, code, "topology", "show", *argv).startswith(words)


# Small things -----------------------------------------------------------------------------------------


def alone(code: str, **environment: str) -> None:
    """Run code in a Python that has imported nothing yet."""
    inherited = {key: value for key, value in os.environ.items() if key != "GRPC_VERBOSITY"}
    path = str(Path(__file__).parents[1] / ".src")
    subprocess.run([sys.executable, "-c", code], check=True, env={**inherited, "PYTHONPATH": path, **environment})


def test_status_does_not_wait_for_torch() -> None:
    modules = "murmurate.peer.cli, murmurate.peer.runtime.control, murmurate.peer.runtime.daemon"
    alone(f"import sys, {modules}; assert not {{'torch', 'tensorboardX', 'matplotlib'}} & set(sys.modules)")


@pytest.mark.parametrize("entry", ["cli, murmurate.peer.runtime.control", "runtime.transport", "lab.cohort"])
def test_grpc_is_told_to_be_quiet_before_it_is_imported(entry: str) -> None:
    """Else its core writes about connections that a neighbour closes. Whoever wants to read that still can."""
    look = """
import builtins, os, sys
def watch(name, *rest, original=builtins.__import__):
    if name.partition(".")[0] == "grpc" and "grpc" not in sys.modules:
        seen.append(os.environ.get("GRPC_VERBOSITY"))
    return original(name, *rest)
builtins.__import__, seen = watch, []
"""
    alone(f"{look}import murmurate.peer.{entry}\nassert seen[0] == 'ERROR', seen")
    alone(f"{look}import murmurate.peer.{entry}\nassert seen[0] == 'DEBUG', seen", GRPC_VERBOSITY="DEBUG")


def test_an_interruption_by_the_user_is_no_fault(capsys: Capture, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: ControlClient) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(ControlClient, "status", interrupt)
    assert main(["status", config_file(here)]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_cause_is_not_swallowed(capsys: Capture, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: ControlClient) -> NoReturn:
        raise LocalError("it failed") from KeyError("why")

    monkeypatch.setattr(ControlClient, "status", fail)
    assert main(["status", config_file(here), "--traceback"]) == 1
    err = capsys.readouterr().err
    assert "KeyError: 'why'" in err
    assert err.endswith("murmurate: it failed\n")


def test_a_figure_that_is_not_finite_has_a_word() -> None:
    row = {"kind": "round", "round": 1, "loss": None, "seconds": 1.0, "waited_s": 0.0, "folded": [], "missing": []}
    assert "loss not finite" in console.run_line(row).plain
