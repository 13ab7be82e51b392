"""The command line: argv in, exit code out. The only module that prints.

Exit codes: 0 done (a daemon: left cleanly), 1 this machine could not do it, 2 the user must change something.
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
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import shtab
from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from murmurate.peer import console as view
from murmurate.peer.config import Config, load, parse
from murmurate.peer.errors import ConfigError, LocalError, MurmurateError
from murmurate.peer.toml import to_toml

# Names, paths and other peers' words are shown as they are: no markup in them is obeyed.
OUT = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
ERR = Console(highlight=False, soft_wrap=True, markup=False, emoji=False, stderr=True)


def main(argv: list[str] | None = None) -> int:
    """Run one command. Returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.command(arguments)
    except ConfigError as error:
        return _complain(error, arguments, 2)
    except MurmurateError as error:
        return _complain(error, arguments, 1)
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


def _complain(error: MurmurateError, arguments: argparse.Namespace, code: int) -> int:
    if arguments.traceback:
        traceback.print_exception(error)
    ERR.print(f"murmurate: {error}", style="red")
    if error.__cause__ is not None and not arguments.traceback:
        ERR.print("murmurate: --traceback shows where it came from", style="dim")
    return code


def _print_json(value: object) -> None:
    print(json.dumps(value), flush=True)


def _show(arguments: argparse.Namespace, value: object, rendered: Callable[[], RenderableType]) -> None:
    """A command's result: one JSON value on the last line of stdout, or something for people."""
    _print_json(value) if arguments.json else OUT.print(rendered())


# A daemon and its control service ------------------------------------------------------------------


def _run(arguments: argparse.Namespace) -> None:
    config = _config_of(arguments)
    from murmurate.peer.build import build_manifest, build_topology, degree_min
    from murmurate.peer.learning.trainer import make_trainer, prepare
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
    reply = _client(arguments).export(Path(arguments.path), arguments.at)
    what = f"at {arguments.at}" if arguments.at else "as it is now"
    _show(arguments, reply, lambda: f"{reply['path']}: the model {what}, after {reply['round']} rounds")


def _retract(arguments: argparse.Namespace) -> None:
    reply = _client(arguments).retract(arguments.peer, arguments.from_seq)
    who = f"{reply['peer']} ({reply['origin']})"
    _show(arguments, reply, lambda: f"the records of {who} from {reply['from_seq']} on count nowhere any more")


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
    if result["violations"] or result["stalled_seeds"]:
        raise LocalError("violations or stalled peers: a bug in the protocol, and the seed repeats it")


def _bench(arguments: argparse.Namespace) -> None:
    from murmurate.peer.lab.bench import BENCHES

    with view.progress(ERR) as progress:
        task = progress.add_task(f"bench {arguments.bench}", total=arguments.repeats)
        options = {"parameters": arguments.parameters} if arguments.bench == "replay" else {}
        result = BENCHES[arguments.bench](arguments.repeats, lambda: progress.advance(task), **options)
    _show(arguments, result, lambda: view.figures_table(f"bench {arguments.bench}", result))


def _demo(arguments: argparse.Namespace) -> None:
    from murmurate.peer.lab.demo import Demo

    with Demo(Path(arguments.out), arguments.rounds, arguments.seed) as demo:
        with Live(console=ERR if arguments.json else OUT, refresh_per_second=4) as live:
            for state in demo.run():
                live.update(view.demo_table(state))
        result = demo.result()
    _show(arguments, result.figures(), lambda: view.demo_verdict(result))


def _completion(arguments: argparse.Namespace) -> None:
    print(shtab.complete(_parser(), arguments.shell))


# The parser ------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("murmurate", description="Decentralized peer-to-peer training.")
    parser.add_argument("--version", action="version", version=f"murmurate {version('murmurate')}")
    _add_traceback(parser, default=False)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, command: Callable[[argparse.Namespace], None], help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.set_defaults(command=command)
        _add_traceback(sub, default=argparse.SUPPRESS)
        if name not in ("init", "completion"):
            sub.add_argument("--json", action="store_true", help="machine-readable: JSON on the last line of stdout")
        return sub

    demo = add("demo", _demo, "8 real daemons on this machine, 2 of them liars, one crash: a live table and a verdict")
    demo.add_argument("--out", default="runs/demo", help="folder of the report (default: %(default)s)")
    demo.add_argument("--rounds", type=_positive, default=120, help="rounds (default: %(default)s)")
    demo.add_argument("--seed", type=int, default=1, help="seed of data, graph and weights (default: %(default)s)")

    _add_init(add("init", _init, "write a commented configuration file"))
    _add_target(add("run", _run, "run this machine's peer until it has left"))
    _add_target(add("status", _status, "what the daemon of a configuration is doing"))
    _add_target(add("peers", _peers, "whom it is linked with, and what it thinks of them"))
    _add_target(add("leave", _leave, "have it end its step, keep what a restart needs and leave"))
    export = add("export", _export, "have it write its model to a safetensors file")
    _add_target(export)
    export.add_argument("path", help="file to write").complete = shtab.FILE  # pyright: ignore[reportAttributeAccessIssue]: shtab's way
    export.add_argument("--at", default="", metavar="CUT", help="with the records of this cut only: see `status`")
    retract = add("retract", _retract, "void a peer's records at every peer, as if nobody had heard them")
    _add_target(retract)
    retract.add_argument("peer", help="its name, its key or the beginning of it, or NAME@KEY")
    retract.add_argument(
        "--from", type=_whole, required=True, dest="from_seq", metavar="SEQ", help="the first record to void; 0: all"
    )
    _add_target(add("key", _key, "print this peer's public key, which is made if there is none"))
    config = add("config", _config, "print the effective configuration")
    _add_target(config)
    config.add_argument("--running", action="store_true", help="ask the running daemon instead of the file")
    config.add_argument("--comments", action="store_true", help="with every key's documentation")
    _add_topology(commands)
    _add_sim(add("sim", _sim, "the same protocol in virtual time: weather, churn, invariants, one seed"))
    _add_bench(commands)
    completion = add("completion", _completion, "print a completion script for your shell")
    completion.add_argument("shell", choices=shtab.SUPPORTED_SHELLS)
    return parser


