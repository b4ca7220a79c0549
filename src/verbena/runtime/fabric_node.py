"""One node of a fabric: what its management agent acts on, and the adapter that a program opens on it.

`CoreHardware` is a node's hardware as its agent sees it (`management.agent.Hardware`), in a fabric's core.
`FabricNode` is the node: its agents, its queue pairs 0 and 1, and, for a host that was opened, its channel adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from verbena.adapter.channel_adapter import ChannelAdapter
from verbena.adapter.port import AdapterPort, PortState
from verbena.clock import Clock
from verbena.fabric.assembly import Assembly
from verbena.fabric.rates import LinkRate
from verbena.fabric.topology import Node, NodeKind, PortId
from verbena.management.agent import AgentEvent, SubnetManagementAgent, life_ns
from verbena.management.gsi import GeneralServicesInterface
from verbena.management.performance import PerformanceAgent
from verbena.management.profile import LANES_OF_CODE, NodeProfile
from verbena.management.smi import SubnetManagementInterface
from verbena.wire.mad import ManagementClass
from verbena.wire.smp_attributes import PhysicalState, PortInfo

PKEY_BLOCK = 32
MTU_OF_CODE = {1: 256, 2: 512, 3: 1024, 4: 2048, 5: 4096}


class CoreHardware:
    """A node's ports and tables in a core.  Implements `management.agent.Hardware`."""

    def __init__(self, assembly: Assembly, node: Node) -> None:
        self._core = assembly.core
        self._assembly = assembly
        self._node = node
        self._index = assembly.nodes[node.name]
        self._is_switch = node.kind is NodeKind.SWITCH
        self._pkeys: dict[int, dict[int, tuple[int, ...]]] = {}
        self._enforce: dict[int, tuple[bool, bool]] = {}
        self._groups: dict[int, list[int]] = {}
        self.following = False
        """The agent learns what the core knows already; applied, an old LINK_DOWN would take the link down again."""
        self.port_listener: Callable[[int, PortInfo], None] = lambda port, info: None
        self.pkey_listener: Callable[[int, list[int]], None] = lambda port, keys: None

    def _port(self, number: int) -> int:
        return self._assembly.ports[PortId(self._node.name, number)]

    def apply_port(self, port: int, info: PortInfo) -> None:
        made = self._port(port)
        if not self.following and self._core.port_state(made) != PortState.DOWN:
            self._core.set_state(made, int(info.port_state))
        if not self._is_switch or port == 0:
            self._core.set_lids(made, info.lid, info.lmc)
        if not self._is_switch or port:
            self._core.set_lanes(made, min(LANES_OF_CODE[info.operational_vls], self._assembly.options.lanes))
        if self._is_switch and port:
            self._core.set_limits(made, life_ns(info.hoq_life))
            wanted = (bool(info.partition_enforcement_inbound), bool(info.partition_enforcement_outbound))
            if wanted != self._enforce.get(port, (False, False)):
                self._enforce[port] = wanted
                self._apply_pkeys(port)
        self.port_listener(port, info)

    def physical_state(self, port: int) -> int:
        up = self._assembly.is_up(PortId(self._node.name, port))
        return PhysicalState.LINK_UP if up else PhysicalState.POLLING

    def rate(self, port: int) -> LinkRate:
        link = self._assembly.topology.at.get(PortId(self._node.name, port))
        return LinkRate() if link is None else link.rate

    def set_lft(self, block: int, ports: bytes) -> None:
        self._core.set_lft(self._index, 64 * block, ports)

    def set_mft(self, block: int, position: int, masks: Sequence[int]) -> None:
        for at, mask in enumerate(masks):
            lid = 0xC000 + 32 * block + at
            low = 16 * position
            kept = [p for p in self._groups.get(lid, ()) if not low <= p < low + 16]
            ports = self._groups[lid] = kept + [low + bit for bit in range(16) if mask >> bit & 1]
            self._core.set_mft(self._index, lid, [p for p in ports if p <= self._node.ports])

    def set_sl2vl(self, port: int, table: bytes) -> None:
        self._core.set_sl2vl(self._port(port), table)

    def set_arbitration(
        self, port: int, high: Sequence[tuple[int, int]], low: Sequence[tuple[int, int]], limit: int
    ) -> None:
        if not self._is_switch or port:
            self._core.set_arbitration(self._port(port), list(high), list(low), limit)

    def set_pkeys(self, port: int, block: int, keys: Sequence[int]) -> None:
        self._pkeys.setdefault(port, {})[block] = tuple(keys)
        self._apply_pkeys(port)

    def _apply_pkeys(self, port: int) -> None:
        blocks = self._pkeys.get(port, {})
        keys = [key for block in sorted(blocks) for key in blocks[block]]
        if self._is_switch and port:
            inbound, outbound = self._enforce.get(port, (False, False))
            self._core.set_pkeys(self._port(port), [key for key in keys if key], inbound, outbound)
        self.pkey_listener(port, keys)

    def set_lifetime(self, life_ns: int) -> None:
        self._core.set_lifetime(self._index, life_ns)

    def port_counters(self, port: int) -> dict[str, int]:
        counted = self._core.port_counters(self._port(port))
        return {name: value for name, value in counted.items() if isinstance(value, int)}

    def clear_counters(self, port: int, names: Sequence[str]) -> None:
        self._core.clear_counters(self._port(port), names)


