"""What a fabric is, in whatever time it runs: its elements, its nodes with their agents, its subnet managers.

`FabricBase` builds what a `Topology` describes, gives each node its management agent, and makes the subnet managers.
`fabric.Fabric` runs it in virtual time, `real_fabric.RealFabric` in real time, there perhaps only a part of it: the
other nodes are in other processes then.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Protocol

from verbena.adapter.attributes import DeviceAttributes
from verbena.adapter.channel_adapter import ChannelAdapter
from verbena.clock import Clock
from verbena.errors import InvalidAttributeError, SystemLimitError
from verbena.fabric.addressing import default_prefixes, given_lids
from verbena.fabric.assembly import Assembly, FabricOptions, Outside
from verbena.fabric.topology import Link, NodeKind, PortId, Topology
from verbena.management.datagrams import MadAddress
from verbena.management.profile import NodeProfile, lane_code, profiles
from verbena.management.store import TopologyStore
from verbena.management.subnet_manager.config import SubnetManagerConfig
from verbena.runtime.capture import Captures, FabricCapture
from verbena.runtime.core_ports import CorePorts
from verbena.runtime.coupling import Couplings
from verbena.runtime.fabric_node import FabricNode
from verbena.runtime.manager import Manager
from verbena.runtime.router_node import RouterNode, Transit
from verbena.transport.kinds import AckPolicy
from verbena.verbs.context import Context
from verbena.wire.mad import ManagementClass

LINK_UP, LINK_DOWN, ROOM = 1, 2, 3  # reports of a core
VL15 = 15
MOST_DATAGRAMS = 1024
TRANSIT_PREFIX = 0xFEC0_0000_0001_0000  # of cables between routers
HOST = DeviceAttributes(max_qp=4096, max_cq=4096)
ANSWERED = (ManagementClass.SUBN_ADM, ManagementClass.PERFORMANCE, ManagementClass.DEVICE)
"""What a node answers itself, also where its own adapter asks."""


class FabricDriver(Protocol):
    """What runs an adapter on a fabric's ports."""

    def arrived(self, port: int, packet: bytes) -> None:
        """A packet came out of the fabric at the core's port."""

    def room(self, port: int) -> None:
        """A port takes packets again."""

    def port_changed(self) -> None:
        """Management may have changed something of a port."""


