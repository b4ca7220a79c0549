"""Min-hop: every LID on a shortest way, balanced over the ports that are equally short.

The rule is that of OpenSM's engine ``minhop`` (OpenSM, doc/current-routing.txt, "Min Hop Algorithm"): in a first stage
each switch learns the least number of hops by each of its ports to each LID; in a second, each LID gets, among the
ports with the least hops, the one that the fewest LIDs use so far.  With LMC > 0, a port's further LIDs avoid the
ports, then the neighbours, that its first ones take.  Where a switch's ways to the two LIDs start at different ports
everywhere, they share no cable in a direction.

Nothing is done against deadlock: on a fabric with loops, ask `find_cycle`.
"""

from __future__ import annotations

from verbena.fabric.routing.disjoint import separate
from verbena.fabric.routing.fill import balanced
from verbena.fabric.routing.graph import RoutingGraph
from verbena.fabric.routing.paths import Paths
from verbena.fabric.routing.routing import Routing, cut


def minhop(
    graph: RoutingGraph, lanes: int, previous: Routing | None = None, disjoint: bool = False
) -> Routing:
    """Route on shortest ways; one lane.

    disjoint: the second and further LIDs of a port take longer ways where only these share no cable with the first's.
    """
    paths = Paths(graph)
    flat = balanced(graph, paths, paths.minimal, previous)
    if disjoint:
        separate(graph, flat)
    return Routing(graph, "minhop", cut(flat, graph.width))