class FabricNode:
    """A node with its agents.  send: puts a packet on the fabric at one of its ports."""

    def __init__(
        self,
        assembly: Assembly,
        node: Node,
        profile: NodeProfile,
        clock: Clock,
        send: Callable[[int, bytes], None],
        random: Random,
    ) -> None:
        self.node = node
        self.hardware = CoreHardware(assembly, node)
        self.agent = SubnetManagementAgent(profile, self.hardware, clock, self._event)
        self.interface = SubnetManagementInterface(self.agent, send, clock)
        self.services = GeneralServicesInterface(
            send, self.agent.lid, self._gid, self.agent.owns, clock, random
        )
        ports = [port for port in profile.port_numbers if port or node.kind is not NodeKind.SWITCH]
        self.performance = PerformanceAgent(self.services.send, ports, self.hardware.port_counters)
        self.services.serve(ManagementClass.PERFORMANCE, self.performance.receive)
        self.adapter: ChannelAdapter | None = None
        self.link_listener: Callable[[int], None] = lambda port: None

    def _gid(self, port: int) -> bytes:
        at = self.agent.addressed(port)
        prefix = self.agent.port_info(at).gid_prefix
        return (prefix << 64 | self.agent.profile.port_guid(at)).to_bytes(16, "big")

    @property
    def name(self) -> str:
        return self.node.name

    def link_changed(self, port: int, up: bool) -> None:
        """The core tells that a link has come up, or gone."""
        self.hardware.following = True
        try:
            self.agent.link_changed(port, up)
        finally:
            self.hardware.following = False
        self.link_listener(port)

    # --- the adapter of an opened host --------------------------------------------------------------------

    def make_ports(self) -> list[AdapterPort]:
        """The ports of a new adapter, as management has set them."""
        made = []
        for number in range(1, self.node.ports + 1):
            port = AdapterPort(number, self.agent.profile.port_guid(number))
            self._follow(port, self.agent.port_info(number))
            port.set_pkeys(self._shortened(self.agent.tables.pkeys(number)))
            made.append(port)
        return made

    def attach(self, adapter: ChannelAdapter) -> None:
        """From now on, the adapter follows what management sets."""
        self.adapter = adapter
        self.hardware.port_listener = self._port_set
        self.hardware.pkey_listener = self._pkeys_set

    def detach(self) -> None:
        """The adapter was closed."""
        self.adapter = None
        self.hardware.port_listener = lambda port, info: None
        self.hardware.pkey_listener = lambda port, keys: None

    @staticmethod
    def _shortened(keys: Sequence[int]) -> list[int]:
        kept = list(keys)
        while len(kept) > 1 and not kept[-1]:
            kept.pop()
        return kept

    @staticmethod
    def _follow(port: AdapterPort, info: PortInfo) -> None:
        port.set_lid(info.lid, info.lmc)
        port.sm_lid, port.sm_sl = info.master_sm_lid, info.master_sm_sl
        port.gid_prefix = info.gid_prefix
        port.mtu = min(MTU_OF_CODE.get(info.neighbor_mtu, 256), port.max_mtu)
        target = PortState(info.port_state)
        if target < port.state:
            port.state = PortState.DOWN if target is PortState.DOWN else PortState.INIT
        for state in (PortState.INIT, PortState.ARMED, PortState.ACTIVE):
            if port.state < state <= target:
                port.state = state

    def _port_set(self, number: int, info: PortInfo) -> None:
        if self.adapter is not None:
            self._follow(self.adapter.ports[number - 1], info)
            self.adapter.port_changed(number)

    def _pkeys_set(self, number: int, keys: list[int]) -> None:
        if self.adapter is not None:
            self.adapter.ports[number - 1].set_pkeys(self._shortened(keys))
            self.adapter.port_changed(number)

    def _event(self, event: AgentEvent, port: int) -> None:
        if self.adapter is not None and event is AgentEvent.CLIENT_REREGISTER:
            self.adapter.port_changed(port)
