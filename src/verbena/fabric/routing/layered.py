"""Layered: shortest ways on all cables, and a lane for each pair so that no lane can deadlock.

The ways are min-hop's.  Each path from a switch to a LID is put on the first lane where it closes no cycle (LASH:
Skeie, Lysne and Theiss, 2002; OpenSM's engines ``lash`` and ``dfsssp``, doc/current-routing.txt); then paths move to
emptier lanes where that adds nothing.  A path keeps its lane all the way: the lane is chosen by source and destination
where a packet enters (document 003:613, 618).

A ring of any length needs two lanes, a tree one.  If there are fewer lanes than needed, that is an error that names the
number.
"""

from __future__ import annotations

from collections.abc import Iterator

from verbena.fabric.routing.channels import Layering
from verbena.fabric.routing.fill import balanced
from verbena.fabric.routing.graph import RoutingError, RoutingGraph
from verbena.fabric.routing.paths import Paths
from verbena.fabric.routing.routing import LANES, Routing, cut


def layered(graph: RoutingGraph, lanes: int, previous: Routing | None = None) -> Routing:
    """Route on shortest ways; raises `RoutingError` if more than `lanes` lanes are needed."""
    paths = Paths(graph)
    flat = balanced(graph, paths, paths.minimal, previous)
    layers, needed = assign_lanes(graph, flat, lanes)
    tables = cut(flat, graph.width)
    return Routing(graph, "layered", tables, lanes=needed, layers=layers if needed > 1 else None)


def assign_lanes(graph: RoutingGraph, flat: bytearray, lanes: int) -> tuple[list[bytearray], int]:
    """Lanes for the paths of some tables, and how many there are."""
    layering = Layering(graph, LANES)
    layers = bytearray(len(flat))
    homeless = sum(layering.assign(flat, layers, graph.width, lid, sources) for lid, sources in _work(graph))
    needed = layering.lanes_used()
    if homeless or needed > lanes:
        number = f"{needed}" if not homeless else f"more than {LANES}"
        raise RoutingError(
            f"layered routing of these {len(graph.switches)} switches needs {number} lanes and there are {lanes}: "
            "give more lanes, or use up/down (engine updn), which needs one"
        )
    for lid, sources in _work(graph):
        layering.even_out(flat, layers, graph.width, lid, sources, needed)
    return cut(layers, graph.width), max(needed, 1)


def _work(graph: RoutingGraph) -> Iterator[tuple[int, bytearray]]:
    """Each LID, with the switches from which data travels to it (see deadlock.py)."""
    everybody = bytearray(a | b for a, b in zip(graph.has_hosts, graph.has_lid, strict=True))
    for end in graph.ends:
        if end.switch >= 0:
            for lid in end.lids:
                yield lid, graph.has_hosts if end.is_switch else everybody
