"""Who sends to whom: the traffic patterns of scale simulation.

Patterns after Dally and Towles, "Principles and Practices of Interconnection Networks", 3.2, and what data centres add
(incast, hot spots).
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from verbena.errors import VerbenaError
from verbena.scenario.fabric_schema import Flow

MOST_EVENTS = 10_000_000
MOST_PAIRS = 10_000_000
SHARED = 64
LATEST_NS = 10**15


@dataclass(frozen=True, slots=True)
class Stream:
    """What one host sends: to any of `destinations` but itself, drawn evenly, or `cyclic`: one after the other.

    load: of its link.
    """

    source: str
    destinations: tuple[str, ...]
    load: float
    cyclic: bool = False


@dataclass(frozen=True, slots=True)
class Event:
    """A packet of a trace."""

    time_ns: int
    source: str
    destination: str
    bytes: int


def check_flow(flow: Flow, hosts: Sequence[str]) -> None:
    """Raise `VerbenaError` where a flow's pattern does not fit the hosts."""
    known = set(hosts)
    for name in (*flow.sources, *flow.destinations):
        if name not in known:
            raise VerbenaError(f"{flow.pattern}: there is no host {name}")
    sources, to = flow.sources or hosts, flow.destinations or hosts
    if len(set(sources)) < len(sources) and flow.pattern != "pairs":
        raise VerbenaError(f"{flow.pattern}: each source once")
    if (flow.file is not None) != (flow.pattern == "trace"):
        raise VerbenaError("a trace needs a file, and nothing else has one")
    match flow.pattern:
        case "permutation" | "shift":
            if len(sources) < 2:
                raise VerbenaError(f"{flow.pattern}: at least 2 hosts are needed")
            if flow.destinations:
                raise VerbenaError(f"{flow.pattern}: the sources are the destinations, too")
            if flow.pattern == "shift" and flow.by % len(sources) == 0:
                raise VerbenaError(f"shift by {flow.by}: of {len(sources)} hosts, that is to themselves")
        case "pairs":
            if not flow.sources or len(flow.sources) != len(flow.destinations):
                raise VerbenaError("pairs: as many sources as destinations are needed")
            if same := [s for s, d in zip(sources, to, strict=True) if s == d]:
                raise VerbenaError(f"pairs: {same[0]} cannot send to itself")
        case "incast" | "hotspot":
            if not flow.destinations:
                raise VerbenaError(f"{flow.pattern}: name the destinations")
        case "all-to-all":
            if len(sources) * len(to) > MOST_PAIRS:
                raise VerbenaError(f"all-to-all of {len(sources)} hosts: at most {MOST_PAIRS:,} pairs")
    if flow.pattern != "trace" and len(hosts) < 2:
        raise VerbenaError(f"{flow.pattern}: at least 2 hosts are needed")


def streams(flow: Flow, hosts: Sequence[str], random: Random) -> list[Stream]:
    """A flow's streams (none for a trace).  Raises `VerbenaError` where the pattern does not fit the hosts."""
    check_flow(flow, hosts)
    sources = flow.sources or tuple(hosts)
    to = flow.destinations or tuple(hosts)
    load = flow.load
    match flow.pattern:
        case "uniform":
            return [Stream(s, _but(to, s), load) for s in sources if _others(to, s)]
        case "all-to-all":
            return [Stream(s, _after(to, s), load, cyclic=True) for s in sources if _others(to, s)]
        case "permutation":
            chosen = _derangement(list(sources), random)
            return [Stream(s, (d,), load) for s, d in zip(sources, chosen, strict=True)]
        case "shift":
            shifted = [sources[(i + flow.by) % len(sources)] for i in range(len(sources))]
            return [Stream(s, (d,), load) for s, d in zip(sources, shifted, strict=True)]
        case "pairs":
            return [Stream(s, (d,), load) for s, d in zip(sources, to, strict=True)]
        case "incast":
            senders = flow.sources or tuple(h for h in hosts if h not in flow.destinations)
            return [Stream(s, _but(to, s), load) for s in senders if _others(to, s)]
        case "hotspot":
            return _hotspot(flow, sources, hosts)
        case "trace":
            return []


def _hotspot(flow: Flow, sources: Sequence[str], hosts: Sequence[str]) -> list[Stream]:
    """Two streams for each source: the share that goes to the hot destinations, and the rest to any host.

    A source that is the only hot destination sends all of its load anywhere.
    """
    made = []
    for s in sources:
        hot = _others(flow.destinations, s)
        share = flow.share if hot else 0.0
        if hot:
            made.append(Stream(s, _but(flow.destinations, s), flow.load * share))
        if share < 1:
            made.append(Stream(s, _but(tuple(hosts), s), flow.load * (1 - share)))
    return made


def _others(names: Sequence[str], name: str) -> bool:
    """Is there any but this one?"""
    return any(each != name for each in names)


def _but(names: tuple[str, ...], name: str) -> tuple[str, ...]:
    """The others; of many, the same tuple for every source: the core keeps it once, and skips a port's own LID."""
    return names if len(names) > SHARED else _without(names, name)


def _without(names: Sequence[str], name: str) -> tuple[str, ...]:
    return tuple(each for each in names if each != name)


def _after(names: Sequence[str], name: str) -> tuple[str, ...]:
    """The others, beginning after oneself: so that not all begin with the same one."""
    start = names.index(name) if name in names else 0
    return _without([*names[start:], *names[:start]], name)


def _derangement(names: list[str], random: Random) -> list[str]:
    """A random permutation that leaves nobody in his place; every one is equally likely."""
    while True:
        drawn = names.copy()
        random.shuffle(drawn)
        if all(a != b for a, b in zip(names, drawn, strict=True)):
            return drawn


def read_trace(path: Path, hosts: Sequence[str], mtu: int = 4096) -> list[Event]:
    """A trace file: CSV with the columns time_ns, source, destination, bytes (up to the MTU), in any order of time.

    Raises `VerbenaError` with the line.
    """
    known = set(hosts)
    events = []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            wanted = {"time_ns", "source", "destination", "bytes"}
            if missing := wanted - set(reader.fieldnames or ()):
                raise VerbenaError(f"{path}:1: the column {sorted(missing)[0]} is missing")
            for row in reader:
                events.append(_event(path, reader.line_num, row, known, mtu))
                if len(events) > MOST_EVENTS:
                    raise VerbenaError(f"{path}: more than {MOST_EVENTS:,} packets")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise VerbenaError(f"{path} cannot be read: {error}") from None
    if not events:
        raise VerbenaError(f"{path}: the trace is empty")
    return sorted(events, key=lambda event: event.time_ns)


def _event(path: Path, line: int, row: dict[str, str], known: set[str], mtu: int) -> Event:
    try:
        event = Event(int(row["time_ns"]), row["source"], row["destination"], int(row["bytes"]))
    except (TypeError, ValueError):
        raise VerbenaError(f"{path}:{line}: time_ns and bytes are whole numbers") from None
    for name in (event.source, event.destination):
        if name not in known:
            raise VerbenaError(f"{path}:{line}: there is no host {name}")
    if not 0 <= event.time_ns <= LATEST_NS or not 0 <= event.bytes <= mtu:
        raise VerbenaError(f"{path}:{line}: time_ns is 0 to {LATEST_NS}, bytes 0 to {mtu}")
    if event.source == event.destination:
        raise VerbenaError(f"{path}:{line}: {event.source} sends to itself")
    return event
