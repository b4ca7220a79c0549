"""Tables that somebody else made: read from a text in the format of ``dump_lfts`` and OpenSM's file routing, or given.

The format (infiniband-diags, ibroute(8); OpenSM, doc/modular-routing.txt): for each switch a line ``Unicast lids [...]
of switch ... guid 0x... (name):``, then a line ``0x<LID> <port>`` for each entry, port decimal; anything after that on
the line is for the reader.  Nothing is computed: an entry that is not there is 255, and what the tables do not reach
or send in circles shows in `find_cycle`, `trace` and the warnings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from verbena.fabric.routing.graph import NO_PORT, RoutingError, RoutingGraph
from verbena.fabric.routing.routing import Routing

_SWITCH = re.compile(r"Unicast lids\b.*\bguid\s+(0x[0-9a-fA-F]+)(?:\s+\((.*)\))?:?\s*$")
_ENTRY = re.compile(r"(0x[0-9a-fA-F]+)\s+(\d+)\b")

Tables = Mapping[str, Mapping[int, int]]


def given(
    graph: RoutingGraph,
    lanes: int,
    previous: Routing | None = None,
    *,
    tables: Tables | None = None,
    text: str | None = None,
    layers: Tables | None = None,
) -> Routing:
    """The given tables, checked.

    tables: port by LID, by the switch's name; or text: the same as a dump.  layers: the lane by destination LID, by the
    name of the source's switch; 0 where none is given.

    Raises `RoutingError` for a switch, LID, port or lane that cannot be, with the line of the text.
    """
    if (tables is None) == (text is None):
        raise RoutingError("engine file: give either the tables, or a text to read them from")
    found = read_tables(graph, text) if text is not None else dict(tables or {})
    rows = _rows(graph, found, NO_PORT)
    for s, row in enumerate(rows):
        for lid, port in enumerate(row):
            if port != NO_PORT and port > graph.port_count[s]:
                raise RoutingError(
                    f"table of {graph.switches[s]}, LID {lid:#x}: port {port}; "
                    f"it has ports 0 to {graph.port_count[s]}, and 255 means none"
                )
    missing = [name for name in graph.switches if name not in found]
    warnings = [f"no table is given for switch {name}" for name in missing]
    lane_rows = None if layers is None else _rows(graph, layers, 0)
    highest = max((max(row) for row in lane_rows or ()), default=0)
    if highest >= lanes:
        raise RoutingError(f"the given paths use lane {highest}, and there are {lanes} lanes")
    return Routing(graph, "file", rows, lanes=highest + 1, layers=lane_rows, warnings=warnings)


def _rows(graph: RoutingGraph, tables: Tables, nothing: int) -> list[bytearray]:
    rows = [bytearray([nothing]) * graph.width for _ in graph.switches]
    for name, entries in tables.items():
        if name not in graph.index:
            raise RoutingError(f"table of {name}: there is no switch of that name")
        row = rows[graph.index[name]]
        for lid, value in entries.items():
            if graph.end_of(lid) is None:
                continue  # whose LID it was has gone
            if not 0 <= value <= 255:
                raise RoutingError(f"table of {name}, LID {lid:#x}: {value} is not from 0 to 255")
            row[lid] = value
    return rows


def read_tables(graph: RoutingGraph, text: str) -> dict[str, dict[int, int]]:
    """Tables out of a text.  Switches are known by their GUID, or by their name where the graph has no GUID."""
    by_guid = {guid: name for guid, name in zip(graph.guids, graph.switches, strict=True) if guid}
    tables: dict[str, dict[int, int]] = {}
    current: dict[int, int] | None = None
    for number, line in enumerate(text.splitlines(), 1):
        head = _SWITCH.match(line.strip())
        if head is not None:
            name = by_guid.get(int(head[1], 16), (head[2] or "").split(";")[0])
            if name not in graph.index:
                raise RoutingError(
                    f"line {number}: there is no switch with GUID {head[1]} or the name {head[2]!r}"
                )
            if name in tables:
                raise RoutingError(f"line {number}: a second table of switch {name}")
            current = tables[name] = {}
            continue
        entry = _ENTRY.match(line.strip())
        if entry is None:
            continue
        if current is None:
            raise RoutingError(f"line {number}: an entry before the line of any switch")
        lid, port = int(entry[1], 16), int(entry[2])
        if port > NO_PORT:
            raise RoutingError(f"line {number}: port {port} is not from 0 to 255")
        current[lid] = port
    if not tables:
        raise RoutingError("the text has no line 'Unicast lids ... of switch ... guid 0x...'")
    return tables


def dump_tables(graph: RoutingGraph, routing: Routing) -> str:
    """The tables as a text that `read_tables` and people read."""
    return "\n".join(_dump(graph, routing)) + "\n"


def _dump(graph: RoutingGraph, routing: Routing) -> Iterator[str]:
    top = max((end.lids[-1] for end in graph.ends), default=0)
    for s, name in enumerate(graph.switches):
        lid = next((end.lid for end in graph.ends if end.is_switch and end.switch == s), 0)
        yield f"Unicast lids [0x0-{top:#x}] of switch Lid {lid} guid {graph.guids[s]:#018x} ({name}):"
        count = 0
        for end in graph.ends:
            for lid in end.lids:
                port = routing.port(s, lid)
                if port != NO_PORT:
                    kind = "Switch" if end.is_switch else "Channel Adapter"
                    yield f"{lid:#06x} {port:03d} : ({kind} {end.name!r})"
                    count += 1
        yield f"{count} valid lids dumped"
