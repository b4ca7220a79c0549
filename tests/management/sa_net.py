"""A configured subnet, its administration and clients at its ports, for the tests beside this file.

The forwarding tables are made here, by breadth-first search: what is tested follows them, it does not make them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any, TypeVar

from verbena.fabric.rates import LinkRate, Speed
from verbena.fabric.topology import NodeKind, PortId, Topology
from verbena.management.datagrams import MadAddress, Pending
from verbena.management.profile import profiles
from verbena.management.sa_client import SaClient
from verbena.management.sa_multicast import Tree
from verbena.management.subnet import Subnet, SubnetNode, SubnetPort
from verbena.management.subnet_administration import SubnetAdministration
from verbena.runtime.virtual import VirtualClock
from verbena.wire.smp_attributes import PortInfo, PortState

T = TypeVar("T")
PREFIX = 0xFE80_0000_0000_0001
DELAY_NS = 1_000
SM_KEY = 0x5EC2E7
_SPEEDS = {Speed.SDR: 1, Speed.DDR: 2, Speed.QDR: 4}
_EXTENDED = {Speed.FDR: 1, Speed.EDR: 2, Speed.HDR: 4, Speed.NDR: 8}


def active(info: PortInfo, rate: LinkRate, mtu: int = 5, **more: int) -> PortInfo:
    return replace(
        info,
        port_state=PortState.ACTIVE,
        port_physical_state=5,
        neighbor_mtu=mtu,
        link_width_active=int(rate.width),
        link_speed_active=_SPEEDS.get(rate.speed, 4),
        link_speed_ext_active=_EXTENDED.get(rate.speed, 0),
        gid_prefix=PREFIX,
        **more,
    )


def subnet_of(
    topology: Topology, *, lmc: int = 0, spread: bool = True, absent: set[str] = frozenset(), mtu: int = 5
) -> Subnet:
    """What a subnet manager would know of a topology: LIDs in the order of the nodes, shortest paths.

    spread: the several LIDs of a port take different shortest paths.  absent: nodes that are not plugged in.
    """
    subnet = Subnet(PREFIX)
    known = profiles(topology)
    nodes: dict[str, SubnetNode] = {}
    for name, node in topology.nodes.items():
        if name in absent:
            continue
        profile = known[name]
        made = SubnetNode(node.guid, profile.node_info(0 if profile.is_switch else 1), node.host)
        made.switch_info = replace(profile.switch_info(), life_time_value=4) if profile.is_switch else None
        nodes[name] = made
        subnet.add_node(made)
        for number in profile.port_numbers:
            port = SubnetPort(
                made, number, profile.port_guid(number), profile.port_info(number), pkeys=(0xFFFF,)
            )
            subnet.add_port(port)
    for link in topology.links:
        if link.a.node in nodes and link.b.node in nodes:
            a, b = (nodes[end.node].ports[end.port] for end in (link.a, link.b))
            a.peer, b.peer = b, a
            a.info, b.info = (active(port.info, link.rate, mtu) for port in (a, b))
    step = 1 << lmc
    next_lid = step
    for name, node in topology.nodes.items():  # the absent ones keep their LIDs
        for number in (0,) if node.kind is NodeKind.SWITCH else range(1, node.ports + 1):
            if name in nodes:
                port = nodes[name].ports[number]
                port.info = replace(
                    port.info, lid=next_lid, lmc=0 if node.kind is NodeKind.SWITCH else lmc, gid_prefix=PREFIX
                )
            next_lid += step
    subnet.index()
    for port in list(subnet.end_ports()):
        for lid in port.lids:
            fill(subnet, port, lid, lid - port.lid if spread else 0)
    subnet.sm_lid = next(port.lid for port in subnet.end_ports() if not port.node.is_switch)
    return subnet


def fill(subnet: Subnet, dest: SubnetPort, lid: int, choice: int) -> None:
    """The switches' ports for a LID: each forwards to a neighbour that is nearer, the `choice`-th of them."""
    distance = {dest.node.guid: 0}
    edge = deque([dest.node])
    if not dest.node.is_switch:
        if dest.peer is None or not dest.peer.node.is_switch:
            return
        distance = {dest.peer.node.guid: 1}
        edge = deque([dest.peer.node])
        set_port(dest.peer.node, lid, dest.peer.number)
    else:
        set_port(dest.node, lid, 0)
    while edge:
        node = edge.popleft()
        for port in node.ports.values():
            far = port.peer
            if far is not None and far.node.is_switch and far.node.guid not in distance:
                distance[far.node.guid] = distance[node.guid] + 1
                edge.append(far.node)
    for guid, hops in distance.items():
        node = subnet.nodes[guid]
        nearer = [
            port.number
            for port in node.ports.values()
            if port.peer is not None
            and port.peer.node.is_switch
            and distance[port.peer.node.guid] == hops - 1
        ]
        if nearer and hops > (0 if dest.node.is_switch else 1):
            set_port(node, lid, nearer[choice % len(nearer)])


