"""`verbena handlers`: the completion handlers of the programs that run here, live; and what many are good for.

Rates are those since the last look.  With ``--study``, nothing that runs is looked at: one adapter with 1, 2, 4, 8
handlers on eight simulated processors is measured (`scenario.handler_study`), and drawn.
"""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from verbena.errors import InvalidAttributeError, SystemLimitError
from verbena.runtime.handler_window import look_around
from verbena.scenario.handler_study import StudyOptions, StudyResult, measure

NOBODY = "no program with completion handlers runs here, as this user, in real time"
HEADINGS = (
    ("process", "right"),
    ("id", "right"),
    ("function", "left"),
    ("cpu", "right"),
    ("class", "right"),
    ("queues", "left"),
    ("calls/s", "right"),
    ("busy", "right"),
    ("50 %", "right"),
    ("99 %, us", "right"),
    ("state", "left"),
)
Seen = dict[tuple[int, str, int], tuple[int, dict[str, Any]]]


def handlers(*, once: bool = False, interval: float = 1.0, as_json: bool = False) -> int:
    """Show what runs, until Ctrl-C; `once`, one time, `interval` seconds after the first look.

    Exit status 0; 1 where nothing is to be seen (with `once`).
    """
    console = Console(highlight=False)
    seen = _remembered(look_around())
    if as_json:
        found = look_around()
        print(json.dumps(found, indent=2))
        return 0 if found else 1
    if once:
        time.sleep(interval if seen else 0)
        found = look_around()
        if not found:
            raise SystemLimitError(NOBODY)
        console.print(table_of(found, seen))
        return 0
    with Live(console=console, auto_refresh=False) if console.is_terminal else nullcontext() as live:
        while True:
            time.sleep(interval)
            found = look_around()
            picture = table_of(found, seen) if found else NOBODY
            if live is None:
                console.print(picture)
            else:
                live.update(picture, refresh=True)
            seen = _remembered(found)


def _remembered(found: Sequence[dict[str, Any]]) -> Seen:
    """What each handler had done when it was looked at."""
    return {
        (told["pid"], told["adapter"], one["id"]): (told["when_ns"], one)
        for told in found
        for one in told["handlers"]
    }


def table_of(found: Sequence[dict[str, Any]], before: Seen) -> Table:
    """The table; rates since `before`, a dash for a handler that was not there then."""
    table = Table()
    for heading, justify in HEADINGS:
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for told in found:
        for one in told["handlers"]:
            key = (told["pid"], told["adapter"], one["id"])
            table.add_row(*_cells(told, one, before.get(key)))
    return table


def _cells(told: dict[str, Any], one: dict[str, Any], before: tuple[int, dict[str, Any]] | None) -> list[str]:
    rates = ["-"] * 2
    if before is not None and told["when_ns"] > before[0] and one["calls"] >= before[1]["calls"]:
        seconds = (told["when_ns"] - before[0]) / 1e9
        calls, busy = (one[name] - before[1][name] for name in ("calls", "busy_ns"))
        rates = [f"{calls / seconds:,.0f}", f"{busy / seconds / 1e9:.0%}"]
    waits = [one["wait_p50_ns"], one["wait_p99_ns"]]
    return [
        str(told["pid"]),
        str(one["id"]),
        one["function"].rsplit(".", 1)[-1],
        "any" if one["processor"] is None else str(one["processor"]),
        str(one["priority"]),
        " ".join(one["queues"]) or "none",
        *rates,
        *("-" if wait is None else f"{wait / 1e3:,.0f}" for wait in waits),
        state_of(one),
    ]


def state_of(one: dict[str, Any]) -> str:
    """In words: what is going on, and what went wrong."""
    words = [
        word
        for word, holds in (
            ("masked", one["masked"]),
            ("pending", one["pending"]),
            ("running", one["running"]),
            (f"{one['waiting']} waiting", one["waiting"]),
            (f"raised {one['failures']} times", one["failures"]),
            (f"stuck {one['stuck']} times", one["stuck"]),
        )
        if holds
    ]
    return ", ".join(words) or "idle"


