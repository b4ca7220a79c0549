"""What is plugged into what: nodes, their ports, the links between them.  A description; nothing here moves.

Everything that has a fabric is built from a `Topology`: the simulator, the routing engines, the files and pictures.
Names and numbers: document 003, paragraphs 567 to 606; node types: IBA vol. 1, 14.2.5.3 (NodeInfo).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum

from verbena.errors import VerbenaError
from verbena.fabric.rates import LinkRate

DEFAULT_RATE = LinkRate()
MTUS = (256, 512, 1024, 2048, 4096)
LARGEST_SWITCH = 254  # port 255 of a forwarding table means: drop (IBA vol. 1, 14.2.5.10)
CA_GUID = 0x02_76_62_00_00_00_00_00  # locally administered EUI-64s: adapters,
SWITCH_GUID = 0x02_76_62_01_00_00_00_00  # switches,
ROUTER_GUID = 0x02_76_62_02_00_00_00_00  # routers


class TopologyError(VerbenaError):
    """A topology that cannot be built; the message names the element."""


class NodeKind(IntEnum):
    """NodeInfo:NodeType."""

    CA = 1
    SWITCH = 2
    ROUTER = 3


@dataclass(eq=False, slots=True)
class Node:
    """A channel adapter, a switch or a router.

    name: of this element, unique.  host: the host that an adapter belongs to (several adapters may name the same one),
    for a switch the package that it is managed with; the element's own name by default.  ports: numbered 1 to `ports`;
    a switch has its management port 0 besides.  guid: EUI-64 of the node; port n of an adapter or router has guid + n,
    unless `port_guids` says otherwise.  system_guid: of the system image.  description: of NodeDescription, at most
    64 bytes.  base_lid, lmc: of a switch's port 0, or of port 1; an adapter's further ports have theirs in `port_lids`.
    0: none yet.  extras: what a file told that has no field here, and where a generator put the node in its shape.
    """

    name: str
    kind: NodeKind
    ports: int
    guid: int
    host: str = ""
    description: str = ""
    system_guid: int = 0
    vendor_id: int = 0x76_62_00
    device_id: int = 0
    base_lid: int = 0
    lmc: int = 0
    port_guids: dict[int, int] = field(default_factory=dict)
    port_lids: dict[int, tuple[int, int]] = field(default_factory=dict)
    extras: dict[str, object] = field(default_factory=dict)

    def port_guid(self, port: int) -> int:
        """A port's GUID: a switch has one for all its ports (IBA vol. 1, 14.2.5.3)."""
        return self.guid if self.kind is NodeKind.SWITCH else self.port_guids.get(port, self.guid + port)

    def lid(self, port: int) -> tuple[int, int]:
        """Base LID and LMC of a port (0, 0: none yet); those of port 0 for any port of a switch."""
        if self.kind is NodeKind.SWITCH or port == 1:
            return self.base_lid, self.lmc
        return self.port_lids.get(port, (0, 0))

    def set_lid(self, port: int, base: int, lmc: int = 0) -> None:
        """Note a port's base LID and LMC; `addressing` checks them."""
        if self.kind is NodeKind.SWITCH or port == 1:
            self.base_lid, self.lmc = base, lmc
        else:
            self.port_lids[port] = (base, lmc)

    def __repr__(self) -> str:
        return f"{self.kind.name} {self.name}"


@dataclass(frozen=True, slots=True)
class PortId:
    """A port of a node, by the node's name."""

    node: str
    port: int

    def __str__(self) -> str:
        return f"{self.node}[{self.port}]"


@dataclass(frozen=True, slots=True)
class Link:
    """A full-duplex cable.  delay_ns: one way.  bit_error_rate: probability of each bit, each way."""

    a: PortId
    b: PortId
    rate: LinkRate = DEFAULT_RATE
    delay_ns: int = 100
    bit_error_rate: float = 0.0

    def other(self, end: PortId) -> PortId:
        return self.b if end == self.a else self.a