def set_port(switch: SubnetNode, lid: int, port: int) -> None:
    block = bytearray(switch.lft.get(lid // 64, bytes([255]) * 64))
    block[lid % 64] = port
    switch.lft[lid // 64] = bytes(block)


class SaNet:
    """Subnet administration at the subnet manager's port, and clients anywhere.

    `fate` decides how often a datagram arrives, and how much later.
    """

    def __init__(
        self, topology: Topology, *, seed: int = 0, clock: VirtualClock | None = None, **more: Any
    ) -> None:
        self.clock = clock or VirtualClock()
        self.random = Random(seed)
        self.topology = topology
        shape = {name: more.pop(name) for name in ("lmc", "spread", "mtu") if name in more}
        self.shape = shape
        self.subnet = subnet_of(topology, **shape)
        self.trees: list[Tree] = []
        self.sent: list[tuple[int, int, bytes]] = []
        self.fate: Callable[[bytes], list[int]] = lambda data: [0]
        self.clients: dict[int, SaClient] = {}
        self.receivers: dict[int, Callable[[MadAddress, bytes], None]] = {}
        self.sa_lid = self.subnet.sm_lid
        self.sa = self.make_sa(**more)

    def make_sa(self, **more: Any) -> SubnetAdministration:
        options = {"sm_key": SM_KEY, "on_tree": self.trees.append} | more
        return SubnetAdministration(
            lambda: self.subnet,
            lambda to, data: self.carry(self.sa_lid, to.lid, data),
            self.clock,
            Random(self.random.random()),
            **options,
        )

    def carry(self, source: int, dest: int, data: bytes) -> None:
        self.sent.append((source, dest, data))
        for later in self.fate(data):
            when = self.clock.now() + DELAY_NS + later
            self.clock.call_at(when, lambda: self.arrive(source, dest, data))

    def arrive(self, source: int, dest: int, data: bytes) -> None:
        response = data[3] & 0x80 and data[3] != 0x86
        if dest == self.sa_lid and not response and data[3] != 6:
            self.sa.receive(MadAddress(source), data)
        elif dest in self.receivers:
            self.receivers[dest](MadAddress(source), data)

    def port(self, name: str, number: int = 1) -> SubnetPort:
        node = self.subnet.nodes[self.topology.nodes[name].guid]
        return node.ports[0 if node.is_switch else number]

    def gid(self, name: str, number: int = 1) -> bytes:
        return self.subnet.gid(self.port(name, number))

    def lid(self, name: str, number: int = 1) -> int:
        return self.port(name, number).lid

    def client(self, name: str, number: int = 1, *, trusted: bool = False) -> SaClient:
        """A client at a port."""
        lid = self.lid(name, number)
        made = SaClient(
            lambda to, data: self.carry(lid, to.lid, data),
            self.clock,
            Random(self.random.random()),
            MadAddress(self.sa_lid),
            sm_key=SM_KEY if trusted else 0,
        )
        self.clients[lid] = made
        self.receivers[lid] = made.receive
        return made

    def wait(self, pending: Pending[T]) -> T:
        """Its result, as soon as it is there."""
        while not pending.done and self.clock.next_time() is not None:
            self.clock.step()
        return pending.result()

    def run(self, duration_ns: int = 20_000_000_000) -> None:
        end = self.clock.now() + duration_ns
        while (at := self.clock.next_time()) is not None and at <= end:
            self.clock.step()
        self.clock.advance(end)

    def set_pkeys(self, name: str, *pkeys: int, number: int = 1) -> None:
        self.port(name, number).pkeys = pkeys

    def replace_subnet(self, **more: Any) -> None:
        """A new sweep has ended."""
        pkeys = {port.guid: port.pkeys for port in self.subnet.end_ports()}
        self.subnet = subnet_of(self.topology, **self.shape | more)
        for port in self.subnet.end_ports():
            port.pkeys = pkeys.get(port.guid, port.pkeys)
        self.sa.changed()

    def balanced(self) -> bool:
        counters = self.sa.counters
        taken = counters["answered"] + counters["accepted"]
        return counters["received"] == taken + sum(n for k, n in counters.items() if k.startswith("dropped."))


def redundant(hosts: int = 4, rate: str = "4xEDR") -> Topology:
    """Hosts at two leaf switches that two spines join."""
    topology = Topology()
    for switch in ("leaf1", "leaf2", "spine1", "spine2"):
        topology.add_switch(switch, 8)
    for leaf in ("leaf1", "leaf2"):
        for spine in ("spine1", "spine2"):
            topology.connect(leaf, spine, rate=rate)
    for number in range(hosts):
        name = f"h{number + 1}"
        topology.add_host(name)
        topology.connect(PortId(name, 1), f"leaf{number % 2 + 1}", rate=rate)
    return topology


def chain(hosts: int = 2) -> Topology:
    """Hosts at two switches that one cable joins."""
    topology = Topology()
    topology.add_switch("s1", 8)
    topology.add_switch("s2", 8)
    topology.connect("s1", "s2")
    for number in range(hosts):
        topology.add_host(f"h{number + 1}")
        topology.connect(f"h{number + 1}", f"s{number % 2 + 1}")
    return topology
