"""Benchmarks of the routing of large fabrics, on one core.

`k32_routing` brings up a simulated fat tree of 8,192 hosts by its subnet manager, with real management datagrams, and
checks the tables that it wrote for deadlock.  `k32_engines` times the routing alone: `tree` builds its graph straight
from numbers, as a subnet manager that has discovered it would.  Processor time; all in one process.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from typing import Any

from verbena import Fabric
from verbena.fabric.routing import End, Routing, RoutingGraph, find_cycle, route
from verbena.management.subnet import Subnet
from verbena.management.subnet_manager.routing import routing_graph

TREE_ENGINES = ("minhop", "ftree", "updn")


def tree(k: int) -> RoutingGraph:
    """k^3 / 4 hosts, 5 k^2 / 4 switches of k ports; LIDs: the switches first, then the hosts leaf by leaf."""
    half = k // 2
    leaves = inner = k * half
    switches = [(f"leaf{i}", k) for i in range(leaves)]
    switches += [(f"middle{i}", k) for i in range(inner)] + [(f"root{i}", k) for i in range(half * half)]
    links = []
    for pod in range(k):
        for i in range(half):
            for j in range(half):
                middle = leaves + pod * half + j
                links.append((pod * half + i, half + j + 1, middle, i + 1))
                links.append((leaves + pod * half + i, half + j + 1, leaves + inner + i * half + j, pod + 1))
    ends = [End(1 + s, 0, s, 0, name) for s, (name, _) in enumerate(switches)]
    first = len(ends) + 1
    ends += [
        End(first + leaf * half + i, 0, leaf, i + 1, f"host{leaf * half + i}[1]")
        for leaf in range(leaves)
        for i in range(half)
    ]
    return RoutingGraph(switches, links, ends)


def torus(n: int) -> RoutingGraph:
    """n x n x n switches of 7 ports, a host at each."""
    places = [(x, y, z) for x in range(n) for y in range(n) for z in range(n)]
    index = {place: i for i, place in enumerate(places)}
    links = []
    for place in places:
        for axis in range(3):
            there = (*place[:axis], (place[axis] + 1) % n, *place[axis + 1 :])
            links.append((index[place], 2 * axis + 1, index[there], 2 * axis + 2))
    ends = [End(1 + i, 0, i, 7, f"host{i}[1]") for i in range(len(places))]
    return RoutingGraph([(f"s{i}", 7) for i in range(len(places))], links, ends, coordinates=places)


def row(name: str, value: float, unit: str) -> dict[str, Any]:
    return {"name": name, "value": value, "unit": unit, "baseline": None, "ratio": None}


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def routed(name: str, graph: RoutingGraph, engine: str) -> list[dict[str, Any]]:
    """Times of one engine and of the check of what it made."""
    seconds, routing = timed(lambda: route(graph, engine))
    assert isinstance(routing, Routing)
    assert routing.engine == engine, routing.warnings
    check, cycle = timed(lambda: find_cycle(graph, routing))
    assert cycle is None, str(cycle)
    return [row(f"{name}_{engine}", seconds, "s"), row(f"{name}_{engine}_check", check, "s")]


def k32_routing() -> list[dict[str, Any]]:
    """8,192 hosts, 1,280 switches of 32 ports: discovery, LIDs, routing, deadlock check; then all tables written."""
    start = time.process_time()
    fabric = Fabric.generate("fat-tree k=32", flits=False)
    rows = [row("fabric.k32_build", time.process_time() - start, "s")]
    (manager,) = fabric.managers.values()
    start = time.process_time()
    manager.start()
    marks: dict[str, float] = {}
    while not fabric.settled:
        fabric.clock.step()
        found = manager.subnet_manager.statistics
        for name in ("discovery_ns", "lids_ns", "lft_blocks"):
            if name not in marks and getattr(found, name):
                marks[name] = time.process_time() - start
    up = time.process_time() - start
    subnet = manager.subnet_manager.subnet
    assert subnet is not None
    assert len(subnet.nodes) == 8192 + 1280
    check, cycle = timed(lambda: _cycle_in_force(subnet))
    assert cycle is None, str(cycle)
    rows += [
        row("fabric.k32_discovery", marks["discovery_ns"], "s"),
        row("fabric.k32_lids", marks["lids_ns"], "s"),
        row("fabric.k32_routing", marks["lft_blocks"] + check, "s"),
        row("fabric.k32_active", up, "s"),
    ]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return [*rows, row("fabric.k32_routing_peak_memory", peak, "MiB")]


def _cycle_in_force(subnet: Subnet) -> Any:
    """A cycle in the tables that the switches have now."""
    graph, guids = routing_graph(subnet)
    tables = []
    for guid in guids:
        table = bytearray(b"\xff") * graph.width
        for block, ports in subnet.nodes[guid].lft.items():
            table[64 * block : 64 * block + 64] = ports
        tables.append(table[: graph.width])
    return find_cycle(graph, Routing(graph, "in force", tables))


def k32_engines() -> list[dict[str, Any]]:
    """The same fabric's graph, min-hop, fat tree, up/down, each with its check."""
    seconds, graph = timed(lambda: tree(32))
    rows = [row("fabric.k32_graph", seconds, "s")]
    for engine in TREE_ENGINES:
        rows += routed("fabric.k32", graph, engine)
    return rows


def torus_routing() -> list[dict[str, Any]]:
    """4,096 switches in a torus of 16 x 16 x 16, eight lanes."""
    return routed("fabric.torus16", torus(16), "dor")


def layered_routing() -> list[dict[str, Any]]:
    """512 switches in a torus of 8 x 8 x 8, as if it were any fabric."""
    return routed("fabric.torus8", torus(8), "layered")


BENCHMARKS = {
    "k32_routing": k32_routing,
    "k32_engines": k32_engines,
    "torus16_routing": torus_routing,
    "torus8_layered": layered_routing,
}
