"""What the diagnostic commands show, found out over a fabric that runs: from its subnet manager's picture, and by
management datagrams to its nodes.
"""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from typing import TypeVar

from verbena.errors import VerbenaError
from verbena.fabric.rates import Speed, Width
from verbena.fabric.topology import NodeKind, Topology
from verbena.management.datagrams import MadAddress, Pending
from verbena.management.performance import PerformanceClient
from verbena.management.subnet import Subnet, SubnetNode, SubnetPort
from verbena.runtime.fabric import Fabric
from verbena.runtime.manager import Manager
from verbena.scenario.diags import AdapterStatus, CounterSet, Hop, LinkStatus, NodeLinks, PortStatus
from verbena.wire.mad import ManagementClass
from verbena.wire.pm import PortCounters, PortCountersExtended

T = TypeVar("T")
PATIENCE_NS = 10_000_000_000
EXTENDED = {1: Speed.FDR, 2: Speed.EDR, 4: Speed.HDR, 8: Speed.NDR}
# Fields of the datagrams, in the words of perfquery.
WORDS = {
    "symbol_error": "SymbolErrorCounter",
    "link_error_recovery": "LinkErrorRecoveryCounter",
    "link_downed": "LinkDownedCounter",
    "rcv_errors": "PortRcvErrors",
    "rcv_remote_physical_errors": "PortRcvRemotePhysicalErrors",
    "rcv_switch_relay_errors": "PortRcvSwitchRelayErrors",
    "xmit_discards": "PortXmitDiscards",
    "xmit_constraint_errors": "PortXmitConstraintErrors",
    "rcv_constraint_errors": "PortRcvConstraintErrors",
    "local_link_integrity_errors": "LocalLinkIntegrityErrors",
    "excessive_buffer_overrun_errors": "ExcessiveBufferOverrunErrors",
    "qp1_dropped": "QP1Dropped",
    "vl15_dropped": "VL15Dropped",
    "xmit_data": "PortXmitData",
    "rcv_data": "PortRcvData",
    "xmit_pkts": "PortXmitPkts",
    "rcv_pkts": "PortRcvPkts",
    "xmit_wait": "PortXmitWait",
    "unicast_xmit_pkts": "PortUnicastXmitPkts",
    "unicast_rcv_pkts": "PortUnicastRcvPkts",
    "multicast_xmit_pkts": "PortMulticastXmitPkts",
    "multicast_rcv_pkts": "PortMulticastRcvPkts",
}


