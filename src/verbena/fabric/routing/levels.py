"""The levels of a tree of switches, told by the wiring: leaves are the switches with adapters."""

from __future__ import annotations

from collections.abc import Iterable

from verbena.fabric.routing.graph import RoutingError, RoutingGraph


def levels(graph: RoutingGraph, leaves: Iterable[str] | None = None) -> list[int]:
    """Each switch's distance from the nearest leaf; -1 = not connected to any."""
    names = list(leaves) if leaves is not None else []
    for name in names:
        if name not in graph.index:
            raise RoutingError(f"leaf {name}: there is no switch of that name")
    level = [-1] * len(graph.switches)
    edge = [graph.index[name] for name in names] or [s for s, hosts in enumerate(graph.has_hosts) if hosts]
    for s in edge:
        level[s] = 0
    while edge:
        further = []
        for s in edge:
            for _, t, _ in graph.neighbours(s):
                if level[t] < 0:
                    level[t] = level[s] + 1
                    further.append(t)
        edge = further
    return level


def no_tree(graph: RoutingGraph, level: list[int]) -> str:
    """Why this is no tree, or ""."""
    if len(graph.switches) == 0 or max(level) < 0:
        return "no switch has an adapter"
    for s in range(len(graph.switches)):
        for port, t, _ in graph.neighbours(s):
            if level[s] == level[t]:
                return f"{graph.channel_name(graph.first[s] + port)} joins two switches of level {level[s]}"
    return ""
