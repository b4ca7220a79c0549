"""What comes out of a run: of each workload, and of the whole."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Protocol


class Watcher(Protocol):
    """Who is told how a run goes on."""

    def started(self, workload: int, name: str) -> None:
        """A workload begins."""

    def progress(self, workload: int, phase: str, done: int, total: int, unit: str) -> None:
        """It has got this far."""

    def finished(self, workload: int) -> None:
        """It has ended."""


class NoWatcher:
    """Nobody."""

    def started(self, workload: int, name: str) -> None: ...

    def progress(self, workload: int, phase: str, done: int, total: int, unit: str) -> None: ...

    def finished(self, workload: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the result table.  ns: how long it took; 0: not timed.  rate: as text, with its unit."""

    what: str
    bytes: int
    ns: int
    rate: str


@dataclass(slots=True)
class Outcome:
    """How one workload ended."""

    name: str
    kind: str
    ok: bool
    verdict: str
    rows: list[Row]
    facts: dict[str, Any] = field(default_factory=dict)
    samples: dict[str, list[Any]] = field(default_factory=dict)

    def as_data(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(slots=True)
class RunResult:
    """How a whole run ended.  counters: of each adapter.  capture: packets written to the file, packets not.

    ports: counters of the fabric's ports, those that are not 0.  warnings: what a real fabric would run with.  memory:
    of each host that has a modelled one, what `memory_view` said last.
    """

    name: str
    time: str
    seed: int
    outcomes: list[Outcome]
    counters: dict[str, dict[str, int]]
    captured: int | None = None
    not_captured: int = 0
    simulated_ns: int | None = None
    balance: list[tuple[str, int, int]] = field(default_factory=list)
    ports: dict[str, dict[str, int]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    memory: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return all(outcome.ok for outcome in self.outcomes) and self.balanced

    @property
    def balanced(self) -> bool:
        """Are all packets accounted for?  (In real time, the kernel's part is not ours to count: always so.)"""
        return all(ours == theirs for _, ours, theirs in self.balance)


def rate(count: int, ns: int, unit: str) -> str:
    """So many bytes (or operations) in that time."""
    if not ns or not count:
        return "-"
    each_second = count * 1e9 / ns
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if each_second >= factor:
            return f"{each_second / factor:.2f} {prefix}{unit}"
    return f"{each_second:.2f} {unit}"


def duration(ns: float) -> str:
    """A time with a fitting unit."""
    for factor, unit in ((1e9, "s"), (1e6, "ms"), (1e3, "us")):
        if ns >= factor:
            return f"{ns / factor:.3f} {unit}"
    return f"{ns:.0f} ns"
