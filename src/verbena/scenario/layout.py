"""Where the nodes of a topology stand in a picture of it.

Generated topologies say in their nodes' `extras` what shape they are (`fabric.shapes`): trees stand in levels, meshes
and tori on a grid, rings in a circle, dragonflies in groups.  Of others, such as dumps of real clusters, levels are
looked for; what has none is pulled together by springs (Fruchterman and Reingold, 1991), which needs numpy.
"""

from __future__ import annotations

import importlib
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from verbena.fabric.topology import Link, Node, NodeKind, Topology

Positions = dict[str, tuple[float, float]]
FAN = 0.32  # how far from its switch a host stands, where neighbouring switches are 1 apart


@dataclass(slots=True)
class Layout:
    """shape: levels, grid, ring, groups or springs.  at: of each node.

    curved: how far a link bends, in parts of its length, by its number in the topology's list; the others are straight.
    circles: x, y and radius about what belongs together.
    """

    shape: str
    at: Positions = field(default_factory=dict)
    curved: dict[int, float] = field(default_factory=dict)
    circles: list[tuple[float, float, float]] = field(default_factory=list)


def lay_out(topology: Topology) -> Layout:
    """The layout that suits a topology."""
    layout = _shaped(topology) or _levels(topology, _found_levels(topology)) or _springs(topology)
    _bend_parallel(topology, layout)
    return layout


def _shaped(topology: Topology) -> Layout | None:
    nodes = topology.nodes.values()
    if not nodes:
        return Layout("levels")
    if all("coordinates" in node.extras for node in nodes):
        return _grid(topology)
    if all("group" in node.extras for node in nodes):
        return _groups(topology)
    if all("level" in node.extras for node in nodes):
        return _levels(topology, {node.name: _number(node.extras["level"]) for node in nodes}, sort=False)
    return None


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


def _tuple(value: object) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else ()


# --- levels -----------------------------------------------------------------------------------------------------


def _found_levels(topology: Topology) -> dict[str, int]:
    """Levels of a tree whose nodes do not say them: adapters, their switches, those above.  Empty if it is none."""
    levels = {node.name: 0 for node in topology.nodes.values() if node.kind is not NodeKind.SWITCH}
    edge = list(levels)
    while edge:
        following = []
        for name in edge:
            for link in topology.links_of(name):
                for end in (link.a, link.b):
                    if end.node not in levels:
                        levels[end.node] = levels[name] + 1
                        following.append(end.node)
        edge = following
    steps = [abs(levels.get(link.a.node, 0) - levels.get(link.b.node, 0)) for link in topology.links]
    if len(levels) < len(topology.nodes) or not steps or set(steps) != {1}:
        return {}
    return levels


def _levels(topology: Topology, levels: dict[str, int], sort: bool = True) -> Layout | None:
    """Each level a row, hosts below.  sort: put nodes near those that they are linked to; else leave their order."""
    if not levels:
        return None
    rows: list[list[str]] = [[] for _ in range(max(levels.values()) + 1)]
    for name, level in levels.items():
        rows[level].append(name)
    if sort:
        _untangle(topology, rows)
    widest = max(len(row) for row in rows)
    height = max(1.0, widest / 2.2) / max(len(rows) - 1, 1)
    layout = Layout("levels")
    for level, row in enumerate(rows):
        for place, name in enumerate(row):
            layout.at[name] = ((place + 0.5) * widest / len(row), level * height)
    return layout


def _untangle(topology: Topology, rows: list[list[str]]) -> None:
    """Order each row by the mean place of its nodes' neighbours in the row next to it, upward and downward, twice."""
    place = {name: (at + 0.5) / len(row) for row in rows for at, name in enumerate(row)}
    for _ in range(2):
        for level in (*range(len(rows) - 2, -1, -1), *range(1, len(rows))):
            means = {}
            for name in rows[level]:
                near = [
                    place[link.other(end).node]
                    for link in topology.links_of(name)
                    for end in _ends_at(link, name)
                ]
                means[name] = sum(near) / len(near) if near else place[name]
            rows[level].sort(key=lambda name, means=means: means[name])  # type: ignore[misc]
            place.update({name: (at + 0.5) / len(rows[level]) for at, name in enumerate(rows[level])})


