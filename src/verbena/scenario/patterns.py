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


def streams(flow: Flow, hosts: Sequence[str], random: Random) -> list[Stream]:
    """A flow's streams (none for a trace).  Raises `VerbenaError` where the pattern does not fit the hosts."""
    sources = flow.sources or tuple(hosts)
    to = flow.destinations or tuple(hosts)
    load = flow.load
    match flow.pattern:
        case "uniform":
            return [Stream(s, to, load) for s in sources if _without(to, s)]
        case "all-to-all":
            if len(sources) * len(to) > MOST_PAIRS:
                raise VerbenaError(f"all-to-all of {len(sources)} hosts: at most {MOST_PAIRS:,} pairs")
            return [Stream(s, _after(to, s), load, cyclic=True) for s in sources if _without(to, s)]
        case "permutation":
            chosen = _derangement(list(sources), random)
            return [Stream(s, (d,), load) for s, d in zip(sources, chosen, strict=True)]
        case "shift":
            _at_least(flow, sources, 2)
            if flow.by % len(sources) == 0:
                raise VerbenaError(f"shift by {flow.by}: of {len(sources)} hosts, that is to themselves")
            shifted = [sources[(i + flow.by) % len(sources)] for i in range(len(sources))]
            return [Stream(s, (d,), load) for s, d in zip(sources, shifted, strict=True)]
        case "pairs":
            if not flow.sources or len(flow.sources) != len(flow.destinations):
                raise VerbenaError("pairs: as many sources as destinations are needed")
            return [Stream(s, (d,), load) for s, d in zip(sources, to, strict=True)]
        case "incast":
            if not flow.destinations:
                raise VerbenaError("incast: name the destinations")
            senders = flow.sources or tuple(h for h in hosts if h not in flow.destinations)
            return [Stream(s, to, load) for s in senders if _without(to, s)]
        case "hotspot":
            return _hotspot(flow, sources, hosts)
        case "trace":
            return []


def _hotspot(flow: Flow, sources: Sequence[str], hosts: Sequence[str]) -> list[Stream]:
    """Two streams for each source: the share that goes to the hot destinations, and the rest."""
    if not flow.destinations:
        raise VerbenaError("hotspot: name the destinations")
    made = []
    for s in sources:
        if hot := _without(flow.destinations, s):
            made.append(Stream(s, hot, flow.load * flow.share))
        if flow.share < 1 and _without(hosts, s):
            made.append(Stream(s, tuple(hosts), flow.load * (1 - flow.share)))
    return made


def _without(names: Sequence[str], name: str) -> tuple[str, ...]:
    return tuple(each for each in names if each != name)


def _after(names: Sequence[str], name: str) -> tuple[str, ...]:
    """The others, beginning after oneself: so that not all begin with the same one."""
    start = names.index(name) if name in names else 0
    return _without([*names[start:], *names[:start]], name)


def _at_least(flow: Flow, names: Sequence[str], count: int) -> None:
    if len(names) < count:
        raise VerbenaError(f"{flow.pattern}: at least {count} hosts are needed")


def _derangement(names: list[str], random: Random) -> list[str]:
    """A random permutation that leaves nobody in his place; every one is equally likely."""
    if len(names) < 2:
        raise VerbenaError("permutation: at least 2 hosts are needed")
    while True:
        drawn = names.copy()
        random.shuffle(drawn)
        if all(a != b for a, b in zip(names, drawn, strict=True)):
            return drawn


def read_trace(path: Path, hosts: Sequence[str]) -> list[Event]:
    """A trace file: CSV with the columns time_ns, source, destination, bytes.  Raises `VerbenaError` with the line."""
    known = set(hosts)
    events = []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            wanted = {"time_ns", "source", "destination", "bytes"}
            if missing := wanted - set(reader.fieldnames or ()):
                raise VerbenaError(f"{path}:1: the column {sorted(missing)[0]} is missing")
            for row in reader:
                events.append(_event(path, reader.line_num, row, known))
                if len(events) > MOST_EVENTS:
                    raise VerbenaError(f"{path}: more than {MOST_EVENTS:,} packets")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise VerbenaError(f"{path} cannot be read: {error}") from None
    return sorted(events, key=lambda event: event.time_ns)


def _event(path: Path, line: int, row: dict[str, str], known: set[str]) -> Event:
    try:
        event = Event(int(row["time_ns"]), row["source"], row["destination"], int(row["bytes"]))
    except (TypeError, ValueError):
        raise VerbenaError(f"{path}:{line}: time_ns and bytes are whole numbers") from None
    for name in (event.source, event.destination):
        if name not in known:
            raise VerbenaError(f"{path}:{line}: there is no host {name}")
    if event.time_ns < 0 or not 0 <= event.bytes <= 4096:
        raise VerbenaError(f"{path}:{line}: time_ns is 0 or more, bytes 0 to 4096")
    if event.source == event.destination:
        raise VerbenaError(f"{path}:{line}: {event.source} sends to itself")
    return event
