"""What a routing engine gives: forwarding tables, the lane of each path, and what a person should know about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from verbena.fabric.routing.graph import BLOCK, NO_PORT, RoutingError, RoutingGraph

LANES = 15  # data lanes: 0 to 14 (IBA vol. 1, 7.6)
USUAL_LANES = 8


@dataclass(eq=False, slots=True)
class Routing:
    """A routing of one `RoutingGraph`.

    engine: which made it, in the end.  tables: by the switches' index; entry = port by LID, 255 = none, 0 = the switch
    itself.  lanes: how many it needs.  layers: by the index of the source's switch, the lane by destination LID; None
    = lane 0 for all.  slots, numbers: what the fat-tree engine remembers, to choose alike after a failure: the order of
    each switch's ports upward, and the hosts' numbers.  roots: those of up*/down*.
    """

    graph: RoutingGraph
    engine: str
    tables: list[bytearray]
    lanes: int = 1
    layers: list[bytearray] | None = None
    warnings: list[str] = field(default_factory=list)
    slots: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)
    roots: list[str] = field(default_factory=list)

    def port(self, switch: int, lid: int) -> int:
        """A switch's port for a LID; 255 = none."""
        table = self.tables[switch]
        return table[lid] if 0 <= lid < len(table) else NO_PORT

    def sl(self, source_lid: int, dest_lid: int) -> int:
        """The service level, which is also the lane, of the path between two LIDs.

        Raises `RoutingError` for a LID that nobody has.
        """
        source, dest = self.graph.end_of(source_lid), self.graph.end_of(dest_lid)
        if source is None or dest is None:
            lid = source_lid if source is None else dest_lid
            raise RoutingError(f"LID {lid:#x} belongs to nobody in this subnet")
        if self.layers is None or source.switch < 0:
            return 0
        return self.layers[source.switch][dest_lid]

    def block(self, switch: int, number: int) -> bytes:
        """64 entries of a switch's forwarding table, as a subnet manager writes them."""
        return bytes(self.tables[switch][number * BLOCK : (number + 1) * BLOCK])


def cut(flat: bytearray, width: int) -> list[bytearray]:
    """Rows of `width` bytes."""
    return [flat[at : at + width] for at in range(0, len(flat), width)]


def joined(rows: Sequence[bytes | bytearray], width: int, blank: int = NO_PORT) -> bytearray:
    """One after another, each brought to `width` bytes."""
    fill = bytes([blank]) * width
    return bytearray().join(row[:width] + fill[len(row) :] for row in rows)


def carried_over(graph: RoutingGraph, previous: Routing | None) -> bytearray:
    """The tables of an earlier routing, in the order of this graph's switches; empty if there is none."""
    if previous is None:
        return bytearray()
    rows = []
    for name in graph.switches:
        at = previous.graph.index.get(name)
        rows.append(bytearray() if at is None else previous.tables[at])
    return joined(rows, graph.width)


def unreachable(graph: RoutingGraph, tables: Sequence[bytearray]) -> list[str]:
    """One warning for each end that some switch has no way to."""
    warnings = []
    for end in graph.ends:
        if end.switch < 0:
            if end.name not in graph.direct:
                warnings.append(f"LID {end.lid:#x} ({end.name}) is not connected to any switch")
            continue
        without = [s for s, table in enumerate(tables) if table[end.lid] == NO_PORT]
        if without:
            some = ", ".join(graph.switches[s] for s in without[:3])
            more = "" if len(without) <= 3 else f" and {len(without) - 3} more"
            warnings.append(f"LID {end.lid:#x} ({end.name}) cannot be reached from {some}{more}")
    return warnings
