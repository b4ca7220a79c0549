"""A picture of a run, where matplotlib is installed: how fast files went, how long messages took, what a fabric did."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
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
    panels = [(outcome, panel) for outcome in drawn for panel in _panels(outcome)]
    figure = figures.Figure(figsize=(8, 3 * len(panels)), layout="constrained")
    for axes, (outcome, panel) in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
        axes.set_title(f"{outcome.name} ({outcome.kind})", loc="left")
        panel(axes, outcome)
        axes.spines[["top", "right"]].set_visible(False)
    # Without a date and with fixed identifiers, the same run gives the same file.
    with importlib.import_module("matplotlib").rc_context({"svg.hashsalt": "verbena"}):
        figure.savefig(path, metadata={"Date": None})
    return True


def _panels(outcome: Outcome) -> list[Callable[[Any, Outcome], None]]:
    """What is drawn of a workload, from top to bottom."""
    if outcome.kind == "file-transfer":
        return [_throughput]
    if outcome.kind == "traffic":
        return [_latencies, _delivered, _link_use, _lanes]
    return [_times]


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


# --- traffic through a fabric: samples are [ns, delivered bytes, mean link use, largest, bytes waiting by lane] -------


def _latencies(axes: Any, outcome: Outcome) -> None:
    """A histogram on a logarithmic axis; the bins get wider as the values do."""
    bins = outcome.samples["latency"]
    if not bins:
        axes.text(0.5, 0.5, "nothing was delivered", ha="center")
        return
    widths = [(high - low) / 1000 for low, high, _ in bins]
    axes.bar([low / 1000 for low, _, _ in bins], [count for *_, count in bins], widths, align="edge")
    axes.set_xscale("log")
    axes.set_xlabel("latency, us")
    axes.set_ylabel("packets")


def _curve(outcome: Outcome) -> tuple[list[float], list[list[Any]]]:
    samples = outcome.samples["time"]
    return [sample[0] / 1000 for sample in samples], samples


def _delivered(axes: Any, outcome: Outcome) -> None:
    times, samples = _curve(outcome)
    before = [2 * times[0] - times[1] if len(times) > 1 else 0.0, *times]
    gbps = [s[1] * 8e-3 / (now - then) for s, then, now in zip(samples, before, times, strict=False)]
    axes.plot(times, gbps)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("time, us")
    axes.set_ylabel("delivered, Gb/s")


def _link_use(axes: Any, outcome: Outcome) -> None:
    times, samples = _curve(outcome)
    axes.plot(times, [100 * s[3] for s in samples], label="busiest link")
    axes.plot(times, [100 * s[2] for s in samples], label="mean of all links")
    axes.set_ylim(0, 105)
    axes.set_xlabel("time, us")
    axes.set_ylabel("link use, %")
    axes.legend(frameon=False)


def _lanes(axes: Any, outcome: Outcome) -> None:
    times, samples = _curve(outcome)
    for lane in range(len(samples[0][4]) if samples else 0):
        axes.plot(times, [s[4][lane] / 1024 for s in samples], label=f"lane {lane}")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("time, us")
    axes.set_ylabel("in input buffers, KiB")
    axes.legend(frameon=False)
