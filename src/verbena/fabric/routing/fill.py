"""What the engines share: going through the destinations, switch by switch, in the order of their ports."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from verbena.fabric.routing.graph import NO_PORT, End, RoutingGraph
from verbena.fabric.routing.paths import Paths
from verbena.fabric.routing.routing import Routing, carried_over


def ends_by_switch(graph: RoutingGraph) -> Iterator[tuple[int, list[End]]]:
    """The switches that LIDs are at, with those ends by port number; a switch's own LIDs come first."""
    at: dict[int, list[End]] = {}
    for end in graph.ends:
        if end.switch >= 0:
            at.setdefault(end.switch, []).append(end)
    for s in sorted(at):
        yield s, sorted(at[s], key=lambda end: end.port)


def blank(graph: RoutingGraph) -> bytearray:
    """Tables of all switches, one after another, without an entry."""
    return bytearray([NO_PORT]) * (len(graph.switches) * graph.width)


def balanced(
    graph: RoutingGraph, paths: Paths, candidates: Callable[[int], object], previous: Routing | None = None
) -> bytearray:
    """Tables in which every LID takes one of the candidate ports, balanced.

    candidates: called with the index of a destination's switch, makes `paths` list them.  previous: a routing from
    before a failure, whose entries are kept where they still fit.
    """
    flat = blank(graph)
    old = carried_over(graph, previous)
    for s, ends in ends_by_switch(graph):
        candidates(s)
        for end in ends:
            paths.assign(flat, graph.width, old, s, end.port, end.lid, 1 << end.lmc)
    return flat
