"""How things look in a terminal: rich renderables out of plain values. Prints nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from murmurate.peer.config import Config
    from murmurate.peer.lab.demo import DemoResult, DemoState
    from murmurate.peer.lab.demo_seeds import SeedsResult, SeedsState, SeedsView
    from murmurate.topology import Rule, Summary

STATE_STYLES = {
    "alive": "green",
    "training": "green",
    "waiting": "green",
    "mixing": "green",
    "signing": "green",
    "folding": "green",
    "idle": "green",
    "joining": "yellow",
    "adopting": "yellow",
    "suspect": "yellow",
    "starting": "yellow",
    "killed": "red",
    "dead": "red",
    "left": "dim",
    "liar": "magenta",
}


def progress(console: Console) -> Progress:
    """A bar for long work."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True)


def bytes_text(count: float) -> str:
    """1234567 -> '1.2 MB'."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000 or unit == "GB":
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def _state(state: str) -> Text:
    return Text(state, STATE_STYLES.get(state, ""))


def _number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _figure4(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"  # JSON has no word for it, so it comes as None


# run, status, peers ---------------------------------------------------------------------------------


def run_header(config: Config, swarm: str, payload_bytes: int) -> Text:
    """The first line of `murmurate run`."""
    is_seeds = config.exchange.name == "seeds"
    rule = f"seeds with {config.seeds.directions} directions" if is_seeds else config.mixing.rule
    if config.mixing.f:
        rule += f" (f = {config.mixing.f})"
    text = Text(
        f"{config.name} of swarm {config.swarm.name} {swarm[:12]}: {config.task.name}, "
        f"{'batches' if is_seeds else 'updates'} of {bytes_text(payload_bytes)}, "
    )
    text.append(f"{config.topology.rule} of {len(config.peers)}, {rule}; listening on {config.listen}")
    if config.runtime.insecure:
        text.append("\ninsecure = true: links are neither encrypted nor authenticated", "yellow")
    if config.attack.name != "none":
        text.append(f"\nattack = {config.attack.name}: this peer lies", "magenta")
    return text


def run_line(row: Mapping[str, Any]) -> Text:
    """One line of `murmurate run`: one per round, and one for whatever else happened."""
    kind = row["kind"]
    if kind == "round":
        figures = " ".join(f"{name} {_figure4(row[name])}" for name in ("loss", "accuracy", "test_loss") if name in row)
        text = Text(f"round {row['round']:>5}  {figures}  {row['seconds']:.2f} s (waited {row['waited_s']:.2f})  ")
        if "records" in row:
            text.append(f"{row['records']} records, {row['batches']} batches new")
        else:
            text.append(f"mixed {len(row['folded'])}")
        if row["missing"]:
            text.append(f", missed {', '.join(row['missing'])}", "yellow")
        return text
    match kind:
        case "started":
            return Text(f"started, after round {row['round']}" if row["round"] else "started", "dim")
        case "joined":
            return Text(f"joined at round {row['round']} from {', '.join(row['sources'])}", "cyan")
        case "skipped":
            return Text(f"joins the neighbours' round {row['to_round']} instead of {row['from_round']}", "cyan")
        case "peer":
            return Text(f"{row['peer']} is {row['state']}", STATE_STYLES.get(row["state"], ""))
        case "unreachable":
            return Text(f"{row['peer']} is not there: {row['reason']}; dialling goes on", "yellow")
        case "voided":
            why = "signed two histories" if row["forked"] else "is retracted"
            return Text(f"{row['peer']} {why}: its records from {row['from_seq']} on count nowhere", "magenta")
        case "took":
            covered = f"the state of {row['batches']} batches ({row['bytes']} bytes) instead of their log"
            return Text(f"took {covered} from {', '.join(row['sources'])}", "cyan")
        case "unreached":
            text = (
                f"{row['peer']}'s records from {row['from_seq']} on are void; only a neighbour with their log can take"
            )
            return Text(f"{text} them out: asking", "yellow")
        case "crowded_out":
            return Text(f"{row['peer']} has too many lives: one of them counts nowhere any more", "magenta")
        case "diverged":
            return Text(
                f"{row['peer']} holds the same records and has other weights: one of us computes wrongly", "red"
            )
        case "audited":
            found = f"nothing can be said: {row['open']}" if row["open"] else "as it should be"
            return Text(f"audited {row['peer']} in round {row['round']}: {found}", "dim")
        case "banned":
            return Text(f"banned {row['peer']} in round {row['round']}: {row['reason']}", "red")
        case "refused":
            return Text(f"refused {row['peer']}: {row['reason']}", "yellow")
        case _:
            return Text(str(row.get("text", dict(row))), "yellow")


def status_panel(status: Mapping[str, Any]) -> RenderableType:
    """`murmurate status`."""
    table = Table.grid(padding=(0, 2))
    records = status["records"]
    snapshot = f"after round {status['snapshot_round']}" if status["snapshot_round"] else "none yet"
    rows: list[tuple[str, RenderableType]] = [
        ("doing", _state(status["phase"])),
        ("round", str(status["round"])),
        *((name, _figure4(value)) for name, value in sorted(status["figures"].items()) if name != "records"),
        ("exchange", status["exchange"]),
        *(_records_rows(records) if records else [("snapshot", snapshot)]),
        ("traffic", f"{bytes_text(status['bytes_sent'])} sent, {bytes_text(status['bytes_received'])} received"),
        ("links", f"{sum(peer['linked'] for peer in status['peers'])} of {len(status['peers'])}"),
        ("up", f"{status['uptime_s']:.0f} s"),
        ("listens", status["listen"]),
    ]
    if status["metrics"]:
        rows.append(("metrics", f"http://{status['metrics']}/metrics"))
    for name, value in rows:
        table.add_row(Text(name, "dim"), value)
    panel = Panel(table, title=f"{status['peer']} · swarm {status['swarm'][:12]}", expand=False)
    return Group(panel, _origins_table(records["origins"]), Text(f"cut {records['cut']}")) if records else panel


def _records_rows(records: Mapping[str, Any]) -> list[tuple[str, RenderableType]]:
    return [
        ("records", str(records["records"])),
        ("set", records["set"][:16]),
        ("weights", records["weights"][:16] or "not digested yet"),
        ("key", records["key"]),
    ]


def _origins_table(origins: Sequence[Mapping[str, Any]]) -> Table:
    """Whose records these are; a peer whose folder was wiped has more than one line."""
    table = Table("peer", "key", "batches", "records", "round", "void")
    for origin in origins:
        void = f"from {origin['closed_at']} on" if origin["closed"] else ""
        counts = (str(origin[name]) for name in ("batches", "records", "round"))
        table.add_row(origin["peer"], origin["origin"][:16], *counts, Text(void, "magenta"))
    return table


def peers_table(peers: Sequence[Mapping[str, Any]]) -> Table:
    """`murmurate peers`."""
    table = Table("peer", "state", "address", "link", "round", "sent", "received", "heard", "refused", "trouble")
    for peer in peers:
        table.add_row(
            peer["peer"],
            _state(peer["state"]),
            peer["address"],
            "up" if peer["linked"] else "",
            str(peer["round"]),
            bytes_text(peer["bytes_sent"]),
            bytes_text(peer["bytes_received"]),
            f"{peer['heard_ago_s']:.1f} s ago" if peer["heard_ago_s"] >= 0 else "never",
            str(peer["refusals"] or ""),
            peer["trouble"] or peer["last_refusal"],
        )
    return table


# topology, sim, bench -------------------------------------------------------------------------------


def rules_table(rules: Mapping[str, Rule]) -> Table:
    """`murmurate topology list`."""
    table = Table("rule", "options", "graph")
    for name, rule in sorted(rules.items()):
        options = ", ".join(f"{key} = {value!r}" for key, value in rule.options.items())
        table.add_row(name, options, rule.about)
    return table


def topology_table(summary: Summary, plot: str) -> RenderableType:
    """`murmurate topology show`."""
    from dataclasses import asdict

    table = figures_table(f"{summary.rule}, {summary.n} peers", asdict(summary))
    return Group(table, Text(f"drawn into {plot}")) if plot else table


def figures_table(title: str, figures: Mapping[str, Any]) -> Table:
    """Named figures, one a row; a figure that was repeated shows its minimum, median and maximum."""
    table = Table("figure", "value", title=title, title_justify="left")
    for name, value in figures.items():
        table.add_row(name, _figure(value))
    return table


def _figure(value: Any) -> str:
    match value:
        case {"min": low, "median": middle, "max": high}:
            return f"{middle:.4g}  ({low:.4g} to {high:.4g})"
        case dict():
            return ", ".join(f"{key} {_figure(item)}" for key, item in value.items())
        case list():
            return "\n".join(_figure(item) for item in value) or "none"
        case bool() | None:
            return "yes" if value else "no"
        case float():
            return f"{value:.4g}"
        case _:
            return str(value)


def grid_tables(rows: Sequence[Mapping[str, Any]], plot: str) -> RenderableType:
    """`murmurate lab run`: rules down, attacks across, a table for each alpha."""
    rules, attacks, alphas = (list(dict.fromkeys(row[key] for row in rows)) for key in ("rule", "attack", "alpha"))
    cells = {(row["rule"], row["attack"], row["alpha"]): row for row in rows}
    tables: list[RenderableType] = []
    for alpha in alphas:
        title = f"honest peers' accuracy, %, Dirichlet alpha = {alpha:g}"
        table = Table("rule", *attacks, title=title, title_justify="left")
        for rule in rules:
            table.add_row(rule, *(_accuracy(cells.get((rule, attack, alpha))) for attack in attacks))
        tables.append(table)
    return Group(*tables, Text(f"drawn into {plot}"))


def _accuracy(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    spread = f" ±{100 * row['accuracy_std']:.1f}" if row["seeds"] > 1 else ""
    return f"{100 * row['accuracy_mean']:.1f}{spread}"


# demo -------------------------------------------------------------------------------------------------


def demo_table(state: DemoState) -> RenderableType:
    """The live view of the demo."""
    table = Table("peer", "state", "round", "loss", "accuracy", "sent", title=state.headline, title_justify="left")
    for peer in state.peers:
        table.add_row(
            Text(f"{peer.name}{' (liar)' if peer.liar else ''}", "magenta" if peer.liar else ""),
            _state(peer.state),
            str(peer.round),
            _number(peer.loss),
            _number(peer.accuracy),
            bytes_text(peer.bytes_sent),
        )
    return table


def demo_verdict(result: DemoResult) -> RenderableType:
    """What the demo showed."""
    table = Table("honest peers' test accuracy", "mean", "worst", title_justify="left")
    for name, mean, worst in result.comparison():
        table.add_row(name, _number(mean), _number(worst))
    lines = [Text(line) for line in result.sentences()]
    return Panel(Group(table, *lines), title="verdict", expand=False)


def seeds_demo_table(state: SeedsState) -> RenderableType:
    """The live view of the seeds demo."""
    return _seeds_table(state.headline, state.peers)


def _seeds_table(title: str, peers: Sequence[SeedsView]) -> Table:
    columns = ("peer", "state", "round", "records", "accuracy", "sent", "set", "weights")
    table = Table(*columns, title=title, title_justify="left")
    for peer in peers:
        table.add_row(
            peer.name,
            _state(peer.state),
            str(peer.round),
            str(peer.records),
            _number(peer.accuracy),
            bytes_text(peer.bytes_sent),
            peer.set[:8],
            peer.weights[:12],
        )
    return table


def seeds_demo_verdict(result: SeedsResult) -> RenderableType:
    """What it showed."""
    lines = [Text(line) for line in result.sentences()]
    return Panel(Group(_seeds_table("at the end", result.peers), *lines), title="verdict", expand=False)
