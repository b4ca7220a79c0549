"""Multicast: the spanning tree of a group, as the ports that each switch sends its packets out of.

The rule of OpenSM (doc/current-routing.txt, "Multicast Routing"): a tree of shortest ways from the switch that is, in
sum, nearest to the members, cut back to what leads to a member.  A switch sends a packet of the group out of all its
ports in the tree except the one that it came by, so a tree has every member get one copy, wherever it is sent.
"""

from __future__ import annotations

from collections.abc import Iterable

from verbena.fabric.routing.graph import End, RoutingError, RoutingGraph
from verbena.fabric.routing.paths import Paths


class MulticastTree(dict[int, set[int]]):
    """Ports by switch (index).  unreached: members that are not connected to the others, by their LID."""

    def __init__(self) -> None:
        super().__init__()
        self.unreached: list[int] = []


def multicast_tree(graph: RoutingGraph, members: Iterable[int], *, choice: int = 0) -> MulticastTree:
    """The tree of a group.  members: a LID of each; a switch's own LID stands for its port 0.

    choice: any number, such as the group's LID, by which groups take turns with equally good roots and cables.
    Raises `RoutingError` for a LID that nobody has.
    """
    ends: dict[str, End] = {}
    for lid in members:
        end = graph.end_of(lid)
        if end is None:
            raise RoutingError(f"multicast member LID {lid:#x} belongs to nobody in this subnet")
        ends[end.name] = end
    tree = MulticastTree()
    paths = Paths(graph)
    joined = _together(paths, list(ends.values()), tree)
    homes = sorted({end.switch for end in joined})
    for end in joined:
        tree.setdefault(end.switch, set()).add(end.port)
    if len(homes) < 2:
        return tree
    paths.minimal(_root(paths, homes, choice))
    for s in homes:
        while ports := paths.candidate_ports(s):
            port = ports[choice % len(ports)]
            there = graph.neighbour(s, port)
            assert there is not None  # candidates lead to switches
            known = port in tree.setdefault(s, set())
            tree[s].add(port)
            tree.setdefault(there[0], set()).add(there[1])
            if known:
                break  # from here on the way is in the tree
            s = there[0]
    _prune(graph, tree)
    return tree


def _together(paths: Paths, ends: list[End], tree: MulticastTree) -> list[End]:
    """The largest set of members that are connected; the others are noted."""
    left = [end for end in ends if end.switch >= 0]
    best: list[End] = []
    while left:
        hops = paths.distances(left[0].switch)
        part = [end for end in left if hops[end.switch] >= 0]
        left = [end for end in left if hops[end.switch] < 0]
        best = max(best, part, key=len)
    tree.unreached = sorted(end.lid for end in ends if end not in best)
    return best


def _root(paths: Paths, homes: list[int], choice: int) -> int:
    total = paths.sum_distances(homes)
    best = min(t for t in total if t >= 0)
    equal = [s for s, t in enumerate(total) if t == best]
    return equal[choice % len(equal)]


def _prune(graph: RoutingGraph, tree: MulticastTree) -> None:
    """Take away switches at which nothing ends and nothing goes on: a root to which one way leads."""
    for s in list(tree):
        while s in tree and len(tree[s]) == 1:
            (port,) = tree[s]
            there = graph.neighbour(s, port)
            if there is None:
                break  # a member's
            del tree[s]
            tree[there[0]].discard(there[1])
            s = there[0]
