"""Small fabrics for tests of routing, and plain references to compare with."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from random import Random

from verbena.fabric.routing import Routing, RoutingGraph
from verbena.fabric.topology import NodeKind, PortId, Topology


def addresses(topology: Topology, lmc: int = 0) -> dict[PortId, tuple[int, int]]:
    """A LID for each switch, then 2^lmc for each connected port of an adapter or router."""
    given: dict[PortId, tuple[int, int]] = {}
    lid = 1
    for node in topology.switches:
        given[PortId(node.name, 0)] = (lid, 0)
        lid += 1
    for node in topology.nodes.values():
        if node.kind is NodeKind.SWITCH:
            continue
        for port in range(1, node.ports + 1):
            if PortId(node.name, port) in topology.at:
                lid = -(-lid // (1 << lmc)) * (1 << lmc)
                given[PortId(node.name, port)] = (lid, lmc)
                lid += 1 << lmc
    return given


def graph_of(topology: Topology, lmc: int = 0) -> RoutingGraph:
    return RoutingGraph.from_topology(topology, addresses(topology, lmc))


def with_hosts(topology: Topology, each: int = 1) -> Topology:
    """Hosts at every switch."""
    for switch in list(topology.switches):
        for _ in range(each):
            topology.connect(topology.add_host(f"h{len(topology.hosts)}").name, switch.name)
    return topology


def star(hosts: int = 4) -> Topology:
    made = Topology()
    made.add_switch("s0", hosts)
    return with_hosts(made, hosts)


def ring(length: int, hosts: int = 1, cables: int = 1) -> Topology:
    return torus((length,), hosts, cables=cables)


def torus(
    sizes: Sequence[int],
    hosts: int = 1,
    *,
    wrap: bool = True,
    cables: int = 1,
    coordinates: bool = False,
    shuffle: Random | None = None,
) -> Topology:
    """A torus, or with `wrap` False a mesh.  Names and ports say nothing about places when `shuffle` is given."""
    made = Topology()
    places = list(itertools.product(*(range(n) for n in sizes)))
    if shuffle:
        shuffle.shuffle(places)
    name = {place: f"s{i}" for i, place in enumerate(places)}
    for place in places:
        node = made.add_switch(name[place], 2 * len(sizes) * cables + hosts)
        if coordinates:
            node.extras["coordinates"] = list(place)
    links = []
    for place in sorted(places):
        for i, n in enumerate(sizes):
            there = (place[i] + 1) % n
            if n > 1 and (there or (wrap and n > 2)):
                links += [(name[place], name[place[:i] + (there,) + place[i + 1 :]])] * cables
    if shuffle:
        shuffle.shuffle(links)
    for a, b in links:
        made.connect(a, b)
    return with_hosts(made, hosts)


def fat_tree(k: int = 4, shuffle: Random | None = None) -> Topology:
    """Three levels of k-port switches, k^3 / 4 hosts (Al-Fares et al., 2008), hosts in the order of the leaves."""
    made = Topology()
    half = k // 2
    kinds = [("e", k * half), ("a", k * half), ("c", half * half)]
    names = [f"{kind}{i}" for kind, n in kinds for i in range(n)]
    if shuffle:
        shuffle.shuffle(names)
        names.sort(key=lambda name: (name[0] != "e", 0 if name[0] != "e" else int(name[1:])))
    for name in names:
        made.add_switch(name, k)
    links = []
    for pod in range(k):
        for i, j in itertools.product(range(half), range(half)):
            links.append((f"e{pod * half + i}", f"a{pod * half + j}"))
            links.append((f"a{pod * half + i}", f"c{i * half + j}"))
    if shuffle:
        shuffle.shuffle(links)
    for a, b in links:
        made.connect(a, b)
    for leaf in range(k * half):
        for _ in range(half):
            made.connect(made.add_host(f"h{len(made.hosts)}").name, f"e{leaf}")
    return made


def two_level(leaves: int, spines: int, hosts: int, cables: int = 1) -> Topology:
    """Leaves and spines, every pair joined by some cables."""
    made = Topology()
    for i in range(leaves):
        made.add_switch(f"leaf{i}", hosts + spines * cables)
    for i in range(spines):
        made.add_switch(f"spine{i}", leaves * cables)
    for i in range(leaves):
        for _ in range(hosts):
            made.connect(made.add_host(f"h{len(made.hosts)}").name, f"leaf{i}")
        for _, j in itertools.product(range(cables), range(spines)):
            made.connect(f"leaf{i}", f"spine{j}")
    return made


def dragonfly(a: int = 4, h: int = 2, hosts: int = 2) -> Topology:
    """Groups of `a` routers, all joined; `h` global links each; a * h + 1 groups (Kim et al., 2008)."""
    made = Topology()
    groups = a * h + 1
    for g, r in itertools.product(range(groups), range(a)):
        made.add_switch(f"g{g}r{r}", a - 1 + h + hosts)
    for g in range(groups):
        for r, t in itertools.combinations(range(a), 2):
            made.connect(f"g{g}r{r}", f"g{g}r{t}")
    for g, other in itertools.combinations(range(groups), 2):
        made.connect(f"g{g}r{(other - 1) // h}", f"g{other}r{g // h}")
    return with_hosts(made, hosts)


def random_fabric(random: Random, switches: int, extra: int, hosts: int = 1) -> Topology:
    """A random spanning tree and some more cables, several of them perhaps between the same two switches."""
    made = Topology()
    for i in range(switches):
        made.add_switch(f"s{i}", 254)
    for i in range(1, switches):
        made.connect(f"s{i}", f"s{random.randrange(i)}")
    for _ in range(extra if switches > 1 else 0):
        made.connect(*(f"s{i}" for i in random.sample(range(switches), 2)))
    return with_hosts(made, hosts)


# --- references ---------------------------------------------------------------------------------------------------


def walk(graph: RoutingGraph, routing: Routing, start: int, lid: int) -> list[int] | None:
    """The channels from a switch to a LID, the last one the end's own; None if it does not arrive."""
    end = graph.end_of(lid)
    assert end is not None
    s, channels = start, []
    for _ in range(len(graph.switches) + 1):
        port = routing.tables[s][lid]
        if (s, port) == (end.switch, end.port):
            return [*channels, graph.first[s] + port]
        there = graph.neighbour(s, port)
        if there is None:
            return None
        channels.append(graph.first[s] + port)
        s = there[0]
    return None


