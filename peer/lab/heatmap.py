"""A grid's picture: rules down, attacks across, one panel for each alpha."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

CELL_INCHES = (0.95, 0.42)
DARK_BELOW = 0.45  # of the colour scale: there text is white


def draw_grid(rows: Sequence[dict[str, Any]], path: Path, title: str) -> Path:
    """Draw `summary` rows into the PNG file `path`. Raises OSError when it cannot be written."""
    rules, attacks, alphas = (list(dict.fromkeys(row[key] for row in rows)) for key in ("rule", "attack", "alpha"))
    width = 2.4 + CELL_INCHES[0] * len(attacks)
    height = 0.9 + len(alphas) * (1.5 + CELL_INCHES[1] * len(rules))
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(len(alphas), 1, squeeze=False)[:, 0]
    image = None
    for alpha, panel in zip(alphas, panels, strict=True):
        means = np.full((len(rules), len(attacks)), np.nan)
        for row in rows:
            if row["alpha"] != alpha:
                continue
            i, j, mean = rules.index(row["rule"]), attacks.index(row["attack"]), row["accuracy_mean"]
            means[i, j] = mean
            spread = f"\n±{100 * row['accuracy_std']:.1f}" if row["seeds"] > 1 else ""
            colour = "white" if mean < DARK_BELOW else "black"
            panel.text(j, i, f"{100 * mean:.1f}{spread}", ha="center", va="center", fontsize=7, color=colour)
        image = panel.imshow(means, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        panel.set_title(f"honest peers' test accuracy, %, Dirichlet alpha = {alpha:g}", fontsize=9)
        labels = [attack.replace("_", "\n") for attack in attacks]
        panel.set_xticks(range(len(attacks)), labels, fontsize=8)
        panel.set_yticks(range(len(rules)), rules, fontsize=8)
        panel.tick_params(length=0)
    if image is not None:
        figure.colorbar(image, ax=list(panels), shrink=0.6, label="accuracy")
    figure.savefig(path, format="png", dpi=150)
    return path