def _add_traceback(parser: argparse.ArgumentParser, default: Any) -> None:
    """Before the command or behind it; the second place must not undo the first, so it has no default."""
    parser.add_argument("--traceback", action="store_true", default=default, help="show where an error came from")


def _add_target(parser: argparse.ArgumentParser) -> None:
    config = parser.add_argument("config", nargs="?", default="swarm.toml", help="configuration (default: %(default)s)")
    config.complete = shtab.FILE  # pyright: ignore[reportAttributeAccessIssue]: shtab's way
    parser.add_argument("--name", default="", help="which peer, when one file serves several")


def _add_init(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", nargs="?", default="swarm.toml", help="file to write (default: %(default)s)")
    parser.add_argument("--name", default="a", help="this peer (default: %(default)s)")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=HOST:PORT", help="each peer, this one too")
    parser.add_argument("--task", default="digits", help="digits, chars or module:function (default: %(default)s)")
    parser.add_argument("--data", default="", help="where this peer's data lies, for tasks that read files")
    parser.add_argument("--rule", default="mean", help="mixing rule (default: %(default)s)")
    parser.add_argument("--f", type=int, default=0, help="liars a neighbourhood must bear (default: %(default)s)")
    parser.add_argument("--topology", default="ring", help="graph (default: %(default)s)")
    parser.add_argument("--insecure", action="store_true", help="consent to unencrypted links beyond this machine")
    parser.add_argument("--force", action="store_true", help="replace an existing file")


def _add_topology(commands: Any) -> None:
    topology = commands.add_parser("topology", help="graphs: list them, judge one, draw one")
    commands = topology.add_subparsers(metavar="COMMAND", required=True)
    listing = commands.add_parser("list", help="every graph by name, with its options")
    listing.set_defaults(command=_topology_list)
    show = commands.add_parser("show", help="spectral gap, predicted rounds to consensus, drawing")
    show.set_defaults(command=_topology_show)
    for parser in (listing, show):
        parser.add_argument("--json", action="store_true", help="machine-readable")
    show.add_argument("rule", help="a name of `murmurate topology list`")
    show.add_argument("--peers", type=_positive, default=16, help="number of peers (default: %(default)s)")
    show.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="an option of the graph")
    show.add_argument("--weights", default="metropolis", help="metropolis or max_degree (default: %(default)s)")
    show.add_argument("--plot", default="", metavar="PNG", help="draw it into this file")


def _add_sim(sim: argparse.ArgumentParser) -> None:
    sim.add_argument("--peers", type=_positive, default=16, help="number of peers (default: %(default)s)")
    sim.add_argument("--seconds", type=float, default=60.0, help="virtual seconds with faults (default: %(default)s)")
    sim.add_argument("--calm", type=float, default=60.0, help="virtual seconds after them (default: %(default)s)")
    sim.add_argument("--seed", type=int, default=0, help="the whole run is a function of it (default: %(default)s)")
    sim.add_argument("--seeds", type=_positive, default=1, help="run this many seeds from --seed on (default: 1)")
    sim.add_argument("--loss", type=_probability, default=0.0, help="share of lost envelopes (default: %(default)s)")
    sim.add_argument("--crash", type=_probability, default=0.0, help="share of peers that crash and restart")
    sim.add_argument(
        "--storm", action="store_true", help="also duplicates, replays, broken links, partitions, slow peers"
    )
    sim.add_argument("--topology", default="random_regular", help="graph (default: %(default)s)")
    sim.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="an option of the graph")
    sim.add_argument("--task", default="quadratic", help="quadratic, or a real task such as digits")
    sim.add_argument(
        "--exchange", choices=("models", "seeds"), default="models", help="what is gossiped (seeds: a toy, no --task)"
    )


def _add_bench(commands: Any) -> None:
    bench = commands.add_parser("bench", help="measure this machine: links, rounds, joining, replay")
    benches = bench.add_subparsers(metavar="BENCH", dest="bench", required=True)
    link = benches.add_parser("link", help="goodput beside plain TCP; daemons beside one plain loop")
    rounds = benches.add_parser("rounds", help="seconds per round of 8 daemons on a ring")
    join = benches.add_parser("join", help="how soon a late daemon is as good as the swarm")
    replay = benches.add_parser("replay", help="records into weights, beside MeZO's way and one pass over the weights")
    replay.add_argument(
        "--parameters", type=_positive, default=100_000_000, help="size of the model (default: %(default)s)"
    )
    for parser in (link, rounds, join, replay):
        parser.set_defaults(command=_bench)
        parser.add_argument("--json", action="store_true", help="machine-readable")
        parser.add_argument("--repeats", type=_positive, default=5, help="repetitions (default: %(default)s)")


def _positive(text: str) -> int:
    with suppress(ValueError):
        if (value := int(text)) >= 1:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} should be a whole number, at least 1")


def _whole(text: str) -> int:
    with suppress(ValueError):
        if 0 <= (value := int(text)) <= 2**53:  # what every number on a link is bound by
            return value
    raise argparse.ArgumentTypeError(f"{text!r} should be a whole number, at least 0")


def _probability(text: str) -> float:
    with suppress(ValueError):
        if 0 <= (value := float(text)) <= 1:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} should be a number from 0 to 1")


if __name__ == "__main__":
    sys.exit(main())