# --- the study ------------------------------------------------------------------------------------------------------


def study(numbers: Sequence[int], options: StudyOptions, plot: Path | None, as_json: bool) -> int:
    """Measure each number of handlers, print the table, and draw it.

    Raises `InvalidAttributeError` for a plot of no known kind, `SystemLimitError` without matplotlib.
    """
    if plot is not None and plot.suffix not in (".svg", ".png", ".pdf"):
        raise InvalidAttributeError(f"{plot} is no picture that can be drawn: .svg, .png or .pdf")
    results = [measure(number, options) for number in numbers]
    if as_json:
        fields = StudyResult.__slots__
        print(json.dumps([{name: getattr(r, name) for name in fields} for r in results], indent=2))
    else:
        Console(highlight=False).print(study_table(results, options))
        print(explained(results, options))
    if plot is not None:
        draw(results, options, plot)
    return 0


def study_table(results: Sequence[StudyResult], options: StudyOptions) -> Table:
    """What was measured, a line for each number of handlers."""
    table = Table(
        title=f"{options.consumers} consumers, {options.processors} processors, "
        f"{options.work_ns / 1e3:g} us of work for a message"
    )
    for heading in ("handlers", "messages/s", "busy", "busiest", "lines moved", "50 %, us", "99 %, us"):
        table.add_column(heading, justify="right")
    for r in results:
        table.add_row(
            str(r.handlers),
            f"{r.throughput:,.0f}",
            f"{r.busy:.0%}",
            f"{r.busiest:.0%}",
            f"{r.moved_lines:.2f}",
            f"{r.p50_ns / 1e3:.1f}",
            f"{r.p99_ns / 1e3:.1f}",
        )
    return table


def explained(results: Sequence[StudyResult], options: StudyOptions) -> str:
    """Why, in a few sentences, from the numbers."""
    first, best = results[0], max(results, key=lambda r: r.throughput)
    text = (
        f"With {first.handlers} handler{'s' if first.handlers > 1 else ''}, the busiest processor works "
        f"{first.busiest:.0%} of the time, and all {options.processors} together {first.busy:.0%}; "
        f"{first.moved_lines:.1f} cache lines of each message move to the processor of its consumer."
    )
    if best is not first:
        text += (
            f"\n{best.handlers} handlers do {best.throughput / first.throughput:.1f} times as much: "
            f"all processors work {best.busy:.0%} of the time, and {best.moved_lines:.1f} lines of a message move."
        )
    beyond = [r for r in results if r.handlers > options.processors >= best.handlers]
    if beyond:
        text += f"\n{beyond[-1].handlers} handlers do no more: processors have run out."
    return text


def draw(results: Sequence[StudyResult], options: StudyOptions, path: Path) -> None:
    """Throughput and latency over the number of handlers; the same study gives the same file."""
    try:
        figures: Any = importlib.import_module("matplotlib.figure")
    except ImportError:
        raise SystemLimitError("matplotlib is not installed: pip install matplotlib") from None
    figure = figures.Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    xs = [r.handlers for r in results]
    left.plot(xs, [r.throughput / 1e6 for r in results], marker="o", label="measured")
    ideal = [results[0].throughput * min(x, options.processors) / xs[0] / 1e6 for x in xs]
    left.plot(
        xs, ideal, linestyle=":", color="grey", label="so many times the first, until processors run out"
    )
    left.set_ylabel("million messages a second")
    left.set_ylim(bottom=0)
    for name, label in (("p99_ns", "99 %"), ("p50_ns", "50 %")):
        right.plot(xs, [getattr(r, name) / 1e3 for r in results], marker="o", label=label)
    right.set_ylabel(f"us from sending to done, at {options.rate:,.0f} messages/s")
    right.set_yscale("log")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(xs, [str(x) for x in xs])
        axes.set_xlabel(f"completion handlers on {options.processors} processors")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    with importlib.import_module("matplotlib").rc_context({"svg.hashsalt": "verbena"}):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