def hops(graph: RoutingGraph, start: int) -> dict[int, int]:
    """Breadth first."""
    found, edge = {start: 0}, [start]
    for s in edge:
        for _, t, _ in graph.neighbours(s):
            if t not in found:
                found[t] = found[s] + 1
                edge.append(t)
    return found


def dependencies(
    graph: RoutingGraph, routing: Routing, *, switches: bool = False
) -> set[tuple[tuple[int, int], tuple[int, int]]]:
    """All pairs of (lane, channel) in which a packet can hold the first and wait for the second."""
    found = set()
    for end in graph.ends:
        if end.switch < 0 or (end.is_switch and not switches):
            continue
        for lid in end.lids:
            for s in range(len(graph.switches)):
                if not graph.has_hosts[s] and not switches:
                    continue
                lane = routing.layers[s][lid] if routing.layers else 0
                path = walk(graph, routing, s, lid) or []
                found.update(((lane, a), (lane, b)) for a, b in itertools.pairwise(path))
    return found


def is_acyclic(edges: Iterable[tuple[object, object]]) -> bool:
    """Kahn's algorithm: take away what nothing leads to, until nothing is left or nothing can be taken."""
    after: dict[object, list[object]] = {}
    incoming: dict[object, int] = {}
    for a, b in edges:
        after.setdefault(a, []).append(b)
        incoming[b] = incoming.get(b, 0) + 1
        incoming.setdefault(a, 0)
    free = [node for node, n in incoming.items() if n == 0]
    for node in free:
        for other in after.get(node, ()):
            incoming[other] -= 1
            if incoming[other] == 0:
                free.append(other)
    return len(free) == len(incoming)
