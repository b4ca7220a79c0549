"""Where the switches of a mesh or torus stand, told by coordinates or by the wiring alone.

From the wiring: a mesh or torus is a Cartesian product of paths and rings.  Two cables at one switch belong to
different dimensions exactly if they span one square (a fourth switch joined to both far ends, no diagonal); opposite
sides of a square belong to the same dimension (Imrich and Klavzar, "Product Graphs", 2000, on prime factors).  So the
cables fall into classes, and the parts that are left without one class stand in a path or a ring: its coordinates.
A ring of four is the product of two cables, and is taken for two dimensions of two.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from verbena.fabric.routing.graph import RoutingGraph

Edge = tuple[int, int]  # two switches, the lower index first


@dataclass(frozen=True, slots=True)
class Grid:
    """sizes: places of each dimension.  wraps: is it a ring?  places: coordinates of each switch, from 0."""

    sizes: tuple[int, ...]
    wraps: tuple[bool, ...]
    places: tuple[tuple[int, ...], ...]

    def cables(self, graph: RoutingGraph) -> list[list[int]]:
        """Channels by (switch * dimensions + dimension) * 2 + direction; direction 1 leads to the larger coordinate."""
        dimensions = len(self.sizes)
        found: list[list[int]] = [[] for _ in range(len(graph.switches) * dimensions * 2)]
        for s, here in enumerate(self.places):
            for port, t, _ in graph.neighbours(s):
                step = self.step(here, self.places[t])
                if step is not None:
                    found[(s * dimensions + step[0]) * 2 + step[1]].append(graph.first[s] + port)
        return found

    def step(self, here: Sequence[int], there: Sequence[int]) -> tuple[int, int] | None:
        """(dimension, direction) of a cable; None if it is no step between neighbours."""
        differing = [i for i, (a, b) in enumerate(zip(here, there, strict=True)) if a != b]
        if len(differing) != 1:
            return None
        i = differing[0]
        a, b = here[i], there[i]
        if abs(a - b) == 1:
            return i, int(b > a)
        if self.wraps[i] and abs(a - b) == self.sizes[i] - 1:
            return i, int(b < a)
        return None


def grid_of(graph: RoutingGraph) -> Grid | str:
    """The grid, by the coordinates if all switches have some, else by the wiring; or why there is none."""
    if not graph.switches:
        return "there is no switch"
    given = [place for place in graph.coordinates if place is not None]
    if len(given) == len(graph.switches):
        return by_coordinates(graph, given)
    return by_wiring(graph)


def by_coordinates(graph: RoutingGraph, given: Sequence[tuple[int, ...]]) -> Grid | str:
    """A grid whose switches say where they stand."""
    if len({len(place) for place in given}) != 1 or len(set(given)) != len(given):
        return "the coordinates are not one of a kind for each switch"
    low = [min(axis) for axis in zip(*given, strict=True)]
    places = tuple(tuple(x - least for x, least in zip(place, low, strict=True)) for place in given)
    sizes = tuple(max(axis) + 1 for axis in zip(*places, strict=True))
    around = [False] * len(sizes)
    for s in range(len(places)):
        for _, t, _ in graph.neighbours(s):
            apart = [
                (i, abs(a - b)) for i, (a, b) in enumerate(zip(places[s], places[t], strict=True)) if a != b
            ]
            if len(apart) == 1 and apart[0][1] == sizes[apart[0][0]] - 1 > 1:
                around[apart[0][0]] = True
    grid = Grid(sizes, tuple(around), places)
    for s in range(len(places)):
        for port, t, _ in graph.neighbours(s):
            if grid.step(places[s], places[t]) is None:
                return f"{graph.channel_name(graph.first[s] + port)} does not join neighbours"
    return grid


def by_wiring(graph: RoutingGraph) -> Grid | str:
    """A grid that is told by its squares."""
    near: list[dict[int, int]] = [{} for _ in graph.switches]  # neighbour -> lowest port to it
    for s in range(len(graph.switches)):
        for port, t, _ in graph.neighbours(s):
            near[s].setdefault(t, port)
    if max(map(len, near)) > 16:
        return "some switch has more than 16 neighbours"
    classes = _classes(near)
    lowest: dict[Edge, int] = {}
    for edge, name in classes.items():
        port = min(near[edge[0]][edge[1]], near[edge[1]][edge[0]])
        lowest[name] = min(lowest.get(name, port), port)
    order = sorted(lowest, key=lambda name: (lowest[name], name))  # as OpenSM's dor: by the ports' order
    columns, sizes, wraps = [], [], []
    for name in order:
        line = _line(near, classes, name)
        if line is None:
            return "its cables do not fall into straight lines or rings"
        column, size, wrap = line
        columns.append(column)
        sizes.append(size)
        wraps.append(wrap)
    places = tuple(zip(*columns, strict=True)) if columns else ((),) * len(near)
    if prod(sizes) != len(near) or len(set(places)) != len(near):
        return "its switches do not fill a mesh or torus"
    return Grid(tuple(sizes), tuple(wraps), places)


def _classes(near: Sequence[dict[int, int]]) -> dict[Edge, Edge]:
    """Each edge's class, named by one of its edges."""
    parent: dict[Edge, Edge] = {(s, t): (s, t) for s, those in enumerate(near) for t in those if s < t}

    def root(edge: Edge) -> Edge:
        while parent[edge] != edge:
            parent[edge] = parent[parent[edge]]
            edge = parent[edge]
        return edge

    def join(a: int, b: int, c: int, d: int) -> None:
        x, y = root((min(a, b), max(a, b))), root((min(c, d), max(c, d)))
        parent[max(x, y)] = min(x, y)

    for u, those in enumerate(near):
        for v, w in itertools.combinations(those, 2):
            corners = [x for x in near[v] if x in near[w] and x != u]
            if len(corners) == 1 and w not in near[v] and corners[0] not in near[u]:
                join(u, v, w, corners[0])
                join(u, w, v, corners[0])
            else:
                join(u, v, u, w)
    return {edge: root(edge) for edge in parent}


def _line(
    near: Sequence[dict[int, int]], classes: dict[Edge, Edge], name: Edge
) -> tuple[list[int], int, bool] | None:
    """(coordinate of each switch, length, is it a ring) in the dimension of a class; None if it is neither."""
    part = [-1] * len(near)
    parts = 0
    for s in range(len(near)):
        if part[s] >= 0:
            continue
        part[s] = parts
        edge = [s]
        for u in edge:
            for t in near[u]:
                if part[t] < 0 and classes[min(u, t), max(u, t)] != name:
                    part[t] = parts
                    edge.append(t)
        parts += 1
    beside: list[set[int]] = [set() for _ in range(parts)]
    for (s, t), of in classes.items():
        if of == name:
            beside[part[s]].add(part[t])
            beside[part[t]].add(part[s])
    ends = [p for p in range(parts) if len(beside[p]) == 1]
    if any(p in beside[p] or len(beside[p]) > 2 for p in range(parts)) or len(ends) not in (0, 2):
        return None
    at = [-1] * parts
    p, count = (ends or [0])[0], 0
    while at[p] < 0:
        at[p] = count
        count += 1
        p = min((q for q in beside[p] if at[q] < 0), default=p)
    if count != parts:
        return None
    return [at[p] for p in part], parts, not ends and parts > 2