def _ends_at(link: Link, name: str) -> list[Any]:
    return [end for end in (link.a, link.b) if end.node == name]


# --- grids and rings --------------------------------------------------------------------------------------------


def _grid(topology: Topology) -> Layout:
    """Two dimensions as they are; a third drawn askew, further ones as blocks side by side and above each other."""
    some = next(iter(topology.nodes.values()))
    shape, wraps = _tuple(some.extras["dimensions"]), bool(some.extras.get("wraps"))
    if len(shape) == 1 and wraps and shape[0] > 2:
        return _ring(topology, shape[0])
    layout = Layout("grid")
    steps = [(1.0, 0.0), (0.0, 1.0)]
    if len(shape) == 3:
        steps = [(1.0 + 0.3 * shape[2], 0.0), (0.0, 1.0 + 0.22 * shape[2]), (0.45, 0.33)]
    for axis in range(len(steps), len(shape)):
        before = shape[axis - 2] * max(steps[axis - 2]) + 1.5
        steps.append((before, 0.0) if axis % 2 == 0 else (0.0, before))
    hosts = _hosts_each(topology)
    for node in topology.nodes.values():
        at = _tuple(node.extras["coordinates"])
        x, y = (sum(c * step[i] for c, step in zip(at, steps, strict=False)) for i in (0, 1))
        if "slot" in node.extras:
            angle = -math.pi / 2 + _fan(node, hosts) + (0.45 if hosts % 2 else 0.0)  # not on the link below
            x, y = x + FAN * math.cos(angle), y + FAN * math.sin(angle)
        layout.at[node.name] = (x, y)
    for number, link in enumerate(topology.links):
        a, b = (_tuple(topology.nodes[end.node].extras["coordinates"]) for end in (link.a, link.b))
        if max((abs(x - y) for x, y in zip(a, b, strict=False)), default=0) > 1:
            layout.curved[number] = 0.13
    return layout


def _ring(topology: Topology, size: int) -> Layout:
    layout = Layout("ring")
    radius, hosts = max(1.0, size / (2 * math.pi)), _hosts_each(topology)
    for node in topology.nodes.values():
        angle = math.pi / 2 - 2 * math.pi * _tuple(node.extras["coordinates"])[0] / size
        out = radius
        if "slot" in node.extras:
            step = 2 * math.pi / size / (hosts + 0.6)
            out, angle = radius + 0.6, angle + step * (_number(node.extras["slot"]) - (hosts - 1) / 2)
        layout.at[node.name] = (out * math.cos(angle), out * math.sin(angle))
    return layout


def _hosts_each(topology: Topology) -> int:
    """The most hosts at one switch."""
    return max((_number(node.extras.get("slot")) + 1 for node in topology.hosts), default=0)


def _fan(node: Node, hosts: int) -> float:
    """The angle by which a host stands aside, so that all at one switch make a fan."""
    return (_number(node.extras["slot"]) - (hosts - 1) / 2) * min(
        math.radians(75), 2 * math.pi / max(hosts, 1)
    )


# --- groups -----------------------------------------------------------------------------------------------------


def _groups(topology: Topology) -> Layout:
    """Groups in a circle, the switches of each in a smaller one, hosts about their switch."""
    layout = Layout("groups")
    members = Counter(_number(node.extras["group"]) for node in topology.switches)
    groups, most = len(members), max(members.values(), default=1)
    hosts = _hosts_each(topology)
    small = max(0.7, most * (0.5 + 0.12 * hosts) / (2 * math.pi))
    great = max(1.0, groups * (2 * small + 2 * FAN + 1.2) / (2 * math.pi))
    for node in topology.nodes.values():
        group, router = _number(node.extras["group"]), _number(node.extras["router"])
        turn = math.pi / 2 - 2 * math.pi * group / groups
        angle = turn + 2 * math.pi * (router + 0.5) / most
        x = great * math.cos(turn) + small * math.cos(angle)
        y = great * math.sin(turn) + small * math.sin(angle)
        if "slot" in node.extras:
            fan = angle + _fan(node, hosts) / (1 if hosts < 5 else 2)
            x, y = x + FAN * math.cos(fan), y + FAN * math.sin(fan)
        layout.at[node.name] = (x, y)
    for group in range(groups):
        turn = math.pi / 2 - 2 * math.pi * group / groups
        layout.circles.append((great * math.cos(turn), great * math.sin(turn), small + FAN + 0.15))
    return layout