class FabricBase:
    """Elements, nodes and managers.

    topology: what there is; it is changed when cables are pulled and nodes switched off.  options: how the elements
    are made.  flits: every flit by itself, with its bytes; False: packets in trains of flits, faster, with the same
    times where nothing goes wrong.  config: of the managers; the first of a subnet's has priority.  store: where they
    remember.  local: the nodes that are here; None: all.  outside: what carries the cables that leave.

    `tap`, if it is set, is shown every packet that a node sends, LRH to ICRC, with the port it leaves by.
    """

    def __init__(
        self,
        topology: Topology,
        *,
        seed: int = 0,
        options: FabricOptions | None = None,
        flits: bool = True,
        config: SubnetManagerConfig | None = None,
        store: TopologyStore | None = None,
        local: Collection[str] | None = None,
        outside: Outside | None = None,
    ) -> None:
        self.topology = topology
        self.seed = seed
        self.assembly = Assembly(topology, options, seed=seed, flits=flits, local=local, outside=outside)
        self.core = self.assembly.core
        self._captures = Captures(self.assembly)
        self.config = config or SubnetManagerConfig()
        if not self.config.lids:
            self.config = _with_lids(self.config, topology)
        self.tap: Callable[[PortId, bytes], None] | None = None
        self.nodes: dict[str, FabricNode] = {}
        self.managers: dict[str, Manager] = {}
        self._store = store
        self._drivers: dict[str, FabricDriver] = {}
        self._couplings: Couplings | None = None
        self._datagrams: dict[tuple[int, bool], deque[bytes]] = {}
        self.counters: Counter[str] = Counter()
        self._profiles = self._make_profiles()
        self._clock: Clock

    def _make_profiles(self) -> dict[str, NodeProfile]:
        """What the nodes' agents tell of them: with the lanes and the MTU that their ports were made with."""
        made = self.assembly.options
        return {
            name: replace(profile, vl_cap=lane_code(made.lanes), mtu_cap=made.mtu.bit_length() - 8)
            for name, profile in profiles(self.topology).items()
        }

    def _make_nodes(self, clock: Clock) -> None:
        """The nodes that are here, with their agents."""
        self._clock = clock
        for name in self.assembly.nodes:
            self._make_node(name)
        for number, link in enumerate(self.topology.links):
            self._join_routers(link, number)

    def _make_node(self, name: str) -> None:
        def send(port: int, packet: bytes) -> None:
            self._send_datagram(self.assembly.ports[PortId(name, port)], packet)
            self._show(PortId(name, port), packet)

        kind = RouterNode if self.topology.nodes[name].kind is NodeKind.ROUTER else FabricNode
        self.nodes[name] = kind(
            self.assembly,
            self.topology.nodes[name],
            self._profiles[name],
            self._clock,
            send,
            Random(f"{self.seed} node {name}"),
        )

    # --- management ---------------------------------------------------------------------------------------

    def _join_routers(self, link: Link, number: int) -> None:
        """A cable between two routers is a subnet that they manage themselves."""
        one, other = self.nodes.get(link.a.node), self.nodes.get(link.b.node)
        if isinstance(one, RouterNode) and isinstance(other, RouterNode):
            prefix = TRANSIT_PREFIX + number
            one.join_transit(link.a.port, Transit(1, 2, prefix))
            other.join_transit(link.b.port, Transit(2, 1, prefix))

    def _default_managers(self) -> list[str]:
        """The first host of each subnet."""
        return [
            next(node.name for node in self.topology.hosts if node.name in part)
            for part in self.topology.subnets()
            if any(node.name in part for node in self.topology.hosts)
        ]

    def _make_managers(self, names: Sequence[str]) -> None:
        """In each subnet, those that come first have priority; each subnet has a GID prefix of its own."""
        parts = self.topology.subnets()
        prefixes = default_prefixes(len(parts))
        ranks = [0] * len(parts)
        for name in names:
            node = self.nodes.get(name)
            if node is None or node.node.kind is NodeKind.ROUTER:
                raise InvalidAttributeError(
                    f"{name!r} cannot run a subnet manager: it is no host and no switch of this fabric"
                )
            at = next(i for i, part in enumerate(parts) if name in part)
            config = replace(
                self.config,
                priority=max(self.config.priority - ranks[at], 0),
                gid_prefix=self.config.gid_prefix if len(parts) == 1 else prefixes[at],
            )
            ranks[at] += 1
            self.managers[name] = Manager(
                node, self._clock, config, self._store, self.seed, self._first_port(name)
            )

    def _first_port(self, name: str) -> int:
        node = self.topology.nodes[name]
        if node.kind is NodeKind.SWITCH:
            return 0
        return next((n for n in range(1, node.ports + 1) if PortId(name, n) in self.topology.at), 1)

    @property
    def settled(self) -> bool:
        """Has every subnet manager finished what it had to do?"""
        return all(manager.settled for manager in self.managers.values() if manager.running)

    def manager_of(self, name: str) -> Manager:
        """The master of a node's subnet.  Raises `SystemLimitError` while there is none."""
        guid = self.topology.nodes[name].guid
        for manager in self.managers.values():
            subnet = manager.subnet_manager.subnet
            if manager.is_master and subnet is not None and guid in subnet.nodes:
                return manager
        raise SystemLimitError(f"no subnet manager is in charge of {name}")

    # --- hosts --------------------------------------------------------------------------------------------

    def _host(self, name: str) -> FabricNode:
        """A host that is here, and whose adapter is not open; raises `InvalidAttributeError`, `SystemLimitError`."""
        node = self.nodes.get(name)
        if node is None or node.node.kind is not NodeKind.CA:
            hosts = ", ".join(each.name for each in self.topology.hosts[:8] if each.name in self.nodes)
            raise InvalidAttributeError(f"{name!r} is no host of this fabric: its hosts are {hosts} …")
        if name in self._drivers:
            raise SystemLimitError(f"adapter in use: {name} is open already")
        return node

    def _make_adapter(
        self,
        node: FabricNode,
        clock: Clock,
        random: Random,
        limits: DeviceAttributes | None,
        window_bytes: int,
        ack_policy: AckPolicy,
        lock: Any = None,
    ) -> ChannelAdapter:
        """An adapter for a host's node; its arguments are those of `ChannelAdapter`."""
        name, guid, ports = node.name, node.node.guid, node.node.ports
        return ChannelAdapter(
            None,
            limits or replace(HOST, name=name, node_guid=guid, phys_port_cnt=ports),
            ports=node.make_ports(),
            clock=clock,
            random=random,
            active_mtu=self.assembly.options.mtu,
            window_bytes=window_bytes,
            ack_policy=ack_policy,
            lock=lock,
        )

    def _core_ports(self, adapter: ChannelAdapter, node: FabricNode) -> CorePorts:
        numbers = range(1, node.node.ports + 1)
        return CorePorts(
            adapter,
            self.core,
            {n: self.assembly.ports[PortId(node.name, n)] for n in numbers},
            lambda number, packet: self._show(PortId(node.name, number), packet),
            self._couplings,
            lambda: self.tap is not None,
        )

    def _ride(
        self, node: FabricNode, adapter: ChannelAdapter, driver: FabricDriver, ports: CorePorts
    ) -> None:
        """From now on an adapter is the node's: it follows management, and gets the packets."""
        self._drivers[node.name] = driver
        node.attach(adapter)
        node.services.leftover = lambda port, packet: driver.arrived(ports.core_port(port), packet)

    def _serve(self, node: FabricNode, context: Context) -> None:
        """What an opened adapter answers although no program has asked for it."""
        # As on Linux, whoever asks for a service that nobody offers is told so at once, not left to time out.
        context.serve_connections()
        for kind in ANSWERED:
            context.serve_management(kind, partial(self._asked_itself, node))

    def _asked_itself(self, node: FabricNode, source: MadAddress, mad: bytes) -> None:
        """A node's own adapter asks it something."""
        node.services.request(source, mad)

    def _closed(self, name: str) -> None:
        self.nodes[name].detach()
        self.nodes[name].services.leftover = lambda port, packet: None
        self._drivers.pop(name, None)

    # --- packets ------------------------------------------------------------------------------------------

    def _show(self, port: PortId, packet: bytes) -> None:
        """Show the tap a packet as it leaves a port: with its lane."""
        if self.tap is None:
            return
        whole = bytearray(packet)
        if whole[0] >> 4 != VL15:
            lane = self.core.lane_of(self.assembly.ports[port], whole[1] >> 4)
            whole[0] = max(lane, 0) << 4 | whole[0] & 0x0F
        self.tap(port, bytes(whole))

    def _send_datagram(self, port: int, packet: bytes) -> None:
        """Send a node's management datagram; it waits where the port's send queue is full of data."""
        managed = packet[0] >> 4 == VL15  # what is on that lane waits for no data
        waiting = self._datagrams.setdefault((port, managed), deque())
        if waiting or not self.core.inject(port, packet):
            if len(waiting) >= MOST_DATAGRAMS:
                self.counters["drop.send_queue"] += 1
            else:
                waiting.append(packet)

    def _room_for_datagrams(self, port: int) -> None:
        for managed in (True, False):
            waiting = self._datagrams.get((port, managed))
            while waiting and self.core.inject(port, waiting[0]):
                waiting.popleft()

    def _deliver(self, port: int, packet: bytes, in_port: int, handle: int) -> None:
        at = self.assembly.ids[port]
        node = self.nodes[at.node]
        if packet[0] >> 4 == VL15:
            node.interface.receive(packet, in_port)
            self._tell_port_changed(at.node)
        elif node.services.receive(packet, at.port):
            pass
        elif isinstance(node, RouterNode):
            node.deliver(port, packet, handle)
            return  # the router gives the buffer back when the packet has left
        elif driver := self._drivers.get(at.node):
            driver.arrived(port, packet)
        if handle:
            self.core.release(handle)

    def _report(self, kind: int, port: int, detail: int) -> None:
        at = self.assembly.ids[port]
        node = self.nodes[at.node]
        if kind in (LINK_UP, LINK_DOWN):
            node.link_changed(at.port, kind == LINK_UP)
            self._tell_port_changed(at.node)
        elif kind == ROOM:
            self._room_for_datagrams(port)
            if isinstance(node, RouterNode):
                node.room(port, detail)
            elif driver := self._drivers.get(at.node):
                driver.room(port)

    def _tell_port_changed(self, name: str) -> None:
        if driver := self._drivers.get(name):
            driver.port_changed()

    # --- while it runs ------------------------------------------------------------------------------------

    def _changed(self) -> None:
        """Something was pulled or plugged: both ends notice it now, not when something else happens."""

    def pull(self, port: PortId | str) -> Link:
        """Pull the cable out of a port, written ``s1[3]``; what is on it is lost, and counted."""
        link = self.assembly.pull(port_id(port))
        self._changed()
        return link

    def plug(self, link: Link) -> Link:
        """Plug a cable in again."""
        made = self.assembly.plug(link)
        self._changed()
        return made

    def add(self, name: str) -> None:
        """Build a node that was added to the topology after the start; its cables are then plugged with `plug`.

        Raises `TopologyError` for a node that is there already.
        """
        self.assembly.add(name)
        self._profiles = self._make_profiles()
        self._make_node(name)

    def power_off(self, name: str) -> None:
        """Switch a node off: its links go down, and what runs on it stops.  Raises `TopologyError` if it is off."""
        self.assembly.power_off(name)
        if name in self.managers and self.managers[name].running:
            self.managers[name].stop()
        if isinstance(router := self.nodes.get(name), RouterNode):
            router.stop()
        self._changed()

    def power_on(self, name: str) -> None:
        """Switch a node on again; its subnet manager, if it had one, starts afresh."""
        self.assembly.power_on(name)
        self._changed()
        if name in self.managers:
            self.managers[name].start()

    def capture(self, path: Path | str, ports: Sequence[PortId | str]) -> FabricCapture:
        """Write what passes these ports to a pcapng file, until the capture is closed (a context manager).

        Raises `InvalidAttributeError` for what is no port of the fabric, `InvalidStateError` for one that is being
        captured already.
        """
        wanted = [port_id(port) for port in ports]
        for port in wanted:
            if port not in self.assembly.ports:
                raise InvalidAttributeError(f"the fabric has no port {port}")
        return self._captures.start(path, wanted, self._epoch_ns())

    def _epoch_ns(self) -> int:
        """What the clock's zero means in captures, in nanoseconds since 1970: in virtual time it is 1970."""
        return 0


def _with_lids(config: SubnetManagerConfig, topology: Topology) -> SubnetManagerConfig:
    """The configuration with the LIDs that a topology's nodes have noted, so that they keep them."""
    noted = given_lids(topology)
    ends = [lmc for port, (_, lmc) in noted.items() if port.port]
    lids = {topology.nodes[port.node].port_guid(port.port): given for port, given in noted.items()}
    return replace(config, lids=lids, lmc=max(ends, default=config.lmc)) if lids else config


def port_id(port: PortId | str) -> PortId:
    if isinstance(port, PortId):
        return port
    name, bracket, number = port.partition("[")
    if not bracket or not number[:-1].isdigit() or number[-1] != "]":
        raise InvalidAttributeError(f"{port!r} is no port: write for example s1[3]")
    return PortId(name, int(number[:-1]))