class Observer:
    """Looks at a fabric that is up, from the host that runs the subnet manager of one subnet.

    subnet: number of the subnet, if there are several.  Raises `VerbenaError` when that has no manager.
    """

    def __init__(self, fabric: Fabric, subnet: int = 0) -> None:
        masters = [manager for manager in fabric.managers.values() if manager.is_master]
        if subnet >= len(masters):
            raise VerbenaError(f"subnet {subnet}: there are {len(masters)} with a subnet manager")
        self.fabric = fabric
        self.manager: Manager = masters[subnet]
        found = self.manager.subnet_manager.subnet
        if found is None:
            raise VerbenaError("the subnet manager has not finished its first sweep")
        self.subnet: Subnet = found
        self._performance = PerformanceClient(
            lambda to, mad: self.manager.node.services.send_from(self.manager.port, to, mad),
            fabric.clock,
            Random(f"{fabric.seed} observer"),
        )
        self.manager.node.services.expect(ManagementClass.PERFORMANCE, self._performance.receive)

    # --- what the subnet manager has found ----------------------------------------------------------------

    def topology(self) -> Topology:
        """The subnet as a topology, with its LIDs; nodes have their descriptions for names."""
        return named(self.subnet)

    def node_links(self) -> list[NodeLinks]:
        """Every node with its links, switches first."""
        nodes = sorted(self.subnet.nodes.values(), key=lambda node: node.kind is not NodeKind.SWITCH)
        return [
            NodeLinks(node.kind, node.guid, node.name, [self._link(port) for port in _cabled(node)])
            for node in nodes
        ]

    def _link(self, port: SubnetPort) -> LinkStatus:
        peer = port.peer
        if peer is None:
            return LinkStatus(status_of(port))
        return LinkStatus(status_of(port), status_of(peer), peer.node.name)

    def adapters(self, name: str | None = None) -> list[AdapterStatus]:
        """The channel adapters, or that of one host's name; raises `VerbenaError` for a name that there is not."""
        found = []
        for node in self.subnet.of_kind(NodeKind.CA):
            here = self.fabric_name(node)
            if name is None or here == name:
                ports = [status_of(port) for port in _cabled(node)]
                found.append(AdapterStatus(here, node.guid, node.system_guid, ports))
        if not found:
            raise VerbenaError(f"there is no host {name} in this subnet")
        return found

    def fabric_name(self, node: SubnetNode) -> str:
        """The name that the fabric file gives a node."""
        names = (n.name for n in self.fabric.topology.nodes.values() if n.guid == node.guid)
        return next(names, node.name)

    def lid_of(self, what: str) -> int:
        """A LID from its number, or from a node's name (its first port that has one); raises `VerbenaError`."""
        if what.isdigit() or what.lower().startswith("0x"):
            lid = int(what, 0)
            if self.subnet.port_of_lid(lid) is None:
                raise VerbenaError(f"LID {lid} is no port's")
            return lid
        node = self.fabric.topology.nodes.get(what)
        found = None if node is None else self.subnet.nodes.get(node.guid)
        lid = 0 if found is None else next((p.lid for p in found.ports.values() if p.is_end and p.lid), 0)
        if not lid:
            raise VerbenaError(f"{what} is no node with a LID in this subnet")
        return lid

    def trace(self, source: int, destination: int) -> list[Hop]:
        """The path from one LID to another, by the forwarding tables; raises `VerbenaError` if there is none."""
        path = self.subnet.path(source, destination)
        start = self.subnet.port_of_lid(source)
        if path is None or start is None:
            raise VerbenaError(f"no path leads from LID {source} to LID {destination}")
        hops = [_hop(0, start)]
        for port in path.hops:
            assert port.peer is not None
            hops.append(_hop(port.number, port.peer))
        return hops

    # --- what the nodes tell ------------------------------------------------------------------------------

    def _wait(self, pending: Pending[T]) -> T:
        clock = self.fabric.clock
        end = clock.now() + PATIENCE_NS
        while not pending.done and clock.now() < end:
            clock.step(end)
        return pending.result()

    def counters(self, lid: int, port: int, *, extended: bool = False) -> CounterSet:
        """A port's performance counters, asked of its node.  Raises `ManagementError` when it does not answer."""
        to = MadAddress(lid=lid)
        able = self._wait(self._performance.class_port_info(to))
        answer: PortCounters | PortCountersExtended
        if extended:
            answer = self._wait(self._performance.extended_of(to, port))
        else:
            answer = self._wait(self._performance.counters_of(to, port))
        values = {word: int(getattr(answer, name)) for name, word in WORDS.items() if hasattr(answer, name)}
        return CounterSet(lid, port, values, able.capability_mask)

    def clear(self, lid: int, port: int) -> None:
        """Set a port's counters to zero."""
        to = MadAddress(lid=lid)
        self._wait(self._performance.clear(to, port))
        self._wait(self._performance.clear_extended(to, port))


def _cabled(node: SubnetNode) -> Iterable[SubnetPort]:
    return [node.ports[number] for number in sorted(node.ports) if number]


def status_of(port: SubnetPort) -> PortStatus:
    """A port as the diagnostics show it."""
    info = port.info
    addressed = port.node.ports[0].info if port.node.is_switch and 0 in port.node.ports else info
    widths = frozenset(w for w in Width if w & info.link_width_supported)
    speeds = frozenset(s for s in (Speed.SDR, Speed.DDR, Speed.QDR) if s & info.link_speed_supported)
    speeds |= {speed for code, speed in EXTENDED.items() if code & info.link_speed_ext_supported}
    return PortStatus(
        port.number,
        port.guid,
        int(info.port_state),
        int(info.port_physical_state),
        port.rate,
        port.lid,
        addressed.lmc,
        addressed.master_sm_lid,
        info.capability_mask,
        widths,
        speeds,
    )


def _hop(out_port: int, port: SubnetPort) -> Hop:
    node = port.node
    own = node.ports[0] if node.is_switch else port
    return Hop(
        out_port, node.kind, node.guid, own.guid or node.guid, port.number, own.lid, own.lmc, node.name
    )


def named(subnet: Subnet) -> Topology:
    """A subnet as a topology for printing: with LIDs, and descriptions."""
    topology, addresses = subnet.topology()
    for port, (lid, lmc) in addresses.items():
        topology.nodes[port.node].set_lid(port.port, lid, lmc)
    return topology
