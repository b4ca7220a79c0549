"""Layered: shortest ways on all cables, and a lane for each pair so that no lane can deadlock.

The ways are min-hop's.  Each path from a switch to a LID is put on the first lane where it closes no cycle (LASH:
Skeie, Lysne and Theiss, 2002; OpenSM's engines ``lash`` and ``dfsssp``, doc/current-routing.txt); then paths move to
emptier lanes where that adds nothing.  A path keeps its lane all the way: the lane is chosen by source and destination
where a packet enters (document 003:613, 618).

A ring of any length needs two lanes, a tree one.  Balanced ways make many different turns, and so need more lanes than
ways that all prefer the same neighbours; where the lanes do not suffice for the first, the second are taken: shortest
ways by the neighbour nearest to the middle of the fabric.  If these need more lanes than there are, too, that is an
error that names the number.
"""

from __future__ import annotations

from verbena.fabric.routing.deadlock import senders
from verbena.fabric.routing.disjoint import separate
from verbena.fabric.routing.fill import balanced
from verbena.fabric.routing.graph import RoutingError, RoutingGraph
from verbena.fabric.routing.layering import Layering
from verbena.fabric.routing.paths import Paths
from verbena.fabric.routing.routing import LANES, Routing, cut
from verbena.fabric.routing.updn import centres, order


def layered(
    graph: RoutingGraph, lanes: int, previous: Routing | None = None, disjoint: bool = False
) -> Routing:
    """Route on shortest ways; raises `RoutingError` if more than `lanes` lanes are needed.

    disjoint: as of min-hop.
    """
    paths = Paths(graph)
    flat = balanced(graph, paths, paths.minimal, previous)
    if disjoint:
        separate(graph, flat)
    found = assign_lanes(graph, flat, lanes)
    if isinstance(found, str):
        paths = Paths(graph)
        order(graph, paths, centres(graph, paths)[:1], check=False)
        flat = balanced(graph, paths, paths.narrow, previous)
        if disjoint:
            separate(graph, flat)
        found = assign_lanes(graph, flat, lanes)
    if isinstance(found, str):
        found = assign_lanes(graph, flat, LANES)
        needed = found if isinstance(found, str) else str(found[1])
        raise RoutingError(
            f"layered routing of these {len(graph.switches)} switches needs {needed} lanes and there are {lanes}: "
            "give more lanes, or use up/down (engine updn), which needs one"
        )
    layers, count = found
    tables = cut(flat, graph.width)
    return Routing(graph, "layered", tables, lanes=count, layers=layers if count > 1 else None)


def assign_lanes(graph: RoutingGraph, flat: bytearray, lanes: int) -> tuple[list[bytearray], int] | str:
    """Lanes for the paths of some tables, and how many there are; or a text if `lanes` do not suffice.

    What travels to and from switches themselves is management, for which no lane is added: it goes on a lane where
    data makes the same turns, else on lane 0.
    """
    layering = Layering(graph, lanes)
    layers = bytearray(len(flat))
    data = [lid for end in graph.ends if end.port for lid in end.lids]
    management = [lid for end in graph.ends if end.is_switch for lid in end.lids]
    for lid in data:
        if layering.assign(flat, layers, graph.width, lid, graph.has_hosts):
            return f"more than {lanes}"
    needed = max(1, layering.lanes_used())
    for lid in data:
        layering.even_out(flat, layers, graph.width, lid, graph.has_hosts, needed)
    everybody = senders(graph)
    without = bytearray(a & ~b & 1 for a, b in zip(everybody, graph.has_hosts, strict=True))
    for lid in data:
        layering.admit(flat, layers, graph.width, lid, without, needed)
    for lid in management:
        layering.admit(flat, layers, graph.width, lid, everybody, needed)
    return cut(layers, graph.width), needed
