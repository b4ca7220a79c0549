"""The picture of a switch report, where matplotlib is installed: completion times, and where frames were lost."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from verbena.scenario.vswitch_report import Comparison, Report

COLOURS = {"lossy": "tab:red", "lossless": "tab:blue"}


def draw(report: Report, path: Path) -> bool:
    """Draw it; False where there is no matplotlib, or nothing to draw."""
    try:
        figures: Any = importlib.import_module("matplotlib.figure")
    except ImportError:
        return False
    panels = len(report.comparisons) + bool(report.losses)
    if not panels:
        return False
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    figure = figures.Figure(figsize=(8, 3.2 * panels), layout="constrained")
    axes = list(figure.subplots(panels, squeeze=False)[:, 0])
    for comparison in report.comparisons:
        completions(axes.pop(0), comparison)
    if report.losses:
        _losses(axes.pop(0), report)
    # Without a date and with fixed identifiers, the same run gives the same file.
    with importlib.import_module("matplotlib").rc_context({"svg.hashsalt": "verbena"}):
        figure.savefig(path, metadata={"Date": None})
    return True


def completions(axes: Any, comparison: Comparison) -> None:
    """Shares of queries (solid) and of answers (dotted), of all that were asked, that were complete after a time."""
    asked = comparison.model.asked
    for name, side in (("lossy", comparison.lossy), ("lossless", comparison.lossless)):
        for times, total, style, label in (
            (side.queries_ns, asked, "-", f"{name}: queries"),
            (side.flows_ns, asked * comparison.model.workers, ":", f"{name}: answers"),
        ):
            ordered = sorted(ns / 1e6 for ns in times)
            shares = [(at + 1) / total for at in range(len(ordered))]
            axes.plot(ordered, shares, style, color=COLOURS[name], drawstyle="steps-post", label=label)
    axes.axvline(comparison.model.deadline_ms, color="gray", linewidth=0.8)
    axes.set_title(comparison.name, loc="left")
    axes.set_xscale("log")
    axes.set_xlabel("completion time, ms (grey: deadline)")
    axes.set_ylabel("share")
    axes.set_ylim(0, 1.02)
    axes.legend(frameon=False, fontsize="small")
    axes.spines[["top", "right"]].set_visible(False)


def _losses(axes: Any, report: Report) -> None:
    """A bar for each run with one control off: frames lost, of those sent."""
    rows = [row for row in report.losses if len(row.off) <= 1]
    labels = [row.off[0] if row.off else "all controls on" for row in rows]
    shares = [100 * sum(row.lost.values()) / row.sent for row in rows]
    axes.barh(range(len(rows)), shares, color=COLOURS["lossy"])
    axes.set_yticks(range(len(rows)), labels, fontsize="small")
    axes.invert_yaxis()
    axes.set_title("without control at ...", loc="left")
    axes.set_xlabel("frames lost, %")
    axes.spines[["top", "right"]].set_visible(False)
