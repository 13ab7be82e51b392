"""What can be written on the command line, in the words of its help."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import version
from typing import Any

import shtab

PARAMETERS = {"replay": 10**8, "mixing": 10**7}  # of the benchmarks that take a model of any size

Commands = Mapping[str, Callable[[argparse.Namespace], None]]


def make_parser(commands: Commands) -> argparse.ArgumentParser:
    """The parser of the whole command line; `arguments.command` of what it parses is one of `commands`."""
    parser = argparse.ArgumentParser("murmurate", description="Decentralized peer-to-peer training.")
    parser.add_argument("--version", action="version", version=f"murmurate {version('murmurate')}")
    _add_traceback(parser, default=False)
    subs = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, help: str) -> argparse.ArgumentParser:
        sub = subs.add_parser(name, help=help, description=help)
        sub.set_defaults(command=commands[name])
        _add_traceback(sub, default=argparse.SUPPRESS)
        if name not in ("init", "completion"):
            sub.add_argument("--json", action="store_true", help="machine-readable: JSON on the last line of stdout")
        return sub

    demo = add("demo", "real daemons on this machine in trouble: a live table and a verdict")
    demo.add_argument(
        "exchange",
        nargs="?",
        choices=("models", "seeds"),
        default="models",
        help="models: 8 peers, 2 of them liars, one crash; seeds: 6 peers fine-tune an encoder, with a crash, a "
        "partition and a late one (default: %(default)s)",
    )
    demo.add_argument("--out", default="", help="folder of the report (default: runs/demo or runs/demo-seeds)")
    demo.add_argument("--rounds", type=_positive, help="rounds of each peer (default: 120 or 20)")
    demo.add_argument("--seed", type=int, default=1, help="seed of data, graph and weights (default: %(default)s)")

    _add_init(add("init", "write a commented configuration file"))
    _add_target(add("run", "run this machine's peer until it has left"))
    _add_target(add("status", "what the daemon of a configuration is doing"))
    _add_target(add("peers", "whom it is linked with, and what it thinks of them"))
    _add_target(add("leave", "have it end its step, keep what a restart needs and leave"))
    export = add("export", "have it write its model to a safetensors file")
    _add_target(export)
    export.add_argument("path", help="file to write").complete = shtab.FILE  # pyright: ignore[reportAttributeAccessIssue]: shtab's way
    export.add_argument("--at", default="", metavar="CUT", help="with the records of this cut only: see `status`")
    retract = add("retract", "void a peer's records at every peer, as if nobody had heard them")
    _add_target(retract)
    retract.add_argument("peer", help="its name, its key or the beginning of it, or NAME@KEY")
    retract.add_argument(
        "--from", type=_whole, required=True, dest="from_seq", metavar="SEQ", help="the first record to void; 0: all"
    )
    _add_target(add("key", "print this peer's public key, which is made if there is none"))
    config = add("config", "print the effective configuration")
    _add_target(config)
    config.add_argument("--running", action="store_true", help="ask the running daemon instead of the file")
    config.add_argument("--comments", action="store_true", help="with every key's documentation")
    _add_topology(subs, commands)
    _add_sim(add("sim", "the same protocol in virtual time: weather, churn, invariants, one seed"))
    _add_bench(subs, commands)
    _add_lab(subs, commands)
    completion = add("completion", "print a completion script for your shell")
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
    parser.add_argument("--task", default="digits", help="a built-in task or module:function (default: %(default)s)")
    parser.add_argument("--data", default="", help="where this peer's data lies, for tasks that read files")
    parser.add_argument("--rule", default="mean", help="mixing rule (default: %(default)s)")
    parser.add_argument("--f", type=int, default=0, help="liars a neighbourhood must bear (default: %(default)s)")
    parser.add_argument("--topology", default="ring", help="graph (default: %(default)s)")
    parser.add_argument("--insecure", action="store_true", help="consent to unencrypted links beyond this machine")
    parser.add_argument("--force", action="store_true", help="replace an existing file")


def _add_topology(subs: Any, commands: Commands) -> None:
    topology = subs.add_parser("topology", help="graphs: list them, judge one, draw one")
    subs = topology.add_subparsers(metavar="COMMAND", required=True)
    listing = subs.add_parser("list", help="every graph by name, with its options")
    listing.set_defaults(command=commands["topology list"])
    show = subs.add_parser("show", help="spectral gap, predicted rounds to consensus, drawing")
    show.set_defaults(command=commands["topology show"])
    for parser in (listing, show):
        parser.add_argument("--json", action="store_true", help="machine-readable")
    show.add_argument("rule", help="a name of `murmurate topology list`")
    show.add_argument("--peers", type=_positive, default=16, help="number of peers (default: %(default)s)")
    show.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="an option of the graph")
    show.add_argument("--weights", default="metropolis", help="metropolis or max_degree (default: %(default)s)")
    show.add_argument("--plot", default="", metavar="PNG", help="draw it into this file")


def _add_sim(sim: argparse.ArgumentParser) -> None:
    sim.add_argument("--peers", type=_positive, default=16, help="number of peers (default: %(default)s)")
    sim.add_argument("--seconds", type=_seconds, default=60.0, help="virtual seconds of faults (default: %(default)s)")
    sim.add_argument("--calm", type=_seconds, default=60.0, help="virtual seconds after them (default: %(default)s)")
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


def _add_bench(subs: Any, commands: Commands) -> None:
    bench = subs.add_parser("bench", help="measure this machine: links, rounds, joining, records")
    benches = bench.add_subparsers(metavar="BENCH", dest="bench", required=True)
    for name, about in {
        "link": "goodput beside plain TCP; daemons beside one plain loop",
        "rounds": "seconds per round of 8 daemons on a ring, and with audits",
        "join": "how soon a late daemon is as good as the swarm",
        "replay": "records into weights, beside MeZO's way and one pass over the weights",
        "mixing": "models into one, beside torch's obvious forms and one reading of them",
        "memory": "peak memory of a step of seeds, beside that of inference",
        "traffic": "bytes and time to equal accuracy, gossiped models beside records: minutes a repetition",
        "directions": "learning by kind of direction and of scalar: minutes a repetition",
        "liars": "learning when 2 of 8 lie, by rule: minutes a repetition",
    }.items():
        parser = benches.add_parser(name, help=about)
        parser.set_defaults(command=commands["bench"])
        parser.add_argument("--json", action="store_true", help="machine-readable")
        parser.add_argument("--repeats", type=_positive, default=5, help="repetitions (default: %(default)s)")
        if name in PARAMETERS:
            parser.add_argument(
                "--parameters", type=_positive, default=PARAMETERS[name], help="of the model (default: %(default)s)"
            )
        if name == "mixing":
            parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")


def _add_lab(subs: Any, commands: Commands) -> None:
    lab = subs.add_parser("lab", help="experiments: rules, attacks, splits and seeds side by side")
    run = lab.add_subparsers(metavar="COMMAND", required=True).add_parser(
        "run", help="all runs of a scenario that are not done yet; a table and a heat map"
    )
    run.set_defaults(command=commands["lab run"])
    run.add_argument("scenario", help="TOML file, e.g. examples/robust.toml").complete = shtab.FILE  # pyright: ignore[reportAttributeAccessIssue]: shtab's way
    run.add_argument("--json", action="store_true", help="machine-readable: JSON on the last line of stdout")
    run.add_argument("--out", default="", help="folder of the results (default: runs/SCENARIO)")
    run.add_argument("--jobs", type=_positive, help="simulated runs at a time (default: one for each core)")
    run.add_argument("--backend", choices=("simulator", "daemons"), help="instead of the file's")


def _positive(text: str) -> int:
    with suppress(ValueError):
        if (value := int(text)) >= 1:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} should be a whole number, at least 1")


def _whole(text: str) -> int:
    with suppress(ValueError):
        if 0 <= (value := int(text)) <= 2**53:  # what every number on a link is bound by
            return value
    raise argparse.ArgumentTypeError(f"{text!r} should be a whole number from 0 to 2^53")


def _seconds(text: str) -> float:
    with suppress(ValueError):
        if 0 <= (value := float(text)) < math.inf:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} should be a number of seconds, at least 0")


def _probability(text: str) -> float:
    with suppress(ValueError):
        if 0 <= (value := float(text)) <= 1:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} should be a number from 0 to 1")
