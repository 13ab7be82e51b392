"""The command line: argv in, exit code out. The only module that prints.

Exit codes: 0 done (a daemon: left cleanly), 1 this machine could not do it, 2 the user must change something,
3 training diverged.
Heavy modules are imported inside the command that needs them: `murmurate status` must not wait for torch.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tomllib
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import shtab
from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from murmurate.peer import console as view
from murmurate.peer.arguments import make_parser
from murmurate.peer.config import Config, load, parse
from murmurate.peer.errors import ConfigError, LocalError, MurmurateError
from murmurate.peer.toml import to_toml

# Names, paths and other peers' words are shown as they are: no markup in them is obeyed.
OUT = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
ERR = Console(highlight=False, soft_wrap=True, markup=False, emoji=False, stderr=True)


def main(argv: list[str] | None = None) -> int:
    """Run one command. Returns the exit code."""
    arguments = make_parser(COMMANDS).parse_args(argv)
    try:
        arguments.command(arguments)
    except MurmurateError as error:
        return _complain(error, arguments)
    except KeyboardInterrupt:
        ERR.print("interrupted")
        return 130
    except BrokenPipeError:  # `murmurate ... | head`
        _discard_output()
        return 1
    return 0


def _discard_output() -> None:
    """Nobody reads it any more; without this, Python would fail once more when it flushes at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(error: MurmurateError, arguments: argparse.Namespace) -> int:
    if arguments.traceback:
        traceback.print_exception(error)
    ERR.print(f"murmurate: {error}", style="red")
    if error.__cause__ is not None and not arguments.traceback:
        ERR.print("murmurate: --traceback shows where it came from", style="dim")
    return error.exit_code


def _print_json(value: object) -> None:
    print(json.dumps(value), flush=True)


def _show(arguments: argparse.Namespace, value: object, rendered: Callable[[], RenderableType]) -> None:
    """A command's result: one JSON value on the last line of stdout, or something for people."""
    _print_json(value) if arguments.json else OUT.print(rendered())


# A daemon and its control service ------------------------------------------------------------------


def _run(arguments: argparse.Namespace) -> None:
    config = _config_of(arguments)
    from murmurate.peer.build import build_manifest, build_topology, degree_min
    from murmurate.peer.learning.make import make_trainer, prepare
    from murmurate.peer.runtime.daemon import Daemon, check_listen

    check_listen(config)
    topology = build_topology(config)
    prepare(config)
    if config.exchange.name == "seeds":
        from murmurate.peer.learning.prober import make_prober

        trainer = make_prober(config)
    else:
        trainer = make_trainer(config, degree_min(topology))
    manifest = build_manifest(config, topology, trainer.schema, trainer.base)
    if not arguments.json:
        OUT.print(view.run_header(config, manifest.swarm_id.hex(), trainer.payload_bytes))

    def tell(row: Mapping[str, Any]) -> None:
        try:
            _show(arguments, row, lambda: view.run_line(row))
        except (BrokenPipeError, SystemExit):  # rich makes a SystemExit of it; the training goes on
            _discard_output()

    Daemon(config, trainer, manifest, topology, tell).run()


def _config_of(arguments: argparse.Namespace) -> Config:
    return load(Path(arguments.config), arguments.name)


def _client(arguments: argparse.Namespace) -> Any:
    from murmurate.peer.runtime.control import ControlClient

    return ControlClient(_config_of(arguments).state_dir)


def _status(arguments: argparse.Namespace) -> None:
    status = _client(arguments).status()
    _show(arguments, status, lambda: view.status_panel(status))


def _peers(arguments: argparse.Namespace) -> None:
    peers = _client(arguments).status()["peers"]
    _show(arguments, peers, lambda: view.peers_table(peers))


def _leave(arguments: argparse.Namespace) -> None:
    _client(arguments).leave()
    _show(arguments, {"leaving": True}, lambda: "leaving: it ends its step and keeps what a restart needs")


