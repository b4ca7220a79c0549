"""The picture of a parameter study: what was accepted, and how long it took, over the first key that was varied."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Curve = dict[Any, list[float]]
PANELS = (
    ("latency_mean_ns", "mean latency, us", 1e-3),
    ("latency_p99_ns", "latency of 99 %, us", 1e-3),
    ("accepted_load", "accepted load", 1.0),
)
MOST_CURVES = 12


def draw_study(records: Sequence[dict[str, Any]], keys: Sequence[str], path: Path) -> bool:
    """Draw it; False where there is no matplotlib, or nothing to draw.

    A curve for each combination of the other keys (and each workload), through the means over the seeds; the band goes
    from the smallest to the largest.
    """
    records = [record for record in records if record.get("latency_mean_ns") is not None]
    try:
        figures: Any = importlib.import_module("matplotlib.figure")
    except ImportError:
        return False
    if not records or not keys:
        return False
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    figure = figures.Figure(figsize=(8, 3.2 * len(PANELS)), layout="constrained")
    for axes, (name, label, factor) in zip(figure.subplots(len(PANELS)), PANELS, strict=True):
        _panel(axes, records, keys, name, factor)
        axes.set_xlabel(keys[0])
        axes.set_ylabel(label)
        axes.spines[["top", "right"]].set_visible(False)
    # Without a date and with fixed identifiers, the same study gives the same file.
    with importlib.import_module("matplotlib").rc_context({"svg.hashsalt": "verbena"}):
        figure.savefig(path, metadata={"Date": None})
    return True


def _panel(
    axes: Any, records: Sequence[dict[str, Any]], keys: Sequence[str], name: str, factor: float
) -> None:
    curves = curves_of(records, keys, name, factor)
    for label, curve in list(curves.items())[:MOST_CURVES]:
        xs = list(curve) if any(isinstance(x, str) for x in curve) else sorted(curve)
        means = [sum(curve[x]) / len(curve[x]) for x in xs]
        (line,) = axes.plot(xs, means, marker=".", label=label)
        lows, highs = [min(curve[x]) for x in xs], [max(curve[x]) for x in xs]
        axes.fill_between(xs, lows, highs, alpha=0.2, color=line.get_color(), linewidth=0)
    if name == "accepted_load":
        axes.set_ylim(bottom=0)
    else:
        axes.set_yscale("log")
    if len(curves) > 1:
        axes.legend(frameon=False)


def curves_of(
    records: Sequence[dict[str, Any]], keys: Sequence[str], name: str, factor: float = 1.0
) -> dict[str, Curve]:
    """The values of a number by the first key, for each combination of the others and each workload."""
    several = len({record["workload"] for record in records}) > 1
    found: dict[str, Curve] = {}
    for record in records:
        parts = [f"{key}={record[key]}" for key in keys[1:]]
        label = ", ".join([record["workload"], *parts] if several else parts)
        if record.get(name) is not None:
            found.setdefault(label, {}).setdefault(record[keys[0]], []).append(record[name] * factor)
    return found