# --- springs ----------------------------------------------------------------------------------------------------


def _springs(topology: Topology) -> Layout:
    """Linked nodes pull, all push.  Nodes with one neighbour do not take part: they stand about their neighbour."""
    layout = Layout("springs")
    leaves: dict[str, list[str]] = {}
    core = []
    near = {
        name: {end.node for link in topology.links_of(name) for end in (link.a, link.b)} - {name}
        for name in topology.nodes
    }
    for name in topology.nodes:
        other = min(near[name], default="")
        if len(near[name]) == 1 and len(near[other]) > 1 and topology.nodes[name].kind is not NodeKind.SWITCH:
            leaves.setdefault(other, []).append(name)
        else:
            core.append(name)
    layout.at.update(_pull(topology, core))
    for name, around in leaves.items():
        x, y = layout.at[name]
        middle = math.atan2(y, x)
        for slot, leaf in enumerate(around):
            angle = middle + (slot - (len(around) - 1) / 2) * min(0.9, 2 * math.pi / len(around))
            layout.at[leaf] = (x + 0.8 * math.cos(angle), y + 0.8 * math.sin(angle))
    return layout


def _pull(topology: Topology, names: list[str]) -> Positions:
    np: Any = importlib.import_module("numpy")
    count = len(names)
    number = {name: at for at, name in enumerate(names)}
    pairs = {
        (min(a, b), max(a, b))
        for link in topology.links
        if (a := number.get(link.a.node, -1)) >= 0 and (b := number.get(link.b.node, -1)) >= 0 and a != b
    }
    ends = np.array(sorted(pairs), dtype=int).reshape(-1, 2)
    turns = 2 * math.pi * np.arange(count) / max(count, 1)
    at = np.stack([np.cos(turns), np.sin(turns)], axis=1) * math.sqrt(count)
    rounds = max(20, min(300, 60_000_000 // (count * count + 1)))
    for step in range(rounds):
        push = np.zeros_like(at)
        for axis in (0, 1):
            gap = at[:, None, axis] - at[None, :, axis]
            if axis == 0:
                square = gap * gap
                first = gap
            else:
                square += gap * gap
        np.maximum(square, 1e-3, out=square)
        push[:, 0], push[:, 1] = (first / square).sum(axis=1), (gap / square).sum(axis=1)
        if len(ends):
            along = at[ends[:, 0]] - at[ends[:, 1]]
            pull = along * np.sqrt((along * along).sum(axis=1, keepdims=True))
            np.add.at(push, ends[:, 0], -pull)
            np.add.at(push, ends[:, 1], pull)
        push -= 0.02 * at  # parts that no link joins stay together
        length = np.maximum(np.sqrt((push * push).sum(axis=1, keepdims=True)), 1e-9)
        at += push / length * np.minimum(length, 0.5 * math.sqrt(count) * (1 - step / rounds))
    if len(ends):  # a link between two that took part is 2 long in the mean
        along = at[ends[:, 0]] - at[ends[:, 1]]
        at *= 2 / max(1e-9, float(np.sqrt((along * along).sum(axis=1)).mean()))
    return {name: (float(x), float(y)) for name, (x, y) in zip(names, at, strict=True)}


def _bend_parallel(topology: Topology, layout: Layout) -> None:
    """Bend links between the same two nodes apart."""
    same: dict[frozenset[str], list[int]] = {}
    for number, link in enumerate(topology.links):
        same.setdefault(frozenset((link.a.node, link.b.node)), []).append(number)
    for numbers in same.values():
        for place, number in enumerate(numbers):
            if len(numbers) > 1:
                side = 1 if topology.links[number].a.node < topology.links[number].b.node else -1
                bend = side * (place - (len(numbers) - 1) / 2) * 0.16
                layout.curved[number] = layout.curved.get(number, 0.0) + bend