def _export(arguments: argparse.Namespace) -> None:
    path = Path(arguments.path)
    if path.suffix == ".toml":  # `export my.toml` names no file to write
        raise ConfigError(f"{path}: is a configuration's name; the file to write comes last")
    reply = _client(arguments).export(path, arguments.at)
    what = f"at {arguments.at}" if arguments.at else "as it is now"
    _show(arguments, reply, lambda: f"{reply['path']}: the model {what}, after {reply['round']} rounds")


def _retract(arguments: argparse.Namespace) -> None:
    reply = _client(arguments).retract(arguments.peer, arguments.from_seq)
    who = f"{reply['peer']} ({reply['origin']})"
    but = "; here they do until a neighbour hands over a state without them" if reply["awaits_state"] else ""
    _show(arguments, reply, lambda: f"the records of {who} from {reply['from_seq']} on count nowhere any more{but}")


def _key(arguments: argparse.Namespace) -> None:
    config = _config_of(arguments)
    from murmurate.peer.runtime.identity import open_identity

    key = open_identity(config.state_dir).origin.hex()
    _show(arguments, {"peer": config.name, "key": key}, lambda: key)


# Configuration -------------------------------------------------------------------------------------


def _init(arguments: argparse.Namespace) -> None:
    path = Path(arguments.path)
    if path.exists() and not arguments.force:
        raise ConfigError(f"{path}: exists; --force replaces it")
    peers = dict(_pair(text, "--peer") for text in arguments.peer) or {arguments.name: "127.0.0.1:7000"}
    table: dict[str, Any] = {
        "name": arguments.name,
        "peers": peers,
        "task": {"name": arguments.task, "data": arguments.data},
        "mixing": {"rule": arguments.rule, "f": arguments.f},
        "topology": {"rule": arguments.topology},
        "runtime": {"insecure": arguments.insecure},
    }
    config = parse(table, "init")
    from murmurate.peer.build import build_topology

    build_topology(config)  # a graph that these peers cannot form is better refused here than on every machine
    text = to_toml(config)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise LocalError(f"{path}: cannot be written: {error.strerror}") from None
    OUT.print(f"{path} is written: `murmurate run {path}` starts this peer")


def _config(arguments: argparse.Namespace) -> None:
    config = _config_of(arguments)
    if arguments.running:
        config = parse(tomllib.loads(_client(arguments).config()))
    _show(arguments, config.model_dump(), lambda: Text(to_toml(config, arguments.comments).rstrip()))


def _pair(text: str, option: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"{option} {text!r}: should be NAME=VALUE")
    return key, value


def _options(pairs: list[str], option: str) -> dict[str, Any]:
    """NAME=VALUE pairs with TOML's idea of a value; what is none is a string."""
    values: dict[str, Any] = {}
    for text in pairs:
        key, value = _pair(text, option)
        try:
            values[key] = tomllib.loads(f"v = {value}")["v"]
        except ValueError:
            values[key] = value
    return values


# Graphs, simulation, benchmarks, the demo ------------------------------------------------------------


def _topology_list(arguments: argparse.Namespace) -> None:
    from murmurate.topology import RULES

    _show(arguments, sorted(RULES), lambda: view.rules_table(RULES))


def _topology_show(arguments: argparse.Namespace) -> None:
    from murmurate.topology import Topology, describe

    try:
        options = _options(arguments.option, "--option")
        topology = Topology(arguments.rule, arguments.peers, options, arguments.weights)
        summary = describe(topology)
    except ValueError as error:
        raise ConfigError(f"topology: {error}") from None
    if arguments.plot:
        from murmurate.topology.draw import draw

        try:
            draw(topology, Path(arguments.plot))
        except OSError as error:
            raise LocalError(f"{arguments.plot}: cannot be written: {error.strerror}") from None
    _show(arguments, asdict(summary), lambda: view.topology_table(summary, arguments.plot))


