"""A picture of a run, where matplotlib is installed: how fast a file went, and how long messages took."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import Any

from verbena.scenario.outcome import Outcome, RunResult


def draw(result: RunResult, path: Path) -> bool:
    """Draw it; False where there is no matplotlib, or nothing to draw."""
    drawn = [outcome for outcome in result.outcomes if outcome.samples]
    try:
        figures: Any = importlib.import_module("matplotlib.figure")
    except ImportError:
        return False
    if not drawn:
        return False
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    figure = figures.Figure(figsize=(8, 3 * len(drawn)), layout="constrained")
    for axes, outcome in zip(figure.subplots(len(drawn), squeeze=False)[:, 0], drawn, strict=True):
        axes.set_title(f"{outcome.name} ({outcome.kind})", loc="left")
        if outcome.kind == "file-transfer":
            _throughput(axes, outcome)
        else:
            _times(axes, outcome)
        axes.spines[["top", "right"]].set_visible(False)
    # Without a date and with fixed identifiers, the same run gives the same file.
    with importlib.import_module("matplotlib").rc_context({"svg.hashsalt": "verbena"}):
        figure.savefig(path, metadata={"Date": None})
    return True


def _throughput(axes: Any, outcome: Outcome) -> None:
    for name, samples in outcome.samples.items():
        axes.plot([ns / 1e6 for ns, _ in samples], [count / 1e6 for _, count in samples], label=name)
    axes.set_xlabel("time, ms")
    axes.set_ylabel("completed, MB")
    axes.legend(frameon=False)


def _times(axes: Any, outcome: Outcome) -> None:
    (times,) = outcome.samples.values()
    ordered = sorted(ns / 2000 for ns in times)
    shares = [(at + 1) / len(ordered) for at in range(len(ordered))]
    axes.plot(ordered, shares, drawstyle="steps-post")
    if ordered[-1] > 10 * max(ordered[0], 1e-9):
        axes.set_xscale("log")
    axes.set_xlabel("half round trip, us")
    axes.set_ylabel("share of rounds")
    axes.set_ylim(0, 1)
