"""From a subnet to forwarding tables: the bridge to the routing engines.

A `Router` is any callable from a `Subnet` to `Tables`; `EngineRouter` is the one that asks `verbena.fabric.routing`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from verbena.fabric.routing import End, Routing, RoutingError, RoutingGraph, multicast_tree, route
from verbena.management.profile import LANES_OF_CODE
from verbena.management.subnet import Subnet


@dataclass(slots=True)
class Tables:
    """by_switch: node GUID -> output port by LID (255: none).  service_level(source LID, destination LID)."""

    engine: str
    by_switch: Mapping[int, bytes | bytearray]
    lanes: int = 1
    service_level: Callable[[int, int], int] = lambda source, destination: 0
    warnings: list[str] = field(default_factory=list)


Router = Callable[[Subnet], Tables]


class EngineRouter:
    """Routes by one of the engines, and keeps what it can of the routing before.

    lanes: data lanes that may be used.  Raises `RoutingError` when called, if the engine cannot route the subnet.
    """

    def __init__(
        self, engine: str = "minhop", lanes: int = 1, options: Mapping[str, Any] | None = None
    ) -> None:
        self._engine = engine
        self._lanes = lanes
        self._options = dict(options or {})
        self._previous: Routing | None = None

    @property
    def routing(self) -> Routing | None:
        """The last one that was made."""
        return self._previous

    def __call__(self, subnet: Subnet) -> Tables:
        graph, guids = routing_graph(subnet)
        lanes = min(self._lanes, usable_lanes(subnet))
        routing = route(graph, self._engine, lanes=lanes, previous=self._previous, **self._options)
        self._previous = routing

        def level(source_lid: int, destination_lid: int) -> int:
            try:
                return routing.sl(source_lid, destination_lid)
            except RoutingError:
                return 0

        return Tables(
            routing.engine,
            dict(zip(guids, routing.tables, strict=True)),
            routing.lanes,
            level,
            list(routing.warnings),
        )


def usable_lanes(subnet: Subnet) -> int:
    """Data lanes that both ends of every link have."""
    codes = [port.info.vl_cap for pair in subnet.links() for port in pair]
    return min((LANES_OF_CODE.get(code, 1) for code in codes), default=1)


def routing_graph(subnet: Subnet) -> tuple[RoutingGraph, list[int]]:
    """The graph of a subnet, its switches named by their GUIDs in hexadecimal; and their GUIDs, in its order."""
    switches = subnet.switches
    index = {node.guid: i for i, node in enumerate(switches)}
    links, direct, ends = [], [], []
    for a, b in subnet.links():
        if a.node.is_switch and b.node.is_switch:
            links.append((index[a.node.guid], a.number, index[b.node.guid], b.number))
        elif not a.node.is_switch and not b.node.is_switch:
            direct.append((f"{a.guid:016x}", f"{b.guid:016x}"))
    for port in subnet.end_ports():
        if not port.lid:
            continue
        if port.node.is_switch:
            ends.append(End(port.lid, port.lmc, index[port.node.guid], 0, f"{port.node.guid:016x}"))
        elif port.peer is not None and port.peer.node.is_switch:
            peer = port.peer
            ends.append(End(port.lid, port.lmc, index[peer.node.guid], peer.number, f"{port.guid:016x}"))
        else:
            ends.append(End(port.lid, port.lmc, -1, 0, f"{port.guid:016x}"))
    graph = RoutingGraph(
        [(f"{node.guid:016x}", node.info.num_ports) for node in switches],
        links,
        ends,
        direct=direct,
        guids=[node.guid for node in switches],
    )
    return graph, list(index)


def multicast_ports(
    subnet: Subnet, groups: Mapping[int, Collection[int]]
) -> Iterator[tuple[int, int, set[int], list[int]]]:
    """For each group and each switch of its tree: (multicast LID, node GUID, ports to leave by, LIDs not reached).

    groups: members' port GUIDs by multicast LID; members that are not there are passed over.  Port 0 stands for the
    switch itself.
    """
    if not groups:
        return
    graph, guids = routing_graph(subnet)
    for mlid, members in groups.items():
        ports = (subnet.ports_by_guid.get(guid) for guid in members)
        tree = multicast_tree(
            graph, [port.lid for port in ports if port is not None and port.lid], choice=mlid
        )
        for switch, numbers in tree.items():
            yield mlid, guids[switch], numbers, tree.unreached
