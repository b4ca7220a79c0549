"""Second ways that share no cable with the first, also where they have to be longer.

Balanced shortest ways to the LIDs of one port differ wherever there are several shortest ones.  In a ring or along a
row of a torus there is only one: then a further LID of the port gets a tree of its own, in which each switch with
adapters that has no second way yet goes to the destination without any cable of its first way, as far as one tree can
do that for all of them; what is left over is for the next LID (LMC 2 gives three).  Where one cable is the only one,
nothing helps.  These ways are not the shortest, so nothing keeps them from deadlock but lanes (engine layered).

Plain Python, for fabrics of some hundred switches; asked for by the option `disjoint`.
"""

from __future__ import annotations

from verbena.fabric.routing.graph import NO_PORT, End, RoutingGraph

Way = list[int]  # channels


def separate(graph: RoutingGraph, flat: bytearray) -> None:
    """Change the entries of the second and further LIDs of adapters and routers where that separates their ways."""
    for end in graph.ends:
        if end.port and end.lmc:
            _separate_one(graph, flat, end)


def _separate_one(graph: RoutingGraph, flat: bytearray, end: End) -> None:
    homes = [s for s, hosts in enumerate(graph.has_hosts) if hosts and s != end.switch]
    first = {s: _way(graph, flat, s, end.lid) for s in homes}
    first = {s: way for s, way in first.items() if way}
    left = sorted(first, key=lambda s: (len(first[s]), s))
    for lid in end.lids[1:]:
        alone = [s for s in left if _shared(graph, first[s], _way(graph, flat, s, lid))]
        if alone:
            before = {s: flat[s * graph.width + lid] for s in range(len(graph.switches))}
            for s, channel in _tree(graph, end.switch, left, first).items():
                flat[s * graph.width + lid] = channel - graph.first[s]
            if sum(_shared(graph, first[s], _way(graph, flat, s, lid)) for s in left) >= len(alone):
                for s, port in before.items():  # the shortest ways were as good
                    flat[s * graph.width + lid] = port
        left = [s for s in left if _shared(graph, first[s], _way(graph, flat, s, lid))]
        if not left:
            return


def _way(graph: RoutingGraph, flat: bytearray, s: int, lid: int) -> Way:
    """The cables from a switch to a LID."""
    way: Way = []
    while len(way) <= len(graph.switches):
        port = flat[s * graph.width + lid]
        there = graph.neighbour(s, port) if port != NO_PORT else None
        if there is None:
            break
        way.append(graph.first[s] + port)
        s = there[0]
    return way


def _cables(graph: RoutingGraph, way: Way) -> set[int]:
    """The same for both directions."""
    return {min(c, graph.peer[c]) for c in way}


def _shared(graph: RoutingGraph, a: Way, b: Way) -> bool:
    return not b or bool(_cables(graph, a) & _cables(graph, b))


def _tree(graph: RoutingGraph, dest: int, left: list[int], first: dict[int, Way]) -> dict[int, int]:
    """The channel that each switch takes: ways for those that are left, nearest first, then the shortest for all."""
    tree: dict[int, int] = {}
    for s in left:
        if s not in tree:
            for channel in _search(graph, dest, s, tree, _cables(graph, first[s])):
                tree[graph.owner[channel]] = channel
    edge = [dest, *tree]
    for s in edge:
        for _, t, other in graph.neighbours(s):
            if t != dest and t not in tree:
                tree[t] = graph.first[t] + other
                edge.append(t)
    return tree


def _search(graph: RoutingGraph, dest: int, start: int, tree: dict[int, int], avoid: set[int]) -> Way:
    """The shortest way from `start` into the tree, where it goes on without the cables to avoid; empty = none."""
    came: dict[int, int] = {start: -1}
    edge = [start]
    for s in edge:
        if s == dest or s in tree:
            way: Way = []
            while came[s] >= 0:
                way.append(came[s])
                s = graph.owner[came[s]]
            return way[::-1]
        for port, t, _ in graph.neighbours(s):
            channel = graph.first[s] + port
            if t in came or min(channel, graph.peer[channel]) in avoid:
                continue
            if t in tree and _cables(graph, _down(graph, dest, t, tree)) & avoid:
                continue
            came[t] = channel
            edge.append(t)
    return []


def _down(graph: RoutingGraph, dest: int, s: int, tree: dict[int, int]) -> Way:
    way: Way = []
    while s != dest:
        way.append(tree[s])
        s = graph.owner[graph.peer[tree[s]]]
    return way
