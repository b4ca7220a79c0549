"""Up*/down*: no way goes up again after it went down, so that no ring of waiting channels can close.

The rule: Schroeder et al., "Autonet: a high-speed, self-configuring local area network using point-to-point links"
(1991); as an engine, OpenSM's ``updn`` (doc/current-routing.txt, "UPDN Routing Algorithm").  Switches are ranked by
their distance from the roots, breadth first; a link goes up towards the lower rank, between equal ranks towards the
switch that is listed first.  Among the legal ways the shortest are used, balanced as min-hop does.

Roots may be given.  Else, in a tree of switches, up is away from the leaves, also with cables missing; in any other
fabric the roots are the switches with the smallest sum of distances to the switches with adapters, all of them if that
leaves a legal way between all adapters, or the first of them.  Between two switches themselves there may be no legal
way (two roots): then the shortest is entered, for management only (OpenSM's option ``connect_roots``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from verbena.fabric.routing.fill import balanced
from verbena.fabric.routing.graph import RoutingError, RoutingGraph
from verbena.fabric.routing.levels import levels, no_tree
from verbena.fabric.routing.paths import Paths
from verbena.fabric.routing.routing import Routing, cut


def updn(
    graph: RoutingGraph,
    lanes: int,
    previous: Routing | None = None,
    roots: Iterable[str] | None = None,
) -> Routing:
    """Route up and down; one lane.  roots: names of switches.  Raises `RoutingError` for a root that is none."""
    paths = Paths(graph)
    warnings: list[str] = []
    if roots is not None:
        chosen = [root_index(graph, name) for name in roots]
        if not chosen:
            raise RoutingError("no roots: name at least one switch, or leave the choice to the engine")
    elif order_by_level(graph, paths):
        return _routed(graph, paths, previous, [], warnings)
    else:
        before = [] if previous is None else previous.roots
        chosen = [graph.index[name] for name in before if name in graph.index] or centres(graph, paths)
    broken = order(graph, paths, chosen)
    if broken and roots is not None:
        warnings.append(
            f"up/down from {len(chosen)} roots leaves {broken} pairs of switches without a legal way: "
            f"{graph.switches[chosen[0]]} is taken for the only one"
        )
    if broken:
        del chosen[1:]
        order(graph, paths, chosen, check=False)
    return _routed(graph, paths, previous, chosen, warnings)


def _routed(
    graph: RoutingGraph, paths: Paths, previous: Routing | None, roots: list[int], warnings: list[str]
) -> Routing:
    tables = cut(balanced(graph, paths, paths.updown, previous), graph.width)
    return Routing(graph, "updn", tables, warnings=warnings, roots=[graph.switches[s] for s in roots])


def order_by_level(graph: RoutingGraph, paths: Paths) -> bool:
    """Let up be away from the leaves, if that is a tree in which every pair of leaves has a legal way."""
    level = levels(graph)
    if no_tree(graph, level):
        return False
    line = sorted(range(len(level)), key=lambda s: (-level[s], s))
    return not _broken(graph, paths, line)


def root_index(graph: RoutingGraph, name: str) -> int:
    if name not in graph.index:
        raise RoutingError(f"root {name}: there is no switch of that name")
    return graph.index[name]


def centres(graph: RoutingGraph, paths: Paths) -> list[int]:
    """The switches from which the sum of distances to all switches with adapters is smallest, in their order.

    Where the fabric falls into parts, those of the largest part; `order` sees to the others.
    """
    part = max(components(graph, paths), key=len, default=[])
    homes = [s for s in part if graph.has_hosts[s]] or part
    total = paths.sum_distances(homes)
    best = min((total[s] for s in part), default=0)
    return [s for s in part if total[s] == best]


def components(graph: RoutingGraph, paths: Paths) -> list[list[int]]:
    """The switches of each connected part."""
    seen: set[int] = set()
    parts = []
    for s in range(len(graph.switches)):
        if s not in seen:
            hops = paths.distances(s)
            parts.append([t for t, h in enumerate(hops) if h >= 0])
            seen.update(parts[-1])
    return parts


def order(graph: RoutingGraph, paths: Paths, roots: Sequence[int], check: bool = True) -> int:
    """Rank the switches from the roots, and count for how many pairs of switches that leaves no legal way.

    A part of the fabric without any of the roots is ranked from its first switch.
    """
    return _broken(graph, paths, ranked(graph, roots), check)


def _broken(graph: RoutingGraph, paths: Paths, line: Sequence[int], check: bool = True) -> int:
    position = [0] * len(line)
    for place, s in enumerate(line):
        position[s] = place
    paths.set_order(position)
    return sum(paths.updown(s) for s in range(len(line)) if graph.has_hosts[s]) if check else 0


def ranked(graph: RoutingGraph, roots: Sequence[int]) -> list[int]:
    """The switches by rank, then by index."""
    rank: dict[int, int] = {}
    for start in [sorted(roots), *([s] for s in range(len(graph.switches)))]:
        edge = [s for s in start if s not in rank]
        rank.update(dict.fromkeys(edge, 0))
        while edge:
            further = []
            for s in edge:
                for _, t, _ in graph.neighbours(s):
                    if t not in rank:
                        rank[t] = rank[s] + 1
                        further.append(t)
            edge = further
    return sorted(rank, key=lambda s: (rank[s], s))
