"""Dimension order: in a mesh or torus, first along one dimension, then along the next; lanes break the rings.

The order of dimensions makes a mesh free of deadlock (Dally and Seitz, 1987); as an engine, OpenSM's ``dor``
(doc/current-routing.txt, "DOR Routing Algorithm").  Around a ring the shorter way is taken; of two halves, even places
go one way and odd ones the other.

A torus has rings, and a packet keeps its lane inside a subnet (document 003:613), so it cannot change lane at a
dateline.  Instead each path gets one bit for each dimension: does it cross the cable between the last place and the
first?  Paths of one lane then either never cross it, or all do and leave out the middle, as none is longer than half
the ring; so no lane closes a ring.  With d rings of four or more that takes 2^d lanes.  If there are fewer, or a cable
or a switch is missing, or the fabric is no grid, the layered engine is used, with a warning.

A LID has one way; the LIDs of one port differ only where several cables lie side by side.
"""

from __future__ import annotations

from verbena.fabric.routing.fill import balanced, ends_by_switch
from verbena.fabric.routing.graph import RoutingGraph
from verbena.fabric.routing.grid import Grid, grid_of
from verbena.fabric.routing.layered import layered
from verbena.fabric.routing.routing import Routing, cut
from verbena.fabric.routing.steps import Steps

LONGEST_SAFE_RING = 3  # ways of one hop depend on nothing


def dor(graph: RoutingGraph, lanes: int, previous: Routing | None = None) -> Routing:
    """Route a mesh or torus; 2^d lanes for d rings of four or more switches."""
    grid = grid_of(graph)
    if isinstance(grid, str):
        return _instead(graph, lanes, previous, f"this is no mesh or torus: {grid}")
    bits = datelines(grid)
    needed = 1 << sum(1 for bit in bits if bit)
    if needed > lanes:
        return _instead(
            graph, lanes, previous, f"dimension order needs {needed} lanes here and there are {lanes}"
        )
    steps = Steps(graph, grid.sizes, grid.wraps, bits, grid.places, grid.cables(graph))
    broken = sum(steps.dimension_order(s) for s in range(len(graph.switches)))
    if broken:
        return _instead(
            graph, lanes, previous, f"cables or switches are missing on {broken} ways of dimension order"
        )
    tables = cut(balanced(graph, steps, steps.dimension_order, previous), graph.width)
    return Routing(graph, "dor", tables, lanes=needed, layers=_lanes(graph, steps) if needed > 1 else None)


def datelines(grid: Grid) -> list[int]:
    """What crossing the dateline of each dimension adds to the lane; 0 where no ring can close."""
    bits, bit = [], 1
    for size, wraps in zip(grid.sizes, grid.wraps, strict=True):
        bits.append(bit if wraps and size > LONGEST_SAFE_RING else 0)
        bit <<= bool(bits[-1])
    return bits


def _lanes(graph: RoutingGraph, steps: Steps) -> list[bytearray]:
    layers = bytearray(len(graph.switches) * graph.width)
    for s, ends in ends_by_switch(graph):
        steps.dimension_order(s)
        for end in ends:
            steps.enter_lanes(layers, graph.width, end.lid, 1 << end.lmc)
    return cut(layers, graph.width)


def _instead(graph: RoutingGraph, lanes: int, previous: Routing | None, why: str) -> Routing:
    routing = layered(graph, lanes, previous)
    routing.warnings.insert(0, f"{why}; routed in layers instead")
    return routing
