"""A subnet as its manager knows it: nodes, ports, links, LIDs, tables, and the way between any two of them.

A `Subnet` is one finished sweep's picture.  The subnet manager replaces it as a whole when it has a newer one
(`SubnetManager.subnet`), so whoever reads one, as subnet administration does, sees no half-done state: read
`manager.subnet` again for each query, and do not write to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from verbena.fabric.rates import LinkRate
from verbena.fabric.topology import NodeKind, PortId, Topology
from verbena.management.port_settings import active_rate
from verbena.wire.smp_attributes import LFT_BLOCK, NO_PORT, NodeInfo, PortInfo, PortState, SwitchInfo

MAX_SWITCHES_ON_PATH = 64


@dataclass(eq=False, slots=True)
class SubnetPort:
    """A port of a node.

    number: 1 and on; a switch's management port is 0.  guid: the port's GUID (a switch's ports share the node's).
    info: what the port reports, kept up to date with what was set.  path: the directed route from the manager's node to
    this one (to an adapter's port: by that port).  peer: what the cable leads to.  pkeys: as written by the manager.
    """

    node: SubnetNode = field(repr=False)
    number: int
    guid: int
    info: PortInfo
    path: bytes = b""
    peer: SubnetPort | None = field(default=None, repr=False)
    pkeys: tuple[int, ...] = ()

    @property
    def lid(self) -> int:
        """The base LID; 0: none.  All ports of a switch have that of its port 0."""
        if self.node.kind is NodeKind.SWITCH and self.number:
            return self.node.ports[0].info.lid
        return self.info.lid

    @property
    def lmc(self) -> int:
        """The port answers to 2^lmc LIDs, from the base LID on."""
        return self.info.lmc

    @property
    def lids(self) -> range:
        """All LIDs of the port; empty before it has one."""
        return range(self.lid, self.lid + (1 << self.lmc)) if self.lid else range(0)

    @property
    def state(self) -> PortState:
        return PortState(self.info.port_state)

    @property
    def mtu_code(self) -> int:
        """PortInfo:NeighborMTU: 1 is 256 bytes ... 5 is 4096."""
        return self.info.neighbor_mtu

    @property
    def rate(self) -> LinkRate:
        return active_rate(self.info)

    @property
    def is_end(self) -> bool:
        """Whether it is an end of paths: not a switch's external port."""
        return self.node.kind is not NodeKind.SWITCH or self.number == 0

    def __str__(self) -> str:
        return f"{self.node.name}[{self.number}]"


@dataclass(eq=False, slots=True)
class SubnetNode:
    """A channel adapter, switch or router.

    name: its NodeDescription.  path: a directed route from the manager's node.  lft: of a switch, the blocks of 64 LIDs
    of its linear forwarding table as last written and confirmed; `mft` likewise, by (block, position), and empty bytes
    where a block was written and is not confirmed.
    """

    guid: int
    info: NodeInfo
    name: str = ""
    path: bytes = b""
    ports: dict[int, SubnetPort] = field(default_factory=dict)
    switch_info: SwitchInfo | None = None
    lft: dict[int, bytes] = field(default_factory=dict, repr=False)
    mft: dict[tuple[int, int], bytes] = field(default_factory=dict, repr=False)

    @property
    def kind(self) -> NodeKind:
        return NodeKind(self.info.node_type)

    @property
    def is_switch(self) -> bool:
        return self.kind is NodeKind.SWITCH

    @property
    def system_guid(self) -> int:
        return self.info.system_image_guid

    @property
    def lid(self) -> int:
        """A switch's LID; of another node, its first port's."""
        return next((port.lid for port in self.ports.values() if port.is_end), 0)

    def output_port(self, lid: int) -> int:
        """The port by which a switch forwards a unicast LID; 255: it does not."""
        block = self.lft.get(lid // LFT_BLOCK)
        return NO_PORT if block is None else block[lid % LFT_BLOCK]

    def __str__(self) -> str:
        return f"{self.kind.name} {self.name or hex(self.guid)}"


@dataclass(frozen=True, slots=True)
class Path:
    """A way through the subnet.

    hops: ports by which the packet leaves, the source's first.  mtu_code: the smallest on the way.  rate: the slowest.
    """

    source_lid: int
    destination_lid: int
    sl: int
    mtu_code: int
    rate: LinkRate
    hops: tuple[SubnetPort, ...]


class Subnet:
    """Nodes by GUID, ports by LID and GUID.

    gid_prefix: the upper half of every GID.  sm_lid: the master's LID.  service_level(source LID, destination LID):
    as the routing engine demands.
    """

    def __init__(self, gid_prefix: int) -> None:
        self.gid_prefix = gid_prefix
        self.sm_lid = 0
        self.engine = ""
        self.lanes = 1
        self.service_level: Callable[[int, int], int] = lambda source, destination: 0
        self.nodes: dict[int, SubnetNode] = {}
        self.ports_by_guid: dict[int, SubnetPort] = {}
        self._by_lid: dict[int, SubnetPort] = {}

    # --- building, by the subnet manager ------------------------------------------------------------------------

    def add_node(self, node: SubnetNode) -> None:
        self.nodes[node.guid] = node

    def add_port(self, port: SubnetPort) -> None:
        port.node.ports[port.number] = port
        if port.is_end:
            self.ports_by_guid[port.guid] = port

    def remove_node(self, node: SubnetNode) -> None:
        for port in node.ports.values():
            if port.peer is not None:
                port.peer.peer = None
            if self.ports_by_guid.get(port.guid) is port:
                del self.ports_by_guid[port.guid]
        self.nodes.pop(node.guid, None)

    def index(self) -> None:
        """After LIDs have changed: look-ups by LID."""
        self._by_lid = {lid: port for port in self.end_ports() for lid in port.lids}

    # --- questions ----------------------------------------------------------------------------------------------

    def of_kind(self, kind: NodeKind) -> list[SubnetNode]:
        return [node for node in self.nodes.values() if node.kind is kind]

    @property
    def switches(self) -> list[SubnetNode]:
        return self.of_kind(NodeKind.SWITCH)

    def end_ports(self) -> Iterator[SubnetPort]:
        """The ports that have LIDs: of adapters and routers, and the switches' ports 0."""
        return iter(list(self.ports_by_guid.values()))

    def port_of_lid(self, lid: int) -> SubnetPort | None:
        """The port that answers to a unicast LID."""
        return self._by_lid.get(lid)

    def gid(self, port: SubnetPort) -> bytes:
        """A port's first GID: the subnet's prefix and its GUID."""
        return (self.gid_prefix << 64 | port.guid).to_bytes(16, "big")

    def links(self) -> Iterator[tuple[SubnetPort, SubnetPort]]:
        """Every cable once."""
        for node in self.nodes.values():
            for port in node.ports.values():
                peer = port.peer
                if peer is not None and (node.guid, port.number) <= (peer.node.guid, peer.number):
                    yield port, peer

    def path(self, source_lid: int, destination_lid: int) -> Path | None:
        """The way that the forwarding tables in force give; None if there is none, or a port on it is not active."""
        source, end = self._by_lid.get(source_lid), self._by_lid.get(destination_lid)
        if source is None or end is None:
            return None
        hops: list[SubnetPort] = []
        mtu, rate = source.mtu_code or 1, source.rate
        if source is not end:
            step = self._leave(source.node, destination_lid) if source.node.is_switch else source
            rate = step.rate if step is not None else rate
            while True:
                peer = None if step is None else step.peer
                if step is None or peer is None or not step.state == peer.state == PortState.ACTIVE:
                    return None
                hops.append(step)
                mtu = min(mtu, step.mtu_code, peer.mtu_code)
                rate = min(rate, step.rate, key=lambda one: one.bps)
                if peer is end or (end.node is peer.node and end.node.is_switch):
                    break
                if not peer.node.is_switch or len(hops) > MAX_SWITCHES_ON_PATH:
                    return None
                step = self._leave(peer.node, destination_lid)
        sl = self.service_level(source_lid, destination_lid)
        return Path(source_lid, destination_lid, sl, mtu, rate, tuple(hops))

    @staticmethod
    def _leave(switch: SubnetNode, lid: int) -> SubnetPort | None:
        number = switch.output_port(lid)
        return switch.ports.get(number) if number else None

    def topology(self) -> tuple[Topology, dict[PortId, tuple[int, int]]]:
        """As a `Topology`, nodes named by their GUIDs in hexadecimal, and the addresses: port -> (base LID, LMC).

        A switch's address stands at its port 0.
        """
        topology = Topology()
        addresses: dict[PortId, tuple[int, int]] = {}
        for node in self.nodes.values():
            made = topology.add(
                f"{node.guid:016x}",
                node.kind,
                node.info.num_ports,
                guid=node.guid,
                description=node.name,
                system_guid=node.system_guid,
                port_guids={port.number: port.guid for port in node.ports.values() if port.is_end},
            )
            made.vendor_id, made.device_id = node.info.vendor_id, node.info.device_id
            for port in node.ports.values():
                if port.is_end and port.lid:
                    addresses[PortId(made.name, port.number)] = (port.lid, port.lmc)
        for a, b in self.links():
            topology.connect(
                PortId(f"{a.node.guid:016x}", a.number),
                PortId(f"{b.node.guid:016x}", b.number),
                rate=a.rate,
            )
        return topology, addresses
