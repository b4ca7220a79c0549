"""Can a routing deadlock?  The check of whatever tables and lanes are in force, and the cycle if there is one.

A cycle in the channel dependency graph of a lane is a ring of buffers, each of which can be full of packets that wait
for the next (see channels.py).  Counted are the paths on which data travels: from every adapter and router port to
every other, as OpenSM's companion ibdmchk does.  To and from the LIDs of switches there is only management, most of it
on lane 15, which waits for no credits; `switches` counts these paths, too.  A loop in the tables is told for any LID.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from verbena.fabric.routing.channels import Dependencies
from verbena.fabric.routing.graph import RoutingGraph
from verbena.fabric.routing.routing import Routing, joined


@dataclass(frozen=True, slots=True)
class Channel:
    """A direction of a cable on one lane: from a port of `switch` to a port of `peer`."""

    switch: str
    port: int
    peer: str
    peer_port: int
    lane: int

    def __str__(self) -> str:
        return f"{self.switch}[{self.port}] -> {self.peer}[{self.peer_port}] lane {self.lane}"


class Cycle(list[Channel]):
    """Channels each of which waits for the next, and the last for the first.

    lid: if not None, packets to this LID go round in the tables for ever: a mistake that no lane can mend.
    """

    def __init__(self, channels: Iterable[Channel], lid: int | None = None) -> None:
        super().__init__(channels)
        self.lid = lid

    def __str__(self) -> str:
        head = (
            f"cycle of {len(self)} channels"
            if self.lid is None
            else f"forwarding loop of {len(self)} switches for LID {self.lid:#x}"
        )
        return "\n  ".join([head + ":", *map(str, self)])


@dataclass(frozen=True, slots=True)
class Check:
    """cycle: None = free of deadlock.  channels, dependencies: how many there are, over all lanes."""

    cycle: Cycle | None
    channels: int
    dependencies: int


def find_cycle(graph: RoutingGraph, routing: Routing, *, switches: bool = False) -> Cycle | None:
    """A cycle of channels in which packets can wait for each other; None if there is none."""
    return check(graph, routing, switches=switches).cycle


def check(graph: RoutingGraph, routing: Routing, *, switches: bool = False) -> Check:
    """As `find_cycle`, with the size of the dependency graph."""
    width = graph.width
    table = joined(routing.tables, width)
    layers = bytearray() if routing.layers is None else joined(routing.layers, width, 0)
    found = Dependencies(graph, max(layers, default=0) + 1)
    aside = Dependencies(graph, found.lanes)  # for ways that count only if they go in circles
    everybody = senders(graph)
    loop: Cycle | None = None
    for end in graph.ends:
        if end.switch < 0:
            continue
        counted = switches or not end.is_switch
        sources = everybody if switches or end.is_switch else graph.has_hosts
        for lid in end.lids:
            at = (found if counted else aside).follow(table, layers, width, lid, sources)
            if at >= 0 and loop is None:
                loop = Cycle(_round(graph, routing, at, lid), lid)
    cycle = loop
    if cycle is None and (ring := found.cycle()) is not None:
        lane, channels = ring
        cycle = Cycle(_channel(graph, c, lane) for c in channels)
    return Check(cycle, *found.totals())


def senders(graph: RoutingGraph) -> bytearray:
    """A byte for each switch: has it an adapter, a router or a LID of its own?"""
    return bytearray(a | b for a, b in zip(graph.has_hosts, graph.has_lid, strict=True))


def _channel(graph: RoutingGraph, channel: int, lane: int) -> Channel:
    s, other = graph.owner[channel], graph.peer[channel]
    t = graph.owner[other]
    return Channel(
        graph.switches[s], channel - graph.first[s], graph.switches[t], other - graph.first[t], lane
    )


def _round(graph: RoutingGraph, routing: Routing, start: int, lid: int) -> list[Channel]:
    """The channels of a forwarding loop that passes the switch `start`."""
    lane = 0 if routing.layers is None else routing.layers[start][lid]
    channels: list[Channel] = []
    s = start
    while not channels or s != start:
        channel = graph.first[s] + routing.port(s, lid)
        channels.append(_channel(graph, channel, lane))
        s = graph.owner[graph.peer[channel]]
    return channels
