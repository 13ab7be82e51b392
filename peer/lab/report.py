"""The demo's report: one PNG, and one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

if TYPE_CHECKING:
    from .demo import DemoResult

# Okabe and Ito's palette: distinct for every kind of colour vision.
BLUE, ORANGE, PINK, RED, GREY, GREEN = "#0072b2", "#e69f00", "#cc79a7", "#d55e00", "#999999", "#009e73"

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
img { width: 100%; } table { border-collapse: collapse; margin: 1rem 0; }
th, td { text-align: left; padding: .3rem .9rem; border-bottom: 1px solid #ddd; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
"""


def write_report(result: DemoResult, folder: Path) -> None:
    """report.png and report.html into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / "report.png"
    _draw(result, picture)
    (folder / "report.html").write_text(_page(result, picture.read_bytes()), encoding="utf-8")


def _draw(result: DemoResult, path: Path) -> None:
    from .demo import LIARS, VICTIM

    figure = Figure(figsize=(10, 5.6), layout="constrained")
    axes = figure.subplots()
    labelled: set[str] = set()
    for name, curve in result.curves.items():
        colour, label = (
            (PINK, "liars (their own models; they send others)")
            if name in LIARS
            else (ORANGE, f"{name}: killed and restarted")
            if name == VICTIM
            else (BLUE, "honest peers, nearest-neighbour mixing")
        )
        rounds, accuracies = zip(*_with_gaps(curve), strict=True)
        width = 1.8 if name == VICTIM else 1.0
        axes.plot(rounds, accuracies, color=colour, lw=width, label=None if label in labelled else label)
        labelled.add(label)
    for name, colour, label in (
        ("mean", RED, "plain-mean mixing, same liars"),
        ("alone", GREY, "each peer alone"),
        ("pooled", GREEN, "all data in one place"),
    ):
        curve = result.baselines[name].curve
        axes.plot(range(1, len(curve) + 1), curve, color=colour, ls="--", lw=1.4, label=label)
    axes.axvline(result.killed_round, color=ORANGE, ls=":", lw=1)
    axes.axvline(result.rejoined_round, color=ORANGE, ls=":", lw=1)
    axes.annotate("killed", (result.killed_round, 0.02), rotation=90, ha="right", color=ORANGE)
    axes.annotate("back", (result.rejoined_round, 0.02), rotation=90, ha="right", color=ORANGE)
    axes.set(xlabel="round", ylabel="test accuracy", ylim=(0, 1.02), title="8 peers, 2 of them liars, one crash")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(loc="center right", frameon=False, bbox_to_anchor=(1.0, 0.42))
    figure.savefig(path, dpi=130)


def _with_gaps(curve: Sequence[tuple[int, float]]) -> Iterator[tuple[int, float]]:
    """The curve, broken where rounds are missing: a peer that is down has no accuracy."""
    before = 0
    for round, accuracy in curve:
        if round > before + 1:
            yield round - 1, math.nan
        yield round, accuracy
        before = round


def _page(result: DemoResult, picture: bytes) -> str:
    from .demo import LIARS

    comparison = "".join(
        f"<tr><td>{html.escape(name)}</td><td class=number>{mean:.3f}</td><td class=number>{worst:.3f}</td></tr>"
        for name, mean, worst in result.comparison()
    )
    peers = "".join(
        f"<tr><td>{name}{' (liar)' if name in LIARS else ''}</td><td class=number>{result.final[name]:.3f}</td>"
        f"<td class=number>{result.bytes_sent[name] / 1e6:.2f} MB</td></tr>"
        for name in result.curves
    )
    sentences = "".join(f"<p>{html.escape(line)}</p>" for line in result.sentences()[:-1])
    image = base64.b64encode(picture).decode()
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>murmurate demo</title><style>{STYLE}</style></head><body>
<h1>8 peers, 2 of them liars, one crash</h1>
<p>Eight daemons on one machine train on scikit-learn's digits, split with label skew (Dirichlet 0.5). Two send
sign-flipped, scaled models; one honest peer is killed with SIGKILL and restarted. Accuracy is on the shared test
split.</p>
<img alt="test accuracy per round" src="data:image/png;base64,{image}">
<table><tr><th>honest peers' test accuracy</th><th>mean</th><th>worst</th></tr>{comparison}</table>
{sentences}
<table><tr><th>peer</th><th>final accuracy</th><th>sent</th></tr>{peers}</table>
</body></html>
"""
