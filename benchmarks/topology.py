"""Benchmarks of what comes in and goes out as text and pictures; each beside the least that could be done with it."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from typing import Any

from endpoint import row

from verbena.fabric.addressing import assign_lids, note_lids
from verbena.fabric.generators import generate
from verbena.fabric.ibnetdiscover import read, write


def _seconds(work: Callable[[], object], runs: int = 5) -> float:
    """The median of some runs."""
    taken = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return sorted(taken)[runs // 2]


def dump_read() -> dict[str, Any]:
    """Lines of an ibnetdiscover dump a second, checked and turned into a topology; baseline: cut into words.

    A three-level fat tree of 1,024 hosts and 320 switches (14,212 lines).
    """
    topology = generate("fat-tree", k=16)
    note_lids(topology, assign_lids(topology))
    text = "".join(write(topology))
    lines = text.count("\n")
    words = _seconds(lambda: [line.split() for line in io.StringIO(text)])
    return row(
        "topology.dump_read", lines / _seconds(lambda: read(io.StringIO(text))), "lines/s", lines / words
    )


def generate_8192() -> dict[str, Any]:
    """Seconds to generate a fat tree of 8,192 hosts (k = 32) and give it LIDs."""
    return row("topology.generate_8192", _seconds(lambda: assign_lids(generate("fat-tree", k=32))), "s", None)


BENCHMARKS: dict[str, Callable[[], Any]] = {"dump_read": dump_read, "generate_8192": generate_8192}
