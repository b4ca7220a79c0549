"""A path through the tables, hop by hop, as ibtracert shows it; loops and dead ends are told, not followed for ever."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from verbena.fabric.routing.graph import NO_PORT, End, RoutingError, RoutingGraph
from verbena.fabric.routing.routing import Routing


@dataclass(frozen=True, slots=True)
class Hop:
    """A node on the way.  in_port, out_port: of a switch; 0 where the way begins or ends, or at the switch itself."""

    node: str
    in_port: int
    out_port: int

    def __str__(self) -> str:
        return f"[{self.in_port}] {self.node} [{self.out_port}]"


class Trace(list[Hop]):
    """The hops from one end to another.  lane: of the path.  problem: "" or why it does not arrive."""

    def __init__(self, hops: Iterable[Hop] = (), lane: int = 0, problem: str = "") -> None:
        super().__init__(hops)
        self.lane = lane
        self.problem = problem

    @property
    def arrives(self) -> bool:
        return not self.problem

    @property
    def switches(self) -> list[str]:
        """The names of the switches on the way."""
        return [hop.node for hop in self if hop.in_port or hop.out_port]

    def __str__(self) -> str:
        return "\n".join([*map(str, self), *([self.problem] if self.problem else [])])


def trace(graph: RoutingGraph, routing: Routing, source_lid: int, dest_lid: int) -> Trace:
    """Follow a packet from one LID to another.  Raises `RoutingError` if nobody has the source's LID."""
    source, dest = graph.end_of(source_lid), graph.end_of(dest_lid)
    if source is None:
        raise RoutingError(f"LID {source_lid:#x} belongs to nobody in this subnet")
    if source.switch < 0:
        return _direct(graph, source, dest, dest_lid)
    way = Trace(lane=0 if routing.layers is None or dest is None else routing.layers[source.switch][dest_lid])
    if source.port:
        way.append(Hop(source.name, 0, 0))
    s, came_by, seen = source.switch, source.port, set[int]()
    while True:
        name = graph.switches[s]
        port = routing.port(s, dest_lid)
        way.append(Hop(name, came_by, 0 if port == NO_PORT else port))
        if port == NO_PORT or port > graph.port_count[s]:
            what = "no entry" if port == NO_PORT else f"port {port}, which it does not have,"
            way.problem = f"dead end at {name}: {what} for LID {dest_lid:#x}"
            return way
        if dest is not None and (s, port) == (dest.switch, dest.port):
            if dest.port:
                way.append(Hop(dest.name, 0, 0))
            return way
        there = graph.neighbour(s, port)
        if there is None:
            way.problem = f"dead end at {name}[{port}]: LID {dest_lid:#x} is not there"
            return way
        if s in seen:
            way.problem = f"loop: LID {dest_lid:#x} comes to {name} again"
            return way
        seen.add(s)
        s, came_by = there


def _direct(graph: RoutingGraph, source: End, dest: End | None, dest_lid: int) -> Trace:
    """Two ends on one cable, without a switch."""
    if dest is not None and (dest is source or graph.direct.get(source.name) == dest.name):
        return Trace([Hop(end.name, 0, 0) for end in ([source] if dest is source else [source, dest])])
    return Trace(
        [Hop(source.name, 0, 0)], problem=f"dead end at {source.name}: LID {dest_lid:#x} is not there"
    )