class Topology:
    """Nodes by name, and links.  Adding what cannot be raises `TopologyError` at once; `problems` tells the rest."""

    def __init__(self, name: str = "fabric") -> None:
        self.name = name
        self.nodes: dict[str, Node] = {}
        self.links: list[Link] = []
        self.at: dict[PortId, Link] = {}
        self._guids: dict[int, str] = {}
        self._made = dict.fromkeys(NodeKind, 0)  # GUIDs given out, by kind

    def add(
        self,
        name: str,
        kind: NodeKind,
        ports: int,
        *,
        guid: int | None = None,
        host: str | None = None,
        description: str | None = None,
        system_guid: int | None = None,
        port_guids: dict[int, int] | None = None,
    ) -> Node:
        """A new node.  Raises `TopologyError` for a name or GUID that another node has."""
        if not name or name in self.nodes:
            raise TopologyError(f"node {name!r}: each needs a name of its own")
        most = LARGEST_SWITCH if kind is NodeKind.SWITCH else 255
        if not 1 <= ports <= most:
            raise TopologyError(f"{kind.name} {name}: {ports} ports; it must have 1 to {most}")
        if guid is None:
            guid = self._next_guid(kind)
        node = Node(
            name,
            kind,
            ports,
            guid,
            host=name if host is None else host,
            description=name if description is None else description,
            system_guid=guid if system_guid is None else system_guid,
            port_guids=port_guids or {},
        )
        for number in {guid, *(node.port_guid(p) for p in range(1, ports + 1))}:
            if not 0 < number < 1 << 64:
                raise TopologyError(f"{kind.name} {name}: GUID {number:#x} is not from 1 to 2^64 - 1")
            if number in self._guids:
                raise TopologyError(f"{kind.name} {name}: GUID {number:#018x} is {self._guids[number]}'s")
        for number in {guid, *(node.port_guid(p) for p in range(1, ports + 1))}:
            self._guids[number] = name
        self.nodes[name] = node
        return node

    def _next_guid(self, kind: NodeKind) -> int:
        base = {NodeKind.CA: CA_GUID, NodeKind.SWITCH: SWITCH_GUID, NodeKind.ROUTER: ROUTER_GUID}[kind]
        step = 1 << 8  # room for the ports' GUIDs
        while True:
            self._made[kind] += 1
            if (guid := base + step * self._made[kind]) not in self._guids:
                return guid

    def add_host(
        self, name: str, ports: int = 1, *, guid: int | None = None, host: str | None = None
    ) -> Node:
        """A channel adapter; `host` names the host that it belongs to, if that is not its own name."""
        return self.add(name, NodeKind.CA, ports, guid=guid, host=host)

    def add_switch(self, name: str, ports: int, *, guid: int | None = None, host: str | None = None) -> Node:
        """A switch; `host` names the package that it is managed with."""
        return self.add(name, NodeKind.SWITCH, ports, guid=guid, host=host)

    def add_router(self, name: str, ports: int = 2, *, guid: int | None = None) -> Node:
        return self.add(name, NodeKind.ROUTER, ports, guid=guid)

    def connect(
        self,
        a: str | PortId,
        b: str | PortId,
        *,
        rate: LinkRate | str = DEFAULT_RATE,
        delay_ns: int = 100,
        bit_error_rate: float = 0.0,
    ) -> Link:
        """Plug a cable in; a node's name alone stands for its lowest free port.  Raises `TopologyError`."""
        rate = LinkRate.parse(rate) if isinstance(rate, str) else rate
        ends = [self._free_port(a), PortId("", 0)]
        ends[1] = self._free_port(b, besides=ends[0])
        if delay_ns < 0 or not 0 <= bit_error_rate < 1:
            raise TopologyError(
                f"link {ends[0]} - {ends[1]}: a delay of 0 or more, an error rate from 0 to 1"
            )
        link = Link(ends[0], ends[1], rate, delay_ns, bit_error_rate)
        self.links.append(link)
        self.at[link.a] = self.at[link.b] = link
        return link

    def _free_port(self, end: str | PortId, besides: PortId | None = None) -> PortId:
        name = end if isinstance(end, str) else end.node
        node = self.nodes.get(name)
        if node is None:
            raise TopologyError(f"link to {end}: there is no node {name}")
        if isinstance(end, PortId):
            if not 1 <= end.port <= node.ports:
                raise TopologyError(f"link to {end}: {node!r} has ports 1 to {node.ports}")
            if end in self.at or end == besides:
                other = self.at[end].other(end) if end in self.at else end
                raise TopologyError(f"link to {end}: the port is already connected, to {other}")
            return end
        for number in range(1, node.ports + 1):
            port = PortId(name, number)
            if port not in self.at and port != besides:
                return port
        raise TopologyError(f"link to {name}: all its {node.ports} ports are connected")

    def disconnect(self, end: PortId) -> Link:
        """Pull the cable out of a port; raises `TopologyError` if there is none."""
        link = self.at.get(end)
        if link is None:
            raise TopologyError(f"{end} is not connected")
        del self.at[link.a], self.at[link.b]
        self.links.remove(link)
        return link

    def remove(self, name: str) -> Node:
        """Take a node away, with its cables."""
        if name not in self.nodes:
            raise TopologyError(f"there is no node {name}")
        for link in self.links_of(name):
            self.disconnect(link.a)
        node = self.nodes.pop(name)
        for guid in [guid for guid, owner in self._guids.items() if owner == name]:
            del self._guids[guid]
        return node

    def peer(self, end: PortId) -> PortId | None:
        """What is at the other end of a port's cable."""
        link = self.at.get(end)
        return None if link is None else link.other(end)

    def links_of(self, name: str) -> list[Link]:
        return [self.at[p] for n in range(1, self.nodes[name].ports + 1) if (p := PortId(name, n)) in self.at]

    def of_kind(self, kind: NodeKind) -> list[Node]:
        return [node for node in self.nodes.values() if node.kind is kind]

    @property
    def hosts(self) -> list[Node]:
        """The channel adapters, in the order in which they were added."""
        return self.of_kind(NodeKind.CA)

    @property
    def switches(self) -> list[Node]:
        return self.of_kind(NodeKind.SWITCH)

    def subnets(self) -> list[set[str]]:
        """The parts that are connected without crossing a router; a router is in every subnet that it touches."""
        left = {name for name, node in self.nodes.items() if node.kind is not NodeKind.ROUTER}
        found: list[set[str]] = []
        while left:
            start = next(name for name in self.nodes if name in left)
            part, edge = {start}, [start]
            while edge:
                name = edge.pop()
                if self.nodes[name].kind is NodeKind.ROUTER:
                    continue
                for link in self.links_of(name):
                    for end in (link.a, link.b):
                        if end.node not in part:
                            part.add(end.node)
                            edge.append(end.node)
            found.append(part)
            left -= part
        return found

    def problems(self) -> Iterator[str]:
        """What cannot be built, and what a fabric would run with but a person should know (`check.check`)."""
        from verbena.fabric.check import check  # it looks at topologies

        for problem in check(self):
            yield str(problem)
