"""What the tests measure topologies with: distances and cuts, written as plainly as can be."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable

from verbena.fabric.topology import Topology


def neighbours(topology: Topology, hosts: bool = True) -> dict[str, Counter[str]]:
    """Of each node: its neighbours, and by how many links."""
    found: dict[str, Counter[str]] = {
        name: Counter() for name in topology.nodes if hosts or topology.nodes[name].kind.name == "SWITCH"
    }
    for link in topology.links:
        if link.a.node in found and link.b.node in found:
            found[link.a.node][link.b.node] += 1
            found[link.b.node][link.a.node] += 1
    return found


def distances(graph: dict[str, Counter[str]], start: str) -> dict[str, int]:
    found, edge = {start: 0}, deque([start])
    while edge:
        name = edge.popleft()
        for other in graph[name]:
            if other not in found:
                found[other] = found[name] + 1
                edge.append(other)
    return found


def diameter(graph: dict[str, Counter[str]], among: Iterable[str] | None = None) -> int:
    """The greatest distance between any two (of `among`); all must be connected."""
    names = list(graph) if among is None else list(among)
    greatest = 0
    for name in names:
        found = distances(graph, name)
        assert len(found) == len(graph)
        greatest = max(greatest, *(found[other] for other in names))
    return greatest


def cut(graph: dict[str, Counter[str]], left: Iterable[str], right: Iterable[str]) -> int:
    """The least number of links whose removal parts two sets of nodes (max flow, by augmenting paths)."""
    free: dict[str, Counter[str]] = {name: Counter(ways) for name, ways in graph.items()}
    great = 1 << 30
    free["source"] = Counter(dict.fromkeys(left, great))
    free["sink"] = Counter()
    for name in right:
        free[name]["sink"] = great
    flow = 0
    while True:
        before: dict[str, str] = {"source": ""}
        edge = deque(["source"])
        while edge and "sink" not in before:
            name = edge.popleft()
            for other, room in free[name].items():
                if room > 0 and other not in before:
                    before[other] = name
                    edge.append(other)
        if "sink" not in before:
            return flow
        name = "sink"
        while before[name]:
            free[before[name]][name] -= 1
            free[name][before[name]] += 1
            name = before[name]
        flow += 1