def _sim(arguments: argparse.Namespace) -> None:
    from murmurate.peer.lab.sim import run_sim, sim_weather

    with view.progress(ERR) as progress:
        task = progress.add_task("seeds", total=arguments.seeds)
        result = run_sim(
            peers=arguments.peers,
            seeds=range(arguments.seed, arguments.seed + arguments.seeds),
            storm_s=arguments.seconds,
            calm_s=arguments.calm,
            weather=sim_weather(arguments.loss, arguments.crash, arguments.storm),
            topology=arguments.topology,
            options=_options(arguments.option, "--option"),
            task=arguments.task,
            exchange=arguments.exchange,
            step=lambda: progress.advance(task),
        )
    _show(arguments, result, lambda: view.figures_table("simulation", result))
    if result["violations"]:
        raise LocalError("violations: a bug in the protocol, and the seed repeats it")
    if result["stalled_seeds"]:
        raise LocalError("stalled peers: a bug in the protocol, unless --calm is too short for a few rounds")


def _bench(arguments: argparse.Namespace) -> None:
    from murmurate.peer.lab.bench import BENCHES

    with view.progress(ERR) as progress:
        task = progress.add_task(f"bench {arguments.bench}", total=arguments.repeats)
        options = {name: getattr(arguments, name) for name in ("parameters", "device") if name in arguments}
        result = BENCHES[arguments.bench](arguments.repeats, lambda: progress.advance(task), **options)
    _show(arguments, result, lambda: view.figures_table(f"bench {arguments.bench}", result))


def _lab_run(arguments: argparse.Namespace) -> None:
    from murmurate.peer.lab.grid import Grid, summary
    from murmurate.peer.lab.heatmap import draw_grid
    from murmurate.peer.lab.scenario import load_scenario

    scenario = load_scenario(Path(arguments.scenario), arguments.backend)
    out = Path(arguments.out or f"runs/{scenario.name}")
    grid, rows = Grid(scenario, out), list[Any]()
    try:
        with view.progress(ERR) as progress:
            task = progress.add_task(f"lab {scenario.name}", total=len(grid))
            for row in grid.run(arguments.jobs or len(os.sched_getaffinity(0))):
                rows.append(row)
                progress.advance(task)
    finally:  # a part of the runs is a grid as well
        if rows:
            found, path = summary(grid.in_order(rows)), out / "accuracy.png"
            try:
                draw_grid(found, path, f"{scenario.name}: {scenario.lab.liars} of {scenario.lab.peers} peers lie")
            except OSError as error:
                raise LocalError(f"{path}: cannot be written: {error.strerror}") from None
            _show(arguments, found, lambda: view.grid_tables(found, str(path)))


Shown = Callable[[Any], RenderableType]


def _demo(arguments: argparse.Namespace) -> None:
    demo_class, table, verdict = _demo_of(arguments.exchange)
    out, rounds = arguments.out or demo_class.OUT, arguments.rounds or demo_class.ROUNDS
    with demo_class(Path(out), rounds, arguments.seed) as demo:
        with Live(console=ERR if arguments.json else OUT, refresh_per_second=4) as live:
            for state in demo.run():
                live.update(table(state))
        result = demo.result()
    _show(arguments, result.figures(), lambda: verdict(result))
    if result.failure:
        raise LocalError(result.failure)


def _demo_of(exchange: str) -> tuple[Any, Shown, Shown]:
    """The demo, what shows one moment of it, and what shows its result."""
    if exchange == "seeds":
        from murmurate.peer.lab.demo_seeds import SeedsDemo

        return SeedsDemo, view.seeds_demo_table, view.seeds_demo_verdict
    from murmurate.peer.lab.demo import Demo

    return Demo, view.demo_table, view.demo_verdict


def _completion(arguments: argparse.Namespace) -> None:
    print(shtab.complete(make_parser(COMMANDS), arguments.shell))


# The parser ------------------------------------------------------------------------------------------


COMMANDS = {
    "demo": _demo,
    "init": _init,
    "run": _run,
    "status": _status,
    "peers": _peers,
    "leave": _leave,
    "export": _export,
    "retract": _retract,
    "key": _key,
    "config": _config,
    "sim": _sim,
    "bench": _bench,
    "lab run": _lab_run,
    "completion": _completion,
    "topology list": _topology_list,
    "topology show": _topology_show,
}


if __name__ == "__main__":
    sys.exit(main())
